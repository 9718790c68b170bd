"""Caffe2 nets say what the eager model says: padding, scales and borders included.

Nets are run by the reference executor; ``test_caffe2_real_runtime.py`` runs them on Caffe2 itself.
"""

from __future__ import annotations

import hashlib
import io
import pickletools
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zooport.export_core import formats
from zooport.export_core.caffe2.arguments import arguments_of
from zooport.export_core.caffe2.executors import choose_executor
from zooport.export_core.caffe2.net_files import INPUTS, read_nets
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import Config, load_config
from zooport.export_core.evaluation.images import read_image
from zooport.export_core.failures import Failure
from zooport.export_core.formats.caffe2_export import EXECUTOR
from zooport.export_core.formats.caffe2_results import Caffe2Predictor
from zooport.export_core.modeling.build import load_model
from zooport.export_core.samples import Sample
from zooport.export_core.verification import compare_outputs
from zooport.tests.artifact_processes import arrays
from zooport.tests.official_zoo import TINY, TINY_REGNET, build_for_export, config_of, inputs_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

KINDS = [
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-Detection/rpn_R_50_C4_1x",
    "COCO-Detection/rpn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x",
    "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic",
    "Misc/semantic_R_50_FPN_1x",
]
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"
SIZES = [(96, 128), (110, 90), (75, 133)]
DEMO = ["mask_rcnn_fpn", "keypoint_rcnn_fpn", "retinanet_fpn", "cascade_mask_rcnn_fpn", "panoptic_fpn"]
PICTURE = "000000100026.png"
THRESHOLDS = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.3}
FILES = ("model.pb", "model_init.pb", "model.pbtxt")

Fields = dict[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def on_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXECUTOR, "reference")


def tiny_config(name: str) -> Config:
    return config_of(name, TINY | (TINY_REGNET if "regnet" in name else {}))


def export(model: Any, config: Config, directory: Path, image: torch.Tensor | None = None) -> None:
    exporter = formats.get("caffe2")
    exporter.requires(config, {})
    sample = torch.zeros(3, 64, 96) if image is None else image
    exporter.export(model, {"image": sample}, [], directory, {})


@torch.no_grad()
def run(model: Any, image: torch.Tensor) -> Fields:
    return arrays(model([{"image": image}])[0])


def check(model: Any, directory: Path, image: torch.Tensor) -> Fields:
    """Compare a net with the eager model as verification does; return what the net found."""
    exporter = formats.get("caffe2")
    wanted = run(model, image)
    found = exporter.load(directory, sorted(wanted), {})(image.numpy())
    compare_outputs(Sample("sample", {"image": image.numpy()}, wanted), found, exporter.tolerance({}))
    return found


@pytest.fixture(scope="module")
def demo(demo_zoo: Path) -> Callable[[str], Any]:
    """From the name of a demo model to the model, its config and an image."""

    def load(name: str) -> Any:
        config = load_config(demo_zoo / name / "config.yaml", THRESHOLDS)
        (weights,) = (demo_zoo / name).glob("model_final.*")
        model = load_model(config, read_weights(weights), name)
        picture = read_image(demo_zoo / "data" / "val" / PICTURE, config.INPUT.FORMAT)
        return model, config, torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))

    return load


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_of_model_says_what_the_eager_one_says(name: str, tmp_path: Path) -> None:
    model = build_for_export(name, tiny=True)
    export(model, tiny_config(name), tmp_path)
    for size in SIZES:
        check(model, tmp_path, inputs_of(name, *size)["image"])


@pytest.mark.parametrize("name", DEMO)
def test_a_trained_model_is_the_same_at_every_size_and_without_detections(
    name: str, demo: Any, tmp_path: Path
) -> None:
    model, config, image = demo(name)
    export(model, config, tmp_path)
    for part in (image, image[:, :200, :170], image[:, 30:, 45:]):
        assert len(check(model, tmp_path, part.contiguous())["scores"]) > 0
    nothing = check(model, tmp_path, torch.full((3, 64, 64), 114.0))
    assert len(nothing["scores"]) == 0


def test_neither_the_padding_nor_the_scale_changes_anything(demo: Any, tmp_path: Path) -> None:
    model, config, image = demo("mask_rcnn_fpn")
    export(model, config, tmp_path)
    nets = read_nets(tmp_path)
    loaded = choose_executor("reference").load(nets)
    _, height, width = image.shape
    results = []
    for value, scale in ((0.0, 1.0), (255.0, 1.0), (0.0, 1.7)):
        data = np.full((1, 3, -(-height // 32) * 32, -(-width // 32) * 32), value, np.float32)
        data[0, :, :height, :width] = image
        results.append(loaded.run({"data": data, "im_info": np.array([[height, width, scale]], np.float32)}))
    assert len(results[0]["score_nms"]) > 0
    for other in results[1:]:
        for name, wanted in results[0].items():
            np.testing.assert_array_equal(wanted, other[name])


def test_the_sample_leaves_no_trace(demo: Any, tmp_path: Path) -> None:
    """Two exports are alike to the byte, whether their samples have detections or not."""
    model, config, image = demo("mask_rcnn_fpn")
    digests = []
    for number, sample in enumerate((image, torch.full((3, 64, 64), 114.0))):
        folder = tmp_path / str(number)
        folder.mkdir()
        export(model, config, folder, sample)
        digests.append([hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES])
    assert digests[0] == digests[1]


def test_nets_have_the_form_that_loaders_expect(tmp_path: Path) -> None:
    model = build_for_export(MASK, tiny=True)
    export(model, tiny_config(MASK), tmp_path)
    nets = read_nets(tmp_path)
    assert tuple(nets.predict.external_input[:2]) == INPUTS
    made = [name for operator in nets.init.op for name in operator.output]
    assert list(nets.predict.external_input[2:]) == made
    assert {operator.type for operator in nets.init.op} == {"GivenTensorFill"}
    assert list(nets.outputs) == ["bbox_nms", "score_nms", "class_nms", "mask_fcn_probs"]
    arguments = arguments_of(nets.predict)
    assert arguments == {"size_divisibility": 32, "device": b"cpu", "meta_architecture": b"GeneralizedRCNN"}
    count = sum(value.numel() for value in model.state_dict().values())
    assert (tmp_path / "model_init.pb").stat().st_size < 5 * count + 100 * len(made)
    assert "backbone.bottom_up.stem.conv1.weight" in made
    assert "roi_heads.box_predictor.cls_score.weight" in made


def test_panoptic_nets_say_how_to_combine(tmp_path: Path) -> None:
    export(build_for_export(PANOPTIC, tiny=True), tiny_config(PANOPTIC), tmp_path)
    nets = read_nets(tmp_path)
    assert list(nets.outputs)[-1] == "sem_seg"
    arguments = arguments_of(nets.predict)
    assert arguments["combine_overlap_threshold"] == 0.5
    assert arguments["combine_stuff_area_limit"] == 4096
    assert arguments["combine_instances_confidence_threshold"] == 0.5


def test_a_retinanet_net_needs_nothing_but_itself(tmp_path: Path) -> None:
    model = build_for_export(RETINANET, tiny=True)
    export(model, tiny_config(RETINANET), tmp_path)
    nets = read_nets(tmp_path)
    levels = range(5)
    features = [f"feature_{level}" for level in levels]
    dense = [f"{name}_{level}" for level in levels for name in ("box_cls", "box_delta")]
    assert list(nets.outputs) == ["im_info", *features, *dense]
    arguments = arguments_of(nets.predict)
    assert arguments["anchor_strides"] == [8, 16, 32, 64, 128]
    assert len(arguments["anchors_0"]) == 9 * 4
    pickled = io.BytesIO(arguments["serialized_anchor_generator"])
    parts = [list(pickletools.genops(pickled)) for _ in range(4)]  # a number, a version, a system, the object
    classes = [str(argument) for code, argument, _ in parts[-1] if code.name == "GLOBAL"]
    assert classes[0] == "detectron2.modeling.anchor_generator DefaultAnchorGenerator"
    assert "detectron2.modeling.anchor_generator BufferList" in classes
    assert not [name for name in classes if "zooport" in name]
    assert "detectron2" not in sys.modules

    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("zooport runs no pickle that a net carries")

    torch_load, torch.load = torch.load, never
    try:
        loaded = choose_executor("reference").load(nets)
        image = inputs_of(RETINANET, *SIZES[0])["image"]
        Caffe2Predictor(loaded, nets.predict, ["scores"])(image.numpy())
    finally:
        torch.load = torch_load


def test_a_net_may_find_keypoints_itself_near_where_the_eager_model_does(demo: Any, tmp_path: Path) -> None:
    model, config, image = demo("keypoint_rcnn_fpn")
    exporter, options = formats.get("caffe2"), {"heatmap_max": True}
    exporter.requires(config, options)
    exporter.export(model, {"image": image}, [], tmp_path, options)
    assert list(read_nets(tmp_path).outputs) == ["bbox_nms", "score_nms", "class_nms", "keypoints_out"]
    eager = run(model, image)
    inputs = {"image": image.numpy()}
    found = exporter.load(tmp_path, sorted(eager), options)(**inputs)
    assert set(eager) - set(found) == {"pred_keypoint_heatmaps"}
    _, wanted = exporter.expected(inputs, eager, options)
    compare_outputs(Sample("sample", inputs, dict(wanted)), found, exporter.tolerance(options))
    box = eager["pred_boxes"]
    cell = (box[:, 2:] - box[:, :2]).max(1) / eager["pred_keypoint_heatmaps"].shape[-1]
    apart = np.abs(found["pred_keypoints"] - eager["pred_keypoints"])[..., :2].max(-1) / cell[:, None]
    assert 0.01 < np.median(apart) < 1, "between pixels, where the eager model's are on those of the box"
    assert np.abs(found["pred_keypoints"] - eager["pred_keypoints"])[..., 2].mean() < 0.1


@pytest.mark.parametrize(
    ("name", "options", "code", "word"),
    [
        (MASK, {"heatmap_max": True}, "unsupported.combination", "MODEL.KEYPOINT_ON"),
        (MASK, {"heatmap_max": "yes"}, "export.option", "'yes'"),
        (MASK, {"runtime": "torch"}, "export.option", "'torch'"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    name: str, options: dict[str, Any], code: str, word: str
) -> None:
    with pytest.raises(Failure) as caught:
        formats.get("caffe2").requires(config_of(name), options)
    assert caught.value.code == code
    assert word in caught.value.message


def test_a_runtime_that_is_not_here_is_missed_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_CACHE", str(tmp_path))
    with pytest.raises(Failure) as caught:
        formats.get("caffe2").requires(config_of(MASK), {"runtime": "caffe2"})
    assert caught.value.code == "dependency.missing"
    assert "zooport runtime install caffe2" in f"{caught.value.message} {caught.value.hint}"


def test_a_variable_that_names_no_runtime_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(build_for_export(MASK, tiny=True), tiny_config(MASK), tmp_path)
    monkeypatch.setenv(EXECUTOR, "tensorrt")
    with pytest.raises(Failure, match="ZOOPORT_CAFFE2_RUNTIME=tensorrt") as caught:
        formats.get("caffe2").load(tmp_path, ["scores"], {})
    assert caught.value.code == "export.option"


@pytest.mark.parametrize(
    ("name", "overrides", "key"),
    [
        ("Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5", {}, "MODEL.RESNETS.DEFORM_ON_PER_STAGE"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x", {}, "MODEL.PROPOSAL_GENERATOR.NAME"),
        ("COCO-Detection/fcos_R_50_FPN_1x", {}, "MODEL.META_ARCHITECTURE"),
        (MASK, {"TEST.DETECTIONS_PER_IMAGE": 0}, "TEST.DETECTIONS_PER_IMAGE"),
    ],
)
def test_what_caffe2_cannot_do_is_refused_before_any_work(
    name: str, overrides: dict[str, Any], key: str
) -> None:
    with pytest.raises(Failure) as caught:
        formats.get("caffe2").requires(config_of(name, overrides), {})
    assert caught.value.code == "unsupported.combination"
    assert key in caught.value.message


def test_batches_are_no_option() -> None:
    with pytest.raises(Failure) as caught:
        formats.get("caffe2").requires(config_of(MASK), {"batch": 2})
    assert caught.value.code == "export.option"


@pytest.mark.skipif(shutil.which("dot") is None, reason="no dot: nothing is drawn (apt-get install graphviz)")
def test_the_net_is_drawn_with_the_shapes_of_a_run(tmp_path: Path) -> None:
    export(build_for_export(MASK, tiny=True), tiny_config(MASK), tmp_path)
    drawn = (tmp_path / "model.svg").read_text()
    nets = read_nets(tmp_path)
    assert drawn.count('class="node"') == len(nets.inputs) + len(nets.predict.op) + len(nets.outputs)
    assert "1x3x64x96" in drawn
    assert "roi_heads.box_predictor.cls_score.weight" in drawn


def test_without_graphviz_everything_else_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    exporter = formats.get("caffe2")
    exporter.requires(tiny_config(MASK), {})
    model = build_for_export(MASK, tiny=True)
    exporter.export(model, {"image": torch.zeros(3, 64, 96)}, [], tmp_path, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    assert [
        remark for remark in exporter.remarks if "model.svg" in remark and "apt install graphviz" in remark
    ]


class Unusual(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.erf(x)


def test_an_operator_without_a_counterpart_is_named_with_its_module(tmp_path: Path) -> None:
    model: Any = build_for_export(MASK, tiny=True)
    model.backbone.bottom_up.stem.conv1.activation = Unusual()
    with pytest.raises(Failure) as caught:
        export(model, tiny_config(MASK), tmp_path)
    assert caught.value.code == "unsupported.operator"
    assert caught.value.details == {"operator": "Erf", "module": "backbone.bottom_up.stem.conv1.activation"}
    assert list(tmp_path.iterdir()) == []


def test_a_caffe2_export_changes_nothing_for_later_ones(tmp_path: Path) -> None:
    """Its way to write GroupNorm is not left behind for the next ONNX export of the process."""
    name = PANOPTIC
    model = build_for_export(name, tiny=True)
    inputs = inputs_of(name, *SIZES[0])
    (tmp_path / "caffe2").mkdir()
    (tmp_path / "onnx").mkdir()
    export(model, tiny_config(name), tmp_path / "caffe2")
    with torch.no_grad():
        wanted = arrays(model([inputs])[0])
    formats.get("onnx").export(model, inputs, sorted(wanted), tmp_path / "onnx", {})
    found = formats.get("onnx").load(tmp_path / "onnx", sorted(wanted), {})(**arrays(inputs))
    compare_outputs(Sample("sample", arrays(inputs), wanted), found, formats.get("onnx").tolerance({}))
