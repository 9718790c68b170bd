"""Operators that work number by number, of one tensor or of two that are broadcast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from zooport.export_core.caffe2.reference.registry import Call, operator, refuse_unless

_UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs,
    "Ceil": torch.ceil,
    "Cos": torch.cos,
    "Cube": lambda x: x * x * x,
    "Erf": torch.erf,
    "Exp": torch.exp,
    "Floor": torch.floor,
    "Log": torch.log,
    "Negative": torch.neg,
    "Not": torch.logical_not,
    "Reciprocal": torch.reciprocal,
    "Relu": torch.relu,
    "Rsqrt": torch.rsqrt,
    "Sigmoid": torch.sigmoid,
    "Sign": torch.sign,
    "Sin": torch.sin,
    "Softplus": lambda x: torch.log1p(torch.exp(x)),
    "Softsign": lambda x: x / (1 + x.abs()),
    "Sqr": torch.square,
    "Sqrt": torch.sqrt,
    "Swish": functional.silu,
    "Tanh": torch.tanh,
    # What these do on a CPU is copy.
    "Alias": lambda x: x,
    "Copy": torch.clone,
    "CopyCPUToGPU": torch.clone,
    "CopyFromCPUInput": torch.clone,
    "CopyGPUToCPU": torch.clone,
    "EnsureCPUOutput": torch.clone,
    "StopGradient": lambda x: x,
}
_ARITHMETIC: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": lambda a, b: torch.div(a, b) if a.is_floating_point() else torch.div(a, b, rounding_mode="trunc"),
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "EQ": torch.eq,
    "NE": torch.ne,
    "LT": torch.lt,
    "LE": torch.le,
    "GT": torch.gt,
    "GE": torch.ge,
}
_LOGICAL = {"And", "Or", "Xor"}


@operator(*_UNARY)
def unary(call: Call) -> Tensor:
    """One tensor in, one of its shape out."""
    (x,) = call.inputs
    refuse_unless(call.kind != "Not" or x.dtype == torch.bool, f"an input of {x.dtype}")
    return _UNARY[call.kind](x)


@operator(*_ARITHMETIC)
def binary(call: Call) -> Tensor:
    """Two tensors of one dtype, broadcast as numpy does, or as Caffe did with ``broadcast`` and ``axis``."""
    a, b = call.inputs
    refuse_unless(a.dtype == b.dtype, f"inputs of {a.dtype} and {b.dtype}")
    refuse_unless(call.kind not in _LOGICAL or a.dtype == torch.bool, f"inputs of {a.dtype}")
    if call.flag("broadcast", False):
        b = _aligned(a, b, call.integer("axis", -1))
    else:
        refuse_unless(call.integer("axis", -1) == -1, "axis is given without broadcast")
    return _ARITHMETIC[call.kind](a, b)


def _aligned(a: Tensor, b: Tensor, axis: int) -> Tensor:
    """Return b with lengths of 1 appended, so that its first dimension meets dimension ``axis`` of a."""
    if b.numel() == 1:
        return b.reshape(())
    start = a.dim() - b.dim() if axis == -1 else axis
    refuse_unless(
        start >= 0 and a.shape[start : start + b.dim()] == b.shape,
        f"{tuple(b.shape)} is no part of {tuple(a.shape)} from dimension {start} on",
    )
    return b.reshape(*b.shape, *[1] * (a.dim() - start - b.dim()))


@operator("Sum", "Max", "Min", "Mean")
def several(call: Call) -> Tensor:
    """Any number of tensors of one shape."""
    first = call.inputs[0]
    for other in call.inputs[1:]:
        refuse_unless(other.shape == first.shape, "inputs of different shapes")
    result = first
    combine = {"Max": torch.maximum, "Min": torch.minimum}.get(call.kind, torch.add)
    for other in call.inputs[1:]:
        result = combine(result, other)
    return result / len(call.inputs) if call.kind == "Mean" else result


@operator("Clip")
def clip(call: Call) -> Tensor:
    """Values between ``min`` and ``max``."""
    limits = torch.finfo(torch.float32)
    return call.inputs[0].clamp(call.number("min", limits.min), call.number("max", limits.max))


@operator("LeakyRelu")
def leaky_relu(call: Call) -> Tensor:
    """Values below zero times ``alpha``."""
    return functional.leaky_relu(call.inputs[0], call.number("alpha", 0.01))


@operator("Elu")
def elu(call: Call) -> Tensor:
    """Exponential below zero."""
    return functional.elu(call.inputs[0], call.number("alpha", 1.0))


@operator("PRelu")
def prelu(call: Call) -> Tensor:
    """Values below zero times a weight, one for all or one per channel."""
    call.only("order", "NCHW")
    x, slope = call.inputs
    return torch.where(
        x > 0, x, x * (slope if slope.numel() == 1 else slope.reshape(-1, *[1] * (x.dim() - 2)))
    )


@operator("HardSigmoid")
def hard_sigmoid(call: Call) -> Tensor:
    """A line from 0 to 1."""
    x = call.inputs[0] * call.number("alpha", 0.2) + call.number("beta", 0.5)
    return x.clamp(0.0, 1.0)


@operator("Pow")
def power(call: Call) -> Tensor:
    """A power given as argument ``exponent`` or as second input."""
    if len(call.inputs) == 1:
        return call.inputs[0].pow(call.number("exponent", 0.0))
    return torch.pow(call.inputs[0], call.inputs[1])


@operator("Where")
def where(call: Call) -> Tensor:
    """The second input where the first (bool, of the same shape) is true, the third elsewhere."""
    call.only("broadcast_on_rows", 0)
    condition, x, y = call.inputs
    refuse_unless(condition.dtype == torch.bool, f"a condition of {condition.dtype}")
    refuse_unless(condition.shape == x.shape == y.shape, "inputs of different shapes")
    return torch.where(condition, x, y)


@operator("Dropout")
def dropout(call: Call) -> tuple[Tensor, Tensor]:
    """Nothing, as nets are run in test mode; the second output is the mask."""
    refuse_unless(call.flag("is_test", False), "training mode")
    return call.inputs[0], torch.ones_like(call.inputs[0], dtype=torch.bool)


_TYPES = {
    1: torch.float32,
    2: torch.int32,
    3: torch.uint8,
    5: torch.bool,
    6: torch.uint8,
    7: torch.int8,
    9: torch.int16,
    10: torch.int64,
    12: torch.float16,
    13: torch.float64,
}
_TYPE_NAMES = {
    "float": 1,
    "int32": 2,
    "int": 2,
    "byte": 3,
    "bool": 5,
    "uint8": 6,
    "int8": 7,
    "int16": 9,
    "int64": 10,
    "float16": 12,
    "double": 13,
}


def tensor_type(number: int) -> torch.dtype:
    """Return the dtype of a value of TensorProto.DataType."""
    refuse_unless(number in _TYPES, f"there is no numeric type {number}")
    return _TYPES[number]


@operator("Cast")
def cast(call: Call) -> Tensor:
    """To the type ``to``, by its number or its name; fractions are cut off."""
    wanted = call.value("to", None)
    if isinstance(wanted, bytes):
        name = wanted.decode(errors="replace").lower()
        refuse_unless(name in _TYPE_NAMES, f"there is no type {name}")
        wanted = _TYPE_NAMES[name]
    return call.inputs[0].to(tensor_type(wanted if isinstance(wanted, int) else 0))
