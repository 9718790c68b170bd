"""Mask average precision by the rules of Cityscapes (Cordts et al. 2016, section 4.2).

A detection matches an instance of its label that it overlaps by more than the threshold; groups of instances
and those of fewer than 100 pixels count for nothing, and neither do detections that lie mostly on such or on
unlabelled pixels. The area below the curve is taken over all distinct scores, without interpolation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from zooport.export_core.evaluation.cityscapes_dataset import read_instances
from zooport.export_core.evaluation.coco_metrics import has_head, require_detection_classes
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.postprocess import Array, PastedMask
from zooport.export_core.evaluation.tasks import ImageOutputs

_IOUS = np.arange(0.5, 1.0, 0.05)
_SMALLEST = 100  # pixels
_FIRST_INSTANCE = 1000  # ids below are labels, or groups
#: Labels that are not evaluated: unlabelled and static things, ground, parking, rails, bridges, caravans ...
_VOID = (*range(7), 9, 10, 14, 15, 16, 18, 29, 30, -1)

# One image: {"truth": [[label, instance, pixels]], "found": [[label, score, pixels, void pixels, [[position
# in truth, shared pixels]]]]}
Matches = Mapping[str, Any]


class CityscapesMaskAP:
    """Cityscapes mask AP and AP50."""

    name = "segm"
    outputs = ("pred_boxes", "scores", "pred_classes", "pred_masks")

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Models with a mask head, on Cityscapes."""
        return dataset.source.kind == "cityscapes" and has_head(config, "MODEL.MASK_ON")

    def check(self, config: Any, dataset: Dataset) -> None:
        """The model must have Cityscapes' eight classes."""
        require_detection_classes(config, dataset)

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Matches:
        """Return the instances of the image, the detections, and the pixels that they share."""
        ids = read_instances(dataset.source, result.image)
        numbers, areas = np.unique(ids, return_counts=True)
        truth = [
            [_label(number), number, area]
            for number, area in zip(numbers.tolist(), areas.tolist(), strict=True)
            if _label(number) in dataset.category_ids
        ]
        positions = {number: position for position, (_, number, _) in enumerate(truth)}
        found = []
        for index, score, mask in zip(
            result.outputs["pred_classes"].tolist(),
            result.outputs["scores"].tolist(),
            result.masks,
            strict=True,
        ):
            label = dataset.category_ids[index]
            shared = _shared(mask, ids)
            if not shared:
                continue  # no pixel at all
            void = sum(pixels for number, pixels in shared.items() if number in _VOID)
            met = [
                [positions[number], pixels] for number, pixels in shared.items() if _label(number) == label
            ]
            found.append([label, score, sum(shared.values()), void, met])
        return {"truth": truth, "found": found}

    def score(self, values: Sequence[Matches], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return AP and AP50, and AP of each class that has instances."""
        return self.measure(values, dataset, config)[0]

    def measure(
        self, values: Sequence[Matches], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and which detections of all images are right."""
        tally = _tally(values, dataset)
        once = self.resampled(tally, np.ones((1, len(values)), dtype=np.int32))
        return {name: float(points[0]) for name, points in once.items() if not np.isnan(points[0])}, tally

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        labels = tally["labels"].tolist()
        table = np.full((len(labels), len(_IOUS), len(weights)), np.nan)
        label, image, count = tally["instances"]
        curve, curve_image, right = tally["found"]
        for index, row in enumerate(table):
            of = label == index
            instances = weights[:, image[of]] @ count[of]
            for position in range(len(_IOUS)):
                here = curve == index * len(_IOUS) + position
                drawn = weights[:, curve_image[here]]
                area = _area(tally["scores"][here], drawn, right[here], instances)
                row[position] = np.where(instances == 0, np.nan, area)
        present = ~np.isnan(table[:, 0])
        counted = np.maximum(present.sum(axis=0), 1)
        totals = np.where(present[:, None], table, 0.0).sum(axis=0) / counted
        metrics = {"AP": totals.mean(axis=0), "AP50": totals[0]}
        metrics = {name: np.where(present.any(axis=0), points, np.nan) for name, points in metrics.items()}
        metrics |= {f"AP-{name}": row.mean(axis=0) for name, row in zip(labels, table, strict=True)}
        return {name: 100.0 * points for name, points in metrics.items()}


def _tally(values: Sequence[Matches], dataset: Dataset) -> dict[str, Array]:
    """Return which detections are right.

    Returns:
        - found: int32 (3, M): number of the curve (label * IoU thresholds + threshold), index of the image,
          and 1 if it is right;
        - scores: float64 (M,);
        - instances: int32 (3, G): label, image and number of the instances to find;
        - labels: names of the labels.
    """
    found: list[tuple[int, int, int]] = []
    scores: list[float] = []
    instances: list[tuple[int, int, int]] = []
    for image, value in enumerate(values):
        for index, label in enumerate(dataset.category_ids):
            count = sum(_counts(each) for each in value["truth"] if each[0] == label)
            if count:
                instances.append((index, image, count))
            for position, threshold in enumerate(_IOUS):
                for score, right in _judge(value, label, threshold):
                    found.append((index * len(_IOUS) + position, image, int(right)))
                    scores.append(score)
    return {
        "found": np.array(found, dtype=np.int32).reshape(-1, 3).T,
        "scores": np.array(scores, dtype=np.float64),
        "instances": np.array(instances, dtype=np.int32).reshape(-1, 3).T,
        "labels": np.array(dataset.class_names, dtype=np.str_),
    }


def _label(number: int) -> int:
    return number if number < _FIRST_INSTANCE else number // 1000


def _shared(mask: PastedMask, ids: Array) -> dict[int, int]:
    """Return instance id -> number of its pixels in the mask."""
    crop, top, left = mask
    below = ids[top : top + crop.shape[0], left : left + crop.shape[1]][crop]
    numbers, pixels = np.unique(below, return_counts=True)
    return dict(zip(numbers.tolist(), pixels.tolist(), strict=True))


def _counts(instance: Sequence[int]) -> bool:
    _, number, pixels = instance
    return number >= _FIRST_INSTANCE and pixels >= _SMALLEST


def _judge(image: Matches, label: int, threshold: float) -> Iterator[tuple[float, float]]:
    """Yield score and whether it is right (1 or 0) for each detection of a label that counts."""
    truth = image["truth"]
    scores: dict[int, list[float]] = {}
    for found_label, score, pixels, void, met in image["found"]:
        if found_label != label:
            continue
        matched = [position for position, shared in met if _iou(shared, truth[position], pixels) > threshold]
        for position in matched:
            if _counts(truth[position]):
                scores.setdefault(position, []).append(score)
        if not matched and _ignored(met, truth, void) / pixels <= threshold:
            yield score, 0.0
    for of_instance in scores.values():  # the best one is right, the others are wrong
        best, *others = sorted(of_instance, reverse=True)
        yield best, 1.0
        yield from ((each, 0.0) for each in others)


def _iou(shared: int, instance: Sequence[int], pixels: int) -> float:
    return shared / (instance[2] + pixels - shared)


def _ignored(met: Sequence[Sequence[int]], truth: Sequence[Sequence[int]], void: int) -> int:
    """Return the pixels of a detection on which it cannot be wrong; a small group counts twice, as there."""
    total = void
    for position, shared in met:
        _, number, pixels = truth[position]
        total += shared * ((number < _FIRST_INSTANCE) + (pixels < _SMALLEST))
    return total


def _area(scores: Array, drawn: Array, right: Array, instances: Array) -> Array:
    """Return the area below the curve; each point stands for half of the recall to both of its neighbours.

    Args:
        scores: (M,).
        drawn: (R, M) how often each counts.
        right: (M,) 1 or 0.
        instances: (R,) to find.

    Returns:
        float64 (R,).
    """
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)
    drawn = drawn[:, order]
    # Among those of at least this score. A point that was not drawn lies on its neighbour, or on the end.
    total = np.cumsum(drawn[:, ::-1], axis=1)[:, ::-1][:, first]
    hits = np.cumsum((drawn * right[order])[:, ::-1], axis=1)[:, ::-1][:, first]
    end = np.ones((len(drawn), 1))
    precision = np.concatenate([np.where(total == 0, 1.0, hits / np.maximum(total, 1)), end], axis=1)
    recall = np.concatenate([hits / np.maximum(instances, 1)[:, None], 0 * end], axis=1)
    around = np.concatenate([recall[:, :1], recall, 0 * end], axis=1)
    area: Array = (precision * (around[:, :-2] - around[:, 2:]) / 2).sum(axis=1)
    return area
