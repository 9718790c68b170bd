"""The C example finds what Python finds: built against the installed TensorFlow, run on both containers."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core import demo
from zooport.export_core.evaluation import read_image
from zooport.export_core.evaluation.images import resized_shape
from zooport.export_core.evaluation.postprocess import paste_mask, to_image_frame

if TYPE_CHECKING:
    from zooport.export_core.tensorflow.process import TensorFlowProcess

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "tensorflow_c"
PIXELS = 0.01  # box corners
SCORE = 1e-4
FLIPPED = 2  # pixels of a mask whose probability is one half but for the last bit
# What TensorFlow's library says while it is loaded, whatever it was told.
NOTICE = ("WARNING: All log messages before absl::InitializeLog()", "oneDNN custom operations are on.")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        shutil.which("gcc") is None,
        reason="no gcc: the C example was neither built nor run (Debian: apt-get install gcc)",
    ),
]

BILINEAR = Image.Resampling.BILINEAR
Detect = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def detect(tmp_path_factory: pytest.TempPathFactory) -> Detect:
    """Build the program as its README says, and return a way to run it."""
    program = tmp_path_factory.mktemp("c") / "detect"
    build: list[str | Path] = [EXAMPLE / "build.sh", sys.executable, program]
    done = subprocess.run(build, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "the compiler warns"
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}

    def run(model: Path, image: Path, *options: str) -> Any:
        command: list[str | Path] = [program, model, image, *options]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    return run


def said(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the program itself wrote to standard error."""
    lines = done.stderr.splitlines()
    return [line for line in lines if not any(known in line for known in NOTICE)]


def found_by_python(process: TensorFlowProcess, image: Path, sizes: tuple[int, int]) -> dict[str, Any]:
    pixels = read_image(image, "BGR")
    height, width = resized_shape(pixels.shape[0], pixels.shape[1], *sizes)
    # One direction after the other: Pillow 13 goes down before it goes across where that is less work.
    across = Image.fromarray(np.ascontiguousarray(pixels)).resize((width, pixels.shape[0]), BILINEAR)
    resized = np.asarray(across.resize((width, height), BILINEAR))
    outputs = process.run({"image": resized.astype(np.float32)})
    found = to_image_frame(outputs, resized.shape[:2], pixels.shape[:2])
    squares = zip(found["pred_masks"][:, 0], found["pred_boxes"], strict=True)
    masks = [paste_mask(*square, *pixels.shape[:2]).full(*pixels.shape[:2]) for square in squares]
    return {**found, "masks": masks}


@pytest.mark.parametrize(("container", "picture"), [("saved_model", 0), ("model.pb", 38)])
def test_detections_and_masks_equal_pythons(
    detect: Detect,
    tensorflow_artifact: Path,
    tensorflow_process: TensorFlowProcess,
    tmp_path: Path,
    container: str,
    picture: int,
) -> None:
    about = json.loads((tensorflow_artifact / "model.json").read_text(encoding="utf-8"))
    resize = about["preprocessing"]["resize"]
    sizes = resize["shortest_edge"], resize["longest_edge"]
    photo = sorted((demo.ZOO / "data" / "val").iterdir())[picture]
    image = tmp_path / "image.ppm"
    Image.fromarray(read_image(photo, "RGB")).save(image)
    options = ["--min-size", str(sizes[0]), "--max-size", str(sizes[1]), "--masks", str(tmp_path)]
    done = detect(tensorflow_artifact / container, image, *options)
    assert done.returncode == 0, done.stderr
    assert said(done) == []
    found = [json.loads(line) for line in done.stdout.splitlines()]
    wanted = found_by_python(tensorflow_process, photo, sizes)
    assert len(found) > 1
    assert [each["class"] for each in found] == wanted["pred_classes"].tolist()
    boxes = np.array([each["box"] for each in found])
    assert np.abs(boxes - wanted["pred_boxes"]).max() < PIXELS
    assert np.abs(np.array([each["score"] for each in found]) - wanted["scores"]).max() < SCORE
    for index, (each, mask) in enumerate(zip(found, wanted["masks"], strict=True)):
        assert abs(each["mask_area"] - int(mask.sum())) <= FLIPPED, index
        with Image.open(tmp_path / f"{index}.pgm") as written:
            drawn = np.asarray(written) == 255
        assert drawn.shape == mask.shape
        assert int((drawn != mask).sum()) <= FLIPPED, index


def test_an_image_without_detections_prints_nothing(
    detect: Detect, tensorflow_artifact: Path, tmp_path: Path
) -> None:
    image = tmp_path / "grey.ppm"
    image.write_bytes(b"P6 64 64 255\n" + bytes([114]) * (64 * 64 * 3))
    done = detect(tensorflow_artifact / "saved_model", image, "--min-size", "0")
    assert (done.returncode, done.stdout, said(done)) == (0, "", [])


def test_bad_input_ends_in_one_line(detect: Detect, tensorflow_artifact: Path, tmp_path: Path) -> None:
    whole = tmp_path / "whole.ppm"
    whole.write_bytes(b"P6 # a comment\n4 4 255\n" + bytes(48))
    truncated = tmp_path / "truncated.ppm"
    truncated.write_bytes(b"P6 4 4 255\n" + bytes(47))
    cut = tmp_path / "cut"
    cut.mkdir()
    model = tensorflow_artifact / "saved_model" / "saved_model.pb"
    (cut / "saved_model.pb").write_bytes(model.read_bytes()[:1000])
    cases = {
        f"cannot read {tmp_path}/nothing.ppm: No such file": detect(model.parent, tmp_path / "nothing.ppm"),
        "is not a binary PPM (P6) with 8 bits per channel": detect(model.parent, model),
        "truncated.ppm is truncated": detect(model.parent, truncated),
        "image is too elongated": detect(model.parent, elongated(tmp_path), "--min-size", "1"),
        f"cannot read {tmp_path}/nothing: No such file": detect(tmp_path / "nothing", whole),
        f"cannot read {tensorflow_artifact}/saved_model.pb": detect(tensorflow_artifact, whole),
        "cut/saved_model.pb: ": detect(cut, whole),
        "whole.ppm: Invalid GraphDef": detect(whole, whole),
    }
    check_refusals(cases)
    for wrong in (("--min-size", "large"), ("--masks",), ("one argument too many",)):
        assert detect(model.parent, whole, *wrong).returncode == 2


def test_graphs_of_others_are_refused_in_one_line(detect: Detect, tmp_path: Path) -> None:
    image = tmp_path / "image.ppm"
    image.write_bytes(b"P6 4 4 255\n" + bytes(48))
    three = placeholder("image", 3)
    outputs = [node(name, "Identity", "image") for name in ("pred_boxes", "scores", "pred_classes")]
    graphs = {
        "is no model of zooport: its graph has no input image": [placeholder("x", 3)],
        "takes a batch of images": [placeholder("image", 4)],
        "takes proposal_boxes as well as an image": [three, placeholder("proposal_boxes", 2)],
        "this model returns no pred_boxes": [three],
        "pred_boxes is of another type or shape": [three, *outputs],
    }
    cases = {}
    for number, (message, nodes) in enumerate(graphs.items()):
        model = tmp_path / f"{number}.pb"
        model.write_bytes(b"".join(field(1, each) for each in nodes))
        cases[message] = detect(model, image, "--min-size", "0")
    check_refusals(cases)


def check_refusals(cases: dict[str, subprocess.CompletedProcess[str]]) -> None:
    for message, done in cases.items():
        assert (done.returncode, done.stdout) == (1, ""), (message, done)
        (line,) = said(done)
        assert line.startswith("detect: ")
        assert message in line


def elongated(folder: Path) -> Path:
    image = folder / "elongated image"
    image.write_bytes(b"P6 4000 1 255\n" + bytes(12000))
    return image


# A GraphDef in protobuf's encoding: this process is to have no TensorFlow. A graph is fields 1, its nodes.


def field(number: int, data: bytes) -> bytes:
    """A field of bytes, fewer than 128."""
    return bytes([number << 3 | 2, len(data)]) + data


def node(name: str, operator: str, *inputs: str, **attributes: bytes) -> bytes:
    attributes = {**({} if attributes else {"T": FLOAT}), **attributes}
    pairs = [field(1, key.encode()) + field(2, value) for key, value in attributes.items()]
    parts = [
        field(1, name.encode()),
        field(2, operator.encode()),
        *(field(3, each.encode()) for each in inputs),
    ]
    return b"".join([*parts, *(field(5, pair) for pair in pairs)])


def placeholder(name: str, rank: int) -> bytes:
    unknown = field(2, bytes([1 << 3]) + b"\xff" * 9 + b"\x01")  # a dimension of size -1
    return node(name, "Placeholder", dtype=FLOAT, shape=field(7, unknown * rank))


FLOAT = bytes([6 << 3, 1])  # an attribute's value: the type float32
