"""Arithmetic of boxes as Caffe2's detection operators do it, in float32.

Boxes are (N, 4) arrays of x1, y1, x2, y2 in pixels. ``plus_one`` is 1 where the last pixel counts as part of
a box (``legacy_plus_one``), 0 otherwise.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16)


def apply_deltas(boxes: Tensor, deltas: Tensor, weights: Sequence[float], plus_one: int) -> Tensor:
    """Return boxes (N, 4) moved and scaled by deltas (N, 4): dx, dy, dw, dh, each divided by its weight."""
    sizes = boxes[:, 2:] - boxes[:, :2] + plus_one
    centers = boxes[:, :2] + 0.5 * sizes
    scaled = deltas / torch.tensor(weights, dtype=torch.float32)
    centers = scaled[:, :2] * sizes + centers
    sizes = scaled[:, 2:].clamp(max=MAX_LOG_SCALE).exp() * sizes
    return torch.cat((centers - 0.5 * sizes, centers + 0.5 * sizes - plus_one), 1)


def clip(boxes: Tensor, height: int, width: int, plus_one: int) -> Tensor:
    """Clip boxes (N, 4) to an image."""
    most = torch.tensor([width, height, width, height], dtype=torch.float32) - plus_one
    return boxes.minimum(most).clamp(min=0)


def areas(boxes: Tensor, plus_one: int) -> Tensor:
    """Return (N,)."""
    return (boxes[:, 2] - boxes[:, 0] + plus_one) * (boxes[:, 3] - boxes[:, 1] + plus_one)


def suppress(
    boxes: NDArray[np.float32], order: NDArray[np.int64], threshold: float, limit: int, plus_one: int
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression.

    A box goes when its overlap with a better one is above the threshold or is no number, as that of two
    boxes without area is.

    Args:
        boxes: (N, 4).
        order: the boxes to look at, best first.
        threshold: of intersection over union.
        limit: keep at most so many; negative for no limit.
        plus_one: 0 or 1.

    Returns:
        (n,) members of ``order``, best first.
    """
    low, high = boxes[:, :2], boxes[:, 2:]
    one = np.float32(plus_one)
    extent = high - low + one
    area = extent[:, 0] * extent[:, 1]
    most = np.float32(threshold)
    kept: list[int] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        while len(order) and len(kept) != limit:
            best, order = order[0], order[1:]
            kept.append(int(best))
            common = np.minimum(high[order], high[best]) - np.maximum(low[order], low[best]) + one
            common = np.maximum(common, np.float32(0))
            inter = common[:, 0] * common[:, 1]
            overlap = inter / (area[best] + area[order] - inter)
            order = order[overlap <= most]
    return np.array(kept, dtype=np.int64)
