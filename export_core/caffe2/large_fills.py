"""Parameters of hundreds of megabytes: written and read without ever being a protobuf message.

As one, such a parameter is in memory several times over: as bytes, as a list of floats that grew by doubling,
and again wherever a net is copied. Here its floats go to the file piece by piece, and come from the mapped
file as an array. The bytes in the file are those of the message.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from zooport.export_core.caffe2.arguments import FLOAT_RECORD, FLOAT_TAG, arguments_of, make_fill
from zooport.export_core.caffe2.schema import OperatorDef

LARGE = 16 << 20  # bytes of an operator that is read as an array
KIND = "GivenTensorFill"

_PIECE = 1 << 20  # floats at a time
_OP, _ARG, _NAME = 2, 5, 1  # NetDef.op, OperatorDef.arg, Argument.name
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5  # kinds of protobuf's fields
_SIZES = {_FIXED64: 8, _FIXED32: 4}
_VALUES = b"values"
_LONGEST = 10  # bytes of a varint


class _Field(NamedTuple):
    number: int
    kind: int
    begin: int  # of its tag
    start: int  # of its content
    stop: int


class _Malformed(Exception):
    """These bytes are no protobuf message; who parses them says so better."""


def fill_bytes(name: str, array: NDArray[Any]) -> Iterator[bytes | memoryview]:
    """Yield the serialised GivenTensorFill that makes a float array, in pieces; the first tells the length.

    Args:
        name: of the blob.
        array: float32, or float64, which is rounded.
    """
    head = make_fill(name, array[:0].reshape(0)) if array.ndim else make_fill(name, np.zeros(0, np.float32))
    head.arg[0].ints[:] = array.shape
    del head.arg[1]
    before = head.SerializeToString(deterministic=True)
    label = _tag(_NAME, _BYTES) + varint(len(_VALUES)) + _VALUES
    size = len(label) + array.size * FLOAT_RECORD.itemsize
    argument = _tag(_ARG, _BYTES) + varint(size)
    yield varint(len(before) + len(argument) + size)
    yield before + argument + label
    flat = array.reshape(-1)
    for start in range(0, array.size, _PIECE):
        piece = flat[start : start + _PIECE]
        records = np.empty(piece.size, FLOAT_RECORD)
        records["tag"] = FLOAT_TAG
        records["value"] = piece
        yield records.data.cast("B")


def without_large_fills(data: Any) -> tuple[bytes, dict[str, NDArray[np.float32]]]:
    """Take the values of large fills out of a serialised NetDef.

    Args:
        data: a buffer, such as a mapped file, that is kept as long as the arrays are.

    Returns:
        The NetDef's bytes, in which these fills have no values, and for the blob of each its values, float32
        of its shape, with gaps between the numbers. Whatever is not as zooport and Caffe2 write it stays.
    """
    view = memoryview(data)
    parts: list[bytes] = []
    found: dict[str, NDArray[np.float32]] = {}
    try:
        for field in _fields(view, 0, len(view)):
            taken = None
            if field.number == _OP and field.kind == _BYTES and field.stop - field.start > LARGE:
                taken = _take(view, field)
            if taken is None:
                parts.append(bytes(view[field.begin : field.stop]))
                continue
            operator, values = taken
            found[operator.output[0]] = values
            body = operator.SerializeToString()
            parts.append(_tag(_OP, _BYTES) + varint(len(body)) + body)
    except _Malformed:
        return bytes(view), {}
    return b"".join(parts), found


def _take(view: memoryview, field: _Field) -> tuple[Any, NDArray[np.float32]] | None:
    """Return a fill without its values, and these; None for an operator that is no plain fill."""
    rest: list[bytes] = []
    values = None
    for part in _fields(view, field.start, field.stop):
        floats = None
        if part.number == _ARG and part.kind == _BYTES and part.stop - part.start > LARGE // 2:
            floats = _floats(view, part)
        if floats is None:
            rest.append(bytes(view[part.begin : part.stop]))
        elif values is None:
            values = floats
        else:
            return None
    try:
        operator = OperatorDef.FromString(b"".join(rest))
    except DecodeError:
        return None
    shape = arguments_of(operator).get("shape")
    if values is None or operator.type != KIND or operator.input or len(operator.output) != 1:
        return None
    if not isinstance(shape, list) or any(type(one) is not int for one in shape):
        return None
    if math.prod(shape) != values.size or any(argument.name == "values" for argument in operator.arg):
        return None
    return operator, values.reshape(shape)


def _floats(view: memoryview, field: _Field) -> NDArray[np.float32] | None:
    """Return the numbers of an Argument that is the name ``values`` and floats after it, else None."""
    label = next(_fields(view, field.start, field.stop))
    if label.number != _NAME or bytes(view[label.start : label.stop]) != _VALUES:
        return None
    count, more = divmod(field.stop - label.stop, FLOAT_RECORD.itemsize)
    if more:
        return None
    records = np.frombuffer(view, FLOAT_RECORD, count, label.stop)
    pieces = (records["tag"][start : start + _PIECE] for start in range(0, count, _PIECE))
    return records["value"] if all((piece == FLOAT_TAG).all() for piece in pieces) else None


def _fields(view: memoryview, start: int, stop: int) -> Iterator[_Field]:
    """Yield the fields of a message between two places."""
    place = start
    while place < stop:
        begin = place
        tag, place = _read_varint(view, place, stop)
        kind = tag & 7
        if kind == _VARINT:
            content, place = place, _read_varint(view, place, stop)[1]
        elif kind == _BYTES:
            size, content = _read_varint(view, place, stop)
            place = content + size
        elif kind in _SIZES:
            content, place = place, place + _SIZES[kind]
        else:
            raise _Malformed
        if place > stop:
            raise _Malformed
        yield _Field(tag >> 3, kind, begin, content, place)


def _read_varint(view: memoryview, place: int, stop: int) -> tuple[int, int]:
    number = 0
    for index in range(_LONGEST):
        if place + index >= stop:
            break
        byte = view[place + index]
        number |= (byte & 0x7F) << 7 * index
        if byte < 0x80:
            return number, place + index + 1
    raise _Malformed


def varint(number: int) -> bytes:
    """Return a number as protobuf writes lengths."""
    parts = bytearray()
    while number > 0x7F:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


def _tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)
