"""Operators that put tensors together and take them apart."""

from __future__ import annotations

import torch
from torch import Tensor

from zooport.export_core.caffe2.reference.registry import Call, operator, refuse_unless


def _axis(call: Call, dimensions: int, default: str = "NCHW") -> int:
    order = call.text("order", default)
    axis = call.integer("axis", {"NCHW": 1, "NHWC": 3}[order])
    return axis + dimensions if axis < 0 else axis


@operator("Concat")
def concat(call: Call) -> tuple[Tensor, Tensor]:
    """Tensors one after the other along ``axis`` and, as int32, how long each was there."""
    first = call.inputs[0]
    if call.flag("add_axis", False):
        axis = _axis(call, first.dim() + 1)
        lengths = torch.ones(len(call.inputs), dtype=torch.int32)
        return torch.stack(list(call.inputs), axis), lengths
    axis = _axis(call, first.dim())
    for other in call.inputs:
        refuse_unless(other.dtype == first.dtype, "inputs of different types")
        refuse_unless(other.dim() == first.dim(), "inputs of different numbers of dimensions")
    lengths = torch.tensor([one.shape[axis] for one in call.inputs], dtype=torch.int32)
    return torch.cat(list(call.inputs), axis), lengths


@operator("Split")
def split(call: Call) -> list[Tensor]:
    """Parts along ``axis``: as long as ``split`` or the second input say, or equally long."""
    x = call.inputs[0]
    axis = _axis(call, x.dim())
    lengths = call.inputs[1].tolist() if len(call.inputs) == 2 else call.integers("split")
    if not lengths:
        refuse_unless(x.shape[axis] % call.outputs == 0, f"{x.shape[axis]} is not divisible")
        lengths = [x.shape[axis] // call.outputs] * call.outputs
    refuse_unless(sum(lengths) == x.shape[axis], f"parts of {lengths} are not {x.shape[axis]}")
    return [part.contiguous() for part in torch.split(x, lengths, axis)]


@operator("Tile")
def tile(call: Call) -> Tensor:
    """A tensor ``tiles`` times along ``axis``; both may be inputs, of one integer each."""
    x, *more = call.inputs
    tiles = int(more[0].reshape(-1)[0]) if more else call.integer("tiles", 1)
    axis = int(more[1].reshape(-1)[0]) if len(more) > 1 else call.integer("axis", 0)
    return torch.cat([x] * tiles, axis) if tiles else x.narrow(axis, 0, 0)
