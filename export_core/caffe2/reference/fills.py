"""Operators that make a tensor from their arguments, or from the shape of another."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from zooport.export_core.caffe2.reference.elementwise import tensor_type
from zooport.export_core.caffe2.reference.registry import Call, operator, refuse_unless

_GIVEN = {
    "GivenTensorFill": torch.float32,
    "GivenTensorDoubleFill": torch.float64,
    "GivenTensorIntFill": torch.int32,
    "GivenTensorInt64Fill": torch.int64,
    "GivenTensorBoolFill": torch.bool,
}


def _shape(call: Call) -> list[int]:
    """Return the shape of what a fill makes."""
    if not call.inputs:
        return call.integers("shape")
    extra = call.integers("extra_shape")
    if call.flag("input_as_shape", False):
        (lengths,) = call.inputs
        refuse_unless(lengths.dim() == 1 and lengths.dtype == torch.int64, "a shape is a list of int64")
        return [*lengths.tolist(), *extra]
    return [*call.inputs[0].shape, *extra]


@operator(*_GIVEN)
def given(call: Call) -> Tensor:
    """The numbers in ``values``, in the shape of ``shape``."""
    kind = _GIVEN[call.kind]
    if kind.is_floating_point:
        return torch.from_numpy(call.array("values")).to(kind).reshape(_shape(call))
    return torch.tensor(call.integers("values"), dtype=kind).reshape(_shape(call))


@operator("ConstantFill")
def constant(call: Call) -> Tensor:
    """One number everywhere, of the type ``dtype`` or that of the argument ``value``."""
    value = call.value("value", 0.0)
    kind = tensor_type(call.integer("dtype", 1)) if call.has("dtype") else _type_of(value)
    wanted = float if kind.is_floating_point else int
    refuse_unless(not call.has("value") or type(value) is wanted, f"a value {value!r} for {kind}")
    return torch.full(_shape(call), wanted(value), dtype=kind)


def _type_of(value: Any) -> torch.dtype:
    return torch.int64 if type(value) is int else torch.float32


@operator("Range")
def arange(call: Call) -> Tensor:
    """Numbers from a start to a stop, which is not reached, by steps; each a tensor of one number.

    Going down, the runtime leaves out a last number that is less than a step from the stop.
    """
    refuse_unless(1 <= len(call.inputs) <= 3, "one to three inputs")
    numbers = [one.reshape(()).item() for one in call.inputs]
    start, stop, step = (0, numbers[0], 1) if len(numbers) == 1 else (*numbers, 1)[:3]
    refuse_unless(step != 0, "a step of zero")
    kind = call.inputs[0].dtype
    refuse_unless(all(one.dtype == kind for one in call.inputs), "inputs of different types")
    count = int((stop - start) / step)
    count += count * step < stop - start
    return start + step * torch.arange(max(count, 0), dtype=kind)
