"""COCO's matching in one pass over the detections counts what pycocotools' own counts, to the last bit."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zooport.export_core.evaluation.coco_matching import CocoEvaluation, Part, by_category

Rows = list[dict[str, Any]]
CATEGORIES = (1, 2, 7)
POINTS = 3


def made_up(seed: int, kind: str) -> tuple[list[Rows], list[Rows]]:
    """Return objects and detections of each of 30 images: on a coarse grid, so that overlaps often tie."""
    random = np.random.default_rng(seed)
    truth, found = [], []
    for _ in range(30):
        objects = [row(random, kind, random.integers(0, 5, 2) * 8) for _ in range(random.integers(0, 7))]
        for each in objects:
            each["iscrowd"] = int(random.random() < 0.15)
            each["num_keypoints"] = int(random.integers(0, 3)) if kind == "keypoints" else 1
        detections = []
        for _ in range(random.integers(0, 25)):
            near = objects[random.integers(len(objects))] if objects and random.random() < 0.7 else None
            corner = np.array(near["bbox"][:2]) if near else random.integers(0, 5, 2) * 8
            each = row(random, kind, corner + random.integers(-1, 2, 2) * 4)
            detections.append({**each, "score": round(float(random.random()), 1)})
        truth.append(objects)
        found.append(detections)
    return truth, found


def row(random: np.random.Generator, kind: str, corner: Any) -> dict[str, Any]:
    """Return a box whose sides are from 8 to 256 pixels, so that every area of COCO occurs."""
    width, height = (2.0 ** random.integers(3, 9, 2)).tolist()
    made: dict[str, Any] = {
        "category_id": int(random.choice([*CATEGORIES, 99])),  # 99 is not counted
        "bbox": [float(corner[0]), float(corner[1]), width, height],
        "area": width * height,
        "iscrowd": 0,
    }
    if kind == "segm":
        left, top = made["bbox"][:2]
        right, bottom = left + width, top + height
        made["segmentation"] = [[left, top, right, top, right, bottom, left, bottom]]
    if kind == "keypoints":
        points = np.array(made["bbox"][:2]) + random.integers(0, 3, (POINTS, 2)) * 4.0
        made["keypoints"] = np.c_[points, random.integers(0, 3, POINTS)].ravel().tolist()
    return made


def coco(grouped: list[Rows]) -> Any:
    """Return pycocotools' index of rows by image."""
    made = COCO()
    rows = [
        {**each, "image_id": image} for image, group in enumerate(grouped) for each in copy.deepcopy(group)
    ]
    made.dataset = {
        "images": [{"id": image, "width": 400, "height": 400} for image in range(len(grouped))],
        "categories": [{"id": category, "name": str(category)} for category in CATEGORIES],
        "annotations": [{**each, "id": 1 + number} for number, each in enumerate(rows)],
    }
    made.createIndex()
    return made


def counted(evaluation: Any) -> Any:
    """Return the tables of precision, recall and scores."""
    if evaluation.params.iouType == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.full(POINTS, 0.1)
    evaluation.evaluate()
    evaluation.accumulate()
    return [evaluation.eval[name] for name in ("precision", "recall", "scores")]


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("seed", range(6))
def test_counts_equal_those_of_pycocotools(seed: int, kind: str) -> None:
    truth, found = made_up(seed, kind)
    parts: dict[tuple[int, int], Part] = {}
    for image, rows in enumerate(zip(truth, found, strict=True)):
        parts |= by_category(image, *rows)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = counted(COCOeval(coco(truth), coco(found), kind))
        actual = counted(CocoEvaluation(coco(truth), coco(found), kind, parts))
    assert (expected[0] > 0).mean() > 0.01  # something was found
    for ours, theirs in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
