"""Box and mask average precision on LVIS, whose images are annotated for some of the categories only.

The rules are those of Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation": in an
image, a category counts only if it was found there by an annotator or is known to be absent; where not every
object of a category is annotated, what matches nothing is not held against the model; 300 detections of an
image count; AP is also averaged over rare, common and frequent categories.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from zooport.export_core.evaluation.coco_counting import precision_table, tally_matches
from zooport.export_core.evaluation.coco_matching import Matches, Rules, by_category, match
from zooport.export_core.evaluation.coco_metrics import (
    DETECTION_METRICS,
    BoxAP,
    MaskAP,
    Results,
    by_image,
    defined,
    detects,
    ground_truth,
    has_head,
    mean_precision,
    read_precision,
    require_detection_classes,
)
from zooport.export_core.evaluation.coco_resampling import resampled_precision
from zooport.export_core.evaluation.datasets import Dataset, DatasetImage
from zooport.export_core.evaluation.lvis_dataset import FREQUENCIES
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.evaluation.tasks import ImageOutputs, unique_labels

MAX_DETECTIONS = 300
# Object areas in pixels: all, small, medium, large.
RULES = Rules(
    thresholds=np.linspace(0.5, 0.95, 10),
    recalls=np.linspace(0.0, 1.0, 101),
    areas=np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]]),
    most=MAX_DETECTIONS,
)


class LvisBoxAP:
    """LVIS box AP. It collects as COCO's task does, and inherits nothing of how that one counts."""

    name = BoxAP.name
    outputs = BoxAP.outputs

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Every detector, on LVIS annotations."""
        return detects(config) and dataset.source.kind == "lvis"

    def check(self, config: Any, dataset: Dataset) -> None:
        """The dataset must have as many categories as the model has classes."""
        require_detection_classes(config, dataset)

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Results:
        """Return what COCO's task does, without the detections that do not count in this image."""
        return _counting(BoxAP().collect(result, dataset, config), result.image, dataset)

    def score(self, values: Sequence[Results], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return AP, AP50, AP75, APs, APm, APl, APr, APc, APf and AP per category."""
        return self.measure(values, dataset, config)[0]

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        return resampled_lvis(tally, weights)

    def measure(
        self, values: Sequence[Results], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and the matches of all images."""
        truth = by_image(dataset, [ground_truth(annotation) for annotation in dataset.annotations])
        found = [[{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in rows] for rows in values]
        return lvis_metrics("bbox", truth, found, dataset)


class LvisMaskAP:
    """LVIS mask AP; a detection's area is its mask's."""

    name = MaskAP.name
    outputs = MaskAP.outputs

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Models with a mask head, on LVIS annotations with masks."""
        lvis = dataset.source.kind == "lvis"
        return lvis and has_head(config, "MODEL.MASK_ON") and dataset.has_masks

    def check(self, config: Any, dataset: Dataset) -> None:
        """Categories must be the model's classes, and every object must have a readable mask."""
        require_detection_classes(config, dataset)
        MaskAP().check(config, dataset)

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Results:
        """Return what COCO's task does, without the detections that do not count in this image."""
        return _counting(MaskAP().collect(result, dataset, config), result.image, dataset)

    def score(self, values: Sequence[Results], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return AP, AP50, AP75, APs, APm, APl, APr, APc, APf and AP per category."""
        return self.measure(values, dataset, config)[0]

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        return resampled_lvis(tally, weights)

    def measure(
        self, values: Sequence[Results], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and the matches of all images."""
        rows = [
            {**ground_truth(annotation), "segmentation": rle}
            for annotation, rle in zip(dataset.annotations, dataset.mask_rles, strict=True)
        ]
        found = [
            [{**row, "area": float(mask_util.area(row["segmentation"]))} for row in image] for image in values
        ]
        return lvis_metrics("segmentation", by_image(dataset, rows), found, dataset)


def lvis_metrics(
    shape: str, truth: Sequence[Results], found: Sequence[Results], dataset: Dataset
) -> tuple[dict[str, float], dict[str, Array]]:
    """Match and average; ground truth and detections are grouped in the order of ``dataset.images``.

    Args:
        shape: the field that is compared: "bbox" (x, y, width, height) or "segmentation" (run lengths).
        truth: rows with ``category_id``, ``area`` and the shape.
        found: the same with ``score``.
        dataset: of kind "lvis".

    Returns:
        Metrics in points; those that no ground truth defines are left out. And what :func:`resampled_lvis`
        takes.
    """
    order = sorted(range(len(dataset.images)), key=lambda index: _order(dataset.images[index].id))
    matches: dict[int, list[tuple[int, Matches]]] = {category.id: [] for category in dataset.categories}
    for index in order:
        for category, matched in _match_image(shape, dataset.images[index], truth[index], found[index]):
            matches[category].append((index, matched))
    tally = tally_matches(list(matches.values()), RULES)
    precision = precision_table(tally)
    metrics = read_precision(precision, DETECTION_METRICS)
    whole = precision[:, :, :, 0]
    groups = np.array([category.frequency for category in dataset.categories])
    for frequency in FREQUENCIES:
        metrics[f"AP{frequency}"] = mean_precision(whole[:, :, groups == frequency])
    labels = unique_labels(dataset)
    for index, label in enumerate(labels):
        metrics[f"AP-{label}"] = mean_precision(whole[:, :, index])
    names = {"labels": np.array(labels, dtype=np.str_), "groups": groups.astype(np.str_)}
    return defined(metrics), {**tally, **names}


def resampled_lvis(tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
    """Return the metrics of :func:`lvis_metrics` for resampled images, from what it returned."""
    groups = {f"AP{frequency}": tally["groups"] == frequency for frequency in FREQUENCIES}
    return resampled_precision(tally, weights, DETECTION_METRICS, tally["labels"].tolist(), groups)


def _order(identifier: int | str) -> tuple[bool, int | str]:
    return isinstance(identifier, str), identifier


def _counting(rows: Results, image: DatasetImage, dataset: Dataset) -> Results:
    """Leave out most of what was found: in an image, annotators looked for few of LVIS's categories."""
    present = {annotation.category_id for annotation in dataset.annotations_by_image[image.id]}
    return _federated(rows, image, present)


def _federated(rows: Results, image: DatasetImage, present: Container[int]) -> Results:
    """Return the best detections, the highest score first, of categories that are there or known not to be.

    Detections of other categories take part in the choice of the best; equal scores keep their order.
    """
    best = sorted(rows, key=lambda row: -row["score"])[:MAX_DETECTIONS]
    return [row for row in best if row["category_id"] in present or row["category_id"] in image.absent]


def _match_image(
    shape: str, image: DatasetImage, objects: Results, detections: Results
) -> Iterator[tuple[int, Matches]]:
    """Yield each category that counts in this image with its matches."""
    present = {row["category_id"] for row in objects}
    objects = [{**row, "iscrowd": 0} for row in objects]  # LVIS knows no crowds
    for category, part in by_category(objects, _federated(detections, image, present)).items():
        overlaps = mask_util.iou(
            [row[shape] for row in part.found], [row[shape] for row in part.objects], [0] * len(part.objects)
        )
        matches = match(part, overlaps, RULES)
        if category in image.not_exhaustive:
            matches.ignored |= ~matches.matched
        yield category, matches
