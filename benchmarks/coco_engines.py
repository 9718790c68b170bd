"""How fast COCO's metrics are counted by pycocotools, by zooport, and by faster-coco-eval.

``python benchmarks/coco_engines.py bbox 5000 100``: kind, images, detections in each. Objects and detections
are made up. faster-coco-eval has to be installed; ``docs/evaluation.md`` has what came out.
"""

from __future__ import annotations

import contextlib
import copy
import io
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import faster_coco_eval
import numpy as np
from pycocotools import coco, cocoeval
from pycocotools import mask as mask_util

from zooport.export_core.evaluation.coco_counting import precision_table
from zooport.export_core.evaluation.coco_metrics import Overlaps, tally_overlaps

WIDTH, HEIGHT = 640, 480
CATEGORIES = 80
POINTS = 17
Rows = list[dict[str, Any]]


class Maker:
    """Makes objects, and detections of which some lie near an object."""

    def __init__(self, kind: str) -> None:
        self._random = np.random.default_rng(0)
        self._kind = kind
        self.categories = [
            {"id": 1 + k, "name": str(k)} for k in range(1 if kind == "keypoints" else CATEGORIES)
        ]

    def image(self, identifier: int, detections: int) -> tuple[Rows, Rows]:
        """Return the objects of an image and its detections."""
        truth = [self._row(identifier, self._box()) for _ in range(self._random.integers(0, 14))]
        for row in truth:
            row["iscrowd"] = int(self._random.random() < 0.02)
        found = []
        for number in range(detections):
            near = truth[number % len(truth)] if truth and number < 2 * len(truth) else None
            row = self._row(identifier, self._box() if near is None else self._moved(near["bbox"]))
            row["category_id"] = row["category_id"] if near is None else near["category_id"]
            found.append({**row, "score": round(float(self._random.random()), 3)})
        return truth, found

    def _box(self) -> list[float]:
        width, height = self._random.uniform(4, self._random.choice([20, 60, 200]), 2)
        left, top = self._random.uniform(0, WIDTH - width), self._random.uniform(0, HEIGHT - height)
        return [float(value) for value in (left, top, width, height)]

    def _moved(self, box: list[float]) -> list[float]:
        moved = np.array(box) + self._random.normal(0, 3, 4)
        return [*np.maximum(moved[:2], 0).tolist(), *np.maximum(moved[2:], 2).tolist()]

    def _row(self, image: int, box: list[float]) -> dict[str, Any]:
        row: dict[str, Any] = {"image_id": image, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
        row["category_id"] = int(self._random.integers(1, len(self.categories) + 1))
        if self._kind == "segm":
            left, top, width, height = map(int, box)
            mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8, order="F")
            mask[top : top + height, left : left + width] = 1
            row["segmentation"] = mask_util.encode(mask)
            row["area"] = float(mask_util.area(row["segmentation"]))
        if self._kind == "keypoints":
            points = np.array(box[:2]) + self._random.random((POINTS, 2)) * np.array(box[2:])
            row["keypoints"] = np.c_[points, np.full(POINTS, 2.0)].ravel().tolist()
            row["num_keypoints"] = POINTS
        return row


def count(new: Callable[[], Any], precision: Callable[..., Any], kind: str, made: tuple[Rows, ...]) -> Any:
    """Return the precision table at the largest number of detections, and the seconds that it took."""
    images, categories, *rows = made
    pair = []
    for entries in rows:
        each = new()
        numbered = [{**row, "id": 1 + number} for number, row in enumerate(copy.deepcopy(entries))]
        each.dataset = {"images": images, "categories": categories, "annotations": numbered}
        each.createIndex()
        pair.append(each)
    begun = time.perf_counter()
    found = precision(*pair, kind)
    return found, time.perf_counter() - begun


def of_zooport(truth: Any, found: Any, kind: str) -> Any:
    """Count as zooport does, matches for intervals included."""
    overlaps = Overlaps(truth, found, kind)
    overlaps.evaluate()
    by_image = ([each.imgToAnns[image] for image in truth.imgs] for each in (truth, found))
    return precision_table(tally_overlaps(overlaps, list(truth.imgs), *by_image))


def of_package(evaluation: Callable[..., Any], truth: Any, found: Any, kind: str) -> Any:
    """Count as a package with COCOeval's interface does."""
    done = evaluation(truth, found, kind)
    done.evaluate()
    done.accumulate()
    return np.array(done.eval["precision"])[..., -1]


def main() -> None:
    """Measure and print."""
    kind, images, detections = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    maker = Maker(kind)
    truth: Rows = []
    found: Rows = []
    for identifier in range(images):
        here, there = maker.image(identifier, detections)
        truth += here
        found += there
    entries = [{"id": identifier, "width": WIDTH, "height": HEIGHT} for identifier in range(images)]
    made = (entries, maker.categories, truth, found)
    print(f"{kind}: {len(truth)} objects, {len(found)} detections in {images} images")
    with contextlib.redirect_stdout(io.StringIO()):
        exact, slow = count(coco.COCO, partial(of_package, cocoeval.COCOeval), kind, made)
    print(f"pycocotools {slow:.1f} s for {exact.size} precisions", flush=True)
    quickly = partial(faster_coco_eval.COCOeval_faster, extra_calc=False)
    engines: dict[str, tuple[Any, Callable[..., Any]]] = {
        "zooport": (coco.COCO, of_zooport),
        "faster-coco-eval": (faster_coco_eval.COCO, partial(of_package, quickly)),
    }
    for name, (index, precision) in engines.items():
        with contextlib.redirect_stdout(io.StringIO()):
            other, quick = count(index, precision, kind, made)
        difference = np.abs(other - exact).max()
        print(
            f"{name} {quick:.1f} s, {slow / quick:.1f} times as fast, differs by {difference:.1e}", flush=True
        )


if __name__ == "__main__":
    main()
