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
_LARGEST = 1 << 22  # elements of a matrix of resamples by detections
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
        return self.measure(values, dataset, config)[0]

    def measure(
        self, values: Sequence[Rows], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and the matches of all images."""
        tally = _tally(values, dataset)
        once = self.resampled(tally, np.ones((1, len(dataset.images)), dtype=np.int32))
        return {name: float(points[0]) for name, points in once.items() if not np.isnan(points[0])}, tally

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        table = np.zeros((len(tally["ends"]), len(_IOUS), len(weights)))
        absent = np.ones((len(table), len(weights)), dtype=np.bool_)
        category, image, count = tally["objects"]
        for index, (start, end) in enumerate(zip([0, *tally["ends"][:-1]], tally["ends"], strict=True)):
            of = category == index
            objects = weights[:, image[of]] @ count[of]
            absent[index] = objects == 0
            rows = max(1, _LARGEST // max(1, end - start))
            for first in range(0, len(weights), rows):
                some = slice(first, first + rows)
                drawn = weights[some, tally["image"][start:end]]
                table[index, :, some] = _average_precisions(
                    drawn,
                    objects[some],
                    tally["right"][start:end],
                    tally["wrong"][start:end],
                    tally["eleven"],
                )
        metrics = {"AP": table.mean(axis=(0, 1)), "AP50": table[:, 0].mean(axis=0)}
        metrics["AP75"] = table[:, 5].mean(axis=0)
        metrics = {name: np.where(absent.all(axis=0), np.nan, points) for name, points in metrics.items()}
        for label, points, lacks in zip(tally["labels"].tolist(), table.mean(axis=1), absent, strict=True):
            metrics[f"AP-{label}"] = np.where(lacks, np.nan, points)
        return {name: 100.0 * points for name, points in metrics.items()}


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


def _tally(values: Sequence[Rows], dataset: Dataset) -> dict[str, Array]:
    """Return what became of all detections.

    Returns:
        - image: int32 (D,), index in the dataset of each detection's image; detections by class, then by
          score, the highest first;
        - ends: int64 (K,), where each class's detections end;
        - right, wrong: uint16 (D,), a bit for each IoU threshold; neither, where it counts for nothing;
        - objects: int32 (3, G): class, image and number of the objects to find;
        - eleven: bool (), whether AP is taken at 11 points;
        - labels: of the classes.
    """
    found = _by_class(values, dataset)
    position = {image.id: index for index, image in enumerate(dataset.images)}
    objects: defaultdict[int, defaultdict[int | str, list[Annotation]]]
    objects = defaultdict(lambda: defaultdict(list))
    for annotation in dataset.annotations:
        objects[annotation.category_id][annotation.image_id].append(annotation)
    images: list[int] = []
    ends: list[int] = []
    flags = [np.zeros((2, 0), dtype=np.uint16)]
    to_find: list[tuple[int, int, int]] = []
    for index in range(len(dataset.categories)):
        truth = {image: _Objects.of(those) for image, those in objects[index].items()}
        counts = {position[image]: int((~each.difficult).sum()) for image, each in truth.items()}
        to_find += [(index, image, count) for image, count in counts.items() if count]
        images += [position[each.image] for each in found[index]]
        flags.append(_judge(found[index], truth))
        ends.append(len(images))
    right, wrong = np.concatenate(flags, axis=1)
    return {
        "image": np.array(images, dtype=np.int32),
        "ends": np.array(ends, dtype=np.int64),
        "right": right,
        "wrong": wrong,
        "objects": np.array(to_find, dtype=np.int32).reshape(-1, 3).T,
        "eleven": np.array((dataset.source.year or 0) <= _LAST_ELEVEN_POINT_YEAR),
        "labels": np.array(unique_labels(dataset), dtype=np.str_),
    }


def _judge(found: Sequence[_Found], truth: Mapping[int | str, _Objects]) -> Array:
    """Return uint16 (2, D): by a bit for each IoU threshold, which detections of a class are right, wrong."""
    best = [_best_overlap(each, truth.get(each.image)) for each in found]
    flags = np.zeros((2, len(found)), dtype=np.uint16)
    for position, threshold in enumerate(_IOUS):
        taken: set[tuple[int | str, int]] = set()
        for rank, (each, (overlap, target)) in enumerate(zip(found, best, strict=True)):
            if not overlap > threshold:
                flags[1, rank] |= 1 << position
            elif not truth[each.image].difficult[target]:
                flags[int((each.image, target) in taken), rank] |= 1 << position
                taken.add((each.image, target))
    return flags


def _average_precisions(
    drawn: Array, objects: Array, right: Array, wrong: Array, eleven_points: Array
) -> Array:
    """Return the AP of one class at each IoU threshold, float64 (T, R); 0 where there is no object.

    Args:
        drawn: (R, D) how often each detection counts.
        objects: (R,) to find.
        right: uint16 (D,), a bit for each threshold.
        wrong: the same.
        eleven_points: bool ().
    """
    averages = np.zeros((len(_IOUS), len(drawn)))
    for position in range(len(_IOUS)):
        is_right, is_wrong = ((flags >> position) & 1 for flags in (right, wrong))
        hits = np.cumsum(drawn * is_right, axis=1)
        precision = hits / np.maximum(hits + np.cumsum(drawn * is_wrong, axis=1), _EPSILON)
        recall = hits / np.maximum(objects, 1)[:, None]
        # The best precision that is reached there or later.
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        averages[position] = (_at_eleven_points if eleven_points else _area)(recall, best)
    return np.where(objects == 0, 0.0, averages)


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


def _at_eleven_points(recall: Array, best: Array) -> Array:
    """Return the mean (R,) over recalls 0, 0.1 ... 1 of the best precision (R, D) at that recall (R, D)."""
    total = np.zeros(len(recall))
    ends = np.concatenate([best, np.zeros((len(best), 1))], axis=1)
    for point in _POINTS:
        total += np.take_along_axis(ends, (recall < point).sum(axis=1)[:, None], axis=1)[:, 0]
    return total / len(_POINTS)


def _area(recall: Array, best: Array) -> Array:
    """Return the area (R,) below the curve of precision that falls with recall."""
    area: Array = (np.diff(recall, axis=1, prepend=0.0) * best).sum(axis=1)
    return area
