"""How NumPy arrays and plain containers are rebuilt from a pickle, without calling NumPy's own functions."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from zooport.export_core.checkpoints.errors import CorruptError, UnsafeError, shorten
from zooport.export_core.checkpoints.pickle_machine import Builder, Symbol, as_member, as_text

MAX_DIMENSIONS = 32
MAX_ELEMENTS = 2**56

_NUMBER_CODE = re.compile(r"[<>|=]?([fiu])(1|2|4|8)|[|]?b1")
_BYTE_ORDERS = {"<": "<", ">": ">", "|": "|", "=": "="}


class PickledDtype:
    """A dtype under construction: its code, and the byte order that its state adds."""

    def __init__(self, code: str) -> None:
        self.code = code
        self.byte_order = ""

    def set_state(self, state: Any) -> None:
        """Take the byte order; fields and sub-arrays make it no dtype of weights."""
        if not isinstance(state, tuple) or len(state) < 5:
            raise CorruptError("the state of a dtype is malformed")
        if any(part is not None for part in state[2:5]):
            raise CorruptError("an array has a structured dtype, which no weights have")
        self.byte_order = _BYTE_ORDERS[str(as_text(state[1]))] if as_text(state[1]) in _BYTE_ORDERS else ""

    def resolve(self) -> np.dtype[Any]:
        """Return the NumPy dtype.

        Raises:
            UnsafeError: it holds Python objects.
            CorruptError: it is no boolean, integer or floating point number.
        """
        if self.code.lstrip("<>|=").startswith("O"):
            raise UnsafeError("an array of Python objects, which no weights have")
        if not _NUMBER_CODE.fullmatch(self.code) or self.code.lstrip("<>|=") == "f1":
            raise CorruptError(f"an array has dtype {shorten(self.code, 40)}, which no weights have")
        return np.dtype(self.byte_order.strip("|=") + self.code.lstrip("<>|="))


class PickledArray:
    """An array under construction; ``array`` is a read-only view of the file once its state is known."""

    def __init__(self) -> None:
        self.array: np.ndarray[Any, Any] | None = None

    def set_state(self, state: Any) -> None:
        """Take (version, shape, dtype, is Fortran order, bytes)."""
        if not isinstance(state, tuple) or len(state) != 5:
            raise CorruptError("the state of an array is malformed")
        _, shape, dtype, fortran, data = state
        self.array = array_from(data, dtype, shape, "F" if fortran else "C")


def array_from(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    """Make an array over bytes that are already there.

    Args:
        data: the bytes, as a view of the file where the pickle allows it.
        dtype: a :class:`PickledDtype`.
        shape: a tuple of integers.
        order: "C" or "F".

    Raises:
        CorruptError: the declared shape is not that of the bytes.
    """
    if isinstance(data, list):
        raise UnsafeError("an array of Python objects, which no weights have")
    if not isinstance(dtype, PickledDtype) or not isinstance(data, (bytes, memoryview)):
        raise CorruptError("the parts of an array are malformed")
    resolved = dtype.resolve()
    count = element_count(shape)
    if count * resolved.itemsize != len(data):
        raise CorruptError(f"an array declares shape {shorten(shape, 60)} for {len(data)} bytes")
    flat = np.frombuffer(data, resolved) if count else np.empty(0, resolved)
    return flat.reshape(shape, order="F" if as_text(order) == "F" else "C")


def element_count(shape: Any) -> int:
    """Return the product of a shape.

    Raises:
        CorruptError: it is no tuple of non-negative integers, or has too many dimensions.
    """
    check_counts(shape, "a shape")
    if math.prod(size for size in shape if size) > MAX_ELEMENTS:
        raise CorruptError(f"a shape is out of bounds: {shorten(tuple(shape), 60)}")
    return math.prod(shape)


def check_counts(values: Any, what: str) -> None:
    """Check that these are non-negative integers, one for each of not too many dimensions.

    Raises:
        CorruptError: they are not; ``what`` names them.
    """
    if not isinstance(values, (tuple, list)) or len(values) > MAX_DIMENSIONS:
        raise CorruptError(f"{what} is malformed or has more than {MAX_DIMENSIONS} dimensions")
    if any(type(size) is not int or size < 0 for size in values):
        raise CorruptError(f"{what} is malformed: {shorten(tuple(values), 60)}")


def _dtype(code: Any, *_: Any) -> PickledDtype:
    return PickledDtype(str(as_text(code)))


def _reconstruct(kind: Any, *_: Any) -> PickledArray:
    if not isinstance(kind, Symbol) or kind.name != "numpy.ndarray":
        raise UnsafeError("it rebuilds a subclass of ndarray, which no weights need")
    return PickledArray()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> np.ndarray[Any, Any]:
    return array_from(data, dtype, shape, order)


def _scalar(dtype: Any, data: Any) -> Any:
    return array_from(data, dtype, (), "C").item()


def _encode(text: Any, encoding: Any = "utf-8") -> bytes:
    """Python 3 writes bytes as latin-1 text in protocols 0 to 2."""
    if not isinstance(text, str) or as_text(encoding) not in ("latin1", "latin-1"):
        raise CorruptError("bytes are encoded in a way that pickle does not use")
    return text.encode("latin-1")


def _bytes(data: Any = b"", encoding: Any = "latin-1") -> bytes:
    # Never of an integer: bytes(10**12) would allocate that much.
    if isinstance(data, str):
        return _encode(data, encoding)
    if not isinstance(data, (bytes, memoryview)):
        raise CorruptError("bytes are made of something else")
    return bytes(data)


def _pairs(items: Any = ()) -> dict[str, Any]:
    if not isinstance(items, (list, tuple)) or any(len(pair) != 2 for pair in items):
        raise CorruptError("an OrderedDict is malformed")
    mapping: dict[str, Any] = {}
    for key, value in items:
        if not isinstance(as_text(key), str):
            raise CorruptError("an OrderedDict is malformed")
        mapping[as_text(key)] = value
    return mapping


def _empty_mapping(*_: Any) -> dict[str, Any]:
    return {}


def _plain_set(kind: Callable[[Iterable[Any]], Any]) -> Builder:
    def build(items: Any = ()) -> Any:
        if not isinstance(items, (list, tuple)):
            raise CorruptError("a set is malformed")
        return kind(map(as_member, items))

    return build


def _not_called(*_: Any) -> Any:
    raise CorruptError("the pickle calls a type that it may only name")


_BUILTINS: dict[str, Builder] = {
    "bytearray": _bytes,
    "bytes": _bytes,
    "set": _plain_set(set),
    "frozenset": _plain_set(frozenset),
    # Named as the factory of a defaultdict only.
    **dict.fromkeys(("list", "dict", "int", "float"), _not_called),
}
CONTAINERS: dict[str, Builder] = {
    "_codecs.encode": _encode,
    "collections.OrderedDict": _pairs,
    "collections.defaultdict": _empty_mapping,
    "collections.Counter": _empty_mapping,
    **{f"builtins.{name}": builder for name, builder in _BUILTINS.items()},
    **{f"__builtin__.{name}": builder for name, builder in _BUILTINS.items()},
}
"""Plain containers, under the names of Python 2 and 3."""

_CORE: dict[str, Builder] = {
    "multiarray._reconstruct": _reconstruct,
    "multiarray.scalar": _scalar,
    "numeric._frombuffer": _from_buffer,
}
NUMPY: dict[str, Builder] = {
    "numpy.dtype": _dtype,
    "numpy.ndarray": _not_called,
    **{f"numpy.core.{name}": builder for name, builder in _CORE.items()},
    **{f"numpy._core.{name}": builder for name, builder in _CORE.items()},
}
"""What NumPy 1 and 2 write for arrays and scalars."""
