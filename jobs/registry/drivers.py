"""Who drives a run, and whether that process still lives."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

#: A driver on another machine that has not written for this long is taken for dead.
SILENCE = timedelta(minutes=15)


@dataclass(frozen=True)
class Driver:
    """A process by host, number and birth; numbers are used again, so birth tells two processes apart."""

    host: str
    pid: int
    process: str

    @classmethod
    def current(cls) -> Driver:
        """Return this process."""
        return cls(socket.gethostname(), os.getpid(), birth(os.getpid()) or "")

    def is_alive(self, heartbeat: str | None) -> bool:
        """Return whether the process still runs; of another host's only its last heartbeat is known."""
        if self.host == socket.gethostname():
            return birth(self.pid) == self.process
        return heartbeat is not None and utc_now() - datetime.fromisoformat(heartbeat) < SILENCE


def utc_now() -> datetime:
    """Return the time."""
    return datetime.now(UTC)


def birth(pid: int) -> str | None:
    """Return what identifies the process of this number, or None when there is none.

    On Linux it is the boot's id and the start in clock ticks since boot: other clocks may be set back, which
    would make a living driver look dead.
    """
    stat = Path(f"/proc/{pid}/stat")
    if not Path("/proc/self/stat").exists():
        return _birth_by_clock(pid)
    try:
        # The command's name is in parentheses and may hold anything; state is field 3, start time field 22.
        values = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    is_zombie = values[0] in {"Z", "X"}
    return None if is_zombie else f"{boot}:{values[19]}"


def _birth_by_clock(pid: int) -> str | None:
    import psutil

    try:
        return f"{psutil.Process(pid).create_time():.0f}"
    except psutil.NoSuchProcess:
        return None
