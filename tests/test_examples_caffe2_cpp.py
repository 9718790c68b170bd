"""The C++ example for Caffe2 finds what Python finds: built against torch 1.10.2, run on exported nets."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from zooport.export_core import formats
from zooport.export_core.caffe2.net_files import read_nets
from zooport.export_core.caffe2.reference.executor import ReferenceExecutor
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import load_config
from zooport.export_core.evaluation import read_image, resize_shortest_edge
from zooport.export_core.evaluation.postprocess import to_image_frame
from zooport.export_core.formats.caffe2_results import Caffe2Predictor
from zooport.export_core.modeling.build import load_model

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "caffe2_cpp"
PIXELS = 1e-3  # box corners
SCORE = 1e-5
PICTURES = slice(None, None, 25)
MODELS = ["mask_rcnn_fpn", "faster_rcnn_c4"]  # BGR padded to multiples of 32, and RGB not padded

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.skipif(
        shutil.which("g++") is None,
        reason="no g++: the C++ example was neither built nor run (Debian: apt-get install g++)",
    ),
]

Detect = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def detect(caffe2_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Detect:
    """Build the program as its README says, and return a way to run it."""
    program = tmp_path_factory.mktemp("cpp") / "detect"
    build: list[str | Path] = [EXAMPLE / "build.sh", caffe2_python, program]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    def run(artifact: Path, image: Path, *options: str) -> Any:
        command: list[str | Path] = [program, artifact, image, *options]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="module")
def exported(demo_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """From the name of a demo model to its config and the directory of its nets."""
    done: dict[str, Any] = {}

    def export(name: str) -> Any:
        if name not in done:
            config = load_config(demo_zoo / name / "config.yaml")
            (weights,) = (demo_zoo / name).glob("model_final.*")
            exporter, directory = formats.get("caffe2"), tmp_path_factory.mktemp(name)
            exporter.requires(config, {})
            model = load_model(config, read_weights(weights), name)
            exporter.export(model, {"image": torch.zeros(3, 64, 64)}, [], directory, {})
            done[name] = config, directory
        return done[name]

    return export


def found_by_python(directory: Path, pixels: Any, sizes: tuple[int, int]) -> Any:
    """Return rows of x1 y1 x2 y2 score class, from pixels uint8 (H, W, 3) in the model's channel order."""
    nets = read_nets(directory)
    fields = ["pred_boxes", "scores", "pred_classes"]
    predictor = Caffe2Predictor(ReferenceExecutor().load(nets), nets.predict, fields)
    resized = resize_shortest_edge(pixels, *sizes)
    outputs = predictor(np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32))
    found = to_image_frame(outputs, resized.shape[:2], pixels.shape[:2])
    return np.column_stack([found["pred_boxes"], found["scores"], found["pred_classes"]])


@pytest.mark.parametrize("name", MODELS)
def test_detections_equal_pythons(
    name: str, detect: Detect, exported: Any, demo_zoo: Path, tmp_path: Path
) -> None:
    config, artifact = exported(name)
    sizes = config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST
    order = config.INPUT.FORMAT
    options = ["--min-size", str(sizes[0]), "--max-size", str(sizes[1]), *["--rgb"] * (order == "RGB")]
    total = 0
    for path in sorted((demo_zoo / "data" / "val").iterdir())[PICTURES]:
        image = tmp_path / "image.ppm"
        Image.fromarray(read_image(path, "RGB")).save(image)
        done = detect(artifact, image, *options)
        assert done.returncode == 0, done.stderr
        found = np.array([line.split() for line in done.stdout.splitlines()], float).reshape(-1, 6)
        wanted = found_by_python(artifact, read_image(path, order), sizes)
        assert found.shape == wanted.shape, path.name
        assert found[:, 5].tolist() == wanted[:, 5].tolist(), path.name
        assert np.abs(found[:, :4] - wanted[:, :4]).max(initial=0) < PIXELS, path.name
        assert np.abs(found[:, 4] - wanted[:, 4]).max(initial=0) < SCORE, path.name
        total += len(found)
    assert total > 10


def test_an_image_without_detections_prints_nothing(detect: Detect, exported: Any, tmp_path: Path) -> None:
    _, artifact = exported("mask_rcnn_fpn")
    image = tmp_path / "grey.ppm"
    image.write_bytes(b"P6 90 70 255\n" + bytes([114]) * (90 * 70 * 3))
    done = detect(artifact, image, "--min-size", "0")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_bad_input_ends_in_one_line(detect: Detect, exported: Any, tmp_path: Path) -> None:
    _, artifact = exported("mask_rcnn_fpn")
    _, other = exported("faster_rcnn_c4")
    whole = tmp_path / "whole.ppm"
    whole.write_bytes(b"P6 32 32 255\n" + bytes(32 * 32 * 3))
    truncated = tmp_path / "truncated.ppm"
    truncated.write_bytes(whole.read_bytes()[:-1])
    for name in ("cut", "mixed", "half"):
        shutil.copytree(artifact, tmp_path / name)
    (tmp_path / "cut" / "model.pb").write_bytes((artifact / "model.pb").read_bytes()[:1000])
    shutil.copy(other / "model_init.pb", tmp_path / "mixed")
    (tmp_path / "half" / "model_init.pb").unlink()
    cases = {
        f"cannot read {tmp_path}/nothing.ppm": detect(artifact, tmp_path / "nothing.ppm"),
        "truncated.ppm is truncated": detect(artifact, truncated),
        f"cannot read {tmp_path}/nothing/model_init.pb": detect(tmp_path / "nothing", whole),
        f"cannot read {tmp_path}/half/model_init.pb": detect(tmp_path / "half", whole),
        "cut/model.pb is no Caffe2 net, or truncated": detect(tmp_path / "cut", whole),
        "non-existing input blob: backbone.": detect(tmp_path / "mixed", whole),
    }
    for said, done in cases.items():
        assert done.returncode == 1, (said, done)
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert done.stdout == ""
    assert detect(artifact, whole, "--min-size", "large").returncode == 2
    assert detect(artifact, whole, "one argument too many").returncode == 2


def test_a_net_without_boxes_is_refused_in_one_line(detect: Detect, exported: Any, tmp_path: Path) -> None:
    _, artifact = exported("retinanet_fpn")
    image = tmp_path / "image.ppm"
    image.write_bytes(b"P6 64 64 255\n" + bytes(64 * 64 * 3))
    done = detect(artifact, image, "--min-size", "0")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "detect: this net makes no score_nms: it is not that of an R-CNN model\n"
