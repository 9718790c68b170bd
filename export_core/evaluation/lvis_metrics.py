"""Box and mask average precision on LVIS, whose images are annotated for some of the categories only.

The rules are those of Gupta et al. 2019, "LVIS: A Dataset for Large Vocabulary Instance Segmentation": in an
image, a category counts only if it was found there by an annotator or is known to be absent; where not every
object of a category is annotated, what matches nothing is not held against the model; 300 detections of an
image count; AP is also averaged over rare, common and frequent categories.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_util

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
_IOUS = np.linspace(0.5, 0.95, 10)
_RECALLS = np.linspace(0.0, 1.0, 101)
# Object areas in pixels, both ends included: all, small, medium, large.
_AREAS = np.array([[0, 1e5**2], [0, 32**2], [32**2, 96**2], [96**2, 1e5**2]])
_FULL_OVERLAP = 1 - 1e-10  # what an IoU threshold of 1 asks for

BoolArray = npt.NDArray[np.bool_]


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
    matches: defaultdict[int, list[_Matches]] = defaultdict(list)
    for index in order:
        for matched in _match_image(shape, index, dataset.images[index], truth[index], found[index]):
            matches[matched.category].append(matched)
    # Indexed by IoU threshold, recall, category, area; -1 where no ground truth defines an entry.
    precision = np.stack([_precision(matches[category.id]) for category in dataset.categories], axis=2)
    whole = precision[:, :, :, 0]
    metrics = read_precision(precision[..., None], DETECTION_METRICS)
    groups = np.array([category.frequency for category in dataset.categories])
    for frequency in FREQUENCIES:
        metrics[f"AP{frequency}"] = mean_precision(whole[:, :, groups == frequency])
    labels = unique_labels(dataset)
    for index, label in enumerate(labels):
        metrics[f"AP-{label}"] = mean_precision(whole[:, :, index])
    by_category = [matches[category.id] for category in dataset.categories]
    names = {"labels": np.array(labels, dtype=np.str_), "groups": groups.astype(np.str_)}
    return defined(metrics), {**_tally(by_category), **names}


def resampled_lvis(tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
    """Return the metrics of :func:`lvis_metrics` for resampled images, from what it returned."""
    groups = {f"AP{frequency}": tally["groups"] == frequency for frequency in FREQUENCIES}
    return resampled_precision(tally, weights, DETECTION_METRICS, tally["labels"].tolist(), groups)


@dataclass(frozen=True)
class _Matches:
    """What became of one category's detections in one image.

    Attributes:
        image: index in the dataset.
        scores: float64 (D,), descending.
        hit: bool (A, T, D): by area range and IoU threshold, whether the detection matches an object.
        ignored: bool (A, T, D): whether it counts for nothing.
        objects: int (A,): objects that count.
    """

    image: int
    category: int
    scores: Array
    hit: BoolArray
    ignored: BoolArray
    objects: Array


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
    shape: str, index: int, image: DatasetImage, objects: Results, detections: Results
) -> Iterator[_Matches]:
    """Yield the matches of each category that counts in this image, ``index`` in the dataset."""
    truth, found = defaultdict(list), defaultdict(list)
    for row in objects:
        truth[row["category_id"]].append(row)
    for row in _federated(detections, image, truth.keys()):
        found[row["category_id"]].append(row)
    for category in {**truth, **found}:
        partly = category in image.not_exhaustive
        yield _match_category(shape, index, category, truth[category], found[category], partly)


def _match_category(
    shape: str, image: int, category: int, truth: Results, found: Results, not_exhaustive: bool
) -> _Matches:
    """Give each detection, the best first, the free object that it overlaps most.

    Objects outside of an area range are ignored there: a detection takes one of them only where it finds no
    other, and does not count then.
    """
    sizes = _areas_outside(truth)
    hit = np.zeros((len(_AREAS), len(_IOUS), len(found)), dtype=np.bool_)
    ignored = hit.copy()
    if truth and found:
        overlaps = _overlaps(shape, found, truth)
        free = np.ones((len(_AREAS), len(_IOUS), len(truth)), dtype=np.bool_)
        needed = np.minimum(_IOUS, _FULL_OVERLAP)[None, :, None]
        outside = np.broadcast_to(sizes[:, None, :], free.shape)
        for index, row in enumerate(overlaps):
            if row.max() < _IOUS[0]:
                continue
            possible = free & (row >= needed)
            regular = possible & ~outside
            takes_regular = regular.any(axis=2, keepdims=True)
            pool = np.where(takes_regular, regular, possible)
            hit[:, :, index] = pool.any(axis=2)
            # The last of equal overlaps, so from behind.
            backwards = np.where(pool, row, -1.0)[:, :, ::-1].argmax(axis=2)
            taken = len(truth) - 1 - backwards
            areas, thresholds = np.nonzero(hit[:, :, index])
            chosen = taken[areas, thresholds]
            free[areas, thresholds, chosen] = False
            ignored[areas, thresholds, index] = sizes[areas, chosen]
    unmatched_is_ignored = _areas_outside(found) | not_exhaustive
    ignored |= ~hit & unmatched_is_ignored[:, None, :]
    scores = np.array([row["score"] for row in found], dtype=np.float64)
    return _Matches(image, category, scores, hit, ignored, (~sizes).sum(axis=1))


def _tally(by_category: Sequence[Sequence[_Matches]]) -> dict[str, Array]:
    """Return the matches of each category as :func:`resampled_precision` takes them."""
    bits = 1 << np.arange(len(_IOUS), dtype=np.uint16)
    image = [np.zeros(0, dtype=np.int32)]
    matched, ignored = ([np.zeros((len(_AREAS), 0), dtype=np.uint16)] for _ in range(2))
    ends, objects = [], []
    for index, matches in enumerate(by_category):
        if matches:
            order = np.argsort(-np.concatenate([each.scores for each in matches]), kind="stable")
            lengths = [len(each.scores) for each in matches]
            image.append(np.repeat([each.image for each in matches], lengths)[order].astype(np.int32))
            for flags, name in ((matched, "hit"), (ignored, "ignored")):
                whole = np.concatenate([getattr(each, name) for each in matches], axis=2)[:, :, order]
                flags.append(np.einsum("t,atd->ad", bits, whole.astype(np.uint16)))
        ends.append(sum(len(each) for each in image))
        objects += [
            (index, area, each.image, count)
            for each in matches
            for area, count in enumerate(each.objects.tolist())
            if count
        ]
    return {
        "image": np.concatenate(image),
        "ends": np.array(ends, dtype=np.int64),
        "matched": np.concatenate(matched, axis=1),
        "ignored": np.concatenate(ignored, axis=1),
        "objects": np.array(objects, dtype=np.int32).reshape(-1, 4).T,
        "recalls": _RECALLS,
        "thresholds": _IOUS,
    }


def _areas_outside(rows: Results) -> BoolArray:
    """Return bool (A, N): whether a row's area is outside of each range."""
    areas = np.array([row["area"] for row in rows], dtype=np.float64)
    outside: BoolArray = (areas < _AREAS[:, :1]) | (areas > _AREAS[:, 1:])
    return outside


def _overlaps(shape: str, found: Results, truth: Results) -> Array:
    """Return the IoU of each detection with each object, float64 (D, G)."""
    overlaps: Array = mask_util.iou(
        [row[shape] for row in found], [row[shape] for row in truth], [0] * len(truth)
    )
    return overlaps


def _precision(matches: Sequence[_Matches]) -> Array:
    """Return the interpolated precision of one category, float64 (T, R, A)."""
    precision = np.full((len(_IOUS), len(_RECALLS), len(_AREAS)), -1.0)
    if not matches:
        return precision
    order = np.argsort(-np.concatenate([each.scores for each in matches]), kind="stable")
    hit = np.concatenate([each.hit for each in matches], axis=2)[:, :, order]
    ignored = np.concatenate([each.ignored for each in matches], axis=2)[:, :, order]
    objects = np.sum([each.objects for each in matches], axis=0)
    right = np.cumsum(hit & ~ignored, axis=2).astype(np.float64)
    wrong = np.cumsum(~hit & ~ignored, axis=2).astype(np.float64)
    exact = right / (right + wrong + np.spacing(1))
    # From each point on the best precision that is still reached.
    best = np.maximum.accumulate(exact[:, :, ::-1], axis=2)[:, :, ::-1]
    for area in np.flatnonzero(objects):
        for threshold in range(len(_IOUS)):
            first = np.searchsorted(right[area, threshold] / objects[area], _RECALLS, side="left")
            reached = first < len(order)
            precision[threshold, :, area] = 0.0
            precision[threshold, reached, area] = best[area, threshold, first[reached]]
    return precision
