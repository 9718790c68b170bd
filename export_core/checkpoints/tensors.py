"""Tensors as torch pickles them: a view (offset, size, stride) of a storage that lies elsewhere in the file.

The rebuild functions here only note what a tensor is; :meth:`Tensor.over` makes the array once the storage's
bytes are known, and checks that the view stays inside them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from zooport.export_core.checkpoints.errors import CorruptError, shorten
from zooport.export_core.checkpoints.numpy_pickle import CONTAINERS, NUMPY, check_counts, element_count
from zooport.export_core.checkpoints.pickle_machine import MAX_NAME, Builder, Symbol, as_text

BFLOAT16 = "bfloat16"
OPAQUE = "?"

# Storage class -> NumPy code of its elements. bfloat16 has none and is widened when it is read; types that no
# weights have are noted as opaque, because a training checkpoint may hold them beside its weights.
_STORAGES = {
    "DoubleStorage": "f8",
    "FloatStorage": "f4",
    "HalfStorage": "f2",
    "BFloat16Storage": BFLOAT16,
    "LongStorage": "i8",
    "IntStorage": "i4",
    "ShortStorage": "i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "b1",
    "ComplexDoubleStorage": OPAQUE,
    "ComplexFloatStorage": OPAQUE,
    "QInt8Storage": OPAQUE,
    "QUInt8Storage": OPAQUE,
    "QInt32Storage": OPAQUE,
}
_DTYPES = {
    "float64": "f8",
    "float32": "f4",
    "float16": "f2",
    "bfloat16": BFLOAT16,
    "int64": "i8",
    "int32": "i4",
    "int16": "i2",
    "int8": "i1",
    "uint64": "u8",
    "uint32": "u4",
    "uint16": "u2",
    "uint8": "u1",
    "bool": "b1",
    "float8_e4m3fn": OPAQUE,
    "float8_e5m2": OPAQUE,
    "complex64": OPAQUE,
    "complex128": OPAQUE,
}
_SIZES = {"f8": 8, "f4": 4, "f2": 2, BFLOAT16: 2, "i8": 8, "i4": 4, "i2": 2, "i1": 1, "b1": 1}
_SIZES |= {"u8": 8, "u4": 4, "u2": 2, "u1": 1, OPAQUE: 1}


@dataclass(frozen=True)
class Storage:
    """A storage that a pickle refers to: its key in the file, its element type and how many there are."""

    key: str
    code: str
    count: int

    @property
    def size(self) -> int:
        """Bytes."""
        return self.count * _SIZES[self.code]


@dataclass(frozen=True)
class Tensor:
    """A view of a storage, in elements."""

    storage: Storage
    code: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def over(self, data: memoryview, byte_order: str, limit: int) -> np.ndarray[Any, Any]:
        """Make the array over the storage's bytes, without copying.

        Args:
            data: the bytes of the storage.
            byte_order: "<" or ">".
            limit: bytes that a tensor may seem to have: an expanded one (stride 0) repeats its storage.

        Raises:
            CorruptError: the view leaves the storage, or the elements are no numbers of weights.
        """
        if self.code == OPAQUE:
            raise CorruptError(
                "a tensor's elements are quantized, complex or 8-bit floats, which are no weights"
            )
        item, count = _SIZES[self.code], element_count(self.shape)
        last = sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if count and (self.offset + last + 1) * item > len(data):
            reach = (self.offset + last + 1) * item
            where = f"reaches {reach} bytes into a storage of {len(data)}"
            raise CorruptError(f"a tensor of shape {shorten(self.shape, 60)} {where}")
        if count * item > max(limit, len(data)):
            raise CorruptError(f"a tensor of shape {shorten(self.shape, 60)} is larger than its file")
        dtype = np.dtype([(BFLOAT16, f"{byte_order}u2")]) if self.code == BFLOAT16 else byte_order + self.code
        if not count:
            return np.empty(self.shape, dtype)
        # The stride of an axis of one element means nothing and may be any number.
        steps = [step * item if size > 1 else 0 for size, step in zip(self.shape, self.stride, strict=True)]
        return np.ndarray(self.shape, dtype, data, self.offset * item, steps)


def is_bfloat16(array: np.ndarray[Any, Any]) -> bool:
    """Return whether an array holds bfloat16, which NumPy lacks: a structure of that one field."""
    return bool(array.dtype.names == (BFLOAT16,))


def widen(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a bfloat16 array as float32: its bits are the upper half of one."""
    bits = array[BFLOAT16].astype(np.uint32)
    np.left_shift(bits, 16, out=bits)
    return bits.view(np.float32)


def storage_from(identifier: Any) -> Storage:
    """Read a persistent id: ("storage", type, key, location, element count[, view]).

    Raises:
        CorruptError: it is none.
    """
    if not isinstance(identifier, tuple) or len(identifier) not in (5, 6):
        raise CorruptError("a reference to a storage is malformed")
    what, kind, key, _, count = identifier[:5]
    code = _STORAGE_CODES.get(kind.name) if isinstance(kind, Symbol) else None
    if as_text(what) != "storage" or code is None or type(count) is not int or count < 0:
        raise CorruptError(f"a reference to a storage is malformed: {shorten(as_text(what), 30)}")
    if len(identifier) == 6 and identifier[5] is not None:
        raise CorruptError(
            "a storage is a view of another, as only very old files have it",
            hint="load it with torch and save it again",
        )
    name = str(as_text(key))
    if len(name) > MAX_NAME:
        raise CorruptError(f"a storage's key has {len(name)} characters")
    return Storage(name, code, count)


def _view(storage: Any, code: str, offset: Any, size: Any, stride: Any) -> Tensor:
    if not isinstance(storage, Storage) or type(offset) is not int or offset < 0:
        raise CorruptError("the parts of a tensor are malformed")
    element_count(size)
    check_counts(stride, "the strides of a tensor")
    if len(size) != len(stride):
        raise CorruptError(f"a tensor of {len(size)} dimensions has {len(stride)} strides")
    return Tensor(storage, code, offset, tuple(size), tuple(stride))


def _rebuild(storage: Any, offset: Any, size: Any, stride: Any, *_: Any) -> Tensor:
    return _view(storage, storage.code if isinstance(storage, Storage) else OPAQUE, offset, size, stride)


def _rebuild_typed(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, *_: Any
) -> Tensor:
    code = _DTYPE_CODES.get(dtype.name) if isinstance(dtype, Symbol) else None
    if code is None:
        raise CorruptError("a tensor has an unknown dtype")
    return _view(storage, code, offset, size, stride)


def _parameter(data: Any, *_: Any) -> Any:
    return data


def _subclass(function: Any, _kind: Any, arguments: Any, *_: Any) -> Any:
    """A tensor with attributes, or a Parameter: its data is rebuilt by the function that comes first."""
    if not isinstance(function, Symbol) or not isinstance(arguments, tuple):
        raise CorruptError("the parts of a tensor are malformed")
    if function.name == "torch._tensor._rebuild_from_type_v2":
        raise CorruptError("a tensor is wrapped more than once")
    return function.build(*arguments)


def _opaque(*_: Any) -> Tensor:
    """A sparse, quantized or nested tensor: nothing that a detectron2 model has as a weight."""
    return Tensor(Storage("", OPAQUE, 0), OPAQUE, 0, (), ())


def _size(items: Any = ()) -> tuple[Any, ...]:
    if not isinstance(items, (tuple, list)):
        raise CorruptError("a torch.Size is malformed")
    return tuple(items)


def _nothing(*_: Any) -> None:
    return None


_STORAGE_CODES = {f"torch.{name}": code for name, code in _STORAGES.items()}
_STORAGE_CODES |= {f"torch.cuda.{name}": code for name, code in _STORAGES.items()}
_STORAGE_CODES["torch.storage.UntypedStorage"] = "u1"
_DTYPE_CODES = {f"torch.{name}": code for name, code in _DTYPES.items()}

TORCH: dict[str, Builder] = {
    **CONTAINERS,
    **NUMPY,
    **dict.fromkeys(_STORAGE_CODES, _nothing),
    **dict.fromkeys(_DTYPE_CODES, _nothing),
    "torch.Size": _size,
    "torch.Tensor": _nothing,
    "torch.device": _nothing,
    "torch.serialization._get_layout": _nothing,
    "torch.nn.parameter.Parameter": _parameter,
    "torch._tensor._rebuild_from_type_v2": _subclass,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_typed,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._utils._rebuild_sparse_tensor": _opaque,
    "torch._utils._rebuild_qtensor": _opaque,
    "torch._utils._rebuild_nested_tensor": _opaque,
    "torch._utils._rebuild_meta_tensor_no_storage": _opaque,
}
"""What torch's own ``weights_only`` loading allows as far as weights can hold it, and NumPy scalars."""
