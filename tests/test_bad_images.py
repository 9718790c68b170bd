"""Odd images and odd annotations, through a whole evaluation: measured right, or refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from zooport.export_core.evaluation import ImagePrediction, compute_metrics, evaluate, load_dataset
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource
from zooport.tests.evaluation_support import Oracle, coco_object, make_config, write_dataset

CONFIG = make_config(INPUT__MIN_SIZE_TEST=80, INPUT__MAX_SIZE_TEST=1333)
WIDTH, HEIGHT = 50, 30


def rotated(path: Path) -> None:
    """Store the picture lying on its side, with the note that it has to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (HEIGHT, WIDTH), (9, 99, 199)).save(path, exif=exif)


def of_mode(mode: str, colour: int | tuple[int, ...]) -> Callable[[Path], None]:
    return lambda path: Image.new(mode, (WIDTH, HEIGHT), colour).save(path)


# Name -> how it is written, and width and height as annotations have them.
ODD_IMAGES: dict[str, tuple[Callable[[Path], None], int, int]] = {
    "one-channel": (of_mode("L", 7), WIDTH, HEIGHT),
    "alpha": (of_mode("RGBA", (1, 2, 3, 4)), WIDTH, HEIGHT),
    "grey-with-alpha": (of_mode("LA", (7, 0)), WIDTH, HEIGHT),
    "16-bit": (of_mode("I;16", 40_000), WIDTH, HEIGHT),
    "bilevel": (of_mode("1", 1), WIDTH, HEIGHT),
    "exif-rotated": (rotated, WIDTH, HEIGHT),
    "1-px-wide": (lambda path: Image.new("RGB", (1, 60)).save(path), 1, 60),
    "1-px-high": (lambda path: Image.new("RGB", (60, 1)).save(path), 60, 1),
    "1-px": (lambda path: Image.new("RGB", (1, 1)).save(path), 1, 1),
    "20000-px-wide": (lambda path: Image.new("RGB", (20_000, 40)).save(path), 20_000, 40),
}


def write_odd(folder: Path, names: list[str]) -> DatasetSource:
    """One object in each image that covers all of it."""
    images, objects = [], []
    for number, name in enumerate(names):
        write, width, height = ODD_IMAGES[name]
        write(folder / f"{name}.png")
        images.append({"id": number, "file_name": f"{name}.png", "width": width, "height": height})
        objects.append(coco_object(number, number, 4, [0, 0, width, height]))
    categories = [{"id": 4, "name": "cat"}, {"id": 9, "name": "dog"}]
    document = {"images": images, "annotations": objects, "categories": categories}
    (folder / "a.json").write_text(json.dumps(document))
    return DatasetSource("odd", folder / "a.json", folder)


@pytest.mark.parametrize("name", ODD_IMAGES)
def test_a_perfect_model_has_ap_100_on_every_odd_image(tmp_path: Path, name: str) -> None:
    dataset = load_dataset(write_odd(tmp_path, [name]))
    oracle = Oracle(dataset)

    metrics = evaluate(oracle, dataset, CONFIG)

    assert metrics["bbox/AP"] == pytest.approx(100)
    (shown,) = oracle.inputs
    assert (shown.dtype, shown.shape[0]) == (np.float32, 3)
    assert max(shown.shape[1:]) <= 1333


def test_odd_images_are_shown_upright_and_in_colour(tmp_path: Path) -> None:
    dataset = load_dataset(write_odd(tmp_path, ["exif-rotated", "alpha"]))
    oracle = Oracle(dataset)
    evaluate(oracle, dataset, CONFIG)
    turned, alpha = oracle.inputs
    assert turned.shape == (3, 80, 133)
    assert turned[:, 40, 60].tolist() == [199, 99, 9]  # BGR
    assert alpha[:, 40, 60].tolist() == [3, 2, 1]


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "cannot read image"), (b"\x89PNG\r\n\x1a\n", "cannot read image"), (b"GIF89a", "cannot read")],
)
def test_an_empty_image_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    source = write_odd(tmp_path, ["one-channel"])
    (tmp_path / "one-channel.png").write_bytes(content)
    dataset = load_dataset(source)
    with pytest.raises(Failure, match=said) as caught:
        evaluate(Oracle(dataset), dataset, CONFIG)
    assert caught.value.code == "dataset.invalid"
    assert "one-channel.png" in caught.value.message


def test_an_image_that_would_vanish_is_named(tmp_path: Path) -> None:
    dataset = load_dataset(write_odd(tmp_path, ["20000-px-wide"]))
    config = make_config(INPUT__MIN_SIZE_TEST=80, INPUT__MAX_SIZE_TEST=100)
    with pytest.raises(Failure, match=r"20000-px-wide\.png: an image of 20000x40 pixels is too elongated"):
        evaluate(Oracle(dataset), dataset, config)


def measured(folder: Path, *objects: dict[str, Any], mask: bool = False) -> dict[str, float]:
    """AP of a model that finds a box of 20 x 10 at (5, 5) and nothing else."""

    def change(document: dict[str, Any]) -> None:
        document["annotations"] = [*objects]

    dataset = load_dataset(write_dataset(folder, change))
    row: dict[str, Any] = {"category_id": 4, "score": 0.9, "bbox": [5, 5, 20, 10]}
    box = np.zeros((40, 60), dtype=np.uint8, order="F")
    box[5:15, 5:25] = 1
    counts = mask_util.encode(box)["counts"].decode()
    found = [{"category_id": 4, "score": 0.9, "segmentation": {"size": [40, 60], "counts": counts}}]
    values = {"bbox": [row], "segm": found if mask else []}
    predictions = [ImagePrediction(0, values), ImagePrediction(7, {"bbox": [], "segm": []})]
    return compute_metrics(predictions, dataset, make_config(MODEL__MASK_ON=mask))


FOUND = coco_object(1, 0, 4, [5, 5, 20, 10])


def test_an_object_of_no_area_is_missed_like_any_other(tmp_path: Path) -> None:
    nothing = coco_object(2, 0, 4, [30, 30, 0, 0])
    # Half of the objects are found, and precision is read at 101 recalls: 0, 0.01 ... 1.
    assert measured(tmp_path, FOUND, nothing)["bbox/AP"] == pytest.approx(100 * 51 / 101)
    assert measured(tmp_path, FOUND)["bbox/AP"] == pytest.approx(100)


@pytest.mark.parametrize("empty", [[], None, {}])
def test_an_empty_segmentation_is_none(tmp_path: Path, empty: object) -> None:
    assert measured(tmp_path, FOUND | {"segmentation": empty})["bbox/AP"] == pytest.approx(100)


@pytest.mark.parametrize("polygons", [[[]], [[5, 5, 25, 5, 25, 15], []], [[5]]])
def test_an_empty_polygon_is_refused(tmp_path: Path, polygons: object) -> None:
    with pytest.raises(Failure, match="annotation 1: a polygon must be a flat list of x, y pairs") as caught:
        measured(tmp_path, FOUND | {"segmentation": polygons})
    assert caught.value.code == "dataset.invalid"


def test_a_crowd_costs_nothing_in_boxes_and_masks(tmp_path: Path) -> None:
    crowd = coco_object(2, 0, 4, [30, 5, 20, 20])
    crowd |= {"iscrowd": 1, "segmentation": {"size": [40, 60], "counts": [1300, 50, 1050]}}
    metrics = measured(tmp_path, FOUND, crowd, mask=True)
    assert (metrics["bbox/AP"], metrics["segm/AP"]) == pytest.approx((100, 100))


def test_a_polygon_around_nothing_is_an_object_without_pixels(tmp_path: Path) -> None:
    flat = FOUND | {"id": 2, "segmentation": [[5, 5, 5, 5, 5, 5]], "area": 0}
    metrics = measured(tmp_path, FOUND, flat, mask=True)
    # A polygon whose corners coincide has no pixel: it cannot be found.
    assert metrics["segm/AP"] == pytest.approx(100 * 51 / 101)
