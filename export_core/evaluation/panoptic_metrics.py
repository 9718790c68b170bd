"""Panoptic quality (Kirillov et al. 2019, "Panoptic Segmentation") on COCO panoptic annotations."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.panoptic_truth import TrueSegment
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.evaluation.segmentation import LabelMap, merge_panoptic
from zooport.export_core.evaluation.tasks import ImageOutputs, setting
from zooport.export_core.failures import Failure

# A predicted and a true segment match when they overlap by more; a match is then unique.
_MATCH_IOU = 0.5

# What one image adds: rows of category id, sum of IoUs, true positives, false positives, false negatives.
Rows = list[list[float]]


class PanopticQuality:
    """PQ, SQ and RQ, over all categories, things and stuff."""

    name = "panoptic_seg"
    outputs = ("pred_boxes", "scores", "pred_classes", "pred_masks", "sem_seg")

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Panoptic FPN with its merge, on datasets with panoptic annotations."""
        return (
            setting(config, "MODEL.META_ARCHITECTURE") == "PanopticFPN"
            and bool(setting(config, "MODEL.PANOPTIC_FPN.COMBINE.ENABLED", True))
            and dataset.panoptic is not None
        )

    def check(self, config: Any, dataset: Dataset) -> None:
        """Instance and panoptic annotations must agree with each other and with the semantic head."""
        truth = dataset.require_panoptic()
        if {category.id for category in truth.things} != set(dataset.category_ids):
            raise Failure(
                "dataset.invalid",
                f"the things of {truth.path} are not the categories of {dataset.source.annotations}",
            )
        labels = setting(config, "MODEL.SEM_SEG_HEAD.NUM_CLASSES")
        if labels != len(truth.stuff) + 1:
            raise Failure(
                "dataset.invalid",
                f"{truth.path} defines {len(truth.stuff)} stuff categories, the model has {labels} semantic"
                " labels, one for things and one for each stuff (MODEL.SEM_SEG_HEAD.NUM_CLASSES)",
            )

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Rows:
        """Merge instances and stuff, match them with the ground truth and return the counts."""
        truth = dataset.require_panoptic()
        combine = "MODEL.PANOPTIC_FPN.COMBINE."
        merged, segments = merge_panoptic(
            result.outputs["scores"],
            result.outputs["pred_classes"],
            result.masks,
            result.labels,
            overlap=setting(config, combine + "OVERLAP_THRESH"),
            stuff_area=setting(config, combine + "STUFF_AREA_LIMIT"),
            confidence=setting(config, combine + "INSTANCES_CONFIDENCE_THRESH"),
        )
        stuff = [category.id for category in truth.stuff]
        categories = {
            segment.id: dataset.category_ids[segment.label] if segment.is_thing else stuff[segment.label - 1]
            for segment in segments
        }
        image = result.image
        entry = truth.images[image.id]
        return match_segments(entry.read(image.height, image.width), entry.segments, merged, categories)

    def score(self, values: Sequence[Rows], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return PQ, SQ, RQ, and the same over things (``_th``) and stuff (``_st``).

        Of things or stuff without a true segment there are none, whatever the model found: panopticapi's
        would be of wrong findings alone, and of nothing where there are none.
        """
        return self.measure(values, dataset, config)[0]

    def measure(
        self, values: Sequence[Rows], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and the counts of each image: index of image and category, then a row's."""
        categories = dataset.require_panoptic().categories
        positions = {category.id: position for position, category in enumerate(categories)}
        rows = [
            [image, positions[int(category)], *counted]
            for image, found in enumerate(values)
            for category, *counted in found
        ]
        tally = {
            "rows": np.array(rows, dtype=np.float64).reshape(-1, 6),
            "things": np.array([category.is_thing for category in categories], dtype=np.bool_),
        }
        return self._score(values, dataset), tally

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        things = tally["things"]
        image, category = tally["rows"][:, 0].astype(np.int64), tally["rows"][:, 1].astype(np.int64)
        totals = np.zeros((len(weights), len(things), 4))
        for position in range(len(things)):
            where = category == position
            totals[:, position] = weights[:, image[where]] @ tally["rows"][where, 2:]
        iou, hits, spurious, missed = np.moveaxis(totals, -1, 0)
        weight = hits + spurious / 2 + missed / 2
        with np.errstate(divide="ignore", invalid="ignore"):
            by_category = {
                "PQ": iou / weight,
                "SQ": np.where(hits > 0, iou / hits, 0.0),
                "RQ": hits / weight,
            }
            metrics = {}
            for suffix, group in (("", np.ones_like(things)), ("_th", things), ("_st", ~things)):
                present = (weight > 0) & group
                defined = ((hits + missed)[:, group] > 0).any(axis=1)
                for name, values in by_category.items():
                    total = np.where(present, values, 0.0).sum(axis=1)
                    average = 100.0 * total / present.sum(axis=1)
                    metrics[f"{name}{suffix}"] = np.where(defined, average, np.nan)
        return metrics

    def _score(self, values: Sequence[Rows], dataset: Dataset) -> dict[str, float]:
        truth = dataset.require_panoptic()
        counts: defaultdict[int, Counts] = defaultdict(Counts)
        for rows in values:
            for category, iou, hits, spurious, missed in rows:
                counts[int(category)].add(iou, int(hits), int(spurious), int(missed))
        groups = {"": truth.categories, "_th": truth.things, "_st": truth.stuff}
        metrics: dict[str, float] = {}
        for suffix, categories in groups.items():
            group = [counts[category.id] for category in categories if category.id in counts]
            metrics.update(_averages(group, suffix))
        return metrics


@dataclass
class Counts:
    """Matches of one category."""

    iou: float = 0.0
    hits: int = 0
    spurious: int = 0
    missed: int = 0

    def add(self, iou: float, hits: int, spurious: int, missed: int) -> None:
        """Add the counts of one image."""
        self.iou += iou
        self.hits += hits
        self.spurious += spurious
        self.missed += missed


def match_segments(
    true_ids: LabelMap, true_segments: Iterable[TrueSegment], found_ids: LabelMap, found: Mapping[int, int]
) -> Rows:
    """Match the segments of one image.

    Pixels without ground truth count for nobody. A crowd is never matched and never missed, and a prediction
    that lies mostly on unannotated pixels or on a crowd of its category is not held against the model.

    Args:
        true_ids: (H, W) ids of the true segments, 0 where nothing is annotated.
        true_segments: the segments in ``true_ids``.
        found_ids: (H, W) ids of the predicted segments, 0 where nothing is predicted.
        found: predicted segment id -> category id.
    """
    truth = {segment.id: segment for segment in true_segments}
    overlaps = _overlaps(true_ids, found_ids)
    true_areas, found_areas = (_areas(overlaps, side) for side in (0, 1))
    counts: defaultdict[int, Counts] = defaultdict(Counts)
    matched_true, matched_found = set(), set()
    for (true_id, found_id), overlap in overlaps.items():
        segment = truth.get(true_id)
        if segment is None or segment.crowd or found.get(found_id) != segment.category_id:
            continue
        union = true_areas[true_id] + found_areas[found_id] - overlap - overlaps.get((0, found_id), 0)
        if overlap / union > _MATCH_IOU:
            counts[segment.category_id].add(overlap / union, 1, 0, 0)
            matched_true.add(true_id)
            matched_found.add(found_id)
    for segment in truth.values():
        if not segment.crowd and segment.id not in matched_true:
            counts[segment.category_id].add(0.0, 0, 0, 1)
    crowds = {segment.category_id: segment.id for segment in truth.values() if segment.crowd}
    for found_id, category in found.items():
        excused = overlaps.get((0, found_id), 0) + overlaps.get((crowds.get(category, -1), found_id), 0)
        if found_id not in matched_found and excused / found_areas[found_id] <= _MATCH_IOU:
            counts[category].add(0.0, 0, 1, 0)
    return [[category, row.iou, row.hits, row.spurious, row.missed] for category, row in counts.items()]


def _overlaps(true_ids: LabelMap, found_ids: LabelMap) -> dict[tuple[int, int], int]:
    base = int(found_ids.max()) + 1
    pairs, areas = np.unique(true_ids.astype(np.int64) * base + found_ids, return_counts=True)
    return {divmod(pair, base): area for pair, area in zip(pairs.tolist(), areas.tolist(), strict=True)}


def _areas(overlaps: Mapping[tuple[int, int], int], side: int) -> dict[int, int]:
    areas: defaultdict[int, int] = defaultdict(int)
    for pair, area in overlaps.items():
        areas[pair[side]] += area
    return dict(areas)


def _averages(group: Sequence[Counts], suffix: str) -> dict[str, float]:
    """Average over the categories that occur; nothing where none of them has a true segment.

    Every true segment is either found or missed, so that says nothing of the model.
    """
    if not any(counts.hits or counts.missed for counts in group):
        return {}
    quality = segmentation = recognition = 0.0
    for counts in group:
        weight = counts.hits + counts.spurious / 2 + counts.missed / 2
        quality += counts.iou / weight
        segmentation += counts.iou / counts.hits if counts.hits else 0.0
        recognition += counts.hits / weight
    return {
        f"{name}{suffix}": 100.0 * total / len(group)
        for name, total in (("PQ", quality), ("SQ", segmentation), ("RQ", recognition))
    }
