"""What tests wait for, and for how long at most: a busy machine may stand still for seconds."""

from __future__ import annotations

import time
from collections.abc import Callable

import psutil


def wait_until(true: Callable[[], object], seconds: float = 120.0) -> None:
    """Return when it is true.

    Raises:
        AssertionError: it has not become so in this time.
    """
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def gone(pid: int, within: float = 30.0) -> bool:
    """Whether a process has ended, or does in this time; its number stays for as long as nobody asked how."""
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not runs(pid):
            return True
        time.sleep(0.02)
    return False


def runs(pid: int) -> bool:
    """Whether a process does more than wait to be asked how it ended."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
