"""The guide to TensorFlow artifacts does what it says: its code runs as it stands.

No TensorFlow Serving is on the package index, so requests meet a stand-in here: a server that turns JSON into
tensors and back by the rules of Serving's documented REST API, with the SavedModel's signature between them.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from zooport.export_core import demo
from zooport.export_core.evaluation import read_image, resize_shortest_edge
from zooport.export_core.failures import Failure

if TYPE_CHECKING:
    from zooport.export_core.tensorflow.process import TensorFlowProcess

GUIDE = (Path(__file__).resolve().parents[1] / "docs" / "serving.md").read_text(encoding="utf-8")
PHOTO = demo.ZOO / "data" / "val" / "000000100017.jpg"
SERVER = "http://localhost:8501"
MODEL = "/v1/models/detector:predict"
LOADED_BY_TENSORFLOW = slice(0, 3)  # blocks of Python; the last one is the client
# TensorFlow rounds a resized image once, Pillow twice.
PIXELS = 0.25
SCORE = 0.005

pytestmark = pytest.mark.slow

Fields = dict[str, np.ndarray[Any, Any]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", GUIDE, re.M | re.S)


@pytest.fixture(scope="module")
def folder(tensorflow_artifact: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the guide's code runs: an artifact and a photo."""
    place = tmp_path_factory.mktemp("guide")
    shutil.copytree(tensorflow_artifact, place / "artifact")
    shutil.copy(PHOTO, place / "photo.jpg")
    return place


@pytest.fixture(scope="module")
def wanted(tensorflow_artifact: Path, tensorflow_process: TensorFlowProcess) -> Fields:
    """What the model finds in the photo, boxes in its pixels."""
    about = json.loads((tensorflow_artifact / "model.json").read_text(encoding="utf-8"))["preprocessing"]
    pixels = read_image(PHOTO, about["channel_order"])
    resize = about["resize"]
    resized = resize_shortest_edge(pixels, resize["shortest_edge"], resize["longest_edge"])
    found = tensorflow_process.run({"image": resized.astype(np.float32)})
    scale = pixels.shape[1] / resized.shape[1], pixels.shape[0] / resized.shape[0]
    return {**found, "pred_boxes": found["pred_boxes"] * (scale * 2)}


def run(code: str, folder: Path) -> dict[str, Any]:
    """What code prints last, as JSON, in a process of its own."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_every_way_of_loading_finds_what_the_model_finds(folder: Path, wanted: Fields) -> None:
    code = [
        *blocks("python")[LOADED_BY_TENSORFLOW],
        "results = [found['scores'], frozen['scores'], layered['scores']]",
        "results = [[float(score) for score in scores] for scores in results]",
        "print(json.dumps({'boxes': boxes.numpy().tolist(), 'scores': results}))",
    ]
    found = run("\n".join(code), folder)
    confident = wanted["scores"] > 0.3
    assert confident.sum() >= 3
    boxes, scores = np.array(found["boxes"]), np.array(found["scores"])
    assert np.abs(scores - scores[0]).max() < SCORE
    # Detections of nearly one score may have changed places.
    apart = np.abs(boxes[:, None] - wanted["pred_boxes"][confident]).max(axis=2)
    assert apart.min(axis=0).max() < PIXELS
    assert np.abs(scores[0][apart.argmin(axis=0)] - wanted["scores"][confident]).max() < SCORE


def test_the_request_of_the_guide_has_the_answer_of_the_guide(tensorflow_process: TensorFlowProcess) -> None:
    request, answer = (json.loads(block) for block in blocks("json"))
    assert predict(tensorflow_process, request) == answer


def test_the_client_of_the_guide_gets_what_the_model_finds(folder: Path, wanted: Fields, server: str) -> None:
    client = blocks("python")[-1]
    assert client.count(SERVER) == 1
    code = client.replace(SERVER, server)
    code += "print(json.dumps({**outputs, 'pred_boxes': boxes.tolist()}))"
    found = run(code, folder)
    assert sorted(found) == sorted(wanted)
    assert found["pred_classes"] == wanted["pred_classes"].tolist()
    for name in ("pred_boxes", "scores", "pred_masks"):
        assert np.array(found[name]).shape == wanted[name].shape
        assert np.abs(np.array(found[name]) - wanted[name]).max() < 1e-3, name


def test_instances_are_refused_by_a_model_without_a_batch(tensorflow_process: TensorFlowProcess) -> None:
    request, _ = (json.loads(block) for block in blocks("json"))
    rows = {"instances": [request["inputs"]]}
    with pytest.raises(Failure) as refused:
        predict(tensorflow_process, rows)
    assert refused.value.code == "artifact.unloadable"


def predict(process: TensorFlowProcess, request: dict[str, Any]) -> dict[str, Any]:
    """Answer a request as Serving's REST API documents it, for a signature with one input."""
    assert ("inputs" in request) != ("instances" in request)
    assert request.get("signature_name", "serving_default") == "serving_default"
    if "inputs" in request:
        given = request["inputs"]
        image = given["image"] if isinstance(given, dict) else given
    else:
        image = [each["image"] if isinstance(each, dict) else each for each in request["instances"]]
    found = {
        name: value.tolist() for name, value in process.run({"image": np.array(image, np.float32)}).items()
    }
    if "inputs" in request:
        return {"outputs": found if len(found) > 1 else next(iter(found.values()))}
    return {"predictions": [dict(zip(found, row, strict=True)) for row in zip(*found.values(), strict=True)]}


@pytest.fixture
def server(tensorflow_process: TensorFlowProcess) -> Iterator[str]:
    """The address of the stand-in for TensorFlow Serving."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            try:
                status, answer = 200, predict(tensorflow_process, request)
            except Failure as failure:
                status, answer = 400, {"error": failure.message}
            if self.path != MODEL:
                status, answer = 404, {"error": f"no {self.path}"}
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

    with ThreadingHTTPServer(("localhost", 0), Handler) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://localhost:{listening.server_address[1]}"
        listening.shutdown()
