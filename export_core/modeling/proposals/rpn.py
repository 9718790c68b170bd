"""Region proposal network (Ren et al., Faster R-CNN, section 3)."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.backbones.base import Backbone
from zooport.export_core.modeling.boxes import BoxCoder, clip_boxes, nonempty
from zooport.export_core.modeling.layers import Conv2d
from zooport.export_core.modeling.registry import (
    ANCHOR_GENERATORS,
    PROPOSAL_GENERATORS,
    RPN_HEADS,
    unsupported,
)


class Proposals(NamedTuple):
    """Proposals of a batch, image by image, best first.

    Attributes:
        boxes: float32 (P, 4) in input pixels.
        logits: float32 (P,) objectness.
    """

    boxes: list[Tensor]
    logits: list[Tensor]


def feature_facts(backbone: Backbone, names: list[str], key: str) -> tuple[list[int], list[int]]:
    """Return channels and strides of the named feature maps.

    Raises:
        Failure: ``config.invalid`` when the backbone returns no map of such a name.
    """
    for name in names:
        if name not in backbone.channels:
            raise Failure(
                "config.invalid",
                f"{key} names {name!r}, which the backbone does not return",
                hint="known: " + ", ".join(backbone.channels),
            )
    return [backbone.channels[name] for name in names], [backbone.strides[name] for name in names]


@RPN_HEADS.register("StandardRPNHead")
class StandardRPNHead(nn.Module):
    """3x3 convolutions, then 1x1 ones for objectness and box deltas; shared by all feature maps.

    Args:
        hidden: channels of each 3x3 convolution; -1 keeps the number.
    """

    def __init__(self, in_channels: int, anchors: int, hidden: list[int]) -> None:
        super().__init__()
        widths = [in_channels]
        convs: list[nn.Module] = []
        for channels in hidden:
            widths.append(widths[-1] if channels == -1 else channels)
            convs.append(Conv2d(widths[-2], widths[-1], 3, relu=True))
        self.conv: nn.Module = convs[0]
        if len(convs) > 1:
            self.conv = nn.Sequential()
            for index, conv in enumerate(convs):
                self.conv.add_module(f"conv{index}", conv)
        self.objectness_logits = nn.Conv2d(widths[-1], anchors, 1)
        self.anchor_deltas = nn.Conv2d(widths[-1], anchors * 4, 1)

    @classmethod
    def from_config(cls, config: Config, in_channels: int, anchors: int) -> "StandardRPNHead":
        """Build it as MODEL.RPN says."""
        hidden = list(config.MODEL.RPN.CONV_DIMS)
        if not hidden or any(channels == 0 or channels < -1 for channels in hidden):
            raise Failure("config.invalid", f"MODEL.RPN.CONV_DIMS = {hidden} are not channel numbers")
        return cls(in_channels, anchors, hidden)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return logits (N, H * W * A) and deltas (N, H * W * A, 4) of each feature map."""
        logits: list[Tensor] = []
        deltas: list[Tensor] = []
        for feature in features:
            hidden = self.conv(feature)
            logits.append(self.objectness_logits(hidden).permute(0, 2, 3, 1).flatten(1))
            by_anchor = self.anchor_deltas(hidden).permute(0, 2, 3, 1).flatten(1)
            deltas.append(by_anchor.unflatten(1, [-1, 4]))
        return logits, deltas


@PROPOSAL_GENERATORS.register("RPN")
class RPN(nn.Module):
    """Score and refine anchors, keep the best of each level, suppress overlaps, keep the best of all.

    Args:
        pre_nms_topk: anchors kept in each level before NMS.
        post_nms_topk: proposals kept in each image.
        min_size: proposals with a side of at most so many pixels are dropped.
    """

    def __init__(
        self,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        *,
        box_weights: list[float],
        pre_nms_topk: int,
        post_nms_topk: int,
        nms_thresh: float,
        min_size: float,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.rpn_head = head
        self.anchor_generator = anchor_generator
        self.box_coder = BoxCoder(box_weights)
        self.pre_nms_topk = pre_nms_topk
        self.post_nms_topk = post_nms_topk
        self.nms_thresh = float(nms_thresh)
        self.min_size = float(min_size)

    @classmethod
    def from_config(cls, config: Config, backbone: Backbone) -> "RPN":
        """Build it as MODEL.RPN says, over the maps that MODEL.RPN.IN_FEATURES names."""
        node = config.MODEL.RPN
        names = list(node.IN_FEATURES)
        channels, strides = feature_facts(backbone, names, "MODEL.RPN.IN_FEATURES")
        if len(set(channels)) != 1:
            raise unsupported("MODEL.RPN.IN_FEATURES", names, why=f"their channels {channels} differ")
        anchors = ANCHOR_GENERATORS.get(config.MODEL.ANCHOR_GENERATOR.NAME).from_config(config, strides)
        if len(set(anchors.per_cell)) != 1:
            raise unsupported(
                "MODEL.ANCHOR_GENERATOR.SIZES", anchors.per_cell, why="one head needs equal anchor numbers"
            )
        head = RPN_HEADS.get(node.HEAD_NAME).from_config(config, channels[0], anchors.per_cell[0])
        return cls(
            names,
            head,
            anchors,
            box_weights=node.BBOX_REG_WEIGHTS,
            pre_nms_topk=node.PRE_NMS_TOPK_TEST,
            post_nms_topk=node.POST_NMS_TOPK_TEST,
            nms_thresh=node.NMS_THRESH,
            min_size=config.MODEL.PROPOSAL_GENERATOR.MIN_SIZE,
        )

    def forward(self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]]) -> Proposals:
        """Return proposals of every image for feature name -> (N, C, H, W)."""
        maps = [features[name] for name in self.in_features]
        logits, deltas = self.rpn_head(maps)
        anchors = self.anchor_generator(maps)
        boxes: list[Tensor] = []
        scores: list[Tensor] = []
        for index, size in enumerate(image_sizes):
            best, best_scores = self.select(
                [level[index] for level in logits], [level[index] for level in deltas], anchors, size
            )
            boxes.append(best)
            scores.append(best_scores)
        return Proposals(boxes, scores)

    def select(
        self,
        logits: list[Tensor],
        deltas: list[Tensor],
        anchors: list[Tensor],
        image_size: tuple[int, int],
    ) -> tuple[Tensor, Tensor]:
        """Return boxes (P, 4) and logits (P,) of one image.

        Args:
            logits: (A,) of each level.
            deltas: (A, 4) of each level.
            anchors: (A, 4) of each level.
            image_size: (height, width).
        """
        kept_boxes: list[Tensor] = []
        kept_scores: list[Tensor] = []
        for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors):
            # The slice has as many elements as there are to take, whatever the size of the feature map.
            scores, order = level_logits.topk(level_logits[: self.pre_nms_topk].shape[0])
            boxes = self.box_coder(level_deltas[order], level_anchors[order])
            finite = torch.isfinite(boxes).all(1) & torch.isfinite(scores)
            boxes = clip_boxes(boxes, image_size)
            usable = finite & nonempty(boxes, self.min_size)
            boxes, scores = boxes[usable], scores[usable]
            kept = nms(boxes, scores, self.nms_thresh)
            kept_boxes.append(boxes[kept])
            kept_scores.append(scores[kept])
        all_boxes, all_scores = torch.cat(kept_boxes), torch.cat(kept_scores)
        scores, order = all_scores.sort(descending=True)
        return all_boxes[order[: self.post_nms_topk]], scores[: self.post_nms_topk]
