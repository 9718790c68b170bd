"""Dense predictions: semantic logits to label maps, and the merge of instances and stuff of Panoptic FPN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from zooport.export_core.evaluation.postprocess import Array, PastedMask

LabelMap = npt.NDArray[np.int32]


class Segment(NamedTuple):
    """One segment of a panoptic map: ``label`` is a thing's class index, or a stuff's semantic label.

    ``instance`` is the index of the instance that a thing's pixels come from.
    """

    id: int
    is_thing: bool
    label: int
    instance: int | None = None


def semantic_labels(logits: Array, network_size: tuple[int, int], image_size: tuple[int, int]) -> LabelMap:
    """Resize logits to the original image and take the best label of each pixel.

    Padding is cut off first. Bilinear, corners not aligned, edges repeated, like torch's ``interpolate``; one
    class at a time, so that a large image does not need all its logits in memory.

    Args:
        logits: float (C, H, W) in the network's frame, at least ``network_size`` large.
        network_size: (H, W) of the resized image that the network saw.
        image_size: (H, W) of the original image.

    Returns:
        int32 (H, W) of the original image.
    """
    cropped = logits[:, : network_size[0], : network_size[1]].astype(np.float32)
    rows = _bilinear(cropped.shape[1], image_size[0])
    columns = _bilinear(cropped.shape[2], image_size[1])
    best = np.full(image_size, -np.inf, dtype=np.float32)
    labels = np.zeros(image_size, dtype=np.int32)
    for label, plane in enumerate(cropped):
        tall = plane[rows.low] * (1 - rows.fraction)[:, None] + plane[rows.high] * rows.fraction[:, None]
        resized = tall[:, columns.low] * (1 - columns.fraction) + tall[:, columns.high] * columns.fraction
        better = resized > best
        best[better] = resized[better]
        labels[better] = label
    return labels


def merge_panoptic(
    scores: Array,
    classes: Array,
    masks: Sequence[PastedMask],
    labels: LabelMap,
    *,
    overlap: float,
    stuff_area: int,
    confidence: float,
) -> tuple[LabelMap, list[Segment]]:
    """Combine instances and semantic labels so that every pixel belongs to at most one segment.

    Panoptic FPN's heuristic (Kirillov et al. 2019, "Panoptic Feature Pyramid Networks"): instances in the
    order of their scores keep their still free pixels, unless too much of them is taken; stuff fills what is
    left.

    Args:
        scores: float (N,).
        classes: contiguous class indices (N,).
        masks: N masks in the original image.
        labels: semantic labels (H, W) of the original image; 0 stands for all things.
        overlap: an instance is dropped when a larger fraction of it is taken already.
        stuff_area: a stuff label with fewer free pixels is dropped.
        confidence: instances with a lower score are dropped.

    Returns:
        The map of segment ids, int32 (H, W), 0 where nothing is; and the segments.
    """
    panoptic = np.zeros(labels.shape, dtype=np.int32)
    segments: list[Segment] = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < confidence:
            break
        crop, top, left = masks[index]
        window = panoptic[top : top + crop.shape[0], left : left + crop.shape[1]]
        free = crop & (window == 0)
        area, left_over = np.count_nonzero(crop), np.count_nonzero(free)
        if left_over == 0 or (area - left_over) / area > overlap:
            continue
        segments.append(Segment(len(segments) + 1, True, int(classes[index]), int(index)))
        window[free] = segments[-1].id
    for label in np.flatnonzero(np.bincount(labels.ravel())):
        free = (labels == label) & (panoptic == 0)
        if label == 0 or np.count_nonzero(free) < max(stuff_area, 1):
            continue
        segments.append(Segment(len(segments) + 1, False, int(label)))
        panoptic[free] = segments[-1].id
    return panoptic, segments


class _Axis(NamedTuple):
    low: npt.NDArray[np.int64]
    high: npt.NDArray[np.int64]
    fraction: npt.NDArray[np.float32]


def _bilinear(size: int, new_size: int) -> _Axis:
    """Return for each new pixel its two source pixels and the weight of the second."""
    ratio = np.float32(size / new_size)
    position = (np.arange(new_size, dtype=np.float32) + np.float32(0.5)) * ratio - np.float32(0.5)
    position = position.clip(min=0)
    low = np.minimum(position.astype(np.int64), size - 1)
    return _Axis(low, np.minimum(low + 1, size - 1), (position - low).astype(np.float32))
