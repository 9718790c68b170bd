"""Operators that pick numbers: slices, indices, masks, the largest ones."""

from __future__ import annotations

import torch
from torch import Tensor

from zooport.export_core.caffe2.reference.registry import Call, NotImplementedHere, operator, refuse_unless


@operator("Slice")
def cut(call: Call) -> Tensor:
    """From ``starts`` to ``ends`` (given as inputs or arguments), along one dimension only.

    An end of -1 is the end of the dimension, -2 leaves out the last, and so on.
    """
    x = call.inputs[0]
    if len(call.inputs) == 3:
        starts, ends = (one.tolist() for one in call.inputs[1:])
    else:
        starts, ends = call.integers("starts"), call.integers("ends")
    cuts = []
    for axis, length in enumerate(x.shape):
        start, end = (
            _place(places[axis] if axis < len(places) else default, length)
            for places, default in ((starts, 0), (ends, -1))
        )
        refuse_unless(start <= end, f"starts at {start}, after its end {end}")
        if (start, end) != (0, length):
            cuts.append((axis, start, end))
    refuse_unless(len(cuts) <= 1, "more than one dimension is cut")
    for axis, start, end in cuts:
        x = x.narrow(axis, start, end - start)
    return x.contiguous()


def _place(place: int, length: int) -> int:
    return min(place + length + 1 if place < 0 else place, length)


@operator("Gather")
def gather(call: Call) -> Tensor:
    """Members of dimension ``axis`` by indices of any shape."""
    call.only("match_outer", 0)
    x, indices = call.inputs
    axis = call.integer("axis", 0)
    axis += x.dim() if axis < 0 else 0
    flat = indices.reshape(-1).to(torch.int64)
    if call.flag("wrap_indices", False):
        flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    refuse_unless(bool(((flat >= 0) & (flat < x.shape[axis])).all()), "an index is out of range")
    found = x.index_select(axis, flat)
    return found.reshape((*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]))


@operator("BatchGather")
def batch_gather(call: Call) -> Tensor:
    """Members of the second dimension by indices of any shape."""
    x, indices = call.inputs
    found = x.index_select(1, indices.reshape(-1).to(torch.int64))
    return found.reshape(x.shape[0], *indices.shape, *x.shape[2:])


@operator("BooleanMask")
def boolean_mask(call: Call) -> tuple[Tensor, Tensor]:
    """Rows where the mask is true, and their indices as int64."""
    x, mask = call.inputs
    refuse_unless(mask.dim() == 1 and mask.shape[0] == x.shape[0], "a mask has one value per row")
    return x[mask], torch.nonzero(mask).reshape(-1)


@operator("TopK")
def top_k(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """The ``k`` largest along ``axis``, largest first, of equal ones the first; indices; flat indices."""
    x = call.inputs[0]
    axis = call.integer("axis", -1)
    axis += x.dim() if axis < 0 else 0
    k = int(call.inputs[1].reshape(-1)[0]) if len(call.inputs) == 2 else call.integer("k", -1)
    refuse_unless(k >= 1, f"k is {k}")
    if k > x.shape[axis]:
        raise NotImplementedHere(f"with k={k} for {x.shape[axis]} values")
    values, indices = torch.sort(x, dim=axis, descending=True, stable=True)
    values, indices = (one.narrow(axis, 0, k).contiguous() for one in (values, indices))
    places = torch.arange(x.numel()).reshape(x.shape)
    return values, indices, places.gather(axis, indices).reshape(-1)
