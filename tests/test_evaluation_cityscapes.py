"""Cityscapes: instance AP equals that of the package ``cityscapesscripts`` on the same predictions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import (
    compute_metrics,
    evaluate,
    load_dataset,
    predict_images,
    select_tasks,
)
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.failures import Failure
from zooport.export_core.known_datasets import named_dataset
from zooport.export_core.sources import DatasetSource, ImageSample
from zooport.tests.cityscapes_support import (
    HEIGHT,
    IMAGES,
    LABELS,
    NAMES,
    WIDTH,
    mask_of,
    predictions,
    write_cityscapes,
)
from zooport.tests.evaluation_support import DATA, check_resamples, make_config

CONFIG = make_config(MODEL__MASK_ON=True, MODEL__ROI_HEADS__NUM_CLASSES=8)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSource:
    write_cityscapes(tmp_path / "cityscapes")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    found = named_dataset("cityscapes_fine_instance_seg_val")
    assert found is not None
    return found


class Recorded:
    """A model that gives the predictions of the support module, image by image, in the images' frame."""

    in_image_frame = True

    def __init__(self, images: list[str]) -> None:
        self._images = iter(images)

    def __call__(self, image: Any, **_: Any) -> dict[str, Any]:
        rows = predictions()[next(self._images)]
        return {
            "pred_boxes": np.array([row[2] for row in rows], dtype=np.float32),
            "scores": np.array([row[1] for row in rows], dtype=np.float32),
            "pred_classes": np.array([row[0] for row in rows], dtype=np.int64),
            "pred_masks": np.array([mask_of(row[2]) for row in rows])[:, None],
        }


def names_of(dataset: Dataset) -> list[str]:
    return [str(image.id) for image in dataset.images]


def test_ap_equals_that_of_cityscapesscripts(source: DatasetSource) -> None:
    expected = json.loads((DATA / "cityscapes_metrics.json").read_text())
    dataset = load_dataset(source)

    metrics = evaluate(Recorded(names_of(dataset)), dataset, CONFIG)

    assert metrics == pytest.approx(expected, abs=1e-9)
    assert "segm/AP-train" not in metrics  # there is none


def test_a_resample_counts_as_a_dataset_of_its_images_does(source: DatasetSource) -> None:
    dataset = load_dataset(source)
    check_resamples(dataset, predict_images(Recorded(names_of(dataset)), dataset, CONFIG), CONFIG)


def test_parts_joined_give_the_same(source: DatasetSource) -> None:
    dataset = load_dataset(source)
    names = names_of(dataset)
    whole = evaluate(Recorded(names), dataset, CONFIG)
    parts = [
        predict_images(Recorded(names[start : start + 5]), dataset, CONFIG, dataset.images[start : start + 5])
        for start in (5, 0, 10)
    ]
    stored = json.loads(json.dumps([[each.image_id, each.values] for part in parts for each in part]))
    joined = [replace(parts[0][0], image_id=image, values=values) for image, values in stored]
    assert compute_metrics(joined, dataset, CONFIG) == whole


def test_images_and_classes_are_those_of_detectron2(source: DatasetSource) -> None:
    dataset = load_dataset(source)
    assert names_of(dataset) == sorted(IMAGES)
    assert list(dataset.class_names) == NAMES
    assert list(dataset.category_ids) == LABELS
    first = dataset.images[0]
    assert (first.height, first.width) == (HEIGHT, WIDTH)
    assert first.file_name == "bonn/bonn_000000_000019_leftImg8bit.png"
    folders = [source.images, source.images / "bonn", source.images / "ulm"]
    assert len(dataset.files()) == 2 * len(IMAGES) + len(folders)
    assert set(folders) <= set(dataset.files())  # another image would be one more to evaluate


def test_limit_sample_and_instances_are_in_the_digest(source: DatasetSource) -> None:
    assert names_of(load_dataset(replace(source, limit=2))) == sorted(IMAGES)[:2]
    digests = {
        load_dataset(each).digest()
        for each in (source, replace(source, limit=2), replace(source, sample=ImageSample(2, 1)))
    }
    path = source.annotations / "ulm" / "ulm_000003_000019_gtFine_instanceIds.png"
    Image.fromarray(np.full((HEIGHT, WIDTH), 7, dtype=np.uint16)).save(path)
    assert len(digests | {load_dataset(source).digest()}) == 4


@pytest.mark.parametrize("content", [None, b"", b"not an image"])
def test_instances_that_cannot_be_read_are_named(source: DatasetSource, content: bytes | None) -> None:
    path = source.annotations / "ulm" / "ulm_000003_000019_gtFine_instanceIds.png"
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(Failure, match=r"cannot read annotations .*ulm_000003_000019_gtFine") as caught:
        load_dataset(source)
    assert caught.value.code == "dataset.invalid"


def test_instances_in_colour_are_refused(source: DatasetSource) -> None:
    path = source.annotations / "bonn" / "bonn_000000_000019_gtFine_instanceIds.png"
    Image.new("RGB", (WIDTH, HEIGHT)).save(path)
    dataset = load_dataset(source)
    with pytest.raises(Failure, match="not whole numbers of one channel") as caught:
        evaluate(Recorded(names_of(dataset)), dataset, CONFIG)
    assert caught.value.code == "dataset.invalid"


def test_folders_without_images_and_other_models_are_refused(source: DatasetSource, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(Failure, match="has no images <city>"):
        load_dataset(replace(source, images=tmp_path / "empty"))
    with pytest.raises(Failure, match="does not exist"):
        load_dataset(replace(source, images=tmp_path / "absent"))
    dataset = load_dataset(source)
    with pytest.raises(Failure, match="defines 8 categories, but the model has 80 classes"):
        select_tasks(make_config(MODEL__MASK_ON=True, MODEL__ROI_HEADS__NUM_CLASSES=80), dataset)
    with pytest.raises(Failure, match="offers nothing to evaluate a RetinaNet with"):
        select_tasks(make_config(MODEL__META_ARCHITECTURE="RetinaNet"), dataset)
