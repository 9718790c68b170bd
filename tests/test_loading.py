"""zooport.load: what ``zooport predict`` prints, as Python values, from artifacts of every format."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util

import zooport
from zooport.export_core import demo, pipeline
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.prediction import ImageJob, Selection, predict_stage
from zooport.jobs.manifest import load_manifest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

VAL = demo.ZOO / "data" / "val"
PICTURE = VAL / "000000100026.png"
OTHER = VAL / "000000100017.jpg"
REFERENCE = {"runtime": "reference"}

Make = Callable[..., Path]


def ignore(stage: Stage) -> None:
    """Nobody asks which stage begins."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """From a demo model and a format to an artifact, made once."""
    made: dict[tuple[str, str], Path] = {}
    targets = {target.checkpoint.name: target for target in load_manifest(demo.MANIFEST).targets}

    def export(model: str, form: str = "caffe2") -> Path:
        if (model, form) not in made:
            target = targets[model]
            assert target.dataset is not None
            folder = made[model, form] = tmp_path_factory.mktemp("artifact")
            few = replace(target.dataset, limit=3)
            pipeline.export_stage(target.checkpoint, form, {}, few, PICTURE, folder, ignore)
            shutil.rmtree(folder / pipeline.HANDOVER)
        return made[model, form]

    return export


def rows_of(directory: Path, images: list[Path], folder: Path) -> list[list[dict[str, Any]]]:
    """What ``zooport predict -o json`` prints of each image."""
    jobs = [ImageJob(str(path), path) for path in images]
    predict_stage(directory, jobs, Selection(), folder / "results", ignore)
    lines = map(json.loads, (folder / "results").read_text(encoding="utf-8").splitlines())
    return [line["rows"] for line in lines if "rows" in line]


@pytest.mark.parametrize(
    ("model", "form"),
    [
        ("mask_rcnn_fpn", "caffe2"),
        ("keypoint_rcnn_fpn", "caffe2"),
        ("panoptic_fpn", "caffe2"),
        ("retinanet_fpn", "caffe2"),
        ("mask_rcnn_fpn", "onnx"),
    ],
)
def test_results_are_those_of_zooport_predict(
    model: str, form: str, make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_CAFFE2_RUNTIME", "reference")
    directory, images = make(model, form), [PICTURE, OTHER]
    with zooport.load(directory) as loaded:
        found = loaded.predict(images)
    wanted = rows_of(directory, images, tmp_path)
    assert [len(each) for each in found] == [len(each) for each in wanted]
    assert all(found)
    for path, of_image, rows in zip(images, found, wanted, strict=True):
        with Image.open(path) as image:
            size = image.height, image.width
        for one, row in zip(of_image, rows, strict=True):
            assert one.to_coco(str(path)) == row
            assert (one.category, one.category_id, one.kind) == (
                row["category"],
                row["category_id"],
                row["kind"],
            )
            assert one.score == row.get("score")
            x, y, width, height = row["bbox"]
            assert one.box.tolist() == pytest.approx([x, y, x + width, y + height], abs=1e-3)
            if "segmentation" in row:
                assert one.mask is not None
                assert one.mask.shape == size
                assert (one.mask == mask_util.decode(row["segmentation"])).all()
            else:
                assert one.mask is None
            if "keypoints" in row:
                assert one.keypoints is not None
                points = np.array(row["keypoints"]).reshape(-1, 3)
                points[:, :2] += 0.5
                np.testing.assert_allclose(one.keypoints, points, rtol=1e-6)


def test_formats_agree_through_the_same_calls(make: Make) -> None:
    results = []
    for form, runtime in (("onnx", None), ("caffe2", "reference")):
        loaded = zooport.load(make("mask_rcnn_fpn", form), runtime=runtime)
        assert loaded.format == form
        assert loaded.classes == ("circle", "square", "triangle", "star", "cross")
        results.append(loaded.predict([PICTURE])[0])
    assert len(results[0]) == len(results[1]) > 3
    for one, other in zip(*results, strict=True):
        assert one.category == other.category
        np.testing.assert_allclose(one.box, other.box, atol=0.02)
        assert one.score == pytest.approx(other.score, abs=1e-4)
        assert one.mask is not None
        assert other.mask is not None
        assert (one.mask != other.mask).mean() < 1e-3


def test_files_arrays_and_pictures_are_the_same_images(make: Make) -> None:
    loaded = zooport.load(make("mask_rcnn_fpn") / "model.pb", **REFERENCE)
    with Image.open(PICTURE) as opened:
        picture = opened.convert("RGB")
    kinds = loaded.predict([str(PICTURE), picture, np.asarray(picture)])
    results = [[one.to_coco("0.png") for one in each] for each in kinds]
    assert results[0]
    assert results[0] == results[1] == results[2]
    assert loaded.predict([]) == []


def test_results_are_in_pixels_of_the_image_that_was_given(make: Make, tmp_path: Path) -> None:
    """The network sees what model.json says, whatever the size of the original."""
    directory = shutil.copytree(make("mask_rcnn_fpn"), tmp_path / "artifact")
    description = json.loads((directory / "model.json").read_text(encoding="utf-8"))
    with Image.open(PICTURE) as opened:
        picture = opened.convert("RGB")
    short, long = sorted(picture.size)
    description["preprocessing"]["resize"] = {"shortest_edge": short, "longest_edge": long}
    (directory / "model.json").write_text(json.dumps(description), encoding="utf-8")
    loaded = zooport.load(directory, **REFERENCE)
    twice = picture.resize((picture.width * 2, picture.height * 2), Image.Resampling.BICUBIC)
    small, large = loaded.predict([picture, twice])
    best, same = small[0], large[0]
    assert best.category == same.category
    np.testing.assert_allclose(same.box, best.box * 2, atol=4)
    assert same.mask is not None
    assert same.mask.shape == (twice.height, twice.width)


@pytest.mark.slow
@pytest.mark.alone
def test_the_real_runtime_runs_it_in_a_process_that_ends_with_it(make: Make, caffe2_python: Path) -> None:
    directory = make("keypoint_rcnn_fpn")
    with zooport.load(directory, **REFERENCE) as reference:
        assert reference.runtime == "reference"
        (wanted,) = reference.predict([PICTURE])
    with zooport.load(directory, runtime="caffe2") as real:
        assert real.runtime == "caffe2"
        (found,) = real.predict([PICTURE])
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one.box, other.box, atol=0.01)
        assert one.keypoints is not None
        assert other.keypoints is not None
        np.testing.assert_allclose(one.keypoints, other.keypoints, atol=0.01)
    with pytest.raises(Failure, match="Caffe2"):
        real.predict([PICTURE])


def test_what_cannot_be_loaded_or_predicted_is_a_typed_failure(make: Make, tmp_path: Path) -> None:
    directory = make("mask_rcnn_fpn")
    with pytest.raises(Failure, match="torch") as caught:
        zooport.load(directory, runtime="torch")
    assert caught.value.code == "export.option"
    with pytest.raises(Failure, match="no runtime 'reference'") as caught:
        zooport.load(make("mask_rcnn_fpn", "onnx"), runtime="reference")
    assert caught.value.code == "export.option"
    with pytest.raises(Failure) as caught:
        zooport.load(tmp_path)
    assert caught.value.code == "artifact.foreign"
    loaded = zooport.load(directory, **REFERENCE)
    wrong: list[tuple[Any, str]] = [
        (tmp_path / "none.png", "none.png"),
        (np.zeros((3, 8, 8), np.float32), "float32 of shape"),
        (np.zeros((8, 8), np.uint8), "uint8 of shape"),
    ]
    for image, said in wrong:
        with pytest.raises(Failure, match=said) as caught:
            loaded.predict([image])
        assert caught.value.code == "dataset.invalid"
    for single in (PICTURE, str(PICTURE), np.zeros((8, 8, 3), np.uint8), Image.new("RGB", (8, 8))):
        with pytest.raises(TypeError, match="give a list"):
            loaded.predict(single)  # type: ignore[arg-type]


def test_importing_zooport_imports_nothing_heavy(tmp_path: Path) -> None:
    import subprocess
    import sys

    program = "import sys, zooport; zooport.load; print(sorted({'torch', 'numpy', 'PIL'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
