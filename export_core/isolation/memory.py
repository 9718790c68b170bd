"""How much memory a disposable process holds, with everything that it started.

A limit on address space (``RLIMIT_AS``) would count what torch maps and never touches; a control group of its
own needs rights that a job of an ordinary user does not have. So whoever waits for the process looks at it.
What counts is what the kernel could only take back by killing: anonymous and shared memory, and what of it
was swapped out. Mapped files, such as libraries and checkpoints, do not count.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_COUNTED = ("RssAnon:", "RssShmem:", "VmSwap:")


def held(*leaders: int) -> int:
    """Return the bytes held by processes and all that descend from them; 0 for one that is gone."""
    if not Path("/proc/self/status").exists():
        return sum(map(_resident, leaders))
    return sum(_held_by(process) for leader in leaders for process in family(leader))


def _held_by(process: int) -> int:
    total = 0
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith(_COUNTED):
                total += int(line.split()[1]) * 1024
    return total


def family(leader: int) -> Iterator[int]:
    """Yield a process and all that descend from it; the process alone where the kernel does not tell."""
    yield leader
    tasks = Path(f"/proc/{leader}/task")
    try:
        threads = list(tasks.iterdir())
    except OSError:  # the process has ended; it may do so at any line here
        return
    for thread in threads:
        with suppress(OSError):  # the thread has ended, or the kernel does not tell
            for child in (thread / "children").read_text(encoding="utf-8").split():
                yield from family(int(child))


def _resident(leader: int) -> int:
    """Where the kernel tells less: resident memory, mapped files included."""
    import psutil

    try:
        process = psutil.Process(leader)
        family = [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return 0
    total = 0
    for each in family:
        with suppress(psutil.NoSuchProcess):
            total += int(each.memory_info().rss)
    return total
