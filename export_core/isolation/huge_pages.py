"""Gathers a process's memory in pages of 2 MiB, because a fork copies the table of all pages.

A server that has imported torch holds some 400 MB of its own, a hundred thousand small pages: copying their
table and giving it back costs a forked process more than 20 ms, with large pages 5 ms. A large page of which
a child changes a byte is split by the kernel, so children pay for what they touch, as before.
"""

from __future__ import annotations

import ctypes
import errno
import sys
from pathlib import Path

_SIZE = 2 << 20
_MADV_COLLAPSE = 25  # Linux 6.1, whatever the system's setting for transparent huge pages is
_OWN = frozenset({"", "[heap]"})  # names of mappings that are no file's
_HOPELESS = 16  # blocks that fail before the first success: the kernel does not know how


class HugePages:
    """The memory of this process that may be gathered, block by block, in whatever time there is."""

    def __init__(self) -> None:
        self._blocks = _blocks() if sys.platform == "linux" else []
        self._failed = 0
        self._has_succeeded = False

    def step(self) -> bool:
        """Gather one block; return whether there are more."""
        if not self._blocks:
            return False
        block = self._blocks.pop()
        library = ctypes.CDLL(None, use_errno=True)
        if library.madvise(ctypes.c_void_p(block), ctypes.c_size_t(_SIZE), _MADV_COLLAPSE) == 0:
            self._has_succeeded = True
        else:
            # Some blocks cannot be gathered; where memory is short, none should be.
            self._failed += 1
            is_short = ctypes.get_errno() == errno.ENOMEM
            if is_short or (self._failed >= _HOPELESS and not self._has_succeeded):
                self._blocks.clear()
        return bool(self._blocks)


def _blocks() -> list[int]:
    """Return the addresses of all whole blocks of memory that is written to and belongs to no file."""
    found: list[int] = []
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    for line in lines:
        place, rights, _, _, _, *name = line.split(maxsplit=5)
        if rights != "rw-p" or (name[0] if name else "") not in _OWN:
            continue
        start, end = (int(each, 16) for each in place.split("-"))
        found += range(-(-start // _SIZE) * _SIZE, end - _SIZE + 1, _SIZE)
    return found
