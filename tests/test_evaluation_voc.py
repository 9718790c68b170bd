"""Pascal VOC: AP equals that of detectron2's evaluator on the same predictions."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import (
    ImagePrediction,
    compute_metrics,
    evaluate,
    load_dataset,
    select_tasks,
)
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.failures import Failure
from zooport.export_core.known_datasets import named_dataset
from zooport.export_core.sources import DatasetSource, ImageSample
from zooport.tests.evaluation_support import DATA, Oracle, check_resamples, make_config
from zooport.tests.voc_support import CLASSES, IMAGES, voc_predictions, voc_xml, write_voc

CONFIG = make_config(MODEL__ROI_HEADS__NUM_CLASSES=20)


@pytest.fixture(scope="module")
def voc2007(tmp_path_factory: pytest.TempPathFactory) -> DatasetSource:
    root = tmp_path_factory.mktemp("sets")
    write_voc(root / "VOC2007")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        source = named_dataset("voc_2007_test")
    assert source is not None
    return source


def recorded(year: int) -> dict[str, float | None]:
    metrics: dict[str, float | None] = json.loads((DATA / "voc_metrics.json").read_text())[str(year)]
    return metrics


def predictions() -> list[ImagePrediction]:
    """What a model said, with its float32."""
    return [
        ImagePrediction(
            image,
            {"bbox": [[index, *np.array([score, *box], np.float32).tolist()] for index, score, box in rows]},
        )
        for image, rows in voc_predictions().items()
    ]


@pytest.mark.parametrize("year", [2007, 2012])
def test_a_resample_counts_as_a_dataset_of_its_images_does(voc2007: DatasetSource, year: int) -> None:
    check_resamples(load_dataset(replace(voc2007, year=year)), predictions(), CONFIG)


def test_ap_of_2007_equals_that_of_detectron2(voc2007: DatasetSource) -> None:
    metrics = compute_metrics(predictions(), load_dataset(voc2007), CONFIG)

    expected = {f"bbox/{name}": value for name, value in recorded(2007).items()}
    for name in ("sofa", "train", "tvmonitor"):  # no objects: 0 in the mean, and nothing by themselves
        assert expected.pop(f"bbox/AP-{name}") == 0
    assert metrics == pytest.approx(expected, abs=1e-9)


def test_ap_of_2012_equals_that_of_detectron2(voc2007: DatasetSource) -> None:
    metrics = compute_metrics(predictions(), load_dataset(replace(voc2007, year=2012)), CONFIG)

    by_class = {name: value for name, value in recorded(2012).items() if name.startswith("AP-")}
    defined = {f"bbox/{name}": value for name, value in by_class.items() if value is not None}
    assert len(defined) == 17
    assert {name: metrics[name] for name in defined} == pytest.approx(defined, abs=1e-9)
    assert metrics["bbox/AP"] == pytest.approx(sum(filter(None, by_class.values())) / 20)


def test_an_image_is_read_from_its_xml(voc2007: DatasetSource) -> None:
    dataset = load_dataset(voc2007)
    assert dataset.class_names == CLASSES
    assert [image.id for image in dataset.images] == IMAGES
    image = dataset.images[0]
    assert (image.height, image.width, image.path.name) == (70, 90, "000030.jpg")
    assert len(dataset.files()) == 1 + 30 + 30


def test_a_perfect_model_has_ap_100_of_the_classes_that_occur(tmp_path: Path) -> None:
    dataset = one_image(tmp_path, [("cat", (3, 4, 30, 40), False), ("dog", (41, 12, 80, 60), False)])
    metrics = evaluate(Oracle(dataset), dataset, make_config(MODEL__ROI_HEADS__NUM_CLASSES=2))
    assert metrics == pytest.approx(
        {"bbox/AP": 100, "bbox/AP50": 100, "bbox/AP75": 100, "bbox/AP-cat": 100, "bbox/AP-dog": 100}
    )


def one_image(
    folder: Path, objects: list[tuple[str, tuple[int, int, int, int], bool]], **more: Any
) -> Dataset:
    folder.mkdir(exist_ok=True)
    (folder / "one.xml").write_text(voc_xml("one", objects))
    Image.new("RGB", (90, 70)).save(folder / "one.png")
    (folder / "list.txt").write_text("one\n")
    settings: Mapping[str, Any] = {"year": 2012, "classes": ("cat", "dog"), **more}
    return load_dataset(
        DatasetSource("one", folder, folder, kind="voc", image_list=folder / "list.txt", **settings)
    )


def measured(dataset: Dataset, rows: list[list[float]]) -> dict[str, float]:
    config = make_config(MODEL__ROI_HEADS__NUM_CLASSES=2)
    return compute_metrics([ImagePrediction("one", {"bbox": rows})], dataset, config)


def test_difficult_objects_cost_nothing_found_or_missed(tmp_path: Path) -> None:
    dataset = one_image(tmp_path, [("cat", (1, 1, 20, 20), False), ("cat", (41, 11, 80, 60), True)])
    easy, hard = [0, 0.5, 0, 0, 20, 20], [0, 0.9, 40, 10, 80, 60]
    assert measured(dataset, [easy])["bbox/AP-cat"] == pytest.approx(100)
    assert measured(dataset, [easy, hard, hard])["bbox/AP-cat"] == pytest.approx(100)


def test_the_second_detection_of_an_object_is_wrong(tmp_path: Path) -> None:
    cats = [("cat", (1, 1, 20, 20), False), ("cat", (41, 11, 80, 60), False)]
    dataset = one_image(tmp_path, cats)
    twice = [[0, 0.9, 0, 0, 20, 20], [0, 0.8, 0, 0, 20, 20], [0, 0.7, 40, 10, 80, 60]]
    # Precision 1 up to recall 1/2, then 2/3.
    assert measured(dataset, twice)["bbox/AP-cat"] == pytest.approx(100 * (1 / 2 + 1 / 2 * 2 / 3))
    eleven = one_image(tmp_path, cats, year=2007)
    assert measured(eleven, twice)["bbox/AP-cat"] == pytest.approx(100 * (6 * 1 + 5 * 2 / 3) / 11)


def test_an_overlap_of_exactly_the_threshold_is_no_match(tmp_path: Path) -> None:
    dataset = one_image(tmp_path, [("cat", (1, 1, 20, 20), False)])
    half = [0, 0.9, 0, 0, 10, 20]  # 10 of 20 columns, the last one included
    assert measured(dataset, [half])["bbox/AP50"] == 0
    assert measured(dataset, [[0, 0.9, 0, 0, 10.1, 20]])["bbox/AP50"] == pytest.approx(50)  # dog has none


def test_scores_are_compared_as_result_files_have_them(tmp_path: Path) -> None:
    dataset = one_image(tmp_path, [("cat", (1, 1, 20, 20), False)])
    wrong, right = [0, 0.50001, 60, 40, 80, 60], [0, 0.50049, 0, 0, 20, 20]
    assert measured(dataset, [right, wrong])["bbox/AP-cat"] == pytest.approx(100)
    assert measured(dataset, [wrong, right])["bbox/AP-cat"] == pytest.approx(50)  # both are 0.500


def test_limit_sample_and_every_annotation_are_in_the_digest(tmp_path: Path) -> None:
    write_voc(tmp_path)
    source = DatasetSource(
        "voc",
        tmp_path / "Annotations",
        tmp_path / "JPEGImages",
        kind="voc",
        image_list=tmp_path / "ImageSets/Main/test.txt",
        year=2007,
    )
    limited = load_dataset(replace(source, limit=3))
    assert [image.id for image in limited.images] == IMAGES[:3]
    changes: list[dict[str, Any]] = [{}, {"limit": 3}, {"sample": ImageSample(3, 1)}, {"year": 2012}]
    digests = {load_dataset(replace(source, **change)).digest() for change in changes}
    path = tmp_path / "Annotations" / f"{IMAGES[-1]}.xml"
    path.write_text(path.read_text().replace("<difficult>0", "<difficult>1", 1))
    assert len(digests | {load_dataset(source).digest()}) == 5


BOMB = '<!DOCTYPE a [<!ENTITY b "b">]><annotation>&b;</annotation>'
GOOD = voc_xml("one", [("cat", (1, 1, 9, 9), False)])


@pytest.mark.parametrize(
    ("xml", "said"),
    [
        ("", "is not XML"),
        ("<annotation>", "is not XML"),
        (BOMB, "declares entities"),
        (BOMB.encode("utf-16"), "declares entities"),
        (b"\xff\xfe\x00", "is not XML"),
        (GOOD.replace("<height>70</height>", ""), "size/height of annotation is None, not a number"),
        (GOOD.replace("<width>90", "<width>0"), "height and width must be positive"),
        (GOOD.replace("<name>cat", "<name>yeti"), "unknown class 'yeti'"),
        (GOOD.replace("<name>cat</name>", ""), "an object has no name"),
        (GOOD.replace("<xmin>1", "<xmin>left"), "bndbox/xmin of object is 'left', not a number"),
        (GOOD.replace("<xmin>1", "<xmin>nan"), "bndbox/xmin of object is 'nan', not a number"),
        (GOOD.replace("<xmax>9", "<xmax>-3"), "the box of a cat ends before it begins"),
        (GOOD.replace("<difficult>0", "<difficult>no"), "difficult of object is 'no', not a number"),
    ],
)
def test_a_bad_annotation_is_named(tmp_path: Path, xml: str | bytes, said: str) -> None:
    source = one_image(tmp_path, [("cat", (1, 1, 9, 9), False)]).source
    (tmp_path / "one.xml").write_bytes(xml.encode() if isinstance(xml, str) else xml)
    with pytest.raises(Failure, match=said) as caught:
        load_dataset(source)
    assert caught.value.code == "dataset.invalid"
    assert str(tmp_path / "one.xml") in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (b"", "list.txt lists no images"),
        (b"one\none\n", "lists image one twice"),
        (b"one\ntwo\n", r"cannot read annotations .*two\.xml: No such file"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (None, r"cannot read annotations .*list\.txt"),
    ],
)
def test_a_bad_list_is_named(tmp_path: Path, names: bytes | None, said: str) -> None:
    source = one_image(tmp_path, [("cat", (1, 1, 9, 9), False)]).source
    (tmp_path / "list.txt").unlink()
    if names is not None:
        (tmp_path / "list.txt").write_bytes(names)
    with pytest.raises(Failure, match=said) as caught:
        load_dataset(source)
    assert caught.value.code == "dataset.invalid"


def test_wrong_sources_are_refused(tmp_path: Path) -> None:
    dataset = one_image(tmp_path, [("cat", (1, 1, 9, 9), False)])
    with pytest.raises(Failure, match="names a class twice"):
        load_dataset(replace(dataset.source, classes=("cat", "cat")))
    with pytest.raises(Failure, match="needs an image_list and a year"):
        load_dataset(replace(dataset.source, year=None))
    with pytest.raises(Failure, match="lacks 1 of the 1 images"):
        load_dataset(replace(dataset.source, images=tmp_path.parent))
    with pytest.raises(Failure, match="defines 2 categories, but the model has 20"):
        select_tasks(CONFIG, dataset)


def test_a_dataset_without_objects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="no object to find in the 1 evaluated images"):
        measured(one_image(tmp_path, [("cat", (1, 1, 9, 9), True)]), [])
