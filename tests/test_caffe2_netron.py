"""``model.pb`` opens in Netron: its own scripts, run by Node.js, find every operator and parameter."""

from __future__ import annotations

import json
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch

from zooport.export_core import formats
from zooport.export_core.caffe2.net_files import INPUTS, read_nets
from zooport.tests.official_zoo import TINY, build_for_export, config_of

READER = Path(__file__).with_name("netron_reader.mjs")
MODELS = [
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
    pytest.mark.skipif(shutil.which("node") is None, reason="no Node.js: Netron's scripts were not run"),
    pytest.mark.skipif(find_spec("netron") is None, reason="the package netron is not installed"),
]


@pytest.fixture(scope="module")
def netron(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of the package netron, where Node.js takes them for modules."""
    folder = tmp_path_factory.mktemp("netron")
    spec = find_spec("netron")
    assert spec is not None
    assert spec.origin is not None
    for path in Path(spec.origin).parent.glob("*.js*"):
        shutil.copy(path, folder)
    (folder / "package.json").write_text('{"type": "module"}', encoding="utf-8")
    return folder


@pytest.mark.parametrize("name", MODELS)
def test_netron_finds_every_operator_and_parameter(name: str, netron: Path, tmp_path: Path) -> None:
    exporter = formats.get("caffe2")
    exporter.requires(config_of(name, TINY), {})
    model: Any = build_for_export(name, tiny=True)
    exporter.export(model, {"image": torch.zeros(3, 64, 96)}, [], tmp_path, {})
    nets = read_nets(tmp_path)
    for file in ("model.pb", "model.pbtxt"):
        command: list[str | Path] = ["node", READER, netron, tmp_path / file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        seen = json.loads(done.stdout)
        assert seen["format"] == "Caffe2"
        assert seen["inputs"] == list(INPUTS)
        assert seen["outputs"] == list(nets.predict.external_output)
        assert [node["operator"] for node in seen["nodes"]] == [op.type for op in nets.predict.op]
        assert {node["operator"] for node in seen["nodes"] if not node["known"]} == set()
        parameters = dict(shape for node in seen["nodes"] for shape in node["parameters"])
        assert parameters == {
            op.output[0]: f"float32[{','.join(str(size) for size in shape_of(op))}]" for op in nets.init.op
        }


def shape_of(operator: Any) -> list[int]:
    return next(list(argument.ints) for argument in operator.arg if argument.name == "shape")
