"""Datasets are checked before any work, and what is wrong is named."""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

from zooport.export_core.artifacts import DESCRIPTION
from zooport.export_core.description import read_description, write_description
from zooport.export_core.evaluation import load_dataset
from zooport.export_core.failures import Failure
from zooport.export_core.known_datasets import named_dataset
from zooport.export_core.sources import DatasetSource, ImageSample
from zooport.jobs.digests import DigestCache
from zooport.tests.evaluation_support import coco_object, demo_source, write_dataset

Document = dict[str, Any]


def test_categories_become_contiguous_in_the_order_of_their_ids(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    assert dataset.category_ids == (4, 9)
    assert dataset.class_names == ("cat", "dog")


def test_demo_dataset_loads(demo_zoo: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo))

    assert len(dataset.images) == 100
    assert dataset.category_ids == (1, 3, 7, 18, 44)
    assert sum(annotation.crowd for annotation in dataset.annotations) == 8
    assert dataset.has_masks
    assert not dataset.has_keypoints


def test_limit_takes_the_first_images_and_their_objects(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path, limit=1))

    assert [image.file_name for image in dataset.images] == ["first.png"]
    assert [annotation.id for annotation in dataset.annotations] == [0, 1]


def test_images_beyond_the_limit_need_not_be_there(tmp_path: Path) -> None:
    source = write_dataset(tmp_path)
    (source.images / "second.png").unlink()

    assert len(load_dataset(replace(source, limit=1)).images) == 1
    with pytest.raises(Failure, match=r"lacks 1 of the 2 images .*: second\.png") as caught:
        load_dataset(source)
    assert caught.value.code == "dataset.invalid"


def test_masks_without_area_must_be_readable(tmp_path: Path) -> None:
    def change(document: Document) -> None:
        del document["annotations"][0]["area"]
        document["annotations"][0]["segmentation"] = [[1, 2]]

    with pytest.raises(Failure, match="annotation 0: segmentation") as caught:
        load_dataset(write_dataset(tmp_path, change))
    assert caught.value.code == "dataset.invalid"


def test_missing_area_and_crowd_have_natural_values(tmp_path: Path) -> None:
    def change(document: Document) -> None:
        for annotation in document["annotations"]:
            del annotation["area"], annotation["iscrowd"]
        del document["annotations"][0]["segmentation"]

    annotations = load_dataset(write_dataset(tmp_path, change)).annotations

    assert [annotation.area for annotation in annotations[:2]] == [200, 288]
    assert not any(annotation.crowd for annotation in annotations)


def set_in(*path: str | int, value: Any) -> Callable[[Document], None]:
    def change(document: Any) -> None:
        for part in path[:-1]:
            document = document[part]
        document[path[-1]] = value

    return change


def add_to(key: str, entry: Any) -> Callable[[Document], None]:
    return lambda document: document[key].append(entry)


def compressed(counts: str) -> Callable[[Document], None]:
    return set_in("annotations", 0, "segmentation", value={"size": [40, 60], "counts": counts})


HUGE = {"size": [40, 60], "counts": [0, 2401]}
BAD_DOCUMENTS = {
    "no images": (set_in("images", value=[]), "lists no images"),
    "no list of images": (lambda document: document.pop("images"), "has no list 'images'"),
    "no list of annotations": (lambda document: document.pop("annotations"), "has no list 'annotations'"),
    "annotations no list": (set_in("annotations", value={}), "'annotations' is not a list"),
    "no categories": (set_in("categories", value=[]), "defines no categories"),
    "unknown category": (
        set_in("annotations", 2, "category_id", value=99),
        "annotation 2 has category_id 99, which",
    ),
    "unknown image": (set_in("annotations", 1, "image_id", value=8), "annotation 1 has image_id 8, which"),
    "unhashable image": (set_in("annotations", 1, "image_id", value=[0]), r"annotation 1 has image_id \[0\]"),
    "repeated annotation": (
        add_to("annotations", coco_object(3, 0, 4, [1, 1, 2, 2])),
        "annotation with id 3",
    ),
    "repeated image": (set_in("images", 1, "id", value=0), "more than one image with id 0"),
    "repeated category": (set_in("categories", 1, "id", value=9), "more than one category with id 9"),
    "not an object": (add_to("annotations", 5), r"annotations\[4\] is not an object"),
    "odd id": (set_in("images", 0, "id", value=1.5), r"images\[0\] has the id 1.5"),
    "category without name": (
        lambda document: document["categories"][0].pop("name"),
        "category 9 has no name",
    ),
    "image without name": (
        lambda document: document["images"][0].pop("file_name"),
        "image 0 has no file_name",
    ),
    "image without size": (
        lambda document: document["images"][0].pop("width"),
        "image 0 .* height and width",
    ),
    "image of no size": (set_in("images", 0, "height", value=0), "image 0 .* height and width"),
    "short box": (
        set_in("annotations", 0, "bbox", value=[1, 2, 3]),
        "annotation 0: bbox must be four numbers",
    ),
    "no box": (lambda document: document["annotations"][0].pop("bbox"), "annotation 0: bbox must be"),
    "text in box": (set_in("annotations", 0, "bbox", value=[1, 2, 3, "4"]), "annotation 0: bbox must be"),
    "NaN in box": (
        set_in("annotations", 0, "bbox", value=[1, 2, 3, float("nan")]),
        "annotation 0: bbox must",
    ),
    "endless box": (set_in("annotations", 0, "bbox", value=[1, 2, 3, 10**400]), "annotation 0: bbox must"),
    "infinite area": (set_in("annotations", 0, "area", value=float("inf")), "annotation 0: area"),
    "negative box": (set_in("annotations", 0, "bbox", value=[1, 2, -3, 4]), "negative width or height"),
    "negative area": (set_in("annotations", 0, "area", value=-1), "annotation 0: area"),
    "odd crowd": (set_in("annotations", 0, "iscrowd", value=2), "iscrowd must be 0 or 1"),
    "odd polygon": (
        set_in("annotations", 0, "segmentation", value=[[1, 2, 3]]),
        "polygon must be a flat list",
    ),
    "endless polygon": (
        set_in("annotations", 0, "segmentation", value=[[0, 0, 1e12, 0, 0, 9]]),
        "not a plausible number",
    ),
    "text as mask": (set_in("annotations", 0, "segmentation", value="abc"), "neither polygons nor"),
    "mask of another size": (
        set_in("annotations", 0, "segmentation", value={"size": [60, 40], "counts": [2400]}),
        r"its mask has size \[60, 40\], but image first.png has",
    ),
    "too many pixels": (set_in("annotations", 0, "segmentation", value=HUGE), "do not add up"),
    "too few compressed": (compressed("PPYo0"), "do not add up"),
    "broken compressed": (compressed("PPY"), "do not add up"),
    "endless compressed": (compressed("o" * 50 + "0"), "do not add up"),
    "empty compressed": (compressed(""), "do not add up"),
    "no text compressed": (compressed("\u00e9!"), "do not add up"),
    "mask without counts": (set_in("annotations", 0, "segmentation", value={"size": [40, 60]}), "no counts"),
}


@pytest.mark.parametrize("case", BAD_DOCUMENTS)
def test_bad_annotations_name_the_file_and_the_entry(tmp_path: Path, case: str) -> None:
    change, message = BAD_DOCUMENTS[case]
    source = write_dataset(tmp_path, change)

    with pytest.raises(Failure, match=message) as caught:
        load_dataset(source)

    assert caught.value.code == "dataset.invalid"
    assert str(source.annotations) in caught.value.message
    assert "\n" not in caught.value.message


def test_compressed_masks_are_read(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    mask = np.asfortranarray(generator.random((40, 60)) > 0.5).astype(np.uint8)
    mask[:, 20:50] = 0
    counts = mask_util.encode(mask)["counts"].decode()

    dataset = load_dataset(write_dataset(tmp_path, compressed(counts)))

    assert mask_util.area(dataset.mask_rles[0]) == mask.sum()


def test_wrong_number_of_keypoints_is_refused(tmp_path: Path) -> None:
    def change(document: Document) -> None:
        document["categories"][0]["keypoints"] = ["nose", "tail"]
        document["annotations"][1]["keypoints"] = [1, 2, 2]

    with pytest.raises(Failure, match="annotation 1: keypoints must be 6 numbers"):
        load_dataset(write_dataset(tmp_path, change))


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ([1, 2, 2], "annotation 2 has 1 keypoints, others of its category 2"),
        ([1, 2], "annotation 2: keypoints must be numbers, x, y and visibility for each keypoint of cat"),
        ([1, 2, "2"], "annotation 2: keypoints must be numbers"),
        ({"nose": 1}, "annotation 2: keypoints must be numbers"),
    ],
)
def test_keypoints_without_names_must_be_as_many_for_each_object(
    tmp_path: Path, second: Any, message: str
) -> None:
    def change(document: Document) -> None:
        document["annotations"][0]["keypoints"] = [1, 2, 2, 3, 4, 0]
        document["annotations"][2]["keypoints"] = second

    with pytest.raises(Failure, match=message) as caught:
        load_dataset(write_dataset(tmp_path, change))

    assert caught.value.code == "dataset.invalid"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "is not JSON"),
        (b"\xff\xfe\x00", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b"[1]", "holds a JSON list"),
        (b"", "is not JSON"),
    ],
)
def test_files_that_are_no_annotations_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    source = write_dataset(tmp_path)
    source.annotations.write_bytes(content)

    with pytest.raises(Failure, match=message) as caught:
        load_dataset(source)
    assert caught.value.code == "dataset.invalid"


def test_missing_paths_are_named(tmp_path: Path) -> None:
    source = write_dataset(tmp_path)

    with pytest.raises(Failure, match=r"cannot read annotations .*absent\.json: No such file"):
        load_dataset(replace(source, annotations=tmp_path / "absent.json"))
    with pytest.raises(Failure, match=r"image folder .*absent does not exist"):
        load_dataset(replace(source, images=tmp_path / "absent"))


def test_a_pipe_is_no_image(tmp_path: Path) -> None:
    source = write_dataset(tmp_path)
    (source.images / "second.png").unlink()
    os.mkfifo(source.images / "second.png")

    with pytest.raises(Failure, match=r"second\.png"):
        load_dataset(source)


def test_limit_must_be_positive(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="limit must be at least 1"):
        load_dataset(write_dataset(tmp_path, limit=0))


def test_digest_is_of_content_not_of_place_or_time(tmp_path: Path) -> None:
    here, there = write_dataset(tmp_path / "here"), write_dataset(tmp_path / "there")
    os.utime(there.images / "first.png", (1, 1))

    assert digest(here) == digest(there)
    assert digest(here) == digest(replace(here, name="another"))
    assert digest(here) == digest(replace(here, limit=2))


def test_digest_notices_every_change(tmp_path: Path) -> None:
    source = write_dataset(tmp_path)
    seen = {digest(source), digest(replace(source, limit=1))}

    image = source.images / "first.png"
    stat = image.stat()
    content = bytearray(image.read_bytes())
    content[len(content) // 2] ^= 1
    image.write_bytes(content)
    os.utime(image, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    seen.add(digest(source))

    (source.images / "second.png").replace(source.images / "third.png")
    document = json.loads(source.annotations.read_text())
    document["images"][1]["file_name"] = "third.png"
    source.annotations.write_text(json.dumps(document))
    seen.add(digest(source))

    assert len(seen) == 4


def test_digest_covers_label_maps(tmp_path: Path) -> None:
    source = write_dataset(tmp_path)
    masks = tmp_path / "labels"
    masks.mkdir()
    source = replace(source, semantic_masks=masks)
    Image.new("L", (60, 40)).save(masks / "first.png")
    before = digest(source)
    Image.new("L", (60, 40), 1).save(masks / "first.png")

    assert digest(source) != before


NOT_UTF8 = "caf\udce9.png"  # what Python makes of the bytes of Latin-1


def test_names_that_are_not_utf8_are_names(tmp_path: Path) -> None:
    source = write_dataset(tmp_path, set_in("images", 0, "file_name", value=NOT_UTF8))
    before = source.images / "first.png"
    before.replace(source.images / NOT_UTF8)

    taken = digest(source)
    assert digest(replace(source, sample=ImageSample(2, 1))) == taken
    (source.images / NOT_UTF8).replace(before)
    assert digest(write_dataset(tmp_path)) != taken


@pytest.mark.parametrize("name", ["ade20k_sem_seg_val", "cityscapes_fine_sem_seg_val"])
def test_folders_of_images_with_names_that_are_not_utf8(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    source = named_dataset(name)
    assert source is not None
    image, truth = NOT_UTF8.replace("png", "jpg"), NOT_UTF8
    if name.startswith("cityscapes"):
        image, truth = "ulm/\udce9_leftImg8bit.png", "ulm/\udce9_gtFine_labelTrainIds.png"
    for path in (source.images / image, source.annotations / truth):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8)).save(path)

    assert load_dataset(replace(source, sample=ImageSample(1, 1))).images[0].file_name == image
    assert len(digest(source)) == 64


def test_a_description_keeps_a_name_that_is_not_utf8(tmp_path: Path) -> None:
    description = {"samples": [{"name": NOT_UTF8}], "notes": ["café"]}
    write_description(description, tmp_path)

    assert read_description(tmp_path) == description
    assert "café" in (tmp_path / DESCRIPTION).read_text(encoding="utf-8")


def test_digests_of_files_whose_names_are_not_utf8_are_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / NOT_UTF8
    path.write_bytes(b"abc")
    monkeypatch.setattr("zooport.jobs.digests._FRESH", -1.0)  # so recent a file is not remembered
    digests = DigestCache(tmp_path / "digests.sqlite")
    found = digests.file(path)
    digests.save()
    with closing(sqlite3.connect(tmp_path / "digests.sqlite")) as connection:
        assert connection.execute("SELECT sha256 FROM files").fetchall() == [(found,)]


def digest(source: DatasetSource) -> str:
    return load_dataset(source).digest()
