"""Matching in one pass over the detections, and counting, give what pycocotools gives, to the last bit."""

from __future__ import annotations

import contextlib
import copy
import io
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zooport.export_core.evaluation.coco_counting import precision_table
from zooport.export_core.evaluation.coco_metrics import Overlaps, tally_overlaps

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


def evaluated(evaluation: Any) -> Any:
    if evaluation.params.iouType == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.full(POINTS, 0.1)
    evaluation.evaluate()
    return evaluation


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
@pytest.mark.parametrize("seed", range(6))
def test_precision_equals_that_of_pycocotools(seed: int, kind: str) -> None:
    truth, found = made_up(seed, kind)
    with contextlib.redirect_stdout(io.StringIO()):
        expected = evaluated(COCOeval(coco(truth), coco(found), kind))
        expected.accumulate()
        overlaps = evaluated(Overlaps(coco(truth), coco(found), kind))
    precision = precision_table(tally_overlaps(overlaps, range(len(truth)), truth, found))
    assert (precision > 0).mean() > 0.01  # something was found
    np.testing.assert_array_equal(precision, expected.eval["precision"][..., -1])


def test_a_category_without_detections_has_precision_zero_and_one_without_objects_none() -> None:
    truth, found = made_up(0, "bbox")
    truth = [[each for each in rows if each["category_id"] != CATEGORIES[0]] for rows in truth]
    found = [[each for each in rows if each["category_id"] != CATEGORIES[1]] for rows in found]
    with contextlib.redirect_stdout(io.StringIO()):
        overlaps = evaluated(Overlaps(coco(truth), coco(found), "bbox"))
    precision = precision_table(tally_overlaps(overlaps, range(len(truth)), truth, found))
    assert (precision[:, :, 0] == -1).all()
    assert (precision[:, :, 1, 0] == 0).all()
