"""A clock for tests of deadlines: it stands still until what the deadline is for has been reached.

On a busy machine anything may take seconds: a deadline that counts from the beginning may pass before that.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_PATIENCE = 120.0  # seconds after which it goes by itself, so that deadlines still end what hangs


class StoppedClock:
    """What ``time.monotonic`` is in this process as long as :func:`stopped_clock` lasts."""

    def __init__(self) -> None:
        self._real = time.monotonic
        self._shown = self._stopped_at = self._real()
        self._running_since: float | None = None

    def __call__(self) -> float:
        now = self._real()
        if now - self._stopped_at > _PATIENCE:
            self.go()
        return self._shown + (0.0 if self._running_since is None else now - self._running_since)

    def go(self) -> None:
        """Let time pass from now on, however often this is called."""
        if self._running_since is None:
            self._running_since = self._real()

    def skip(self, seconds: float) -> None:
        """Let so much time have passed."""
        self._shown += seconds


@contextmanager
def stopped_clock() -> Iterator[StoppedClock]:
    """Stop ``time.monotonic``, not what waits by itself, such as locks and ``time.sleep``."""
    clock = StoppedClock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", clock)
        yield clock
