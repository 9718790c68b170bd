"""Read weights from a file of any supported format, told apart by their first bytes, not by their name."""

from __future__ import annotations

import hashlib
import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zooport.export_core.checkpoints.errors import CheckpointError, CorruptError, UnsafeError, shorten
from zooport.export_core.checkpoints.fetch import is_cached
from zooport.export_core.checkpoints.numpy_pickle import CONTAINERS, NUMPY, PickledArray
from zooport.export_core.checkpoints.pickle_machine import PickleMachine
from zooport.export_core.checkpoints.safetensors_file import looks_like_safetensors, read_safetensors
from zooport.export_core.checkpoints.strangers import START, STRANGERS
from zooport.export_core.checkpoints.tensors import Tensor
from zooport.export_core.checkpoints.torch_files import (
    ZIP_MAGIC,
    Storages,
    looks_like_legacy,
    read_legacy,
    read_zip,
)
from zooport.export_core.checkpoints.weights import Array, Weights, from_arrays, from_contents
from zooport.export_core.failures import Failure

_PICKLE_STARTS = b"\x80(}]cd"


def read_weights(path: Path) -> Weights:
    """Read a checkpoint without running anything that is in it.

    Understood are torch's ``.pth`` (both formats; the weights of a whole training checkpoint, or a bare
    state dict), detectron2's and the first Detectron's ``.pkl``, and ``.safetensors``. Arrays are views of
    the mapped file wherever that is possible, so reading costs hardly any memory.

    Args:
        path: a local file.

    Returns:
        The weights under the names that the file gives them; see :func:`match_weights`.

    Raises:
        Failure: ``checkpoint.missing`` (no such file, or not readable), ``checkpoint.unsafe`` (it asks for
            more than data), ``checkpoint.corrupt`` (truncated, inconsistent, or no checkpoint).
    """
    path = Path(path)
    data = _map(path)
    try:
        return _read(path, data)
    except CheckpointError as error:
        code = "checkpoint.unsafe" if isinstance(error, UnsafeError) else "checkpoint.corrupt"
        hint = _hint(path, error.hint) if code == "checkpoint.corrupt" else error.hint
        raise Failure(code, f"{path}: {error}", hint=hint, details={"file": str(path)}) from error


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file, read in pieces.

    Raises:
        Failure: ``checkpoint.missing``.
    """
    try:
        with Path(path).open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise _missing(path, error.strerror or str(error)) from error


def _map(path: Path) -> memoryview:
    try:
        # Opening a pipe or a device could wait for ever.
        if path.exists() and not path.is_file():
            raise _missing(path, "not a file")
        with path.open("rb") as stream:
            if not path.stat().st_size:
                problem = f"{path}: the file is empty"
                raise Failure("checkpoint.corrupt", problem, hint=_hint(path), details={"file": str(path)})
            return memoryview(mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _missing(path, reason) from error


def _hint(path: Path, hint: str = "") -> str:
    """Return the hint, for a fetched file with how to have it fetched again."""
    again = f"remove {path} to have it fetched again" if is_cached(path) else ""
    return "; ".join(filter(None, (hint, again)))


def _missing(path: Path, reason: str) -> Failure:
    return Failure(
        "checkpoint.missing",
        f"{path}: cannot be read: {reason}",
        details={"file": str(path), "reason": reason},
    )


def _read(path: Path, data: memoryview) -> Weights:
    start = bytes(data[:START])
    if start.startswith(ZIP_MAGIC):
        return _of_torch(read_zip(data), len(data))
    if looks_like_legacy(start):
        return _of_torch(read_legacy(data), len(data))
    if looks_like_safetensors(data):
        return from_arrays(read_safetensors(path, data))
    if bytes(data[257:262]) == b"ustar":
        raise CorruptError("a tar archive", hint="if torch 0.1 wrote it, load it there and save it again")
    for magic, what, hint in STRANGERS:
        if start.startswith(magic):
            raise CorruptError(what, hint)
    if start[:1] in _PICKLE_STARTS:
        contents, _ = PickleMachine(data, CONTAINERS | NUMPY).load()
        return from_contents(contents, _pickled_array)
    raise CorruptError(f"it begins with {shorten(start[:8], 40)}, which is no .pth, .pkl or .safetensors")


def _of_torch(read: tuple[Any, Storages], limit: int) -> Weights:
    contents, storages = read
    return from_contents(contents, _tensor_array(storages, limit))


def _tensor_array(storages: Storages, limit: int) -> Callable[[Any], Array | None]:
    def to_array(entry: Any) -> Array | None:
        if isinstance(entry, Tensor):
            data = storages.bytes_of(entry.storage)
            return entry.over(data, storages.byte_order, limit)
        return _pickled_array(entry)

    return to_array


def _pickled_array(entry: Any) -> Array | None:
    if isinstance(entry, PickledArray):
        if entry.array is None:
            raise CorruptError("an array has no contents")
        return entry.array
    # Protocol 5 builds arrays in one step.
    return entry if hasattr(entry, "dtype") else None
