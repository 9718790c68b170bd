"""Arguments of operators and nets: plain Python values in, plain Python values out; arrays without lists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zooport.export_core.caffe2.schema import Argument, OperatorDef

Value = bool | int | float | str | bytes | Sequence[int] | Sequence[float] | Sequence[str] | NDArray[Any]

# Argument.floats is not packed: each number is a byte that names the field (5, 32 bits), and four of its own.
FLOAT_RECORD = np.dtype([("tag", "u1"), ("value", "<f4")])
FLOAT_TAG = 5 << 3 | 5


def make_argument(name: str, value: Value) -> Any:
    """Return an Argument message; the kind of the value decides the field.

    Truth values are integers, as Caffe2 has no others. An empty sequence leaves every field empty.

    Raises:
        TypeError: a value, or a mixture of values, that an argument cannot hold.
    """
    made = Argument(name=name)
    if isinstance(value, (bool, int, np.integer)):
        made.i = int(value)
    elif isinstance(value, (float, np.floating)):
        made.f = float(value)
    elif isinstance(value, str | bytes):
        made.s = _bytes(value)
    elif isinstance(value, np.ndarray) and value.dtype.kind == "f":
        add_floats(made, value)
    else:
        _add_all(made, list(value))
    return made


def _add_all(made: Any, values: list[Any]) -> None:
    if all(isinstance(one, (int, np.integer)) for one in values):
        made.ints.extend(int(one) for one in values)
    elif all(isinstance(one, (int, float, np.number)) for one in values):
        made.floats.extend(float(one) for one in values)
    elif all(isinstance(one, str | bytes) for one in values):
        made.strings.extend(_bytes(one) for one in values)
    else:
        raise TypeError(f"argument {made.name}: {values!r} mixes kinds of values")


def _bytes(text: str | bytes) -> bytes:
    return text.encode() if isinstance(text, str) else text


def argument_value(argument: Any) -> Any:
    """Return what an Argument message holds: int, float, bytes, a list of these, or a message.

    An argument without any field is an empty list.
    """
    for field in ("f", "i", "s", "t", "n"):
        if argument.HasField(field):
            return getattr(argument, field)
    for field in ("floats", "ints", "strings", "tensors", "nets", "qtensors"):
        if getattr(argument, field):
            return list(getattr(argument, field))
    return []


def arguments_of(message: Any) -> dict[str, Any]:
    """Return name -> value of the arguments of an OperatorDef or a NetDef; of two alike the first counts."""
    found: dict[str, Any] = {}
    for argument in message.arg:
        found.setdefault(argument.name, argument_value(argument))
    return found


def make_operator(
    kind: str,
    inputs: Sequence[str],
    outputs: Sequence[str],
    arguments: Mapping[str, Value] | None = None,
    name: str = "",
) -> Any:
    """Return an OperatorDef message."""
    made = OperatorDef(type=kind, input=list(inputs), output=list(outputs))
    if name:
        made.name = name
    made.arg.extend(make_argument(key, value) for key, value in (arguments or {}).items())
    return made


def make_fill(name: str, array: NDArray[Any]) -> Any:
    """Return the GivenTensorFill (of another type: GivenTensor...Fill) that makes an array.

    Args:
        name: of the blob.
        array: float32, float64 (rounded to float32), int32, int64 or bool; any shape, a scalar included.

    Raises:
        TypeError: another type of numbers.
    """
    kinds = {"f4": "", "f8": "", "i4": "Int", "i8": "Int64", "b1": "Bool"}
    kind = kinds.get(array.dtype.str[1:])
    if kind is None:
        raise TypeError(f"{name}: no fill operator makes arrays of {array.dtype}")
    made = OperatorDef(type=f"GivenTensor{kind}Fill", output=[name])
    made.arg.add(name="shape").ints.extend(array.shape)
    values = made.arg.add(name="values")
    if kind:
        values.ints.extend(array.reshape(-1).astype(np.int64).tolist())
    else:
        add_floats(values, array)
    return made


def add_floats(argument: Any, array: NDArray[Any]) -> None:
    """Append an array to an argument's floats, in C order, without a Python object per number."""
    records = np.empty(array.size, FLOAT_RECORD)
    records["tag"] = FLOAT_TAG
    records["value"] = array.reshape(-1)
    argument.MergeFromString(records.tobytes())


def floats_of(argument: Any) -> NDArray[np.float32]:
    """Return an argument's floats as float32 (N,), without a Python object per number."""
    alone = Argument()
    alone.floats.MergeFrom(argument.floats)
    records = np.frombuffer(alone.SerializeToString(), FLOAT_RECORD)
    return np.array(records["value"], np.float32)  # a copy without gaps, and writable
