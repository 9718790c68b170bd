"""From box features to detections: scores, refined boxes, threshold and class-wise NMS (Fast R-CNN)."""

import math

import torch
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.boxes import BoxCoder, ClassNms, best_of, clip_boxes

# LVIS has 1,203 classes and a score threshold of 0.0001, so tens of thousands of boxes reach NMS.
CLASSES_PER_NMS = 100


class BoxPredictor(nn.Module):
    """Class scores and box deltas of every proposal.

    Args:
        features: length of a box feature.
        classes: foreground classes; the background is one more, the last.
        class_agnostic: one box for all classes instead of one for each.
        box_weights: divisors of the deltas.
        sigmoid: independent class scores instead of a softmax.
    """

    def __init__(
        self, features: int, classes: int, *, class_agnostic: bool, box_weights: list[float], sigmoid: bool
    ) -> None:
        super().__init__()
        self.cls_score = nn.Linear(features, classes + 1)
        self.bbox_pred = nn.Linear(features, 4 if class_agnostic else classes * 4)
        self.box_coder = BoxCoder(box_weights)
        self.sigmoid = sigmoid

    @classmethod
    def from_config(
        cls, config: Config, features: int, box_weights: list[float] | None = None
    ) -> "BoxPredictor":
        """Build it as MODEL.ROI_BOX_HEAD says; ``box_weights`` replaces its BBOX_REG_WEIGHTS."""
        node = config.MODEL.ROI_BOX_HEAD
        return cls(
            features,
            config.MODEL.ROI_HEADS.NUM_CLASSES,
            class_agnostic=node.CLS_AGNOSTIC_BBOX_REG,
            box_weights=box_weights or node.BBOX_REG_WEIGHTS,
            sigmoid=node.USE_SIGMOID_CE,
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits (R, classes + 1) and deltas (R, 4 or classes * 4) for box features (R, ...)."""
        if x.dim() > 2:
            x = x.flatten(1)
        return self.cls_score(x), self.bbox_pred(x)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return class scores (R, classes + 1) in 0 to 1."""
        return logits.sigmoid() if self.sigmoid else logits.softmax(-1)

    def decode(self, deltas: Tensor, proposals: Tensor) -> Tensor:
        """Return boxes (R, 4 or classes * 4) for deltas of that shape and proposals (R, 4)."""
        return self.box_coder(deltas, proposals)


class DetectionSelector(nn.Module):
    """Keep scores above a threshold, suppress overlaps within each class, keep the best.

    Args:
        score_thresh: only higher scores become detections.
        nms_thresh: overlap (IoU) above which the weaker of two boxes of a class goes.
        topk: detections per image; a negative number sets no limit.
        classes: foreground classes.
    """

    def __init__(self, score_thresh: float, nms_thresh: float, topk: int, classes: int) -> None:
        super().__init__()
        self.score_thresh = float(score_thresh)
        self.nms = ClassNms(nms_thresh, groups=math.ceil(classes / CLASSES_PER_NMS))
        self.topk = topk

    @classmethod
    def from_config(cls, config: Config) -> "DetectionSelector":
        """Build it from the test settings of MODEL.ROI_HEADS."""
        node = config.MODEL.ROI_HEADS
        return cls(
            node.SCORE_THRESH_TEST,
            node.NMS_THRESH_TEST,
            config.TEST.DETECTIONS_PER_IMAGE,
            node.NUM_CLASSES,
        )

    def forward(
        self,
        boxes: Tensor,
        scores: Tensor,
        proposals: list[Tensor],
        image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Return each image's pred_boxes (N, 4), scores (N,) and int64 pred_classes (N,), best first.

        Args:
            boxes: (R, 4 or classes * 4), refined, for the proposals of all images.
            scores: (R, classes + 1), the background last.
            proposals: (P, 4) of each image; only their numbers count here.
            image_sizes: (height, width) of each image.
        """
        detections: list[dict[str, Tensor]] = []
        start = 0
        for image_proposals, size in zip(proposals, image_sizes):
            end = start + image_proposals.shape[0]
            detections.append(self.select(boxes[start:end], scores[start:end], size))
            start = end
        return detections

    def select(self, boxes: Tensor, scores: Tensor, image_size: tuple[int, int]) -> dict[str, Tensor]:
        """Return the detections of one image of (height, width)."""
        finite = torch.isfinite(boxes).all(1) & torch.isfinite(scores).all(1)
        boxes, scores = boxes[finite], scores[finite][:, :-1]
        boxes = clip_boxes(boxes.unflatten(1, [-1, 4]), image_size)
        boxes = boxes.expand(-1, scores.shape[1], 4)
        rows, classes = torch.nonzero(scores > self.score_thresh).unbind(1)
        boxes, scores = boxes[rows, classes], scores[rows, classes]
        kept = best_of(self.nms(boxes, scores, classes), self.topk)
        return {"pred_boxes": boxes[kept], "scores": scores[kept], "pred_classes": classes[kept]}
