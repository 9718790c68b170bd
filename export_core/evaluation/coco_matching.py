"""COCO's matching of detections with objects, in one pass for all IoU thresholds and areas.

pycocotools walks through thresholds, detections and objects one by one, for each area anew, which is most of
what an evaluation takes. Here one pass over the detections serves all thresholds, and its matches serve both
pycocotools, which counts them, and the resampling that tells how sure a difference is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools.cocoeval import COCOeval

Array = npt.NDArray[Any]
Rows = Sequence[Mapping[str, Any]]


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


class CocoEvaluation(COCOeval):
    """pycocotools' evaluation with these matches; overlaps and counting are pycocotools' own."""

    def __init__(self, truth: Any, found: Any, kind: str, parts: Mapping[tuple[int, int], Part]) -> None:
        """Prepare an evaluation.

        Args:
            truth: a COCO of the objects.
            found: a COCO of the detections.
            kind: pycocotools' iouType.
            parts: by image and category; those without objects and detections left out.
        """
        super().__init__(truth, found, kind)
        self._parts = parts
        self._matches: dict[tuple[int, int], Matches] = {}

    def matches(self, image: int, category: int) -> Matches | None:
        """Return the matches of a category in an image, None where it has neither objects nor detections.

        They need the overlaps, which ``evaluate`` computes.
        """
        key = image, category
        if key not in self._parts:
            return None
        if key not in self._matches:
            self._matches[key] = match(self._parts[key], self.ious[key], self.params)
        return self._matches[key]

    def evaluateImg(  # noqa: N802  pycocotools' name, called by its evaluate
        self,
        imgId: int,  # noqa: N803
        catId: int,  # noqa: N803
        aRng: Sequence[float],  # noqa: N803
        maxDet: int,  # noqa: N803
    ) -> dict[str, Any] | None:
        """Return what pycocotools' ``accumulate`` reads."""
        matches = self.matches(imgId, catId)
        if matches is None:
            return None
        area = self.params.areaRng.index(aRng)
        return {
            "dtScores": matches.scores,
            "dtMatches": matches.matched[area],
            "dtIgnore": matches.ignored[area],
            "gtIgnore": matches.skipped[area],
        }


def by_category(image: int, objects: Rows, found: Rows) -> dict[tuple[int, int], Part]:
    """Return the parts of one image by (image, category)."""
    parts: dict[tuple[int, int], Part] = {}
    for row in objects:
        parts.setdefault((image, row["category_id"]), Part()).objects.append(row)
    for row in found:
        parts.setdefault((image, row["category_id"]), Part()).found.append(row)
    return parts


def match(part: Part, overlaps: Any, parameters: Any) -> Matches:
    """Match by COCO's rules.

    Args:
        part: objects and detections.
        overlaps: (D, G), detections by falling score; nothing where either is none.
        parameters: of a COCOeval: thresholds, areas and the largest number of detections are read.
    """
    limits = np.asarray(parameters.areaRng, dtype=np.float64)
    thresholds = np.minimum(parameters.iouThrs, 1 - 1e-10)
    scores = np.array([row["score"] for row in part.found], dtype=np.float64)
    chosen = np.argsort(-scores, kind="mergesort")[: parameters.maxDets[-1]]
    sizes = np.array([row["area"] for row in part.found], dtype=np.float64)[chosen]
    areas = np.array([row["area"] for row in part.objects], dtype=np.float64)
    crowd = np.array([bool(row["iscrowd"]) for row in part.objects], dtype=np.bool_)
    unlabelled = np.array([row.get("num_keypoints", 1) == 0 for row in part.objects], dtype=np.bool_)
    skipped = _outside(areas, limits) | crowd | unlabelled
    matched = np.zeros((len(limits), len(thresholds), len(chosen)), dtype=np.bool_)
    ignored = np.zeros_like(matched)
    if areas.size and chosen.size:
        table = np.asarray(overlaps, dtype=np.float64).reshape(len(chosen), len(areas))
        done: dict[bytes, int] = {}  # areas that skip the same objects match alike
        for area, without in enumerate(skipped):
            same = done.setdefault(without.tobytes(), area)
            if same == area:
                _match(table, thresholds, crowd, without, matched[area], ignored[area])
            else:
                matched[area], ignored[area] = matched[same], ignored[same]
    ignored |= ~matched & _outside(sizes, limits)[:, None, :]
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
