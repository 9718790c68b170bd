"""From what nobody foresaw to a typed failure: exceptions without a code, and processes that just ended."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from pathlib import Path
from typing import Any

from zooport.export_core.failures import Failure, Stage

_DISK_ERRORS = {
    errno.ENOSPC: "no space left on the device",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EFBIG: "the file may not grow that large",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
}
_OUT_OF_MEMORY = ("can't allocate memory", "cannot allocate memory", "not enough memory", "bad_alloc")
_WORDS_AT_MOST = 300
_FULL_BELOW = 1 << 20  # a file system with less than 1 MiB left counts as full


def diagnose(error: BaseException, stage: Stage | None) -> Failure:
    """Return the failure that an exception amounts to.

    A :class:`Failure` is returned as it is. Lack of memory and of disk are recognised, as exceptions of
    Python and of torch; the rest is ``export.failed`` while a converter runs, ``worker.error`` elsewhere.
    """
    if isinstance(error, Failure):
        return error if stage is None else error.at(stage)
    said = one_line(error)
    if isinstance(error, MemoryError) or _mentions(said, _OUT_OF_MEMORY):
        return Failure(
            "resource.memory",
            f"out of memory: {said}",
            stage=stage,
            hint="run fewer jobs at once (--jobs) or on a machine with more memory",
        )
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return disk_failure(error, stage)
    code = "export.failed" if stage is Stage.EXPORT else "worker.error"
    return Failure(code, said, stage=stage)


def disk_failure(error: OSError, stage: Stage | None = None, place: Path | None = None) -> Failure:
    """Return ``resource.disk`` for an error of the system, naming the file or, failing that, the place."""
    reason = _DISK_ERRORS.get(error.errno or 0) or os.strerror(error.errno or errno.EIO)
    path = error.filename if error.filename is not None else place
    return Failure(
        "resource.disk",
        f"{path}: {reason}" if path is not None else reason,
        stage=stage,
        hint="free some space, or write elsewhere (--output)",
        details={} if error.errno is None else {"errno": errno.errorcode.get(error.errno, str(error.errno))},
    )


def is_full(directory: Path) -> bool:
    """Whether the file system of the directory has (almost) no space left."""
    try:
        return shutil.disk_usage(directory).free < _FULL_BELOW
    except OSError:
        return False


def one_line(error: BaseException) -> str:
    """Return an exception as one line of bounded length: its type and its words, without line breaks."""
    words = " ".join(str(error).split())
    if len(words) > _WORDS_AT_MOST:
        words = words[:_WORDS_AT_MOST].rstrip() + " ..."
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def diagnose_exit(status: int, stage: Stage | None, log: Path, *, starved: bool) -> Failure:
    """Return the failure of a process that ended without an answer.

    Args:
        status: what waitpid said.
        stage: the last stage that the process reported.
        log: its log; the last lines go to the failure's details.
        starved: whether the kernel's out-of-memory killer struck while the process ran.
    """
    hint = f"see {log}"
    details: dict[str, Any] = {"log_tail": tail(log)}
    if not os.WIFSIGNALED(status):
        code = os.waitstatus_to_exitcode(status)
        message = f"the process left with exit code {code} before it had answered"
        return Failure(
            "worker.crashed", message, stage=stage, hint=hint, details={"exit_code": code} | details
        )
    number = os.WTERMSIG(status)
    if number == signal.SIGKILL and starved:
        return Failure(
            "resource.memory",
            "the kernel killed the process because memory ran out",
            stage=stage,
            hint="run fewer jobs at once (--jobs) or on a machine with more memory",
            details=details,
        )
    name = _signal_name(number)
    message = f"the process was killed by {name} ({signal.strsignal(number)})"
    return Failure("worker.crashed", message, stage=stage, hint=hint, details={"signal": name} | details)


def tail(log: Path, lines: int = 12, size: int = 8192) -> list[str]:
    """Return the last lines of a log, an empty list where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - size))
            return file.read().decode(errors="replace").splitlines()[-lines:]
    except OSError:
        return []


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for lack of memory in this control group or, where that
    is not counted, on this machine; 0 where neither is known. Compare two calls.
    """  # noqa: D205
    for file in (*_memory_event_files(), Path("/proc/vmstat")):
        try:
            fields = dict(line.split()[:2] for line in file.read_text().splitlines())
        except (OSError, ValueError):
            continue
        if "oom_kill" in fields:
            return int(fields["oom_kill"])
    return 0


def _memory_event_files() -> list[Path]:
    try:
        groups = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    root = Path("/sys/fs/cgroup")
    return [root / line.split("::", 1)[1].lstrip("/") / "memory.events" for line in groups if "::" in line]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _mentions(said: str, words: tuple[str, ...]) -> bool:
    return any(word in said.lower() for word in words)
