"""Datasets of every kind through the product: a model is measured on them, and their files travel."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from zooport.export_core import demo, pipeline, sharding
from zooport.export_core.failures import Stage
from zooport.export_core.shards import split
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import inputs, packing
from zooport.jobs.manifest import load_manifest
from zooport.jobs.values import BaselineJob, ExportJob

MODEL = demo.ZOO / "retinanet_fpn"
DATA = demo.ZOO / "data"
CHECKPOINT = CheckpointSource("retinanet", MODEL / "config.yaml", MODEL / "model_final.pth")
IMAGES = 6


def ignore(_: Stage) -> None:
    """No progress."""


def boxes(metrics: Mapping[str, Any]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith("bbox/")}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The first images of the demo, without crowds."""
    document: dict[str, Any] = json.loads((DATA / "annotations/instances_val.json").read_text("utf-8"))
    images = document["images"][:IMAGES]
    kept = {image["id"] for image in images}
    objects = [
        each for each in document["annotations"] if each["image_id"] in kept and not each.get("iscrowd")
    ]
    return {**document, "images": images, "annotations": objects}


@pytest.fixture(scope="module")
def coco_metrics(document: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    path = tmp_path_factory.mktemp("coco") / "a.json"
    path.write_text(json.dumps(document))
    return pipeline.evaluate_eager(CHECKPOINT, DatasetSource("coco", path, DATA / "val"), ignore)


def lvis_of(document: dict[str, Any], folder: Path) -> DatasetSource:
    """The same as LVIS, with every category looked for in every image."""
    ids = [category["id"] for category in document["categories"]]
    images = [
        {**image, "neg_category_ids": ids, "not_exhaustive_category_ids": []} for image in document["images"]
    ]
    categories = [{**category, "frequency": "f"} for category in document["categories"]]
    federated = {**document, "images": images, "categories": categories}
    (folder / "lvis.json").write_text(json.dumps(federated))
    return DatasetSource("lvis", folder / "lvis.json", DATA / "val", kind="lvis")


def voc_of(document: dict[str, Any], folder: Path) -> DatasetSource:
    """The same as Pascal VOC."""
    names = {category["id"]: category["name"] for category in document["categories"]}
    (folder / "Annotations").mkdir()
    (folder / "JPEGImages").mkdir()
    for image in document["images"]:
        parts = []
        for each in document["annotations"]:
            if each["image_id"] == image["id"]:
                x, y, width, height = each["bbox"]
                corners = {"xmin": x + 1, "ymin": y + 1, "xmax": x + width, "ymax": y + height}
                box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
                parts.append(
                    f"<object><name>{names[each['category_id']]}</name><bndbox>{box}</bndbox></object>"
                )
        size = f"<size><width>{image['width']}</width><height>{image['height']}</height></size>"
        text = f"<annotation>{size}{''.join(parts)}</annotation>"
        (folder / "Annotations" / f"{image['id']}.xml").write_text(text)
        (folder / "JPEGImages" / f"{image['id']}.jpg").symlink_to(DATA / "val" / image["file_name"])
    (folder / "val.txt").write_text("".join(f"{image['id']}\n" for image in document["images"]))
    return DatasetSource(
        "voc",
        folder / "Annotations",
        folder / "JPEGImages",
        kind="voc",
        image_list=folder / "val.txt",
        year=2012,
        classes=tuple(names[identifier] for identifier in sorted(names)),
    )


def test_lvis_with_every_category_looked_for_is_coco(
    document: dict[str, Any], coco_metrics: dict[str, float], tmp_path: Path
) -> None:
    metrics = boxes(pipeline.evaluate_eager(CHECKPOINT, lvis_of(document, tmp_path), ignore))
    assert metrics["bbox/AP"] > 5
    shared = {name: value for name, value in metrics.items() if name in coco_metrics}
    assert shared == pytest.approx({name: coco_metrics[name] for name in shared}, abs=1e-9)
    assert {"bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APs", "bbox/AP-circle"} <= set(shared)
    assert metrics["bbox/APf"] == metrics["bbox/AP"]


def test_a_model_is_measured_on_voc_in_parts_as_in_one(document: dict[str, Any], tmp_path: Path) -> None:
    source = voc_of(document, tmp_path)
    whole = boxes(pipeline.evaluate_eager(CHECKPOINT, source, ignore))
    shards = split(IMAGES, 4)
    for shard in shards:
        sharding.predict_shard(CHECKPOINT, source, shard, tmp_path / "parts", ignore)
    assert boxes(sharding.merge_shards(CHECKPOINT, source, shards, tmp_path / "parts", ignore)) == whole
    assert 5 < whole["bbox/AP"] < whole["bbox/AP50"]


def job_on(source: DatasetSource) -> ExportJob:
    return ExportJob("r.1", "", CHECKPOINT, "onnx", Path("/out"), Path("/log"), dataset=source)


def test_every_path_of_a_dataset_travels(document: dict[str, Any], tmp_path: Path) -> None:
    source = voc_of(document, tmp_path)
    job = job_on(source)
    paths = [path for unit in inputs.units_of(job) for path in unit]
    assert {source.annotations, source.images, source.image_list} <= set(paths)
    assert source.image_list is not None
    moved = inputs._moved(job, {source.image_list: Path("/node/val.txt")})
    assert not isinstance(moved, BaselineJob)
    assert moved.dataset == replace(source, image_list=Path("/node/val.txt"))


def test_a_package_holds_the_files_of_a_dataset(
    document: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    voc_of(document, tmp_path)
    keys = {"kind": "voc", "annotations": "Annotations", "images": "JPEGImages", "image_list": "val.txt"}
    manifest = {
        "datasets": {"mine": {**keys, "year": 2012}, "named": {"name": "coco_2017_val", "limit": 3}},
        "models": [{"name": "a", "config": "a.yaml", "weights": "a.pth", "dataset": "mine"}],
        "formats": ["onnx"],
    }
    text = yaml.safe_dump(manifest)
    (tmp_path / "zoo.yaml").write_text(text)
    (tmp_path / "package").mkdir()
    package = packing.pack(tmp_path / "zoo.yaml", text, tmp_path / "package")

    (target,) = load_manifest(package.folder / "zoo.yaml").targets
    assert target.dataset is not None
    assert target.dataset.image_list is not None
    assert target.dataset.image_list.is_relative_to(package.folder)
    assert target.dataset.image_list.read_text() == (tmp_path / "val.txt").read_text()
    named = yaml.safe_load((package.folder / "zoo.yaml").read_text())["datasets"]["named"]
    assert named == {"name": "coco_2017_val", "limit": 3}  # looked up where the run is
