"""LVIS: AP equals that of the package ``lvis`` on the same predictions."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from zooport.export_core.evaluation import (
    ImagePrediction,
    compute_metrics,
    load_dataset,
    predict_images,
    select_tasks,
)
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource
from zooport.tests.evaluation_support import DATA, check_resamples, make_config
from zooport.tests.lvis_support import CATEGORIES, SIZE, lvis_document, lvis_predictions, segmentation

CONFIG = make_config(MODEL__MASK_ON=True, MODEL__ROI_HEADS__NUM_CLASSES=CATEGORIES)


def write_lvis(
    folder: Path, change: Callable[[dict[str, Any]], object] = lambda document: None, **more: Any
) -> DatasetSource:
    document = lvis_document()
    (folder / "coco" / "val2017").mkdir(parents=True)
    for image in document["images"]:
        name = image["coco_url"].rpartition("/")[2]
        Image.new("L", (SIZE, SIZE)).save(folder / "coco" / "val2017" / name)
    change(document)
    (folder / "lvis.json").write_text(json.dumps(document))
    return DatasetSource("tiny", folder / "lvis.json", folder / "coco", kind="lvis", **more)


@cache
def predictions() -> dict[int, ImagePrediction]:
    rows: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for row in lvis_predictions(lvis_document()):
        rows[row.pop("image_id")].append(row)
    return {
        image: ImagePrediction(
            image,
            {
                "bbox": found,
                "segm": [
                    {
                        "category_id": row["category_id"],
                        "score": row["score"],
                        "segmentation": segmentation(row),
                    }
                    for row in found
                ],
            },
        )
        for image, found in rows.items()
    }


def test_box_and_mask_ap_equal_those_of_the_package_lvis(tmp_path: Path) -> None:
    expected = json.loads((DATA / "lvis_metrics.json").read_text())
    dataset = load_dataset(write_lvis(tmp_path))

    metrics = compute_metrics(predictions().values(), dataset, CONFIG)

    assert metrics == pytest.approx(expected, abs=1e-9)
    assert {"bbox/APr", "bbox/APc", "bbox/APf", "segm/APr", "segm/AP-c3"} <= set(metrics)


def test_a_resample_counts_as_a_dataset_of_its_images_does(tmp_path: Path) -> None:
    def apart(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "score": row["score"] + 1e-9 * number} for number, row in enumerate(rows)]

    distinct = [
        ImagePrediction(image, {task: apart(rows) for task, rows in prediction.values.items()})
        for image, prediction in predictions().items()
    ]
    check_resamples(load_dataset(write_lvis(tmp_path)), distinct, CONFIG)


class Recorded:
    """A model that gives the predictions of the support module, in the images' frame."""

    in_image_frame = True

    def __init__(self, dataset: Dataset) -> None:
        found = predictions()
        self._rows = iter([found[int(image.id)].values["bbox"] for image in dataset.images])
        self._classes = {identifier: index for index, identifier in enumerate(dataset.category_ids)}

    def __call__(self, image: Any, **_: Any) -> dict[str, Any]:
        rows = next(self._rows)
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return {
            "pred_boxes": boxes,
            "scores": np.array([row["score"] for row in rows], dtype=np.float32),
            "pred_classes": np.array([self._classes[row["category_id"]] for row in rows]),
            "pred_masks": np.array([mask_util.decode(segmentation(row)) for row in rows], np.bool_)[:, None],
        }


@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_what_does_not_count_is_not_carried_along(tmp_path: Path) -> None:
    dataset = load_dataset(write_lvis(tmp_path))
    collected = predict_images(Recorded(dataset), dataset, CONFIG)

    expected = json.loads((DATA / "lvis_metrics.json").read_text())
    assert compute_metrics(collected, dataset, CONFIG) == pytest.approx(expected, abs=1e-3)  # float32
    for task in ("bbox", "segm"):
        kept = sum(len(prediction.values[task]) for prediction in collected)
        assert 0 < kept < 0.9 * sum(len(prediction.values[task]) for prediction in predictions().values())


def test_what_is_not_known_of_an_image_costs_nothing(tmp_path: Path) -> None:
    def forget(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["neg_category_ids"] = []

    before = compute_metrics(predictions().values(), load_dataset(write_lvis(tmp_path / "a")), CONFIG)
    after = compute_metrics(predictions().values(), load_dataset(write_lvis(tmp_path / "b", forget)), CONFIG)
    assert after["bbox/AP"] > before["bbox/AP"]


def test_the_end_of_the_address_names_the_file(tmp_path: Path) -> None:
    dataset = load_dataset(write_lvis(tmp_path, limit=3))
    assert [image.file_name for image in dataset.images] == [
        f"val2017/{image:012}.jpg" for image in (100, 107, 114)
    ]
    found = predictions()
    metrics = compute_metrics([found[int(image.id)] for image in dataset.images], dataset, CONFIG)
    assert "bbox/AP" in metrics


def test_the_same_file_as_coco_is_another_dataset(tmp_path: Path) -> None:
    def name_files(document: dict[str, Any]) -> None:
        for image in document["images"]:
            image["file_name"] = image["coco_url"].rpartition("/")[2]

    source = write_lvis(tmp_path, name_files)
    images = source.images / "val2017"
    coco = load_dataset(DatasetSource("tiny", source.annotations, images))
    assert coco.digest() != load_dataset(source).digest()
    assert [type(task).__name__ for task in select_tasks(CONFIG, coco)] == ["BoxAP", "MaskAP"]
    assert [type(task).__name__ for task in select_tasks(CONFIG, load_dataset(source))] == [
        "LvisBoxAP",
        "LvisMaskAP",
    ]


@pytest.mark.parametrize(
    ("key", "drop", "said"),
    [
        ("categories", "frequency", "category 1 has the frequency None, not r, c or f"),
        ("images", "neg_category_ids", "image 100 has no list of ids 'neg_category_ids'"),
        ("images", "not_exhaustive_category_ids", "no list of ids 'not_exhaustive_category_ids'"),
        ("images", "coco_url", "image 100 has no file_name"),
        ("annotations", "bbox", "annotation 1: bbox must be four numbers"),
        ("images", "id", r"images\[0\] is not an object with an id"),
        ("categories", "id", r"categories\[0\] is not an object with an id"),
    ],
)
def test_files_that_are_not_of_lvis_are_refused(tmp_path: Path, key: str, drop: str, said: str) -> None:
    source = write_lvis(tmp_path, lambda document: document[key][0].pop(drop))
    with pytest.raises(Failure, match=said) as caught:
        load_dataset(source)
    assert caught.value.code == "dataset.invalid"
    assert str(source.annotations) in caught.value.message


def test_a_model_of_other_classes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="defines 9 categories, but the model has 80 classes"):
        select_tasks(make_config(MODEL__ROI_HEADS__NUM_CLASSES=80), load_dataset(write_lvis(tmp_path)))
