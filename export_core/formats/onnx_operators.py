"""How operators of torch and torchvision are written in ONNX, where torch's own way is missing or inexact.

Each function is a symbolic function of the TorchScript-based converter: it gets the graph and the operator's
arguments, and returns the values that stand for its results. Shapes are computed from the lengths of the
other dimensions and never left to Reshape (-1), which cannot tell when there are no elements.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

LOWEST_OPSET = 16
"""The first in which RoiAlign has the half-pixel mode that detectron2's models are trained with."""

HIGHEST_OPSET = 20
"""The last that torch's converter writes."""

DEFORMABLE_OPSET = 19
"""The first with DeformConv."""

MANY_BOXES = 1 << 30
"""A limit of NonMaxSuppression that limits nothing; torch's shape inference overflows at the largest one."""

Symbolic = Callable[..., Any]


@contextmanager
def registered(opset: int) -> Iterator[None]:
    """Let torch's converter use the functions of this module for a while."""
    import torch

    for name, function in _OPERATORS.items():
        torch.onnx.register_custom_op_symbolic(name, function, opset)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for name in _OPERATORS:
            torch.onnx.unregister_custom_op_symbolic(name, opset)  # type: ignore[attr-defined]


def float_at_most(value: float) -> float:
    """Return the largest float32 that is not above a number.

    torchvision compares overlaps with a float64 threshold, ONNX with a float32 one: rounded down, the two
    agree for every float32 overlap.
    """
    rounded = np.float32(value)
    return float(rounded if float(rounded) <= value else np.nextafter(rounded, np.float32(-np.inf)))


def constant(graph: Any, value: Any, *, exact: bool = True) -> Any:
    """Return a constant of int64, or of float32 where ``exact`` is false."""
    import torch

    kind = torch.int64 if exact else torch.float32
    return graph.op("Constant", value_t=torch.tensor(value, dtype=kind))


def _value(argument: Any, kind: str) -> Any:
    from torch.onnx import symbolic_helper

    return symbolic_helper._get_const(argument, kind, "argument")


def _sort(graph: Any, x: Any, *arguments: Any) -> Any:
    """Sort (stably, TopK's ties go by position); the overloads differ in an argument before dim."""
    axis, descending = (_value(argument, "i") for argument in arguments[-2:])
    length = graph.op("Gather", graph.op("Shape", x), constant(graph, [axis]))
    return graph.op("TopK", x, length, axis_i=axis, largest_i=descending, outputs=2)


def _argsort(graph: Any, x: Any, *arguments: Any) -> Any:
    return _sort(graph, x, *arguments)[1]


def _nms(graph: Any, boxes: Any, scores: Any, threshold: Any) -> Any:
    chosen = graph.op(
        "NonMaxSuppression",
        graph.op("Unsqueeze", boxes, constant(graph, [0])),
        graph.op("Unsqueeze", scores, constant(graph, [0, 1])),
        constant(graph, [MANY_BOXES]),
        constant(graph, [float_at_most(_value(threshold, "f"))], exact=False),
    )
    return graph.op("Gather", chosen, constant(graph, 2), axis_i=1)


def _unflatten(graph: Any, x: Any, dim: Any, sizes: Any) -> Any:
    rank, lengths = _rank(x), _value(sizes, "is")
    axis = _value(dim, "i") % rank
    shape = graph.op("Shape", x)
    parts = [_slice(graph, shape, 0, axis)] if axis else []
    for length in lengths:
        if length == -1:
            others = constant(graph, [-math.prod(lengths)])
            parts.append(graph.op("Div", _slice(graph, shape, axis, axis + 1), others))
        else:
            parts.append(constant(graph, [length]))
    if axis + 1 < rank:
        parts.append(_slice(graph, shape, axis + 1, rank))
    return graph.op("Reshape", x, graph.op("Concat", *parts, axis_i=0), allowzero_i=1)


def _flatten(graph: Any, x: Any, start: Any, end: Any) -> Any:
    rank = _rank(x)
    first, last = _value(start, "i") % max(rank, 1), _value(end, "i") % max(rank, 1)
    if rank == 0:
        return graph.op("Reshape", x, constant(graph, [1]))
    shape = graph.op("Shape", x)
    parts = [_slice(graph, shape, 0, first)] if first else []
    parts.append(graph.op("ReduceProd", _slice(graph, shape, first, last + 1), keepdims_i=1))
    if last + 1 < rank:
        parts.append(_slice(graph, shape, last + 1, rank))
    flat = parts[0] if len(parts) == 1 else graph.op("Concat", *parts, axis_i=0)
    return graph.op("Reshape", x, flat, allowzero_i=1)


def _slice(graph: Any, vector: Any, start: int, end: int) -> Any:
    return graph.op("Slice", vector, constant(graph, [start]), constant(graph, [end]))


def _rank(x: Any) -> int:
    from torch.onnx import errors, symbolic_helper

    rank = symbolic_helper._get_tensor_rank(x)
    if rank is None:
        raise errors.SymbolicValueError("the number of dimensions is not known", x)
    return int(rank)


def _group_norm(graph: Any, x: Any, groups: Any, weight: Any, bias: Any, eps: Any, cudnn: Any) -> Any:
    """Normalise over the cells of each group, as an instance of so many channels; also of no instance."""
    import torch

    count = _value(groups, "i")
    rank, shape = _rank(x), graph.op("Shape", x)
    cells = graph.op("ReduceProd", _slice(graph, shape, 2, rank), keepdims_i=1)
    length = graph.op("Mul", cells, graph.op("Div", _slice(graph, shape, 1, 2), constant(graph, [count])))
    grouped_shape = graph.op("Concat", _slice(graph, shape, 0, 1), constant(graph, [count]), length, axis_i=0)
    grouped = graph.op("Reshape", x, grouped_shape, allowzero_i=1)
    ones = graph.op("Constant", value_t=torch.ones(count))
    zeros = graph.op("Constant", value_t=torch.zeros(count))
    normal = graph.op("InstanceNormalization", grouped, ones, zeros, epsilon_f=_value(eps, "f"))
    normal = graph.op("Reshape", normal, shape, allowzero_i=1)
    spatial = constant(graph, list(range(1, rank - 1)))
    scaled = graph.op("Mul", normal, graph.op("Unsqueeze", weight, spatial))
    return graph.op("Add", scaled, graph.op("Unsqueeze", bias, spatial))


def _deform_conv2d(
    graph: Any, x: Any, weight: Any, offsets: Any, mask: Any, bias: Any, *settings: Any
) -> Any:
    """DeformConv has torchvision's layout of offsets and mask."""
    from torch.onnx import symbolic_helper

    numbers = [_value(setting, "i") for setting in settings]
    modulated = numbers[8]
    return graph.op(
        "DeformConv",
        *(x, weight, offsets, bias, *([mask] if modulated else [])),
        kernel_shape_i=symbolic_helper._get_tensor_sizes(weight)[2:],
        strides_i=numbers[0:2],
        pads_i=numbers[2:4] * 2,
        dilations_i=numbers[4:6],
        group_i=numbers[6],
        offset_group_i=numbers[7],
    )


_OPERATORS: dict[str, Symbolic] = {
    "aten::sort": _sort,
    "aten::argsort": _argsort,
    "aten::unflatten": _unflatten,
    "aten::flatten": _flatten,
    "aten::group_norm": _group_norm,
    "torchvision::nms": _nms,
    "torchvision::deform_conv2d": _deform_conv2d,
}
