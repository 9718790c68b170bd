"""torch's two file formats: the zip archive of today and the row of pickles from before torch 1.6.

Both are read as ``torch.load(..., weights_only=True)`` would, more strictly: every size is checked against
the file, an archive must not claim to be larger than it is, and arrays are views of the mapped file.
"""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Mapping
from typing import Any

from zooport.export_core.checkpoints.errors import CorruptError, shorten
from zooport.export_core.checkpoints.pickle_machine import Budget, PickleMachine, as_text
from zooport.export_core.checkpoints.tensors import TORCH, Storage, storage_from

ZIP_MAGIC = b"PK\x03\x04"

MAX_DIRECTORY_BYTES = 4 * 2**20
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_END_OF_DIRECTORY = b"PK\x05\x06"
_LOCAL_HEADER = 30


class Storages:
    """Where the bytes of each storage lie.

    Attributes:
        byte_order: "<" or ">".
    """

    def __init__(
        self, data: memoryview, places: Mapping[str, tuple[int, int]], byte_order: str = "<"
    ) -> None:
        self._data = data
        self._places = places
        self.byte_order = byte_order

    def bytes_of(self, storage: Storage) -> memoryview:
        """Return the bytes of a storage as a view of the file.

        Raises:
            CorruptError: it is not in the file, or shorter there than the pickle declares.
        """
        if storage.key not in self._places:
            raise CorruptError(f"storage {shorten(storage.key, 40)} is not in the file")
        start, size = self._places[storage.key]
        if storage.size > size:
            raise CorruptError(
                f"storage {shorten(storage.key, 40)} declares {storage.size} bytes, {size} are there"
            )
        return self._data[start : start + storage.size]


def read_zip(data: memoryview) -> tuple[Any, Storages]:
    """Read an archive written by ``torch.save``.

    Args:
        data: the whole file.

    Returns:
        What was saved, with :class:`~zooport.export_core.checkpoints.tensors.Tensor` for tensors, and where
        their storages are.

    Raises:
        CorruptError: the archive is damaged, is not torch's, or declares more than it holds.
        UnsafeError: its pickle would run code.
    """
    entries = _entries(data)
    folder = _folder(list(entries))
    _check_contents(entries, len(data))
    places: dict[str, tuple[int, int]] = {}
    for name, entry in entries.items():
        if name.startswith(f"{folder}/data/"):
            places[name.removeprefix(f"{folder}/data/")] = _place(data, entry)
    start, size = _place(data, entries[f"{folder}/data.pkl"])
    machine = PickleMachine(data[start : start + size], TORCH, storage_from)
    value, _ = machine.load()
    byte_order = "<"
    if f"{folder}/byteorder" in entries:
        start, size = _place(data, entries[f"{folder}/byteorder"])
        byte_order = ">" if bytes(data[start : start + size]) == b"big" else "<"
    return value, Storages(data, places, byte_order)


def _entries(data: memoryview) -> dict[str, zipfile.ZipInfo]:
    _check_directory(data)
    try:
        with zipfile.ZipFile(_View(data)) as archive:
            infos = archive.infolist()
    except (
        zipfile.BadZipFile,
        NotImplementedError,
        ValueError,
        OverflowError,
        struct.error,
        OSError,
    ) as error:
        raise CorruptError(f"truncated or damaged archive: {' '.join(str(error).split())}") from error
    if len({info.filename for info in infos}) < len(infos):
        raise CorruptError("the archive holds two entries of one name")
    return {info.filename: info for info in infos}


def _check_contents(entries: Mapping[str, zipfile.ZipInfo], size: int) -> None:
    """Refuse archives that unpack to more than they are."""
    infos = entries.values()
    if any(info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 for info in infos):
        raise CorruptError("it is a compressed or encrypted archive; torch.save only stores")
    total = sum(info.file_size for info in infos)
    if total > size:
        raise CorruptError(f"the archive declares {total} bytes of contents in {size} bytes of file")


def _check_directory(data: memoryview) -> None:
    """Bound the directory before zipfile builds an object for each of its entries."""
    tail = bytes(data[-(22 + 65535) :])
    end = tail.rfind(_END_OF_DIRECTORY)
    if end < 0 or end + 22 > len(tail):
        raise CorruptError("truncated: the archive's directory, at the end of the file, is missing")
    size, zip64 = struct.unpack_from("<I", tail, end + 12)[0], tail.rfind(b"PK\x06\x06", 0, end)
    if size == 0xFFFFFFFF and zip64 >= 0 and zip64 + 48 <= len(tail):
        size = struct.unpack_from("<Q", tail, zip64 + 40)[0]
    if size > min(MAX_DIRECTORY_BYTES, len(data)):
        raise CorruptError(f"the archive's directory declares {size} bytes")


def _folder(names: list[str]) -> str:
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) == 1 and not any(name.endswith("/constants.pkl") for name in names):
        return pickles[0].removesuffix("/data.pkl")
    if any(name.endswith("/constants.pkl") for name in names):
        raise CorruptError(
            "it is a TorchScript archive, not a state dict",
            hint="give the checkpoint that it was exported from",
        )
    if any(name.endswith(".npy") for name in names):
        raise CorruptError("it is a NumPy archive (.npz), not a file of torch.save")
    raise CorruptError("it is a zip archive, but not one of torch.save")


def _place(data: memoryview, entry: zipfile.ZipInfo) -> tuple[int, int]:
    """Start and size of an entry's bytes, past its local header."""
    header = entry.header_offset
    if header < 0 or bytes(data[header : header + 4]) != ZIP_MAGIC or header + _LOCAL_HEADER > len(data):
        raise CorruptError(f"entry {shorten(entry.filename, 60)} is not where the archive's directory says")
    name_size, extra_size = struct.unpack_from("<HH", data, header + 26)
    start = header + _LOCAL_HEADER + name_size + extra_size
    if start + entry.file_size > len(data):
        raise CorruptError(f"truncated: entry {shorten(entry.filename, 60)} ends behind the file")
    return int(start), entry.file_size


class _View(io.RawIOBase):
    """A file over a buffer that is not copied."""

    def __init__(self, data: memoryview) -> None:
        self._data = data
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if base + offset < 0:
            raise OSError("seek before the beginning")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: Any) -> int:
        part = self._data[self._position : self._position + len(buffer)]
        buffer[: len(part)] = part
        self._position += len(part)
        return len(part)


def looks_like_legacy(start: bytes) -> bool:
    """Return whether a file's first bytes are a pickle of the old format's magic number."""
    return start[:1] == b"\x80" and _LEGACY_MAGIC.to_bytes(10, "little") in start[:32]


def read_legacy(data: memoryview) -> tuple[Any, Storages]:
    """Read the format from before torch 1.6: five pickles in a row, then the storages one after the other.

    Args:
        data: the whole file; see :func:`looks_like_legacy`.

    Returns:
        As :func:`read_zip`.

    Raises:
        CorruptError: the file is damaged or truncated.
        UnsafeError: one of its pickles would run code.
    """
    budget = Budget(len(data))
    storages: dict[str, Storage] = {}

    def remember(identifier: Any) -> Storage:
        storage = storage_from(identifier)
        return storages.setdefault(storage.key, storage)

    plain = PickleMachine(data, TORCH, budget=budget)
    magic, position = plain.load()
    if magic != _LEGACY_MAGIC:
        raise CorruptError("its magic number is wrong")
    protocol, position = plain.load(position)
    if protocol != _LEGACY_PROTOCOL:
        raise CorruptError(f"its protocol is {shorten(protocol, 20)}, expected {_LEGACY_PROTOCOL}")
    system, position = plain.load(position)
    value, position = PickleMachine(data, TORCH, remember, budget).load(position)
    keys, position = plain.load(position)
    little = not isinstance(system, dict) or system.get("little_endian", True) is True
    byte_order = "<" if little else ">"
    return value, Storages(data, _legacy_places(data, position, keys, storages, byte_order), byte_order)


def _legacy_places(
    data: memoryview, position: int, keys: Any, storages: Mapping[str, Storage], byte_order: str
) -> dict[str, tuple[int, int]]:
    if not isinstance(keys, list):
        raise CorruptError("the list of storages is malformed")
    places: dict[str, tuple[int, int]] = {}
    for key in map(as_text, keys):
        if not isinstance(key, str) or key not in storages:
            raise CorruptError(f"storage {shorten(key, 40)} is in the file, but no tensor uses it")
        if position + 8 > len(data):
            raise CorruptError(f"truncated: storage {shorten(key, 40)} is missing")
        count = struct.unpack_from(f"{byte_order}q", data, position)[0]
        size = storages[key].size
        if count != storages[key].count or position + 8 + size > len(data):
            raise CorruptError(
                f"truncated or damaged: storage {shorten(key, 40)} declares {storages[key].count} elements"
            )
        places[key] = (position + 8, size)
        position += 8 + size
    return places
