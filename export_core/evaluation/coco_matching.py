"""COCO's matching of detections with objects, in one pass for all IoU thresholds and areas.

pycocotools walks through thresholds, detections and objects one by one, for each area anew, which is most of
what an evaluation takes. Here one pass over the detections serves all thresholds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Rows = Sequence[Mapping[str, Any]]

_FULL_OVERLAP = 1 - 1e-10  # what a threshold of 1 asks for


@dataclass(frozen=True)
class Rules:
    """What counts.

    Attributes:
        thresholds: float64 (T,) IoUs.
        recalls: float64 (R,) at which precision is averaged.
        areas: float64 (A, 2), least and largest area of an object, both included.
        most: detections of a category in an image.
    """

    thresholds: Array
    recalls: Array
    areas: Array
    most: int


@dataclass
class Part:
    """Objects and detections of one category in one image."""

    objects: list[Mapping[str, Any]] = field(default_factory=list)
    found: list[Mapping[str, Any]] = field(default_factory=list)


@dataclass
class Matches:
    """What came of one category in one image.

    Attributes:
        scores: float64 (D,) of the detections that count, the highest first.
        matched: bool (A, T, D), by area and IoU threshold.
        ignored: the same: detections that are neither right nor wrong.
        skipped: bool (A, G): objects that nobody has to find.
    """

    scores: Array
    matched: Array
    ignored: Array
    skipped: Array


def by_category(objects: Rows, found: Rows) -> dict[int, Part]:
    """Return the parts of one image by category."""
    parts: dict[int, Part] = {}
    for row in objects:
        parts.setdefault(row["category_id"], Part()).objects.append(row)
    for row in found:
        parts.setdefault(row["category_id"], Part()).found.append(row)
    return parts


def match(part: Part, overlaps: Any, rules: Rules) -> Matches:
    """Match by COCO's rules.

    Args:
        part: objects and detections.
        overlaps: (D, G), detections by falling score; nothing where either is none.
        rules: what counts.
    """
    scores = np.array([row["score"] for row in part.found], dtype=np.float64)
    chosen = np.argsort(-scores, kind="stable")[: rules.most]
    sizes = np.array([row["area"] for row in part.found], dtype=np.float64)[chosen]
    areas = np.array([row["area"] for row in part.objects], dtype=np.float64)
    crowd = np.array([bool(row["iscrowd"]) for row in part.objects], dtype=np.bool_)
    unlabelled = np.array([row.get("num_keypoints", 1) == 0 for row in part.objects], dtype=np.bool_)
    skipped = _outside(areas, rules.areas) | crowd | unlabelled
    matched = np.zeros((len(rules.areas), len(rules.thresholds), len(chosen)), dtype=np.bool_)
    ignored = np.zeros_like(matched)
    if areas.size and chosen.size:
        table = np.asarray(overlaps, dtype=np.float64).reshape(len(chosen), len(areas))
        thresholds = np.minimum(rules.thresholds, _FULL_OVERLAP)
        done: dict[bytes, int] = {}  # areas that skip the same objects match alike
        for area, without in enumerate(skipped):
            same = done.setdefault(without.tobytes(), area)
            if same == area:
                _match(table, thresholds, crowd, without, matched[area], ignored[area])
            else:
                matched[area], ignored[area] = matched[same], ignored[same]
    ignored |= ~matched & _outside(sizes, rules.areas)[:, None, :]
    return Matches(scores[chosen], matched, ignored, skipped)


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
