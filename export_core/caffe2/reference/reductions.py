"""Operators that reduce dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from zooport.export_core.caffe2.reference.registry import Call, operator

_REDUCTIONS: dict[str, Callable[[Tensor, list[int], bool], Tensor]] = {
    "ReduceL1": lambda x, axes, keep: x.abs().sum(axes, keep),
    "ReduceL2": lambda x, axes, keep: x.square().sum(axes, keep).sqrt(),
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keep),
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keep),
    "ReduceSum": lambda x, axes, keep: x.sum(axes, keep),
}
_BACK = {"ReduceBackMax": "ReduceMax", "ReduceBackMean": "ReduceMean", "ReduceBackSum": "ReduceSum"}
_FRONT = {"ReduceFrontMax": "ReduceMax", "ReduceFrontMean": "ReduceMean", "ReduceFrontSum": "ReduceSum"}


@operator(*_REDUCTIONS)
def reduce(call: Call) -> Tensor:
    """Over ``axes``, or over all; ``keepdims`` leaves lengths of 1."""
    x = call.inputs[0]
    axes = call.integers("axes") or list(range(x.dim()))
    return _REDUCTIONS[call.kind](x, axes, call.flag("keepdims", True))


@operator(*_BACK, *_FRONT)
def reduce_end(call: Call) -> Tensor:
    """Over the last or the first ``num_reduce_dim`` dimensions, which go."""
    x, *lengths = call.inputs
    if lengths:
        call.only("lengths", "absent")
    count = call.integer("num_reduce_dim", 1)
    if call.kind in _BACK:
        return _REDUCTIONS[_BACK[call.kind]](x, list(range(x.dim() - count, x.dim())), False)
    return _REDUCTIONS[_FRONT[call.kind]](x, list(range(count)), False)


@operator("ArgMax", "ArgMin")
def arg_extreme(call: Call) -> Tensor:
    """Where the largest or smallest along ``axis`` is, the first of equal ones, as int64."""
    x = call.inputs[0]
    axis = call.integer("axis", -1)
    axis += x.dim() if axis < 0 else 0
    rows = x.movedim(axis, -1)
    best = rows.amax(-1, keepdim=True) if call.kind == "ArgMax" else rows.amin(-1, keepdim=True)
    found = (rows == best).to(torch.uint8).argmax(-1)  # the first of the ones
    return found.unsqueeze(axis) if call.flag("keepdims", True) else found


@operator("SumElements")
def sum_elements(call: Call) -> Tensor:
    """The sum of everything, or its mean with ``average``, as a scalar."""
    x = call.inputs[0]
    return x.mean() if call.flag("average", False) and x.numel() else x.sum()


@operator("Softmax")
def softmax(call: Call) -> Tensor:
    """Over all dimensions from ``axis`` on together."""
    x = call.inputs[0]
    axis = call.integer("axis", 1)
    axis += x.dim() if axis < 0 else 0
    rows = x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))
    return torch.softmax(rows, 1).reshape(x.shape)
