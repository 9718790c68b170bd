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
        table = np.array(
            [[_average_precision(values, label, iou) for iou in _IOUS] for label in dataset.category_ids]
        )
        counted = ~np.isnan(table[:, 0])
        if not counted.any():
            return {}
        metrics = {"AP": table[counted].mean(), "AP50": table[counted, 0].mean()}
        for name, row in zip(dataset.class_names, table, strict=True):
            if not np.isnan(row[0]):
                metrics[f"AP-{name}"] = row.mean()
        return {name: 100.0 * float(value) for name, value in metrics.items()}


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


def _average_precision(values: Sequence[Matches], label: int, threshold: float) -> float:
    """Return the AP of one label at one IoU threshold; NaN where there is no instance."""
    instances = sum(_counts(each) for image in values for each in image["truth"] if each[0] == label)
    if not instances:
        return float("nan")
    judged = np.array([row for image in values for row in _judge(image, label, threshold)]).reshape(-1, 2)
    if not len(judged):
        return 0.0
    return _area(judged[:, 0], judged[:, 1], instances)


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


def _area(scores: Array, right: Array, instances: int) -> float:
    """Return the area below the curve; each point stands for half of the recall to both of its neighbours."""
    order = np.argsort(scores)
    _, first = np.unique(scores[order], return_index=True)
    hits = np.cumsum(right[order][::-1])[::-1][first]  # among those of at least this score
    precision = np.append(hits / (len(scores) - first), 1.0)
    recall = np.append(hits / instances, 0.0)
    around = np.concatenate([recall[:1], recall, [0.0]])
    return float(np.dot(precision, (around[:-2] - around[2:]) / 2))
