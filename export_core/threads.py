"""How many compute threads a runtime gets that does not read the environment by itself."""

from __future__ import annotations

import os


def asked_threads() -> int:
    """Return the number of compute threads that the environment asks for, 1 where it does not."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else 1
