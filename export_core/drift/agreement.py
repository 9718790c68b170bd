"""How much two models agree on one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_util

from zooport.export_core.evaluation.findings import Finding, Kind
from zooport.export_core.evaluation.postprocess import Array, encode_mask
from zooport.export_core.evaluation.proposal_metrics import pairwise_iou

_PER_PIXEL = (Kind.THING, Kind.STUFF, Kind.LABEL)
_OVERLAP = 0.5  # IoU from which two detections are taken for the same
_COMPARED = 300  # detections of an image, the best; more are compared by nobody
_KEYPOINT_WIDTH = 0.1  # of the object's size: where the likeness of keypoints falls to 0.6, as in COCO's OKS


@dataclass(frozen=True)
class Pair:
    """A detection of the eager model, its counterpart, and their likeness, 0 to 1."""

    eager: Finding
    exported: Finding
    likeness: float


def difference(eager: Sequence[Finding], exported: Sequence[Finding], size: tuple[int, int]) -> float:
    """Return how different the results of two models for an image are, 0 (the same) to 1 (nothing in common).

    Of detections: 1 - 2 S / (E + X), where S sums over pairs their likeness times the smaller score, and E
    and X sum the scores of each side: an F1 in which a detection counts as much as its score. Of maps: the
    part of the pixels with another label. A model that gives both has the mean of the two.

    Args:
        eager: what the eager model found.
        exported: what the exported one found.
        size: (H, W) of the image.
    """
    sides = [[one for one in side if one.kind not in _PER_PIXEL] for side in (eager, exported)]
    maps = [[one for one in side if one.kind in _PER_PIXEL] for side in (eager, exported)]
    parts = []
    if any(sides):
        shared = sum(
            pair.likeness * min(pair.eager.confidence, pair.exported.confidence)
            for pair in pair_up(sides[0], sides[1], size)
        )
        total = sum(one.confidence for side in sides for one in side[:_COMPARED])
        parts.append(1.0 - 2.0 * shared / total if total > 0 else 0.0)
    if any(maps):
        parts.append(float((_painted(maps[0], size) != _painted(maps[1], size)).mean()))
    # Sums of many scores leave something in the last digits.
    mean = sum(parts) / len(parts) if parts else 0.0
    return min(max(round(mean, 9), 0.0), 1.0)


def pair_up(eager: Sequence[Finding], exported: Sequence[Finding], size: tuple[int, int]) -> list[Pair]:
    """Return detections of the same class that overlap, each once at most; better ones choose first."""
    eager, exported = eager[:_COMPARED], exported[:_COMPARED]
    if not eager or not exported:
        return []
    overlaps = _overlaps(eager, exported, size)
    same = [[one.term.index == other.term.index for other in exported] for one in eager]
    overlaps = np.where(same, overlaps, 0.0)
    pairs = []
    for index, one in enumerate(eager):
        best = int(overlaps[index].argmax())
        if overlaps[index, best] >= _OVERLAP:
            likeness = float(overlaps[index, best]) * _keypoint_likeness(one, exported[best])
            pairs.append(Pair(one, exported[best], likeness))
            overlaps[:, best] = 0.0
    return pairs


def _overlaps(eager: Sequence[Finding], exported: Sequence[Finding], size: tuple[int, int]) -> Array:
    """Return the IoU of each with each, of masks where both have one."""
    sides = [[_run_lengths(one, size) for one in side] for side in (eager, exported)]
    if all(one is not None for side in sides for one in side):
        overlaps: Array = np.asarray(mask_util.iou(sides[0], sides[1], [0] * len(sides[1])))
        return overlaps
    boxes = [np.stack([one.box for one in side]).astype(np.float64) for side in (eager, exported)]
    return pairwise_iou(*boxes)


def _run_lengths(finding: Finding, size: tuple[int, int]) -> dict[str, object] | None:
    return None if finding.mask is None else encode_mask(finding.mask, *size)


def _keypoint_likeness(one: Finding, other: Finding) -> float:
    if one.keypoints is None or other.keypoints is None:
        return 1.0
    area = float(np.prod(one.box[2:] - one.box[:2]))
    distance = ((one.keypoints[:, :2] - other.keypoints[:, :2]).astype(np.float64) ** 2).sum(axis=1)
    return float(np.exp(-distance / (2 * max(area, 1.0) * _KEYPOINT_WIDTH**2)).mean())


def _painted(findings: Sequence[Finding], size: tuple[int, int]) -> npt.NDArray[np.int64]:
    """Return the category of each pixel, -1 where nothing is."""
    painted = np.full(size, -1, dtype=np.int64)
    for one in findings:
        if one.mask is not None:
            number = one.term.category_id * 2 + (one.kind is Kind.THING)
            painted[one.mask.full(*size)] = number
    return painted
