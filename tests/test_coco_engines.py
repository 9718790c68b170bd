"""Whichever package counts COCO's metrics, they are those of pycocotools."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import load_dataset
from zooport.export_core.evaluation.coco_metrics import Results, coco_precision, engine
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.keypoint_metrics import COCO_SIGMAS
from zooport.export_core.evaluation.postprocess import Array, PastedMask, encode_mask
from zooport.export_core.sources import DatasetSource

SIZE = 200


@pytest.fixture(autouse=True)
def fresh_engine() -> Iterator[None]:
    engine.cache_clear()
    yield
    engine.cache_clear()


def objects(random: Random, count: int) -> Results:
    rows = []
    for _ in range(count):
        width, height = (4 + random.random() * 100 for _ in range(2))
        left, top = random.random() * (SIZE - width), random.random() * (SIZE - height)
        mask = np.ones((int(height), int(width)), dtype=np.bool_)
        points = [(left + random.random() * width, top + random.random() * height, 2) for _ in range(17)]
        rows.append(
            {
                "category_id": (4, 9)[int(random.random() * 2)],
                "bbox": [left, top, width, height],
                "area": width * height if random.random() < 0.9 else 0.0,
                "segmentation": encode_mask(PastedMask(mask, int(top), int(left)), SIZE, SIZE),
                "keypoints": [value for point in points for value in point],
                "num_keypoints": 17,
            }
        )
    return rows


def made_up(folder: Path) -> tuple[Dataset, list[Results], list[Results]]:
    """A dataset with crowds, objects without area, equal scores, and images without anything."""
    random = Random(8)
    truth, found = [], []
    images = [{"id": 40 - k, "file_name": "one.png", "width": SIZE, "height": SIZE} for k in range(40)]
    for _ in images:
        those = objects(random, int(random.random() * 5))
        moved = [
            {**row, "bbox": [row["bbox"][0] + 3 * random.random(), *row["bbox"][1:]], "area": 900.0}
            for row in those
            if random.random() < 0.8
        ]
        noise = objects(random, int(random.random() * 5))
        truth.append([{**row, "iscrowd": int(random.random() < 0.1)} for row in those])
        found.append([{**row, "score": round(random.random(), 1)} for row in (*moved, *noise)])
    Image.new("L", (SIZE, SIZE)).save(folder / "one.png")
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}, {"id": 11, "name": "none"}]
    document = {"images": images, "categories": categories, "annotations": []}
    (folder / "a.json").write_text(json.dumps(document))
    return load_dataset(DatasetSource("made up", folder / "a.json", folder)), truth, found


def counted_by(
    package: str, kind: str, made: tuple[Dataset, list[Results], list[Results]], patch: pytest.MonkeyPatch
) -> Array:
    if package == "pycocotools":
        patch.setitem(sys.modules, "faster_coco_eval", None)
    dataset, truth, found = made
    settings: dict[str, Any] = {"category_ids": [4, 9], "sigmas": COCO_SIGMAS} if kind == "keypoints" else {}
    assert engine()[0].__module__.startswith(package)
    return coco_precision(kind, truth, found, dataset, **settings)


@pytest.mark.parametrize("kind", ["bbox", "segm", "keypoints"])
def test_faster_coco_eval_equals_pycocotools(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    pytest.importorskip("faster_coco_eval")
    made = made_up(tmp_path)
    fast = counted_by("faster_coco_eval", kind, made, monkeypatch)
    engine.cache_clear()
    exact = counted_by("pycocotools", kind, made, monkeypatch)
    assert 0 < exact[exact > -1].mean() < 1
    np.testing.assert_allclose(fast, exact, rtol=0, atol=1e-12)


def test_without_it_pycocotools_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    precision = counted_by("pycocotools", "bbox", made_up(tmp_path), monkeypatch)
    assert precision[:, :, 2].max() == -1  # a category without objects
    assert precision[:, :, :2].max() > 0
