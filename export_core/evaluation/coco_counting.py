"""COCO's precision table from the matches of all images; the matches are kept for resampling."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from zooport.export_core.evaluation.coco_matching import Matches, Rules

Array = npt.NDArray[Any]

EPSILON = float(np.spacing(1))  # pycocotools adds it to the number of detections


def tally_matches(by_category: Sequence[Sequence[tuple[int, Matches]]], rules: Rules) -> dict[str, Array]:
    """Return the matches of an evaluation, compactly.

    Args:
        by_category: of each category the images that have objects or detections of it, by their index in the
            dataset, with their matches. Where scores are equal, what comes first is counted first.
        rules: those that were matched by.

    Returns:
        - image: int32 (D,), index in the dataset of each detection's image; detections by category, then by
          score, the highest first;
        - ends: int64 (K,), where each category's detections end;
        - matched, ignored: uint16 (A, D), a bit for each IoU threshold;
        - objects: int32 (4, G): category, area, image and number of the objects to find;
        - recalls, thresholds: those of the rules.
    """
    image = [np.zeros(0, dtype=np.int64)]
    matched, ignored = ([np.zeros((len(rules.areas), 0), dtype=np.uint16)] for _ in range(2))
    ends: list[int] = []
    objects: list[tuple[int, int, int, int]] = []
    for category, images in enumerate(by_category):
        for index, matches in images:
            to_find = (~matches.skipped).sum(axis=1).tolist()
            objects += [(category, area, index, count) for area, count in enumerate(to_find) if count]
        if images:
            order = np.argsort(-np.concatenate([matches.scores for _, matches in images]), kind="stable")
            lengths = [len(matches.scores) for _, matches in images]
            image.append(np.repeat([index for index, _ in images], lengths)[order])
            matched.append(_bits([matches.matched for _, matches in images])[:, order])
            ignored.append(_bits([matches.ignored for _, matches in images])[:, order])
        ends.append(sum(map(len, image)))
    return {
        "image": np.concatenate(image).astype(np.int32),
        "ends": np.array(ends, dtype=np.int64),
        "matched": np.concatenate(matched, axis=1),
        "ignored": np.concatenate(ignored, axis=1),
        "objects": np.array(objects, dtype=np.int32).reshape(-1, 4).T,
        "recalls": rules.recalls,
        "thresholds": rules.thresholds,
    }


def precision_table(tally: Mapping[str, Array]) -> Array:
    """Return precision by IoU threshold, recall, category and area, as pycocotools' ``accumulate`` does.

    It is that at the largest number of detections, the one that metrics are read from.

    Args:
        tally: as :func:`tally_matches` returns it.

    Returns:
        float64 (T, R, K, A), -1 where there is no object to find.
    """
    thresholds, recalls, ends = tally["thresholds"], tally["recalls"], tally["ends"]
    areas = len(tally["matched"])
    to_find = np.zeros((len(ends), areas), dtype=np.int64)
    np.add.at(to_find, (tally["objects"][0], tally["objects"][1]), tally["objects"][3])
    table = np.full((len(thresholds), len(recalls), len(ends), areas), -1.0)
    shifts = np.arange(len(thresholds), dtype=np.uint16)[:, None]
    for category, (start, end) in enumerate(spans(ends)):
        for area in np.flatnonzero(to_find[category]).tolist():
            matched, ignored = (
                (tally[name][area, start:end] >> shifts) & 1 != 0 for name in ("matched", "ignored")
            )
            right = np.cumsum(matched & ~ignored, axis=1).astype(np.float64)
            wrong = np.cumsum(~matched & ~ignored, axis=1).astype(np.float64)
            precision = right / (wrong + right + EPSILON)
            best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
            reached = right / to_find[category, area]
            for threshold in range(len(thresholds)):
                position = np.searchsorted(reached[threshold], recalls, side="left")
                found = position < end - start
                table[threshold, found, category, area] = best[threshold, position[found]]
                table[threshold, ~found, category, area] = 0.0
    return table


def spans(ends: Array) -> Iterator[tuple[int, int]]:
    """Yield where each category's detections begin and end."""
    start = 0
    for end in ends.tolist():
        yield start, end
        start = end


def _bits(flags: Sequence[Array]) -> Array:
    """Return bool (A, T, D) arrays, joined along D, as uint16 (A, D) with a bit for each threshold."""
    joined = np.concatenate(flags, axis=2)
    bits = 1 << np.arange(joined.shape[1], dtype=np.uint16)
    packed: Array = np.einsum("t,atd->ad", bits, joined.astype(np.uint16))
    return packed
