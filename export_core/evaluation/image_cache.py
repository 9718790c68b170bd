"""Decoded and resized images, kept on disk for the next job that evaluates the same dataset at the same size.

An image is found by the sha256 of its file's content, in a folder that stands for the annotations, the input
format, the sizes, and the versions of what decodes: what is read is bit by bit what decoding would give, and
a replaced image or another version finds nothing. Files are memory-mapped, so that jobs of one machine share
the pages. Everything here may fail without harm: images are decoded then, and a remark says why.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import struct
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import PIL

from zooport import __version__
from zooport.export_core.cache import cache_root
from zooport.export_core.evaluation.tasks import setting

if TYPE_CHECKING:
    from zooport.export_core.evaluation.datasets import Dataset

Planes = npt.NDArray[np.uint8]

VARIABLE = "ZOOPORT_IMAGE_CACHE"
"""The environment's word on the cache: its size, as 500M or 20G; 0 or off goes without."""

LIMIT = 20 << 30  # bytes of all images together; COCO's val2017 at 800 pixels takes 13 GB
SPARE = 1 << 30  # bytes that the disk keeps for others
IN_USE = 600.0  # seconds since its last use for which a folder is not dropped to make room
_TOUCH = 60.0  # seconds between two marks of use
_RECOUNT = 256 << 20  # bytes written between two looks at what all processes have written

_MAGIC = b"zpimage1"
# Magic, checksum of all that follows, the file's own (height, width), then (channels, height, width) kept.
_HEADER = struct.Struct("<8sI5I")
_AFTER_CHECKSUM = len(_MAGIC) + 4
_USED = "used"
_GONE = ".gone-"
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True)
class Key:
    """An image file as the cache knows it: the sha256 of its content, and its (height, width) in pixels."""

    sha256: str
    size: tuple[int, int]


class ImageCache:
    """The resized images of one dataset at one input size.

    Args:
        root: where the folders of all datasets and sizes lie.
        name: the folder of this one.
        limit: bytes that all folders together may take, about; the ones longest out of use are dropped.
    """

    def __init__(self, root: Path, name: str, limit: int = LIMIT) -> None:
        self.remark = ""
        self._root = root
        self._folder = root / name
        self._limit = limit
        self._left: int | None = None  # bytes to write until the next look at what is there
        self._touched = 0.0

    def key(self, path: Path, size: tuple[int, int]) -> Key | None:
        """Return how an image file is known, None when it cannot be read."""
        try:
            with path.open("rb") as file:
                return Key(hashlib.file_digest(file, "sha256").hexdigest(), size)
        except OSError:
            return None  # decoding says what is wrong with it

    def load(self, key: Key) -> Planes | None:
        """Return an image (channels, height, width), mapped read-only; None if it is missing or damaged."""
        try:
            with (self._folder / key.sha256).open("rb") as file:
                pages = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError):  # an empty file cannot be mapped
            return None
        content = np.frombuffer(pages, dtype=np.uint8)
        if content.size < _HEADER.size:
            return None
        magic, checksum, height, width, *shape = _HEADER.unpack(content[: _HEADER.size].tobytes())
        pixels = content[_HEADER.size :]
        if magic != _MAGIC or (height, width) != key.size or pixels.size != np.prod(shape, dtype=np.int64):
            return None
        if zlib.crc32(content[_AFTER_CHECKSUM:].data) != checksum:
            return None
        self._touch()
        return pixels.reshape(shape)

    def keep(self, key: Key, planes: Planes) -> None:
        """Write an image (channels, height, width) for others; where that is not possible, leave a remark."""
        if self.remark:
            return
        try:
            if self._has_room(planes.nbytes + _HEADER.size):
                self._write(key, planes)
        except FileNotFoundError:
            pass  # another process has dropped the folder just now
        except OSError as error:
            self._complain(f"cannot be written ({error.strerror or error})")

    def _write(self, key: Key, planes: Planes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._touch()
        content = np.ascontiguousarray(planes).data
        header = _HEADER.pack(_MAGIC, 0, *key.size, *planes.shape)
        checksum = zlib.crc32(content, zlib.crc32(header[_AFTER_CHECKSUM:]))
        descriptor, aside = tempfile.mkstemp(prefix=".", dir=self._folder)
        try:
            with open(descriptor, "wb") as file:  # noqa: PTH123 - of a descriptor
                file.write(_HEADER.pack(_MAGIC, checksum, *key.size, *planes.shape))
                file.write(content)
            Path(aside).rename(self._folder / key.sha256)
        except BaseException:
            with suppress(OSError):
                Path(aside).unlink()
            raise

    def _has_room(self, size: int) -> bool:
        """Whether this much may be written; makes room by dropping what nobody has used for longest."""
        if self._left is None or size > self._left:
            self._left = self._make_room(size)
        if size > self._left:
            return False
        self._left -= size
        return True

    def _make_room(self, size: int) -> int:
        """Return how many bytes may be written until the next look."""
        self._root.mkdir(parents=True, exist_ok=True)
        folders = {each: _bytes_in(each) for each in self._root.iterdir() if each.is_dir()}
        total = sum(folders.values())
        for folder in sorted(folders, key=_last_use):
            free = shutil.disk_usage(self._root).free - SPARE
            if total + size <= self._limit and size <= free:
                break
            if folder != self._folder and not 0 <= time.time() - _last_use(folder) < IN_USE:
                total -= folders[folder]
                _drop(folder)
        free = shutil.disk_usage(self._root).free - SPARE
        if size > free:
            self._complain(f"is not filled: less than {SPARE >> 20} MiB are free on its disk")
        elif total + size > self._limit:
            self._complain(f"is full ({self._limit >> 20} MiB; {VARIABLE} sets its size)")
        return max(0, min(self._limit - total, free, max(size, _RECOUNT)))

    def _touch(self) -> None:
        if time.monotonic() - self._touched > _TOUCH:
            self._touched = time.monotonic()
            with suppress(OSError):
                (self._folder / _USED).touch()

    def _complain(self, what: str) -> None:
        self.remark = f"the cache of resized images {self._root} {what}, so images are decoded again"
        sys.stderr.write(f"{self.remark}\n")  # into the job's log


def open_image_cache(dataset: Dataset, config: Any, root: Path | None = None) -> ImageCache | None:
    """Return the cache for a model on a dataset, None where it is switched off.

    Args:
        dataset: its annotation file is a part of the cache's name.
        config: the model's merged detectron2 config.
        root: where the cache lies; None takes ``images`` in zooport's cache directory.
    """
    limit = size_limit(os.environ.get(VARIABLE, ""))
    if limit == 0:
        return None
    inputs = [setting(config, f"INPUT.{key}") for key in ("FORMAT", "MIN_SIZE_TEST", "MAX_SIZE_TEST")]
    about = [__version__, PIL.__version__, np.__version__, dataset.annotations_sha256, *inputs]
    name = hashlib.sha256(json.dumps(about).encode()).hexdigest()[:32]
    return ImageCache(root or cache_root() / "images", name, limit)


def size_limit(text: str) -> int:
    """Return the bytes that a size means: "20G", "500M", "off"; the default for nothing and for nonsense."""
    words = text.strip().upper()
    if words in {"OFF", "NO", "FALSE"}:
        return 0
    found = re.fullmatch(r"(\d+)\s*([KMGT]?)I?B?", words)
    if found:
        return int(found[1]) * _UNITS[found[2]]
    if words:
        sys.stderr.write(f"{VARIABLE}={text} is no size such as 500M or 20G, nor off: it is not heeded\n")
    return LIMIT


def _bytes_in(folder: Path) -> int:
    """Return the size of a folder of images; what a killed process was writing long ago is removed."""
    total = 0
    for entry in _entries(folder):
        with suppress(OSError):
            status = entry.stat(follow_symlinks=False)
            if entry.name.startswith(".") and not 0 <= time.time() - status.st_mtime < IN_USE:
                Path(entry).unlink()
            else:
                total += status.st_size
    return total


def _entries(folder: Path) -> Iterator[os.DirEntry[str]]:
    with suppress(OSError), os.scandir(folder) as found:
        yield from found


def _last_use(folder: Path) -> float:
    try:
        return (folder / _USED).stat().st_mtime
    except OSError:
        return 0.0


def _drop(folder: Path) -> None:
    """Remove a folder; it gets another name first, so that nobody finds half of it."""
    gone = folder.with_name(f"{_GONE}{secrets.token_hex(4)}")
    with suppress(OSError):
        folder.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)
