"""The C++ example finds what Python finds: built against the installed torch, run on both formats."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core import demo, formats
from zooport.export_core.evaluation import read_image, resize_shortest_edge
from zooport.export_core.evaluation.postprocess import paste_mask, to_image_frame
from zooport.export_core.pipeline import export_stage
from zooport.export_core.sources import CheckpointSource, DatasetSource

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "torchscript_cpp"
FORMATS = ("torchscript-trace", "torchscript-script")
DATA = demo.ZOO / "data"
# Of every kind and size; each is resized on its way into the network.
IMAGES = [path.name for path in sorted((DATA / "val").iterdir())][::19]
PIXELS = 0.01  # box corners: the same model on the same input, but perhaps another number of threads
SCORE = 1e-4
FLIPPED = 2  # pixels of a mask whose probability is one half but for the last bit

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("g++") is None,
        reason="no g++: the C++ example was neither built nor run (Debian: apt-get install g++)",
    ),
]

Detect = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def detect(tmp_path_factory: pytest.TempPathFactory) -> Detect:
    """Build the program as its README says, and return a way to run it."""
    import torchvision

    program = tmp_path_factory.mktemp("cpp") / "detect"
    build: list[str | Path] = [EXAMPLE / "build.sh", sys.executable, program]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (operators,) = Path(torchvision.__file__).parent.glob("_C*.so")

    def run(model: Path, image: Path, *options: str, operators: Path = operators) -> Any:
        command: list[str | Path] = [program, model, image, operators, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Mask R-CNN of the demo zoo in both formats."""
    model = demo.ZOO / "mask_rcnn_fpn"
    source = CheckpointSource("mask_rcnn_fpn", model / "config.yaml", model / "model_final.pth")
    dataset = DatasetSource("val", DATA / "annotations" / "instances_val.json", DATA / "val", limit=3)
    folders = {}
    for name in FORMATS:
        folders[name] = tmp_path_factory.mktemp(name)
        export_stage(source, name, {}, dataset, None, folders[name], lambda stage: None)
    return folders


def sizes(artifact: Path) -> tuple[int, int]:
    resize = json.loads((artifact / "model.json").read_text(encoding="utf-8"))["preprocessing"]["resize"]
    return resize["shortest_edge"], resize["longest_edge"]


def found_by_python(export_format: str, artifact: Path, image: Path) -> dict[str, Any]:
    fields = ["pred_boxes", "pred_classes", "pred_masks", "scores"]
    predictor = formats.get(export_format).load(artifact, fields, {})
    pixels = read_image(image, "BGR")
    resized = resize_shortest_edge(pixels, *sizes(artifact))
    outputs = predictor(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
    outputs.pop("image_size", None)
    found = to_image_frame(outputs, resized.shape[:2], pixels.shape[:2])
    squares = zip(found["pred_masks"][:, 0], found["pred_boxes"], strict=True)
    masks = [paste_mask(*square, *pixels.shape[:2]).full(*pixels.shape[:2]) for square in squares]
    return {**found, "masks": masks}


@pytest.mark.parametrize("export_format", FORMATS)
def test_detections_and_masks_equal_pythons(
    detect: Detect, artifacts: dict[str, Path], tmp_path: Path, export_format: str
) -> None:
    artifact = artifacts[export_format]
    min_size, max_size = sizes(artifact)
    total = 0
    for name in IMAGES:
        image = tmp_path / "image.ppm"
        Image.fromarray(read_image(DATA / "val" / name, "RGB")).save(image)
        masks = tmp_path / name
        masks.mkdir()
        options = ["--min-size", str(min_size), "--max-size", str(max_size), "--masks", str(masks)]
        done = detect(artifact / "model.ts", image, *options)
        assert done.returncode == 0, done.stderr
        found = [json.loads(line) for line in done.stdout.splitlines()]
        wanted = found_by_python(export_format, artifact, DATA / "val" / name)
        assert [each["class"] for each in found] == wanted["pred_classes"].tolist(), name
        boxes = np.array([each["box"] for each in found]).reshape(-1, 4)
        assert np.abs(boxes - wanted["pred_boxes"]).max(initial=0) < PIXELS, name
        scores = np.array([each["score"] for each in found])
        assert np.abs(scores - wanted["scores"]).max(initial=0) < SCORE, name
        for index, (each, mask) in enumerate(zip(found, wanted["masks"], strict=True)):
            assert abs(each["mask_area"] - int(mask.sum())) <= FLIPPED, (name, index)
            with Image.open(masks / f"{index}.pgm") as written:
                drawn = np.asarray(written) == 255
            assert drawn.shape == mask.shape
            assert int((drawn != mask).sum()) <= FLIPPED, (name, index)
        total += len(found)
    assert total > len(IMAGES)


def test_bad_input_ends_in_one_line(detect: Detect, artifacts: dict[str, Path], tmp_path: Path) -> None:
    model = artifacts["torchscript-trace"] / "model.ts"
    picture = tmp_path / "image.ppm"
    picture.write_bytes(b"P6 4 4 255\n" + bytes(47))
    broken = tmp_path / "broken.ts"
    broken.write_bytes(model.read_bytes()[:1000])
    whole = tmp_path / "whole.ppm"
    whole.write_bytes(b"P6 # a comment\n4 4 255\n" + bytes(48))
    cases = {
        "is truncated": detect(model, picture),
        "is not a binary PPM": detect(model, model),
        "cannot read": detect(model, tmp_path / "nothing.ppm"),
        "cannot load operators": detect(model, whole, operators=tmp_path / "nothing.so"),
        "PytorchStreamReader": detect(broken, whole),
    }
    for said, done in cases.items():
        assert done.returncode == 1, said
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stdout == ""
    assert detect(model, whole, "one argument too many").returncode == 2
