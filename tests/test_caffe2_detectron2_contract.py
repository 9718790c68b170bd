"""What detectron2's loader of Caffe2 nets reads is there: arguments, inputs, and a pickle it can load."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core import formats
from zooport.export_core.caffe2.arguments import arguments_of
from zooport.export_core.caffe2.net_files import read_nets
from zooport.tests.official_zoo import TINY, build_for_export, config_of

RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x"
MODELS = {
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x": (32, b"GeneralizedRCNN"),
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x": (0, b"GeneralizedRCNN"),
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x": (32, b"PanopticFPN"),
    RETINANET: (32, b"RetinaNet"),
}

# Run by the runtime's Python, which has no detectron2: classes of its names stand in.
LOADER = """
import io, json, sys, types
import torch
from caffe2.proto import caffe2_pb2

name = "detectron2.modeling.anchor_generator"
module = types.ModuleType(name)
for each in ("DefaultAnchorGenerator", "BufferList"):
    setattr(module, each, type(each, (torch.nn.Module,), {"__module__": name}))
sys.modules.update({"detectron2": types.ModuleType("detectron2"), name: module})
sys.modules["detectron2.modeling"] = types.ModuleType("detectron2.modeling")

net = caffe2_pb2.NetDef()
with open(sys.argv[1], "rb") as file:
    net.ParseFromString(file.read())
(pickled,) = [argument.s for argument in net.arg if argument.name == "serialized_anchor_generator"]
loaded = torch.load(io.BytesIO(pickled))
assert type(loaded) is module.DefaultAnchorGenerator
assert type(loaded.cell_anchors) is module.BufferList
print(json.dumps({
    "torch": torch.__version__,
    "cells": [cell.tolist() for cell in loaded.cell_anchors.buffers()],
    "dtypes": [str(cell.dtype) for cell in loaded.cell_anchors.buffers()],
    "strides": loaded.strides,
    "num_features": loaded.num_features,
    "offset": loaded.offset,
}))
"""

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def export(name: str, directory: Path) -> Any:
    exporter = formats.get("caffe2")
    exporter.requires(config_of(name, TINY), {})
    model: Any = build_for_export(name, tiny=True)
    exporter.export(model, {"image": torch.zeros(3, 64, 96)}, [], directory, {})
    return model


@pytest.mark.parametrize("name", MODELS)
def test_nets_have_the_arguments_and_inputs_that_the_loader_takes(name: str, tmp_path: Path) -> None:
    export(name, tmp_path)
    files = {file.name for file in tmp_path.iterdir()}
    assert {"model.pb", "model_init.pb"} <= files
    nets = read_nets(tmp_path)
    divisibility, architecture = MODELS[name]
    arguments = arguments_of(nets.predict)
    assert arguments["size_divisibility"] == divisibility
    assert arguments["device"] == b"cpu"
    assert arguments["meta_architecture"] == architecture
    made = [output for operator in nets.init.op for output in operator.output]
    # Whatever the init net does not make is fed, in this order.
    assert [blob for blob in nets.predict.external_input if blob not in made] == ["data", "im_info"]
    assert {operator.type for operator in nets.init.op} == {"GivenTensorFill"}
    assert not nets.init.external_input
    assert nets.predict.name != nets.init.name


@pytest.mark.slow
@pytest.mark.alone
def test_the_anchor_generator_loads_in_the_runtimes_torch(caffe2_python: Path, tmp_path: Path) -> None:
    generator = export(RETINANET, tmp_path).anchor_generator
    command: list[str | Path] = [caffe2_python, "-c", LOADER, tmp_path / "model.pb"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    assert loaded["torch"].startswith("1.10.2")
    assert loaded["strides"] == [8, 16, 32, 64, 128]
    assert (loaded["num_features"], loaded["offset"]) == (5, 0.0)
    assert set(loaded["dtypes"]) == {"torch.float32"}
    assert len(loaded["cells"]) == 5
    for found, wanted in zip(loaded["cells"], generator.cells, strict=True):
        assert np.array_equal(np.array(found, np.float32), wanted.numpy())


def test_the_pickle_is_the_same_in_every_export(tmp_path: Path) -> None:
    pickles = []
    for run in ("one", "two"):
        (tmp_path / run).mkdir()
        export(RETINANET, tmp_path / run)
        pickles.append(arguments_of(read_nets(tmp_path / run).predict)["serialized_anchor_generator"])
    assert pickles[0] == pickles[1]
    assert b"PK\x05\x06" not in pickles[0], "a ZIP archive makes viewers open it instead of the net"
