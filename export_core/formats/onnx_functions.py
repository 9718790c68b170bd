"""Operators of ONNX that torch has no one operator for: what a stand-in calls, and how that is recorded."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torchvision import ops

from zooport.export_core.formats.onnx_operators import MANY_BOXES, constant, float_at_most

Context = Any


def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, above: float) -> Tensor:
    """Suppress overlaps within each class of each batch, by NonMaxSuppression; equal scores go by position.

    Overlaps are computed from the coordinates as they are, in float32.

    Args:
        boxes: (B, M, 4).
        scores: (B, C, M).
        iou_threshold: boxes that overlap a better one of their class by more are dropped.
        above: boxes with no higher score are none.

    Returns:
        int64 (K, 3): batch, class and number of the boxes that are kept, class by class, best first.
    """
    return _Suppress.apply(boxes, scores, iou_threshold, above)  # type: ignore[no-any-return]


class _Suppress(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Context, boxes: Tensor, scores: Tensor, iou_threshold: float, above: float
    ) -> Tensor:
        found = [torch.zeros((0, 3), dtype=torch.int64)]
        for batch in range(scores.shape[0]):
            for label in range(scores.shape[1]):
                members = torch.nonzero(scores[batch, label] > above).squeeze(1)
                kept = members[ops.nms(boxes[batch, members], scores[batch, label, members], iou_threshold)]
                of = torch.tensor([batch, label]).expand(len(kept), 2)
                found.append(torch.cat((of, kept[:, None]), dim=1))
        return torch.cat(found)

    @staticmethod
    def symbolic(graph: Any, boxes: Any, scores: Any, iou_threshold: float, above: float) -> Any:
        chosen = graph.op(
            "NonMaxSuppression",
            boxes,
            scores,
            constant(graph, [MANY_BOXES]),
            constant(graph, [float_at_most(iou_threshold)], exact=False),
            constant(graph, [above], exact=False),
        )
        return chosen.setType(boxes.type().with_dtype(torch.int64).with_sizes([None, 3]))


def pool_regions(
    feature: Tensor, boxes: Tensor, images: Tensor, size: int, scale: float, ratio: int, aligned: bool
) -> Tensor:
    """Return (R, C, size, size) pooled by RoiAlign from (N, C, H, W).

    Args:
        feature: (N, C, H, W).
        boxes: (R, 4) in input pixels.
        images: int64 (R,), which of N each box is in.
        size: cells on each side of the result.
        scale: from input pixels to those of the feature map.
        ratio: samples per cell and direction, 0 for as many as the region has pixels.
        aligned: whether pixel centres are; else regions are half a pixel off.
    """
    return _PoolRegions.apply(feature, boxes, images, size, scale, ratio, aligned)  # type: ignore[no-any-return]


class _PoolRegions(torch.autograd.Function):
    @staticmethod
    def forward(
        context: Context,
        feature: Tensor,
        boxes: Tensor,
        images: Tensor,
        size: int,
        scale: float,
        ratio: int,
        aligned: bool,
    ) -> Tensor:
        rois = torch.cat((images[:, None].to(boxes.dtype), boxes), dim=1)
        pooled: Tensor = ops.roi_align(feature, rois, (size, size), scale, ratio, aligned)
        return pooled

    @staticmethod
    def symbolic(
        graph: Any,
        feature: Any,
        boxes: Any,
        images: Any,
        size: int,
        scale: float,
        ratio: int,
        aligned: bool,
    ) -> Any:
        pooled = graph.op(
            "RoiAlign",
            *(feature, boxes, images),
            output_height_i=size,
            output_width_i=size,
            spatial_scale_f=scale,
            sampling_ratio_i=max(ratio, 0),
            coordinate_transformation_mode_s="half_pixel" if aligned else "output_half_pixel",
        )
        return pooled.setType(feature.type().with_sizes([None, None, size, size]))


def reshaped(x: Tensor, lengths: Sequence[int]) -> Tensor:
    """Return x with these lengths, one of which may be -1 for what is left; none is 0.

    One node, and it holds for no elements too.
    """
    return _Reshape.apply(x, list(lengths))  # type: ignore[no-any-return]


class _Reshape(torch.autograd.Function):
    @staticmethod
    def forward(context: Context, x: Tensor, lengths: list[int]) -> Tensor:
        return x.reshape(lengths).clone()

    @staticmethod
    def symbolic(graph: Any, x: Any, lengths: list[int]) -> Any:
        made = graph.op("Reshape", x, constant(graph, lengths))
        return made.setType(x.type().with_sizes([length if length > 0 else None for length in lengths]))


def quotient(x: Tensor, divisor: Tensor | int) -> Tensor:
    """Return the int64 quotient, rounded down, of numbers that are not negative; the divisor is positive."""
    return _Quotient.apply(x, torch.as_tensor(divisor))  # type: ignore[no-any-return]


class _Quotient(torch.autograd.Function):
    @staticmethod
    def forward(context: Context, x: Tensor, divisor: Tensor) -> Tensor:
        return torch.div(x, divisor, rounding_mode="floor")

    @staticmethod
    def symbolic(graph: Any, x: Any, divisor: Any) -> Any:
        return graph.op("Div", x, divisor).setType(x.type())


def padded(images: Tensor, step: int) -> Tensor:
    """Return (N, C, H, W) padded with zeros to a multiple of step, on the right and at the bottom."""
    return _Pad.apply(images, step)  # type: ignore[no-any-return]


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(context: Context, images: Tensor, step: int) -> Tensor:
        return F.pad(images, [0, -images.shape[3] % step, 0, -images.shape[2] % step])

    @staticmethod
    def symbolic(graph: Any, images: Any, step: int) -> Any:
        lengths = graph.op("Shape", images, start_i=2, end_i=4)
        missing = graph.op("Mod", graph.op("Neg", lengths), constant(graph, [step]))
        pads = graph.op("Concat", constant(graph, [0] * 6), missing, axis_i=0)
        return graph.op("Pad", images, pads).setType(images.type().with_sizes([None, None, None, None]))
