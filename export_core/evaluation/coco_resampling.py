"""Average precision of resampled images, from the matches of one COCO evaluation.

Matching detections with objects is what costs time, and it does not depend on which other images are counted.
So it is done once, and a resample only weights images: an image that was drawn three times counts three
times. Detections stand in the order of their scores, so recall and precision are cumulative sums.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zooport.export_core.evaluation.coco_counting import EPSILON, spans

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: How a metric is read from AP by category, area and IoU threshold: index of the area and of the threshold,
#: None for the mean over all thresholds.
Reading = tuple[int, int | None]
_LARGEST = 1 << 24  # elements of a matrix of resamples by detections


def resampled_precision(
    tally: Arrays,
    weights: Array,
    readings: Mapping[str, Reading],
    labels: Sequence[str] = (),
    groups: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Return metrics of resampled images.

    Args:
        tally: as :func:`~zooport.export_core.evaluation.coco_counting.tally_matches` returns it.
        weights: (R, N) integers: how often each image is in each of R resamples.
        readings: metric -> what it is the mean of.
        labels: of the categories, for AP by category; none leaves those out.
        groups: metric -> bool (K,), the categories that it is the mean AP of.

    Returns:
        Metric -> float64 (R,) in points (0-100), NaN where a resample has no object to find.
    """
    areas = sorted({area for area, _ in readings.values()})
    categories = len(tally["ends"])
    table = np.full((categories, len(areas), len(tally["thresholds"]), len(weights)), np.nan)
    objects = _objects(tally, areas)
    for category, (start, end) in enumerate(spans(tally["ends"])):
        rows = max(1, _LARGEST // max(1, end - start))
        for first in range(0, len(weights), rows):
            some = weights[first : first + rows]
            drawn = np.ascontiguousarray(some[:, tally["image"][start:end]], dtype=np.int32)
            for position, area in enumerate(areas):
                where = objects.get((category, area))
                if where is None:
                    continue
                to_find = some[:, where[0]] @ where[1]
                table[category, position, :, first : first + rows] = _by_threshold(
                    drawn,
                    to_find,
                    tally["matched"][area, start:end],
                    tally["ignored"][area, start:end],
                    tally["recalls"],
                    len(tally["thresholds"]),
                )
    metrics = {}
    for name, (area, threshold) in readings.items():
        chosen = table[:, areas.index(area)]
        metrics[name] = _mean(chosen.mean(axis=1) if threshold is None else chosen[:, threshold])
    for name, members in (groups or {}).items():
        metrics[name] = _mean(table[members, areas.index(0)].mean(axis=1))
    for label, row in zip(labels, table[:, areas.index(0)], strict=bool(labels)) if labels else ():
        metrics[f"AP-{label}"] = row.mean(axis=0)
    return {name: 100.0 * values for name, values in metrics.items()}


def _objects(tally: Arrays, areas: Sequence[int]) -> dict[tuple[int, int], tuple[Array, Array]]:
    """Return images and numbers of objects by (category, area)."""
    category, area, image, count = tally["objects"]
    found = {}
    for key in {(int(one), int(other)) for one, other in zip(category, area, strict=True)}:
        if key[1] in areas:
            rows = (category == key[0]) & (area == key[1])
            found[key] = image[rows], count[rows]
    return found


def _by_threshold(
    drawn: Array, to_find: Array, matched: Array, ignored: Array, recalls: Array, thresholds: int
) -> Array:
    """Return AP (T, R) of one category and area; NaN where a resample has nothing to find.

    Args:
        drawn: (R, D) how often each detection counts.
        to_find: (R,) objects.
        matched: (D,) bits by threshold.
        ignored: the same.
        recalls: at which precision is averaged.
        thresholds: T.
    """
    counted: dict[bytes, Array] = {}
    found = np.zeros((thresholds, len(drawn)))
    with np.errstate(divide="ignore", invalid="ignore"):
        for threshold in range(thresholds):
            skipped = (ignored >> threshold) & 1 != 0
            hits = np.flatnonzero(((matched >> threshold) & 1 != 0) & ~skipped)
            if hits.size:
                key = np.packbits(skipped).tobytes()
                if key not in counted:  # mostly the same for all thresholds
                    counted[key] = np.cumsum(
                        np.where(skipped, np.int32(0), drawn) if skipped.any() else drawn,
                        axis=1,
                        dtype=np.int32,
                    )
                found[threshold] = _average(drawn[:, hits], counted[key][:, hits], to_find, recalls)
    found[:, to_find == 0] = np.nan
    return found


def _average(hits: Array, counted: Array, to_find: Array, recalls: Array) -> Array:
    """Return the mean over recalls of the best precision at that recall or a higher one, (R,).

    Precision is needed at hits alone: between two of them it only falls.

    Args:
        hits: (R, H) how often each hit counts.
        counted: (R, H) detections up to and with each hit.
        to_find: (R,) objects.
        recalls: at which precision is averaged.
    """
    true = np.cumsum(hits, axis=1, dtype=np.int32)
    precision = true / (counted + EPSILON)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    reached = np.searchsorted(recalls, true / to_find[:, None], side="right")
    steps = np.diff(reached, axis=1, prepend=0)
    average: Array = (best * steps).sum(axis=1) / len(recalls)
    return average


def _mean(by_category: Array) -> Array:
    """Return the mean (R,) over the categories (K, R) that a resample has objects of."""
    present = np.isfinite(by_category)
    counts = present.sum(axis=0)
    total = np.where(present, by_category, 0.0).sum(axis=0)
    mean: Array = np.divide(total, counts, out=np.full(len(counts), np.nan), where=counts > 0)
    return mean
