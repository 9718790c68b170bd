"""Average precision of resampled images, from the matches of one COCO evaluation.

Matching detections with objects is what costs time, and it does not depend on which other images are counted.
So it is done once, and a resample only weights images: an image that was drawn three times counts three
times. Detections stand in the order of their scores, so recall and precision are cumulative sums.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = Mapping[str, Array]

#: How a metric is read from AP by category, area and IoU threshold: index of the area and of the threshold,
#: None for the mean over all thresholds.
Reading = tuple[int, int | None]
_LARGEST = 1 << 24  # elements of a matrix of resamples by detections
_EPSILON = float(np.spacing(1))  # pycocotools adds it to the number of detections


def tally_matches(
    evaluation: Any,
    order: Sequence[int],
    truth: Sequence[Sequence[Mapping[str, Any]]],
    found: Sequence[Sequence[Mapping[str, Any]]],
) -> dict[str, Array]:
    """Return the matches of an evaluation, compactly.

    They are made from its overlaps by COCO's rules; not every package that counts shows its own.

    Args:
        evaluation: a COCOeval after ``evaluate``: its parameters and overlaps are read.
        order: index in the dataset of each image, in the order of the evaluation.
        truth: the objects of each image in that order, as the evaluation was given them.
        found: the same for detections.

    Returns:
        - image: int32 (D,), index in the dataset of each detection's image; detections by category, then by
          score, the highest first;
        - ends: int64 (K,), where each category's detections end;
        - matched, ignored: uint16 (A, D), a bit for each IoU threshold;
        - objects: int32 (4, G): category, area, image and number of the objects to find.
    """
    parameters = evaluation.params
    limits = np.asarray(parameters.areaRng, dtype=np.float64)
    categories = [int(each) for each in parameters.catIds]
    parts: dict[int, list[_Part]] = {category: [] for category in categories}
    for rank, (objects_here, found_here) in enumerate(zip(truth, found, strict=True)):
        for category, part in _by_category(rank, objects_here, found_here).items():
            if category in parts:
                parts[category].append(part)
    image: list[Array] = []
    matched: list[Array] = []
    ignored: list[Array] = []
    ends: list[int] = []
    objects: list[tuple[int, int, int, int]] = []
    total = 0
    for index, category in enumerate(categories):
        pairs = [
            (part, _Pair.of(part, evaluation.ious.get((part.rank, category)), parameters, limits))
            for part in parts[category]
        ]
        for part, pair in pairs:
            objects += [
                (index, area, order[part.rank], count)
                for area, count in enumerate(pair.to_find.tolist())
                if count
            ]
        if pairs:
            scores = np.concatenate([pair.scores for _, pair in pairs])
            # The order in which they are counted: stable, so that equal scores keep that of the images.
            sorting = np.argsort(-scores, kind="mergesort")
            lengths = [len(pair.scores) for _, pair in pairs]
            image.append(np.repeat([order[part.rank] for part, _ in pairs], lengths)[sorting])
            matched.append(np.concatenate([pair.matched for _, pair in pairs], axis=1)[:, sorting])
            ignored.append(np.concatenate([pair.ignored for _, pair in pairs], axis=1)[:, sorting])
            total += len(scores)
        ends.append(total)
    empty = np.zeros((len(limits), 0), dtype=np.uint16)
    return {
        "image": np.concatenate([np.zeros(0, dtype=np.int32), *image]).astype(np.int32),
        "ends": np.array(ends, dtype=np.int64),
        "matched": np.concatenate([empty, *matched], axis=1),
        "ignored": np.concatenate([empty, *ignored], axis=1),
        "objects": np.array(objects, dtype=np.int32).reshape(-1, 4).T,
        "recalls": np.asarray(parameters.recThrs, dtype=np.float64),
        "thresholds": np.asarray(parameters.iouThrs, dtype=np.float64),
    }


@dataclass
class _Part:
    """Objects and detections of one category in one image."""

    rank: int
    objects: list[Mapping[str, Any]] = field(default_factory=list)
    found: list[Mapping[str, Any]] = field(default_factory=list)


def _by_category(
    rank: int, objects: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]
) -> dict[int, _Part]:
    parts: dict[int, _Part] = {}
    for row in objects:
        parts.setdefault(row["category_id"], _Part(rank)).objects.append(row)
    for row in found:
        parts.setdefault(row["category_id"], _Part(rank)).found.append(row)
    return parts


@dataclass
class _Pair:
    """What came of one category in one image.

    Attributes:
        scores: float64 (D,), the highest first.
        matched: uint16 (A, D), a bit for each IoU threshold.
        ignored: the same.
        to_find: (A,) objects.
    """

    scores: Array
    matched: Array
    ignored: Array
    to_find: Array

    @staticmethod
    def of(part: _Part, overlaps: Any, parameters: Any, limits: Array) -> _Pair:
        """Match by COCO's rules.

        Args:
            part: objects and detections.
            overlaps: (D, G), detections by falling score; nothing where either is none.
            parameters: of the evaluation.
            limits: (A, 2) least and largest area.
        """
        scores = np.array([row["score"] for row in part.found], dtype=np.float64)
        chosen = np.argsort(-scores, kind="mergesort")[: parameters.maxDets[-1]]
        sizes = np.array([row["area"] for row in part.found], dtype=np.float64)[chosen]
        areas = np.array([row["area"] for row in part.objects], dtype=np.float64)
        crowd = np.array([bool(row["iscrowd"]) for row in part.objects], dtype=np.bool_)
        unlabelled = np.array([row.get("num_keypoints", 1) == 0 for row in part.objects], dtype=np.bool_)
        skipped = _outside(areas, limits) | crowd | unlabelled
        thresholds = np.minimum(parameters.iouThrs, 1 - 1e-10)
        matched = np.zeros((len(limits), len(thresholds), len(chosen)), dtype=np.bool_)
        ignored = np.zeros_like(matched)
        if areas.size and chosen.size:
            table = np.asarray(overlaps, dtype=np.float64).reshape(len(chosen), len(areas))
            for area, without in enumerate(skipped):
                _match(table, thresholds, crowd, without, matched[area], ignored[area])
        ignored |= ~matched & _outside(sizes, limits)[:, None, :]
        bits = 1 << np.arange(len(thresholds), dtype=np.uint16)
        flags = [np.einsum("t,atd->ad", bits, each.astype(np.uint16)) for each in (matched, ignored)]
        return _Pair(scores[chosen], flags[0], flags[1], (~skipped).sum(axis=1))


def _outside(areas: Array, limits: Array) -> Array:
    outside: Array = (areas < limits[:, :1]) | (areas > limits[:, 1:])
    return outside


def _match(
    overlaps: Array, thresholds: Array, crowd: Array, skipped: Array, matched: Array, ignored: Array
) -> None:
    """Give each detection, the best first, the object that it covers best and that is still free.

    An object that does not count is taken only where no other fits; a crowd is never used up. Of equal
    overlaps the last counts. ``matched`` and ``ignored`` (T, D) are filled in.
    """
    taken = np.zeros((len(thresholds), len(crowd)), dtype=np.bool_)
    for detection in np.flatnonzero(overlaps.max(axis=1) >= thresholds[0]).tolist():
        row = overlaps[detection]
        fits = (row >= thresholds[:, None]) & (crowd | ~taken)
        preferred = fits & ~skipped
        fits = np.where(preferred.any(axis=1)[:, None], preferred, fits)
        best = len(row) - 1 - np.argmax(np.where(fits, row, -1.0)[:, ::-1], axis=1)
        hits = np.flatnonzero(fits.any(axis=1))
        taken[hits, best[hits]] = True
        matched[hits, detection] = True
        ignored[hits, detection] = skipped[best[hits]]


def resampled_precision(
    tally: Arrays,
    weights: Array,
    readings: Mapping[str, Reading],
    labels: Sequence[str] = (),
    groups: Mapping[str, Array] | None = None,
) -> dict[str, Array]:
    """Return metrics of resampled images.

    Args:
        tally: as :func:`tally_matches` returns it.
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
    for category, (start, end) in enumerate(_spans(tally["ends"])):
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


def _spans(ends: Array) -> Iterator[tuple[int, int]]:
    start = 0
    for end in ends.tolist():
        yield start, end
        start = end


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
    precision = true / (counted + _EPSILON)
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
