"""A server's memory is gathered in large pages, and holds what it held."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import re
from ctypes import addressof, c_char, get_errno
from pathlib import Path

import pytest

from zooport.export_core.isolation.huge_pages import HugePages

SIZE = 16 << 20


def huge_bytes(address: int) -> int:
    """The bytes in large pages of the mapping that holds an address."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
        if found:
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("AnonHugePages:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no such mapping")


@pytest.mark.skipif(
    not re.match(r"([7-9]|6\.[1-9])", os.uname().release), reason="Linux 6.1 and later can gather pages"
)
def test_memory_is_gathered_and_holds_what_it_held() -> None:
    memory = mmap.mmap(-1, SIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    memory.write(os.urandom(SIZE))
    before = hashlib.sha256(memory).digest()
    start = addressof(c_char.from_buffer(memory))
    assert huge_bytes(start) == 0
    memory.madvise(mmap.MADV_HUGEPAGE)

    pages = HugePages()
    pages._blocks = [block for block in pages._blocks if start <= block < start + SIZE]
    assert len(pages._blocks) >= SIZE // (2 << 20) - 1
    while pages.step():
        pass
    if not pages._has_succeeded and get_errno() in {errno.ENOMEM, errno.EAGAIN, errno.EBUSY}:
        pytest.skip("the kernel has no large page left")

    assert huge_bytes(start) > 0
    assert hashlib.sha256(memory).digest() == before


def test_a_kernel_that_cannot_is_not_asked_for_ever() -> None:
    pages = HugePages()
    pages._blocks = [4096 * (1 << 9)] * 1000  # addresses of nothing
    steps = 1
    while pages.step():
        steps += 1
    assert steps < 100
