"""Operators that give numbers another shape or order, or tell a shape."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from zooport.export_core.caffe2.reference.registry import Call, operator, refuse_unless


@operator("Reshape")
def reshape(call: Call) -> tuple[Tensor, Tensor]:
    """The same numbers in another shape, where 0 keeps a length and -1 is what is left; and the old shape.

    Without numbers, 0 and -1 are lengths of 0, and nothing is compared.
    """
    x = call.inputs[0]
    wanted = call.inputs[1].tolist() if len(call.inputs) == 2 else call.integers("shape")
    refuse_unless(wanted.count(-1) <= 1, f"two lengths of {wanted} are open")
    kind = call.inputs[1].dtype if len(call.inputs) == 2 else torch.int64
    if not x.numel():
        empty = [max(length, 0) for length in wanted]
        refuse_unless(math.prod(empty) == 0, f"no numbers are not {wanted}")
        return x.reshape(empty), torch.tensor(x.shape, dtype=kind)
    lengths = []
    for axis, length in enumerate(wanted):
        refuse_unless(length != 0 or axis < x.dim(), f"there is no dimension {axis} to keep")
        lengths.append(x.shape[axis] if length == 0 else length)
    known = math.prod(length for length in lengths if length != -1)
    if -1 in lengths:
        refuse_unless(known != 0 and x.numel() % known == 0, f"{x.numel()} numbers are not {wanted}")
        lengths[lengths.index(-1)] = x.numel() // known
    refuse_unless(math.prod(lengths) == x.numel(), f"{x.numel()} numbers are not {wanted}")
    return x.reshape(lengths), torch.tensor(x.shape, dtype=kind)


@operator("Flatten")
def flatten(call: Call) -> Tensor:
    """Two dimensions: those before ``axis`` and those from it on."""
    x = call.inputs[0]
    axis = call.integer("axis", 1)
    refuse_unless(x.dim() >= axis, f"there is no dimension {axis}")
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@operator("FlattenToVec")
def flatten_to_vector(call: Call) -> Tensor:
    """One dimension."""
    return call.inputs[0].reshape(-1)


@operator("Transpose")
def transpose(call: Call) -> Tensor:
    """Dimensions in the order ``axes``, or reversed."""
    x = call.inputs[0]
    return x.permute(call.integers("axes") or list(range(x.dim()))[::-1]).contiguous()


@operator("NCHW2NHWC")
def channels_last(call: Call) -> Tensor:
    """Channels from the second to the last dimension."""
    return call.inputs[0].movedim(1, -1).contiguous()


@operator("NHWC2NCHW")
def channels_first(call: Call) -> Tensor:
    """Channels from the last to the second dimension."""
    return call.inputs[0].movedim(-1, 1).contiguous()


@operator("ExpandDims")
def expand_dims(call: Call) -> Tensor:
    """Lengths of 1 at the places ``dims`` of the result."""
    x = call.inputs[0]
    for place in sorted(call.integers("dims")):
        x = x.unsqueeze(place)
    return x


@operator("Squeeze")
def squeeze(call: Call) -> Tensor:
    """Without the dimensions ``dims``, which have length 1."""
    x = call.inputs[0]
    for place in sorted(call.integers("dims"), reverse=True):
        refuse_unless(x.shape[place] == 1, f"dimension {place} has length {x.shape[place]}")
        x = x.squeeze(place)
    return x


@operator("Expand")
def expand(call: Call) -> Tensor:
    """Broadcast against a shape, an int64 tensor."""
    x, wanted = call.inputs
    refuse_unless(wanted.dtype == torch.int64, f"a shape of {wanted.dtype}")
    return x.broadcast_to(torch.broadcast_shapes(x.shape, wanted.tolist())).contiguous()


@operator("ResizeLike")
def resize_like(call: Call) -> Tensor:
    """The numbers of the first in the shape of the second."""
    x, like = call.inputs
    return x.reshape(like.shape)


@operator("Shape")
def shape(call: Call) -> Tensor:
    """Lengths of all dimensions, or of ``axes``, as int64."""
    lengths = call.inputs[0].shape
    axes = call.integers("axes") or range(len(lengths))
    return torch.tensor([lengths[axis] for axis in axes], dtype=torch.int64)


@operator("Size")
def size(call: Call) -> Tensor:
    """How many numbers, as an int64 scalar."""
    return torch.tensor(call.inputs[0].numel(), dtype=torch.int64)
