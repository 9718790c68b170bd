"""Proposals, regions and detections of one image with as few operators of ONNX as there need be.

On a small image, a graph's time is its number of nodes. The modules of a model say box by box and level by
level what can be said once for all; these take their places and compute the same numbers in the same order.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from zooport.export_core.formats.onnx_functions import padded, pool_regions, quotient, reshaped, suppress
from zooport.export_core.modeling.anchors import AnchorGenerator
from zooport.export_core.modeling.boxes import BoxCoder, best_of
from zooport.export_core.modeling.images import ImageNormalizer
from zooport.export_core.modeling.poolers import RoiPooler
from zooport.export_core.modeling.proposals.rpn import RPN, Proposals, StandardRPNHead
from zooport.export_core.modeling.roi_heads.box_predictor import DetectionSelector

NO_BOX = -1e9  # score of what is no box
A_BOX = -5e8  # above it

Size = tuple[Any, Any]  # height and width, numbers or int64 scalars


class OneImageNormalizer(nn.Module):
    """ImageNormalizer of one image."""

    mean: Tensor
    std: Tensor

    def __init__(self, normalizer: ImageNormalizer) -> None:
        super().__init__()
        self.step = normalizer.size_divisibility
        self.register_buffer("mean", normalizer.mean, persistent=False)
        self.register_buffer("std", normalizer.std, persistent=False)

    def forward(self, images: list[Tensor]) -> tuple[Tensor, list[Size]]:
        """Return (1, C, H, W) and the image's (height, width), for (C, H, W) or (1, C, H, W)."""
        (image,) = images
        if image.dim() == 3:
            image = image[None]
        return padded((image - self.mean) / self.std, self.step), [(image.shape[2], image.shape[3])]


class PairedBoxCoder(nn.Module):
    """BoxCoder for x and y at once."""

    def __init__(self, coder: BoxCoder) -> None:
        super().__init__()
        self.max_log_scale = coder.max_log_scale
        self.shift_weights = torch.tensor([coder.wx, coder.wy])
        self.size_weights = torch.tensor([coder.ww, coder.wh])

    def forward(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes (N, C * 4) for deltas (N, C * 4) relative to boxes (N, 4)."""
        sizes = boxes[:, 2:] - boxes[:, :2]
        centres = boxes[:, :2] + 0.5 * sizes
        several = deltas.shape[1] != 4
        if several:
            classes = deltas.shape[1] // 4
            deltas = reshaped(deltas, [-1, int(classes), 4])
            sizes, centres = sizes[:, None], centres[:, None]
        shifts = _over(deltas[..., :2], self.shift_weights)
        logs = _over(deltas[..., 2:], self.size_weights).clamp(max=self.max_log_scale)
        new = shifts * sizes + centres
        halves = 0.5 * (torch.exp(logs) * sizes)
        decoded = torch.cat((new - halves, new + halves), dim=-1)
        return reshaped(decoded, [-1, int(classes) * 4]) if several else decoded


class FlatRPNHead(nn.Module):
    """StandardRPNHead for one image."""

    def __init__(self, head: StandardRPNHead) -> None:
        super().__init__()
        self.conv = head.conv
        self.objectness_logits = head.objectness_logits
        self.anchor_deltas = head.anchor_deltas

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (1, H * W * A) and deltas (1, H * W * A, 4) of each feature map (1, C, H, W)."""
        hidden = [self.conv(feature) for feature in features]
        logits = [self.objectness_logits(one).permute(0, 2, 3, 1) for one in hidden]
        deltas = [self.anchor_deltas(one).permute(0, 2, 3, 1) for one in hidden]
        return [reshaped(one, [1, -1]) for one in logits], [reshaped(one, [1, -1, 4]) for one in deltas]


class OneImageRPN(nn.Module):
    """RPN of one image: the best anchors of all levels are decoded together, and only they exist."""

    def __init__(self, rpn: RPN) -> None:
        super().__init__()
        self.in_features = rpn.in_features
        standard = type(rpn.rpn_head) is StandardRPNHead
        self.rpn_head = FlatRPNHead(rpn.rpn_head) if standard else rpn.rpn_head  # type: ignore[arg-type]
        self.anchor_generator = rpn.anchor_generator
        self.box_coder = PairedBoxCoder(rpn.box_coder)
        self.pre_nms_topk = rpn.pre_nms_topk
        self.post_nms_topk = rpn.post_nms_topk
        self.nms_thresh = rpn.nms_thresh
        self.min_size = rpn.min_size

    def forward(self, features: dict[str, Tensor], image_sizes: list[Size]) -> Proposals:
        """Return proposals of the image for feature name -> (1, C, H, W)."""
        maps = [features[name] for name in self.in_features]
        logits, deltas = self.rpn_head(maps)
        picks = [(one[0][: self.pre_nms_topk], one[0]) for one in logits]
        best = [one.topk(some.shape[0]) for some, one in picks]
        orders = [order for _, order in best]
        scores = torch.cat([values for values, _ in best])
        chosen = torch.cat([level[0][order] for level, order in zip(deltas, orders, strict=True)])
        decoded = self.box_coder(chosen, self.anchors(maps, orders))
        boxes = clipped(decoded, image_sizes[0])
        sides = (boxes[:, 2:] - boxes[:, :2]).amin(1)
        usable = sides + _nan_if_infinite(decoded) + scores * 0 > self.min_size
        rated = torch.where(usable, scores, NO_BOX)[None]
        if len(maps) > 1:
            levels = torch.cat([torch.full_like(order, level) for level, order in enumerate(orders)])
            rated = torch.where(levels == torch.arange(len(maps))[:, None], rated, NO_BOX)
        kept = suppress(boxes[None], rated[None], self.nms_thresh, A_BOX)[:, 2]
        first, order = scores[kept].sort(descending=True, stable=True)
        return Proposals([boxes[kept[order[: self.post_nms_topk]]]], [first[: self.post_nms_topk]])

    def anchors(self, maps: list[Tensor], orders: list[Tensor]) -> Tensor:
        """Return (K, 4): the anchors of these numbers, int64 (k,), in each level; maps are (1, C, H, W)."""
        generator: Any = self.anchor_generator
        if type(generator) is not AnchorGenerator:
            return torch.cat([level[order] for level, order in zip(generator(maps), orders, strict=True)])
        found = []
        for feature, order, cells, stride in zip(
            maps, orders, generator.cells, generator.strides, strict=True
        ):
            width = torch._shape_as_tensor(feature)[3:]
            place = quotient(order, len(cells))
            cell = torch.stack((place % width, quotient(place, width)), dim=1).to(torch.float32)
            shifts = cell * stride + generator.offset * stride if generator.offset else cell * stride
            found.append(torch.cat((shifts, shifts), dim=1) + cells[order % len(cells)])
        return torch.cat(found)


class OneImageSelector(nn.Module):
    """DetectionSelector of one image: suppression takes the boxes of all classes, and the threshold."""

    def __init__(self, selector: DetectionSelector) -> None:
        super().__init__()
        self.score_thresh = selector.score_thresh
        self.iou_threshold = selector.nms.iou_threshold
        self.topk = selector.topk

    def forward(
        self, boxes: Tensor, scores: Tensor, proposals: list[Tensor], image_sizes: list[Size]
    ) -> list[dict[str, Tensor]]:
        """Return pred_boxes, scores and pred_classes; arguments as of DetectionSelector."""
        classes = int(scores.shape[1]) - 1
        shared = int(boxes.shape[1]) == 4
        doubt = _nan_if_infinite(boxes) + _nan_if_infinite(scores)
        rated = scores[:, :-1] + doubt[:, None]  # no number is above the threshold
        boxes = clipped(boxes if shared else reshaped(boxes, [-1, classes, 4]), image_sizes[0])
        if shared:
            found = suppress(boxes[None], rated.t()[None], self.iou_threshold, self.score_thresh)
            rows, labels = found[:, 2], found[:, 1]
        else:
            found = suppress(boxes.transpose(0, 1), rated.t()[:, None], self.iou_threshold, self.score_thresh)
            rows, labels = found[:, 2], found[:, 0]
        # Equal scores go by position: of the proposal, then of the class.
        places = (rows * classes + labels).sort()[0]
        best, order = reshaped(rated, [-1])[places].sort(descending=True, stable=True)
        kept = places[best_of(order, self.topk)]
        chosen = boxes[quotient(kept, classes)] if shared else reshaped(boxes, [-1, 4])[kept]
        return [{"pred_boxes": chosen, "scores": best_of(best, self.topk), "pred_classes": kept % classes}]


class OneImagePooler(nn.Module):
    """RoiPooler of one image, of the types that RoiAlign has."""

    def __init__(self, pooler: RoiPooler) -> None:
        super().__init__()
        self.size = pooler.resolution
        self.scales = pooler.scales
        self.ratio = pooler.sampling_ratio
        self.aligned = pooler.aligned
        self.min_level, self.max_level = pooler.min_level, pooler.max_level
        self.canonical_size, self.canonical_level = pooler.canonical_size, pooler.canonical_level

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return (R, C, resolution, resolution) for boxes (R, 4)."""
        (rois,) = boxes
        sides = rois[:, 2:] - rois[:, :2]
        area = sides.prod(1)
        if len(features) == 1:
            return self.pool(features[0], rois, (area > 0).to(torch.int64) * 0, self.scales[0])
        level = torch.floor(self.canonical_level + torch.log2(area.sqrt() / self.canonical_size + 1e-8))
        level = level.clamp(min=self.min_level, max=self.max_level)
        members = [torch.nonzero(level == self.min_level + i).squeeze(1) for i in range(len(features))]
        pooled = [
            self.pool(feature, rois[member], member - member, scale)
            for feature, member, scale in zip(features, members, self.scales, strict=True)
        ]
        return torch.cat(pooled)[torch.cat(members).argsort()]

    def pool(self, feature: Tensor, boxes: Tensor, images: Tensor, scale: float) -> Tensor:
        """Pool boxes (R, 4) from one feature map."""
        return pool_regions(feature, boxes, images, self.size, scale, self.ratio, self.aligned)


def clipped(boxes: Tensor, size: Size) -> Tensor:
    """Return boxes (..., 4) clipped to an image of (height, width)."""
    height, width = (torch.as_tensor(length) for length in size)
    limit = torch.stack((width, height, width, height)).to(boxes.dtype)
    return torch.minimum(boxes.clamp(min=0), limit)


def _over(x: Tensor, weights: Tensor) -> Tensor:
    same = float(weights[0])
    if float(weights[1]) != same:
        return x / weights
    return x if same == 1 else x / same


def _nan_if_infinite(x: Tensor) -> Tensor:
    """Return for each row 0, or NaN if not all of it is finite."""
    return (x * 0).sum(1)
