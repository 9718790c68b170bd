"""Average recall of region proposals, for models that stop after the first stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.evaluation.tasks import ImageOutputs, setting

LIMITS = (100, 1000)
# Object areas in pixels, both ends included (COCO's small, medium and large).
AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
_WITHOUT_BOXES = ("cityscapes", "semantic")  # kinds of datasets
_THRESHOLDS = np.arange(0.5, 0.95 + 1e-5, 0.05)

# What one image adds: metric name -> the IoU that each object of that size reaches, 0 if never covered.
Overlaps = dict[str, list[float]]


class ProposalRecall:
    """AR@100, AR@1000 and the same by object size: recall averaged over IoU 0.5 to 0.95."""

    name = "box_proposals"
    outputs = ("proposal_boxes", "objectness_logits")

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Models that give proposals only, on datasets whose annotations have boxes."""
        proposes = bool(setting(config, "MODEL.META_ARCHITECTURE") == "ProposalNetwork")
        return proposes and dataset.source.kind not in _WITHOUT_BOXES

    def check(self, config: Any, dataset: Dataset) -> None:
        """Boxes are all that is needed."""

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Overlaps:
        """Match objects and proposals one to one, the best overlap first."""
        order = np.argsort(-result.outputs["objectness_logits"], kind="stable")
        proposals = result.outputs["proposal_boxes"][order].astype(np.float64)
        objects = [
            (*annotation.box, annotation.area)
            for annotation in dataset.annotations_by_image[result.image.id]
            if not annotation.crowd
        ]
        truth = np.array(objects, dtype=np.float64).reshape(-1, 5)
        boxes = np.concatenate([truth[:, :2], truth[:, :2] + truth[:, 2:4]], axis=1)
        overlaps: Overlaps = {}
        for limit in LIMITS:
            for suffix, (low, high) in AREAS.items():
                chosen = boxes[(truth[:, 4] >= low) & (truth[:, 4] <= high)]
                overlaps[f"AR{suffix}@{limit}"] = cover(proposals[:limit], chosen)
        return overlaps

    def measure(
        self, values: Sequence[Mapping[str, Any]], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics; and by image and metric the objects, and those covered at each threshold."""
        tally = {}
        for name in values[0]:
            rows = [np.array(image[name], dtype=np.float64) for image in values]
            covered = [[len(row), *((row >= threshold).sum() for threshold in _THRESHOLDS)] for row in rows]
            tally[name] = np.array(covered, dtype=np.int64)
        return self.score(values, dataset, config), tally

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        metrics = {}
        for name, covered in tally.items():
            totals = (weights @ covered).astype(np.float64)
            with np.errstate(invalid="ignore"):
                metrics[name] = 100.0 * (totals[:, 1:] / totals[:, :1]).mean(axis=1)
        return metrics

    def score(self, values: Sequence[Mapping[str, Any]], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return the average recalls; sizes that no object has are left out."""
        metrics = {}
        for name in values[0]:
            overlaps = np.array([overlap for image in values for overlap in image[name]])
            if overlaps.size:
                recalls = [(overlaps >= threshold).mean() for threshold in _THRESHOLDS]
                metrics[name] = 100.0 * float(np.mean(recalls))
        return metrics


def cover(proposals: Array, objects: Array) -> list[float]:
    """Return the IoU with which each object is covered, each proposal used once.

    Args:
        proposals: xyxy (P, 4).
        objects: xyxy (G, 4).

    Returns:
        G numbers in no particular order; 0 for objects beyond the number of proposals.
    """
    overlaps = pairwise_iou(proposals, objects)
    covered = [0.0] * len(objects)
    for step in range(min(overlaps.shape)):
        proposal, target = np.unravel_index(np.argmax(overlaps), overlaps.shape)
        covered[step] = float(overlaps[proposal, target])
        overlaps[proposal, :] = -1.0
        overlaps[:, target] = -1.0
    return covered


def pairwise_iou(left: Array, right: Array) -> Array:
    """Return the IoU (L, R) of xyxy boxes (L, 4) and (R, 4)."""
    low = np.maximum(left[:, None, :2], right[None, :, :2])
    high = np.minimum(left[:, None, 2:], right[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (left, right)]
    union = areas[0][:, None] + areas[1][None, :] - shared
    overlaps: Array = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return overlaps
