"""Functions that disposable processes run in tests; they can be imported there as zooport.tests."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zooport.export_core.failures import Failure, Stage

Report = Callable[[Stage], None]


def echo(value: Any, *, report: Report) -> Any:
    return value


def facts(*, report: Report) -> dict[str, Any]:
    """What the process is: ids, threads, streams, modules."""
    torch = sys.modules.get("torch")
    return {
        "pid": os.getpid(),
        "group": os.getpgid(0),
        "session": os.getsid(0),
        "system_threads": len(list(Path("/proc/self/task").iterdir())),
        "torch_imported": torch is not None,
        "torch_threads": torch.get_num_threads() if torch else None,
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "read": sys.stdin.read(),
        "descriptors": sorted(int(each.name) for each in Path("/proc/self/fd").iterdir()),
        "directory": str(Path.cwd()),
    }


def speak(*, report: Report) -> None:
    sys.stdout.write("from python\n")
    sys.stderr.write("to the error stream\n")
    subprocess.run(["echo", "from a child"], check=True)


def stages(*names: str, report: Report) -> str:
    for name in names:
        report(Stage(name))
    return "done"


def segfault(*, report: Report) -> None:
    report(Stage.EXPORT)
    ctypes.string_at(0)


def die_by(number: int, *, report: Report) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(code: int, *, report: Report) -> None:
    sys.stdout.write("last words\n")
    sys.stdout.flush()
    os._exit(code)


def hang(*, report: Report) -> None:
    report(Stage.VERIFY)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(600)


def hang_holding_the_interpreter(*, report: Report) -> None:
    """Sleep in native code without giving other Python threads a chance."""
    report(Stage.EXPORT)
    ctypes.PyDLL(None).sleep(600)


def leak(step: int, most: int, *, report: Report) -> None:
    """Hold more and more memory, up to so much, until somebody ends this."""
    report(Stage.EXPORT)
    held = []
    for _ in range(most // step):
        held.append(b"x" * step)
        time.sleep(0.01)
    time.sleep(600)


def leak_in_a_child(step: int, most: int, *, report: Report) -> None:
    """Let a process that this one started hold more and more memory."""
    program = f"from time import sleep\nheld = []\nfor _ in range({most // step}):\n"
    program += f"    held.append(b'x' * {step})\n    sleep(0.01)\nsleep(600)"
    subprocess.run([sys.executable, "-c", program], check=False)


def map_a_file(path: str, size: int, *, report: Report) -> int:
    """Read a mapped file of this size, which takes address space and page cache, but nobody's memory."""
    with Path(path).open("w+b") as file:
        file.truncate(size)
        with mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
            found = sum(mapped[::4096])
            time.sleep(0.6)
    return found


def dawdle_in(first: str, second: str, seconds: tuple[float, float], *, report: Report) -> str:
    """Take so many seconds for two stages."""
    for stage, duration in zip((first, second), seconds, strict=True):
        report(Stage(stage))
        time.sleep(duration)
    return "done"


def leave_children(file: str, mode: str, *, report: Report) -> str:
    """Start a process that outlives this one, in this group or in a session of its own."""
    child = subprocess.Popen(["sleep", "600"], start_new_session=mode == "session")
    Path(file).write_text(str(child.pid))
    if mode == "crash":
        os.kill(os.getpid(), signal.SIGSEGV)
    return "done"


def mark_and_hang(file: str, *, report: Report) -> None:
    Path(file).write_text(str(os.getpid()))
    time.sleep(600)


def mark_and_hang_in_export(file: str, *, report: Report) -> None:
    Path(file).write_text(str(os.getpid()))
    report(Stage.EXPORT)
    time.sleep(600)


def raise_failure(*, report: Report) -> None:
    report(Stage.LOAD)
    raise Failure("checkpoint.mismatch", "three are missing", hint="look", details={"missing": ["a"]})


def raise_error(stage: str, *, report: Report) -> None:
    report(Stage(stage))
    raise ValueError("first line\n   second line")


def raise_memory_error(*, report: Report) -> None:
    raise MemoryError


def allocate_with_torch(*, report: Report) -> None:
    import torch  # only the process pays for it

    torch.empty(1 << 50)


def raise_disk_full(path: str, *, report: Report) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def return_unpicklable(*, report: Report) -> Any:
    return threading.Lock()


def raise_unpicklable(*, report: Report) -> None:
    class Local(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("no")

    raise Local("strange")


def leave_by_exit(*, report: Report) -> None:
    sys.exit(7)


def big(size: int, *, report: Report) -> bytes:
    return b"x" * size


def flood_then_crash(*, report: Report) -> None:
    sys.stdout.write("y" * 5_000_000)
    os.abort()


def parent(*, report: Report) -> int:
    return os.getppid()
