"""What a config may say although no official one does: every format gives what the eager model gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from zooport.export_core import formats
from zooport.export_core.formats.caffe2_export import EXECUTOR
from zooport.export_core.samples import Sample
from zooport.export_core.verification import compare_outputs
from zooport.tests.artifact_processes import arrays
from zooport.tests.official_zoo import TINY, build_for_export, config_of, inputs_of, tame

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x"
REGNET = "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x"
FLAT_ANCHORS = {
    "MODEL.ANCHOR_GENERATOR.SIZES": [24, 48],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [0.5, 1.0, 2.0],
}
# Nothing else keeps the activations of made-up weights in range.
NO_NORMS = {"MODEL.RESNETS.NORM": "", "MODEL.PIXEL_STD": [4000.0] * 3}
GREY = {"INPUT.FORMAT": "L", "MODEL.PIXEL_MEAN": [112.0], "MODEL.PIXEL_STD": [1.0]}
FORMATS = ["torchscript-trace", "torchscript-script", "onnx", "caffe2", "torch-export", "tensorflow"]
SLOW = {"torch-export", "tensorflow"}
SIZES = [(96, 128), (75, 133)]

# Whose scores would all be alike, and as what they are kept in range.
ADJUSTED_AS = {FCOS: RETINANET, REGNET: REGNET}

# What is rare -> a model and what its config says.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "as many detections as there are": (MASK, {"TEST.DETECTIONS_PER_IMAGE": -1}),
    "grey images": (MASK, GREY),
    "grey images for RegNet": (REGNET, {**GREY, "MODEL.PIXEL_STD": [57.0]}),
    "grey images for a model of colours": (RETINANET, {"INPUT.FORMAT": "L"}),
    "a ResNet without norms": (MASK, NO_NORMS),
    "a norm for each level of RetinaNet": (RETINANET, {"MODEL.RETINANET.NORM": "BN"}),
    "a norm for each level of FCOS": (FCOS, {"MODEL.FCOS.NORM": "SyncBN"}),
    "the same anchors on every level": (RETINANET, FLAT_ANCHORS),
}
# There are no Caffe2 nets of FCOS, whatever its norm.
PAIRS = [
    pytest.param(case, format_, marks=pytest.mark.slow if format_ in SLOW else ())
    for case, (name, _) in CASES.items()
    for format_ in FORMATS
    if (name, format_) != (FCOS, "caffe2")
]


@pytest.mark.parametrize(("case", "format_"), PAIRS)
@torch.no_grad()
def test_an_artifact_gives_what_the_eager_model_gives(
    case: str, format_: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(EXECUTOR, "reference")
    name, overrides = CASES[case]
    model: Any = build_for_export(name, tiny=True, more=overrides)
    if name in ADJUSTED_AS:
        tame(ADJUSTED_AS[name], model.state_dict())
    config = config_of(name, TINY | overrides)
    inputs = [inputs_of(name, *size) for size in SIZES]
    if config.INPUT.FORMAT == "L":
        inputs = [{"image": one["image"][:1]} for one in inputs]
    samples = [Sample(str(one["image"].shape), arrays(one), arrays(model([one])[0])) for one in inputs]
    exporter, fields = formats.get(format_), sorted(samples[0].outputs)
    exporter.requires(config, {})
    exporter.export(model, inputs[0], fields, tmp_path, {})

    predict = exporter.load(tmp_path, fields, {})

    for sample in samples:
        assert sample.detections > 3
        compare_outputs(sample, predict(**sample.inputs), exporter.tolerance({}))
    getattr(predict, "close", lambda: None)()
