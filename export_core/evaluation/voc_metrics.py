"""Average precision by the rules of Pascal VOC (Everingham et al. 2010), as detectron2 takes them.

Boxes are compared in VOC's own pixels, which count from 1 and include the last; what is found is rounded as
detectron2's result files round it, scores to three digits and coordinates to one. AP is the mean over IoU
thresholds from 0.5 to 0.95.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zooport.export_core.evaluation.annotations import Annotation
from zooport.export_core.evaluation.coco_metrics import detects, require_detection_classes
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.evaluation.tasks import ImageOutputs, unique_labels

_LAST_ELEVEN_POINT_YEAR = 2009
_IOUS = tuple(percent / 100.0 for percent in range(50, 100, 5))
_POINTS = np.arange(0.0, 1.1, 0.1)
_EPSILON = np.finfo(np.float64).eps

# One detection: class index, score, and the corners x1, y1, x2, y2 from 0 on.
Rows = list[list[float]]


class VocBoxAP:
    """Pascal VOC box AP: at 11 points of recall up to VOC 2009, the area below the curve since."""

    name = "bbox"
    outputs = ("pred_boxes", "scores", "pred_classes")

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Every detector, on VOC annotations."""
        return detects(config) and dataset.source.kind == "voc"

    def check(self, config: Any, dataset: Dataset) -> None:
        """The dataset must have as many classes as the model."""
        require_detection_classes(config, dataset)

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Rows:
        """Return one row for each detection."""
        fields = (result.outputs[name].tolist() for name in ("pred_classes", "scores", "pred_boxes"))
        return [[index, score, *box] for index, score, box in zip(*fields, strict=True)]

    def score(self, values: Sequence[Rows], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return AP, AP50, AP75, and AP per class that has objects.

        As in detectron2 a class without objects counts as 0 in the means; that happens where few images are
        taken.
        """
        eleven_points = (dataset.source.year or 0) <= _LAST_ELEVEN_POINT_YEAR
        found = _by_class(values, dataset)
        objects: defaultdict[int, defaultdict[int | str, list[Annotation]]]
        objects = defaultdict(lambda: defaultdict(list))
        for annotation in dataset.annotations:
            objects[annotation.category_id][annotation.image_id].append(annotation)
        table = np.zeros((len(dataset.categories), len(_IOUS)))
        counted = []
        for index in range(len(table)):
            truth = {image: _Objects.of(those) for image, those in objects[index].items()}
            if any((~each.difficult).any() for each in truth.values()):
                counted.append(index)
                table[index] = _average_precisions(found[index], truth, eleven_points)
        if not counted:
            return {}
        metrics = {"AP": table.mean(), "AP50": table[:, 0].mean(), "AP75": table[:, 5].mean()}
        labels = unique_labels(dataset)
        metrics |= {f"AP-{labels[index]}": table[index].mean() for index in counted}
        return {name: 100.0 * float(value) for name, value in metrics.items()}


@dataclass(frozen=True)
class _Objects:
    """The objects of one class in one image: corners float64 (G, 4) in VOC's pixels, and which to ignore."""

    corners: Array
    difficult: Array

    @classmethod
    def of(cls, annotations: Sequence[Annotation]) -> _Objects:
        boxes = np.array([annotation.box for annotation in annotations], dtype=np.float64)
        first, sides = boxes[:, :2] + 1, boxes[:, 2:]
        corners = np.concatenate([first, first + sides - 1], axis=1)
        return cls(corners, np.array([annotation.difficult for annotation in annotations], dtype=np.bool_))


@dataclass(frozen=True)
class _Found:
    """A detection of some class, rounded as in a result file."""

    image: int | str
    score: float
    corners: tuple[float, ...]


def _by_class(values: Sequence[Rows], dataset: Dataset) -> Mapping[int, list[_Found]]:
    """Return the detections of each class, the highest score first; equal scores in the order of images."""
    found: defaultdict[int, list[_Found]] = defaultdict(list)
    for image, rows in zip(dataset.images, values, strict=True):
        for index, score, *corners in rows:
            # A box from 0 to 3 has VOC's pixels 1 to 3; added in float32, which is what the boxes are.
            shifted = np.array(corners, dtype=np.float32) + np.array([1, 1, 0, 0], dtype=np.float32)
            rounded = tuple(round(value, 1) for value in shifted.tolist())
            found[int(index)].append(_Found(image.id, round(score, 3), rounded))
    for detections in found.values():
        detections.sort(key=lambda each: -each.score)
    return found


def _average_precisions(
    found: Sequence[_Found], truth: Mapping[int | str, _Objects], eleven_points: bool
) -> Array:
    """Return the AP of one class at each IoU threshold, float64 (T,)."""
    best = [_best_overlap(each, truth.get(each.image)) for each in found]
    count = sum(int((~each.difficult).sum()) for each in truth.values())
    averages = np.zeros(len(_IOUS))
    for position, threshold in enumerate(_IOUS):
        right, wrong = np.zeros(len(found)), np.zeros(len(found))
        taken: set[tuple[int | str, int]] = set()
        for rank, (each, (overlap, target)) in enumerate(zip(found, best, strict=True)):
            if not overlap > threshold:
                wrong[rank] = 1
            elif not truth[each.image].difficult[target]:
                (wrong if (each.image, target) in taken else right)[rank] = 1
                taken.add((each.image, target))
        hits = np.cumsum(right)
        precision = hits / np.maximum(hits + np.cumsum(wrong), _EPSILON)
        averages[position] = (_at_eleven_points if eleven_points else _area)(hits / count, precision)
    return averages


def _best_overlap(found: _Found, objects: _Objects | None) -> tuple[float, int]:
    """Return the largest IoU with an object, and which one that is; -1 where there is no object."""
    if objects is None:
        return -1.0, -1
    corners = np.array(found.corners)
    low = np.maximum(objects.corners[:, :2], corners[:2])
    high = np.minimum(objects.corners[:, 2:], corners[2:])
    shared = (high - low + 1).clip(min=0).prod(axis=1)
    areas = (objects.corners[:, 2:] - objects.corners[:, :2] + 1).prod(axis=1)
    overlaps = shared / ((corners[2:] - corners[:2] + 1).prod() + areas - shared)
    target = int(overlaps.argmax())
    return float(overlaps[target]), target


def _at_eleven_points(recall: Array, precision: Array) -> float:
    """Return the mean over recalls 0, 0.1 ... 1 of the best precision that is reached there or later."""
    return sum(float(precision[recall >= point].max(initial=0.0)) / len(_POINTS) for point in _POINTS)


def _area(recall: Array, precision: Array) -> float:
    """Return the area below the curve, with precision made to fall."""
    ends = np.concatenate([[0.0], recall, [1.0]])
    envelope = np.maximum.accumulate(np.concatenate([[0.0], precision, [0.0]])[::-1])[::-1]
    return float(np.sum(np.diff(ends) * envelope[1:]))
