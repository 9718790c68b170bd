"""Box arithmetic. Boxes are float32 (N, 4) tensors of x1, y1, x2, y2 in input pixels.

Nothing here branches on values, so that a recorded graph holds for every image.
"""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from zooport.export_core.failures import Failure

# Widths and heights grow by at most 1000/16 in one regression step (Detectron's choice), so that exp() of
# an untrained logit stays finite.
MAX_LOG_SCALE = math.log(1000.0 / 16)
CLASSWISE_ABOVE = 1000  # boxes; more are suppressed class by class in torchvision's CPU implementation


def clip_boxes(boxes: Tensor, image_size: tuple[int, int]) -> Tensor:
    """Clip boxes (..., 4) to an image of (height, width)."""
    height, width = image_size
    x1, y1, x2, y2 = boxes.unbind(-1)
    return torch.stack(
        (
            x1.clamp(min=0, max=width),
            y1.clamp(min=0, max=height),
            x2.clamp(min=0, max=width),
            y2.clamp(min=0, max=height),
        ),
        dim=-1,
    )


def nonempty(boxes: Tensor, min_size: float = 0.0) -> Tensor:
    """Return a bool (N,) mask of boxes (N, 4) whose both sides are longer than ``min_size`` pixels."""
    return ((boxes[:, 2] - boxes[:, 0]) > min_size) & ((boxes[:, 3] - boxes[:, 1]) > min_size)


def best_of(ordered: Tensor, most: int) -> Tensor:
    """Return the first ``most`` of what is ordered from the best on, all of it where ``most`` is negative."""
    return ordered if most < 0 else ordered[:most]


def class_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    iou_threshold: float,
    groups: int = 1,
    classwise_above: int = CLASSWISE_ABOVE,
) -> Tensor:
    """Non-maximum suppression among boxes of equal class.

    Classes are told apart by moving each to a place of its own. The move is made in float64, where adding
    whole multiples of an image's extent to float32 coordinates is exact: the overlaps are those of NMS class
    by class, whatever the number of classes.

    Args:
        boxes: (N, 4).
        scores: (N,).
        classes: integer (N,).
        iou_threshold: boxes that overlap a better one by more are dropped.
        groups: classes are dealt to so many separate runs; the time is quadratic in the boxes of one.
        classwise_above: number of boxes from which on ties are ordered by an unstable sort.

    Returns:
        int64 indices of the kept boxes, best score first.
    """
    coordinates = torch.cat((boxes.reshape(-1), boxes.new_zeros(1)))  # never empty
    extent = (coordinates.max() - coordinates.min()).ceil() + 1
    shift = classes.to(torch.float64) * extent.to(torch.float64)
    apart = boxes.to(torch.float64) + shift[:, None]
    exact_scores = scores.to(torch.float64)
    survivors: list[Tensor] = []
    for group in range(groups):
        members = torch.nonzero(classes % groups == group).squeeze(1)
        survivors.append(members[nms(apart[members], exact_scores[members], iou_threshold)])
    # Saturated scores tie, and a limit on the number of detections then decides by order. torchvision's
    # NMS, and so detectron2, orders ties by position up to 1000 boxes and by an unstable sort beyond.
    by_position = torch.cat(survivors).sort()[0]
    best_first = by_position[torch.argsort(scores[by_position], descending=True, stable=True)]
    by_sort = by_position[scores[by_position].sort(descending=True)[1]]
    crowded = torch.ones_like(scores).sum() > classwise_above
    return torch.where(crowded, by_sort, best_first)


class ClassNms(nn.Module):
    """:func:`class_nms` with its settings, a module so that a format may put an operator in its place.

    Args:
        iou_threshold: boxes that overlap a better one of their class by more are dropped.
        groups: as of :func:`class_nms`.
    """

    def __init__(self, iou_threshold: float, groups: int = 1) -> None:
        super().__init__()
        self.iou_threshold = float(iou_threshold)
        self.groups = groups

    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        """Return int64 indices of the kept boxes (N, 4), best score (N,) first, for integer classes (N,)."""
        return class_nms(boxes, scores, classes, self.iou_threshold, self.groups)


class BoxCoder(nn.Module):
    """Apply regression deltas to boxes (Girshick et al., R-CNN, appendix C).

    Args:
        weights: divisors of dx, dy, dw, dh.
    """

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.max_log_scale = MAX_LOG_SCALE
        if len(weights) != 4:
            raise Failure(
                "config.invalid",
                f"BBOX_REG_WEIGHTS = {weights}: expected 4 numbers",
                hint="five are those of rotated boxes, which zooport does not implement",
            )
        self.wx, self.wy, self.ww, self.wh = (float(weight) for weight in weights)

    def forward(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Return boxes (N, C * 4) for deltas (N, C * 4) relative to boxes (N, 4)."""
        width = boxes[:, 2] - boxes[:, 0]
        height = boxes[:, 3] - boxes[:, 1]
        centre_x = boxes[:, 0] + 0.5 * width
        centre_y = boxes[:, 1] + 0.5 * height
        dx, dy, dw, dh = deltas.unflatten(1, [-1, 4]).unbind(-1)
        dw = (dw / self.ww).clamp(max=self.max_log_scale)
        dh = (dh / self.wh).clamp(max=self.max_log_scale)
        new_x = dx / self.wx * width[:, None] + centre_x[:, None]
        new_y = dy / self.wy * height[:, None] + centre_y[:, None]
        half_width = 0.5 * (torch.exp(dw) * width[:, None])
        half_height = 0.5 * (torch.exp(dh) * height[:, None])
        decoded = torch.stack(
            (new_x - half_width, new_y - half_height, new_x + half_width, new_y + half_height), dim=-1
        )
        return decoded.flatten(1)
