"""Operators of Caffe2 as torch's ONNX converter records them: nodes of a domain of their own.

While a network is recorded, each gives zeros of one possible shape: no value of the sample can get into the
graph, and a sample without detections gives the same graph as any other. What each computes is documented in
Caffe2's operator catalogue (https://caffe2.ai/docs/operators-catalogue.html).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.onnx.symbolic_helper import parse_args

DOMAIN = "caffe2"
OPSET = 12  # of ONNX: the last in which axes and the like are attributes, as they are in Caffe2

_SUFFIXES = {bool: "i", int: "i", float: "f", str: "s"}
_FLOAT = 1  # of Caffe2's TensorProto.DataType


def record(
    kind: str,
    inputs: Sequence[Tensor],
    shapes: Sequence[Sequence[int]],
    arguments: Mapping[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
) -> tuple[Tensor, ...]:
    """Enter an operator into the graph that is being recorded and return stand-ins for its outputs.

    Args:
        kind: the operator's type in Caffe2.
        inputs: what it reads.
        shapes: one shape that each output could have.
        arguments: its arguments; a list of numbers is entered as such.
        dtype: of its outputs.
    """
    attributes = {f"{name}_{_suffix(value)}": value for name, value in (arguments or {}).items()}

    class Node(torch.autograd.Function):
        @staticmethod
        def forward(_: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
            return tuple(torch.zeros(tuple(shape), dtype=dtype) for shape in shapes)

        @staticmethod
        def symbolic(graph: Any, *values: Any) -> Any:
            return graph.op(f"{DOMAIN}::{kind}", *values, outputs=len(shapes), **attributes)

    made: tuple[Tensor, ...] = Node.apply(*inputs)
    return made


def _suffix(value: Any) -> str:
    return _SUFFIXES[type(value[0] if isinstance(value, list | tuple) else value)]


def inside(data: Tensor, im_info: Tensor) -> Tensor:
    """Return (H, W): 1 where the image is, 0 where ``data`` (1, C, H, W) is padding.

    Args:
        data: the padded batch of one image.
        im_info: (1, 3), whose first two numbers are the height and width of the image.
    """
    sides = []
    (shape,) = record("Shape", [data], [[4]], dtype=torch.int64)
    for axis in (2, 3):
        cut = {"starts": [axis], "ends": [axis + 1]}
        (length,) = record("Slice", [shape], [[1]], cut, torch.int64)
        count = int(data.shape[axis])
        (positions,) = record("Range", [length], [[count]], dtype=torch.int64)
        (numbers,) = record("Cast", [positions], [[count]], {"to": _FLOAT})
        cut = {"starts": [0, axis - 2], "ends": [1, axis - 1]}
        (limit,) = record("Slice", [im_info], [[1, 1]], cut)
        limit = reshape(limit, [1], [1])
        (within,) = record("LT", [numbers, limit], [[count]], dtype=torch.bool)
        (weight,) = record("Cast", [within], [[count]], {"to": _FLOAT})
        along = [-1, 1] if axis == 2 else [1, -1]
        sides.append(reshape(weight, along, [count if length == -1 else 1 for length in along]))
    return sides[0] @ sides[1]  # Caffe2 is slow where both sides of a product are repeated


def reshape(values: Tensor, shape: list[int], example: Sequence[int]) -> Tensor:
    """Reshape as Caffe2 does: 0 keeps a length, -1 is what is left; ``example`` is one possible shape.

    Of an array without numbers, Caffe2 keeps no length: 0 means 0 then.
    """
    return record("Reshape", [values], [example], {"shape": shape})[0]


def unit_scale(im_info: Tensor) -> Tensor:
    """Return im_info (1, 3) with a scale of 1: results are in pixels of the network's input."""
    keep, one = torch.tensor([[1.0, 1.0, 0.0]]), torch.tensor([[0.0, 0.0, 1.0]])
    return im_info * keep + one


def upsample_bilinear(maps: Tensor, channels: int, factor: int, *, of_regions: bool = False) -> Tensor:
    """Enlarge maps (N, channels, H, W) by an even factor, with pixel centres aligned, borders included.

    Those of regions have the size that was recorded, and there may be none of them; others are never empty.

    Bilinear interpolation is a transposed convolution with a triangle, once the border is repeated: what it
    writes for the repeated pixels is cut off by its own padding.
    """
    height, width = int(maps.shape[2]), int(maps.shape[3])
    count = int(maps.shape[0])
    kept = [height, width] if of_regions else [0, 0]
    single = reshape(maps, [-1, 1, *kept], [count * channels, 1, height, width])
    pads = {f"pad_{side}": 1 for side in "tlbr"} | {"mode": "edge", "order": "NCHW"}
    (padded,) = record("PadImage", [single], [[count * channels, 1, height + 2, width + 2]], pads)
    triangle = 1 - np.abs(np.arange(2 * factor) - (factor - 0.5)) / factor
    weight = torch.from_numpy(np.outer(triangle, triangle)[None, None].astype(np.float32))
    arguments = {
        "kernels": [2 * factor] * 2,
        "strides": [factor] * 2,
        "pads": [3 * factor // 2] * 4,
        "order": "NCHW",
    }
    size = [factor * height, factor * width]
    inputs = [padded, weight, torch.zeros(1)]
    (large,) = record("ConvTranspose", inputs, [[count * channels, 1, *size]], arguments)
    kept = size if of_regions else [0, 0]
    return reshape(large, [-1, channels, *kept], [count, channels, *size])


@contextmanager
def recorded_as_caffe2() -> Iterator[None]:
    """While a network is recorded: layers of torch that ONNX would spell out in many operators."""

    @parse_args("v", "i", "v", "v", "f", "i")
    def group_norm(graph: Any, x: Any, groups: int, weight: Any, bias: Any, eps: float, _: int) -> Any:
        return graph.op(f"{DOMAIN}::GroupNorm", x, weight, bias, group_i=groups, epsilon_f=eps)

    torch.onnx.register_custom_op_symbolic("aten::group_norm", group_norm, OPSET)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::group_norm", OPSET)  # type: ignore[attr-defined]
