"""detectron2's datasets go by name, and a sample of a dataset is the same everywhere."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import load_dataset
from zooport.export_core.failures import Failure
from zooport.export_core.known_datasets import named_dataset, names
from zooport.export_core.sources import CheckpointSource, DatasetSource, ImageSample
from zooport.jobs import reproduce, single
from zooport.jobs.dataset_spec import describe, read_dataset
from zooport.jobs.manifest import load_manifest
from zooport.jobs.registry.records import job_from_dict, job_to_dict
from zooport.jobs.single import Order
from zooport.jobs.values import ExportJob

# Below DETECTRON2_DATASETS, as detectron2's documentation lays them out.
PLACES = {
    "coco_2017_val": ("coco", "coco/annotations/instances_val2017.json", "coco/val2017"),
    "coco_2017_val_100": ("coco", "coco/annotations/instances_val2017_100.json", "coco/val2017"),
    "coco_2014_minival": ("coco", "coco/annotations/instances_minival2014.json", "coco/val2014"),
    "coco_2014_valminusminival": (
        "coco",
        "coco/annotations/instances_valminusminival2014.json",
        "coco/val2014",
    ),
    "coco_2017_train": ("coco", "coco/annotations/instances_train2017.json", "coco/train2017"),
    "keypoints_coco_2017_val_100": (
        "coco",
        "coco/annotations/person_keypoints_val2017_100.json",
        "coco/val2017",
    ),
    "lvis_v1_val": ("lvis", "lvis/lvis_v1_val.json", "coco"),
    "lvis_v0.5_val_cocofied": ("lvis", "lvis/lvis_v0.5_val_cocofied.json", "coco"),
    "voc_2007_test": ("voc", "VOC2007/Annotations", "VOC2007/JPEGImages"),
    "voc_2012_val": ("voc", "VOC2012/Annotations", "VOC2012/JPEGImages"),
    "ade20k_sem_seg_val": (
        "semantic",
        "ADEChallengeData2016/annotations_detectron2/validation",
        "ADEChallengeData2016/images/validation",
    ),
    "cityscapes_fine_sem_seg_train": (
        "semantic",
        "cityscapes/gtFine/train",
        "cityscapes/leftImg8bit/train",
    ),
    "cityscapes_fine_instance_seg_val": (
        "cityscapes",
        "cityscapes/gtFine/val",
        "cityscapes/leftImg8bit/val",
    ),
}
MANIFEST = """datasets:
  small: {name: coco_2017_val_100, sample: {n: 7, seed: 3}}
models:
  - {name: one, config: one.yaml, weights: one.pth, dataset: coco_2017_val}
  - {name: two, config: two.yaml, weights: two.pth, dataset: small}
formats: [onnx]
"""


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path / "sets"))
    return tmp_path / "sets"


@pytest.mark.parametrize("name", PLACES)
def test_a_name_stands_for_files_below_the_variable(root: Path, name: str) -> None:
    kind, annotations, images = PLACES[name]

    assert name in names()
    found = named_dataset(name)
    assert found is not None
    assert (found.name, found.kind) == (name, kind)
    assert (found.annotations, found.images) == (root / annotations, root / images)


def test_panoptic_and_voc_datasets_have_more_files(root: Path) -> None:
    panoptic, voc = named_dataset("coco_2017_val_100_panoptic_separated"), named_dataset("voc_2007_test")
    assert panoptic is not None
    assert voc is not None
    assert panoptic.annotations == root / "coco/annotations/instances_val2017_100.json"
    assert panoptic.panoptic == root / "coco/annotations/panoptic_val2017_100.json"
    assert panoptic.panoptic_masks == root / "coco/panoptic_val2017_100"
    assert (voc.image_list, voc.year) == (root / "VOC2007/ImageSets/Main/test.txt", 2007)


def test_without_the_variable_they_are_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    monkeypatch.chdir(tmp_path)
    found = named_dataset("coco_2017_val")
    assert found is not None
    assert found.images == tmp_path / "datasets/coco/val2017"
    assert named_dataset("coco_2017_vla") is None


def test_a_manifest_names_them_in_a_model_or_among_its_datasets(root: Path, tmp_path: Path) -> None:
    (tmp_path / "zoo.yaml").write_text(MANIFEST)
    one, two = (target.dataset for target in load_manifest(tmp_path / "zoo.yaml").targets)
    assert one == named_dataset("coco_2017_val")
    known = named_dataset("coco_2017_val_100")
    assert known is not None
    assert two == replace(known, name="small", sample=ImageSample(7, 3))


def test_one_that_is_not_there_fails_with_its_path_and_the_variable(root: Path) -> None:
    source = named_dataset("coco_2017_val")
    assert source is not None
    with pytest.raises(Failure, match=r"cannot read annotations .*instances_val2017\.json") as caught:
        load_dataset(source)
    assert (caught.value.code, "DETECTRON2_DATASETS" in caught.value.hint) == ("dataset.invalid", True)


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        ("{name: coco_2017_vla}", "datasets.d.name: expected the name of one of detectron2's datasets (did"),
        ("{name: coco_2017_val, images: a}", "datasets.d.images: unknown key"),
        ("{kind: yolo, annotations: a, images: b}", "datasets.d.kind: expected one of coco, lvis, voc"),
        ("{kind: voc, annotations: a, images: b, year: 2007}", "datasets.d.image_list: this key is missing"),
        ("{kind: voc, annotations: a, images: b, image_list: c}", "datasets.d.year: this key is missing"),
        ("{kind: lvis, annotations: a, images: b, panoptic: c}", "datasets.d.panoptic: unknown key"),
        ("{annotations: a, images: b, year: 2007}", "datasets.d.year: unknown key"),
        ("{annotations: a, images: b, sample: {n: 0}}", "datasets.d.sample.n: expected greater than 0"),
        ("{annotations: a, images: b, sample: {m: 1}}", "datasets.d.sample.m: unknown key"),
        ("{annotations: a, images: b, sample: 5}", "datasets.d.sample: expected"),
        ("{annotations: a, images: b, limit: 3, sample: {n: 1}}", "d.sample: expected either limit or"),
        ("coco_2017_val", "datasets.d: expected"),
    ],
)
def test_a_wrong_dataset_is_named_by_its_key(tmp_path: Path, entry: str, said: str) -> None:
    (tmp_path / "zoo.yaml").write_text(f"datasets:\n  d: {entry}\nmodels: []\nformats: [onnx]\n")
    with pytest.raises(Failure) as caught:
        load_manifest(tmp_path / "zoo.yaml")
    assert caught.value.code == "manifest.invalid"
    assert f"line 2: {said}" in caught.value.message or said in caught.value.message


EVERY_KIND = (
    DatasetSource("dataset", Path("/a.json"), Path("/i"), sample=ImageSample(5, 1), panoptic=Path("/p.json")),
    DatasetSource("dataset", Path("/a.json"), Path("/i"), kind="lvis", limit=3),
    DatasetSource(
        "dataset",
        Path("/A"),
        Path("/i"),
        kind="voc",
        image_list=Path("/v.txt"),
        year=2012,
        classes=("cat", "dog"),
    ),
    DatasetSource("dataset", Path("/g"), Path("/i"), kind="cityscapes"),
)


@pytest.mark.parametrize("source", EVERY_KIND, ids=lambda source: source.kind)
def test_every_kind_survives_the_registry_and_the_command_line(source: DatasetSource) -> None:
    checkpoint = CheckpointSource("m", Path("/c.yaml"), Path("/w.pth"))
    job = ExportJob("r.1", "k", checkpoint, "onnx", Path("/out"), Path("/log"), dataset=source)
    stored = json.loads(json.dumps(job_to_dict(job)))
    assert job_from_dict(stored, checkpoint).dataset == source
    assert read_dataset(describe(source), Path("/")) == source
    assert "--run-eval --dataset '{" in reproduce.command(job)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("coco_2017_vla", "--dataset: name: expected the name of one of detectron2's"),
        ("{kind: voc, annotations: a, images: b, year: 2007}", "--dataset: image_list: this key is missing"),
        ("{annotations: a, images: b, limits: 3}", "--dataset: limits: unknown key, did you mean 'limit'"),
    ],
)
def test_a_wrong_dataset_of_the_command_line_is_named(text: str, said: str) -> None:
    order = Order(Path("c"), "w", "onnx", Path("o"), run_eval=True, dataset=text)
    with pytest.raises(Failure) as caught:
        single._dataset(order)
    assert caught.value.code == "dataset.invalid"
    assert said in caught.value.message


def test_the_command_line_takes_a_name(root: Path) -> None:
    order = Order(Path("c"), "w", "onnx", Path("o"), run_eval=True, dataset="voc_2007_test")
    assert single._dataset(order) == named_dataset("voc_2007_test")
    with pytest.raises(Failure, match="--dataset says all"):
        single._dataset(replace(order, limit=3))


def write_many(folder: Path, count: int, **more: Any) -> DatasetSource:
    (folder / "images").mkdir(parents=True)
    pixels = Image.fromarray(np.zeros((8, 8, 3), dtype=np.uint8))
    entries = []
    for index in range(count):
        name = f"{index}.png"
        pixels.save(folder / "images" / name)
        entries.append({"id": index, "file_name": name, "width": 8, "height": 8})
    document = {"images": entries, "categories": [{"id": 1, "name": "cat"}], "annotations": []}
    (folder / "a.json").write_text(json.dumps(document))
    return DatasetSource("many", folder / "a.json", folder / "images", **more)


def ids_of(source: DatasetSource, n: int, seed: int) -> list[int | str]:
    return [image.id for image in load_dataset(replace(source, sample=ImageSample(n, seed))).images]


def test_a_sample_is_reproducible_and_spread(tmp_path: Path) -> None:
    source = write_many(tmp_path, 60)
    # By sha256sum of "0:<id>"; another version of Python, numpy or zooport has to take the same images.
    assert ids_of(source, 5, 0) == [15, 20, 36, 44, 46]
    assert ids_of(source, 5, 0) != ids_of(source, 5, 1)
    assert set(ids_of(source, 5, 0)) < set(ids_of(source, 20, 0))
    assert ids_of(source, 20, 4) == sorted(ids_of(source, 20, 4), key=int)
    assert ids_of(source, 1000, 0) == list(range(60))


def test_a_sample_is_in_the_digest(tmp_path: Path) -> None:
    source = write_many(tmp_path, 20)
    digests = {
        load_dataset(replace(source, sample=sample, limit=limit)).digest()
        for sample, limit in ((None, None), (None, 5), (ImageSample(5, 0), None), (ImageSample(5, 1), None))
    }
    assert len(digests) == 4


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sample": ImageSample(0)}, "sample.n must be at least 1"),
        ({"sample": ImageSample(1), "limit": 1}, "a limit and a sample"),
        ({"kind": "yolo"}, "unknown kind 'yolo'"),
    ],
)
def test_wrong_samples_are_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Failure, match=said) as caught:
        load_dataset(replace(write_many(tmp_path, 2), **changes))
    assert caught.value.code == "dataset.invalid"
