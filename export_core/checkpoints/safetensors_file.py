"""Reading .safetensors: checked by the safetensors package, then viewed in place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from zooport.export_core.checkpoints.errors import CorruptError
from zooport.export_core.checkpoints.tensors import BFLOAT16, Storage, Tensor

MAX_HEADER_BYTES = 8 * 2**20  # some 80,000 tensors

_CODES = {
    "F64": "f8",
    "F32": "f4",
    "F16": "f2",
    "BF16": BFLOAT16,
    "I64": "i8",
    "I32": "i4",
    "I16": "i2",
    "I8": "i1",
    "U64": "u8",
    "U32": "u4",
    "U16": "u2",
    "U8": "u1",
    "BOOL": "b1",
}


def looks_like_safetensors(data: memoryview) -> bool:
    """Return whether the file begins with a header's length and the header's brace."""
    return len(data) > 8 and data[8] == ord("{") and int.from_bytes(data[:8], "little") <= MAX_HEADER_BYTES


def read_safetensors(path: Path, data: memoryview) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of a file, as views of it.

    Args:
        path: the file, for the package's own checks of header, offsets and overlaps.
        data: the same file, mapped.

    Raises:
        CorruptError: the package refuses it, or a tensor has a type that weights do not have.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            names = list(file.keys())
    except SafetensorError as error:
        raise CorruptError(f"not a sound .safetensors file: {' '.join(str(error).split())}") from error
    size = int.from_bytes(data[:8], "little")
    header = json.loads(bytes(data[8 : 8 + size]))
    body = data[8 + size :]
    return {name: _array(name, header[name], body) for name in names}


def _array(name: str, entry: dict[str, Any], body: memoryview) -> np.ndarray[Any, Any]:
    code = _CODES.get(entry["dtype"])
    if code is None:
        raise CorruptError(f"tensor {name} has type {entry['dtype']}, which no weights have")
    begin, end = entry["data_offsets"]
    shape = tuple(entry["shape"])
    stride = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        stride[axis - 1] = stride[axis] * shape[axis]
    tensor = Tensor(Storage(name, code, 0), code, 0, shape, tuple(stride))
    return tensor.over(body[begin:end], "<", end - begin)
