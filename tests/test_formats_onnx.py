"""The ONNX format: what goes in, what comes out, options, how large the file is, and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from zooport.export_core import formats
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import load_config
from zooport.export_core.evaluation import read_image
from zooport.export_core.evaluation.framing import in_image_frame
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats import onnx_file
from zooport.export_core.formats.base import Format
from zooport.export_core.formats.onnx_dense import split
from zooport.export_core.formats.onnx_frame import to_frame
from zooport.export_core.formats.onnx_heatmaps import MatrixHeatmapDecoder, peaks, upper_bounds
from zooport.export_core.formats.onnx_operators import float_at_most, registered
from zooport.export_core.formats.onnx_regions import OneImageSelector
from zooport.export_core.formats.onnx_stand_ins import BatchedClassNms, stand_ins
from zooport.export_core.isolation import run_isolated
from zooport.export_core.modeling.boxes import class_nms
from zooport.export_core.modeling.build import load_model
from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder
from zooport.export_core.samples import Sample
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.export_core.threads import asked_threads
from zooport.export_core.verification import compare_outputs
from zooport.tests.artifact_processes import ONNX, arrays
from zooport.tests.official_zoo import build_for_export, config_of, inputs_of

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"
SEMANTIC = "Misc/semantic_R_50_FPN_1x"
FAST = "COCO-Detection/fast_rcnn_R_50_FPN_1x"
DEFORMABLE = "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5"
RPN = "COCO-Detection/rpn_R_50_FPN_1x"
IMAGES = [(96, 128), (110, 90), (75, 133)]
PICTURE = "000000100026.png"
DEMO = ["mask_rcnn_fpn", "mask_rcnn_dcn_fpn", "keypoint_rcnn_fpn", "retinanet_fpn", "cascade_mask_rcnn_fpn"]
# So that some picture has nothing in it.
THRESHOLDS = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.3}

# A process that has nothing but ONNX Runtime and numpy reads the artifact and an image, and writes what came.
STRANGER = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1])
names = [output.name for output in session.get_outputs()]
found = session.run(names, dict(numpy.load(sys.argv[2])))
numpy.savez(sys.argv[3], **dict(zip(names, found)))
assert not [name for name in sys.modules if name.split(".")[0] in ("zooport", "torch", "torchvision")]
"""

Fields = dict[str, np.ndarray[Any, Any]]


def exporter() -> Format:
    return formats.get(ONNX)


def export(name: str, directory: Path, options: dict[str, Any] | None = None) -> Any:
    """Export a tiny model of an architecture; return the eager model."""
    model = build_for_export(name, tiny=True)
    inputs = inputs_of(name, *IMAGES[0])
    exporter().export(model, inputs, sorted(run(model, inputs)), directory, options or {})
    return model


@torch.no_grad()
def run(model: Any, inputs: dict[str, torch.Tensor]) -> Fields:
    return arrays(model([inputs])[0])


def check(model: Any, directory: Path, inputs: dict[str, torch.Tensor], options: dict[str, Any]) -> Fields:
    """Compare the artifact with the eager model as verification does; return what it found."""
    wanted = run(model, inputs)
    given = arrays(inputs)
    found = exporter().load(directory, sorted(wanted), options)(**given)
    compare_outputs(Sample("sample", given, wanted), found, exporter().tolerance(options))
    return found


@pytest.fixture(scope="module")
def demo(demo_zoo: Path) -> Callable[[str], Any]:
    """From the name of a demo model to the model and an image."""
    loaded: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in loaded:
            config = load_config(demo_zoo / name / "config.yaml", THRESHOLDS)
            (weights,) = (demo_zoo / name).glob("model_final.*")
            model = load_model(config, read_weights(weights), name)
            picture = read_image(demo_zoo / "data" / "val" / PICTURE, config.INPUT.FORMAT)
            loaded[name] = model, torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))
        return loaded[name]

    return load


@pytest.mark.parametrize("name", DEMO)
def test_a_trained_model_is_the_same_at_every_size_and_without_detections(
    name: str, demo: Any, tmp_path: Path
) -> None:
    model, image = demo(name)
    exporter().export(model, {"image": image}, sorted(run(model, {"image": image})), tmp_path, {})

    for part in (image, image[:, :200, :170], image[:, 30:, 45:]):
        found = check(model, tmp_path, {"image": part.contiguous()}, {})
        assert len(found["scores"]) > 0
    nothing = check(model, tmp_path, {"image": torch.full((3, 64, 64), 114.0)}, {})
    assert len(nothing["scores"]) == 0


@pytest.mark.parametrize(
    ("name", "batch", "heads"),  # and how many convolutions regions have of their own
    [
        (DEFORMABLE, 3, 6),
        (PANOPTIC, 2, 6),
        (KEYPOINT, "dynamic", 9),
        (SEMANTIC, "dynamic", 0),
        (FAST, "dynamic", 0),
    ],
)
def test_in_a_batch_neighbours_do_not_matter_and_the_network_runs_once(
    name: str, batch: int | str, heads: int, tmp_path: Path
) -> None:
    model = export(name, tmp_path, {"batch": batch})

    for size in IMAGES[:2]:
        check(model, tmp_path, inputs_of(name, *size), {"batch": batch})
    graph = onnx.load(tmp_path / "model.onnx").graph
    (loop,) = [node for node in graph.node if node.op_type == "Loop"]
    outside, inside = ([node.op_type for node in nodes_of(part)] for part in (graph, loop.attribute[0].g))
    assert inside.count("Conv") + inside.count("ConvTranspose") <= heads
    assert outside.count("Conv") - inside.count("Conv") > 50  # with those of the loop they are all


def test_group_norm_and_resizing_keep_images_of_a_batch_apart(tmp_path: Path) -> None:
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, stride=2, padding=1),
        torch.nn.GroupNorm(4, 8),
        torch.nn.ReLU(),
        torch.nn.Upsample(scale_factor=2.0, mode="bilinear"),
    ).eval()
    image = torch.randn(1, 3, 20, 30)
    with registered(20):
        torch.onnx.export(
            network,
            (image,),
            str(tmp_path / "raw.onnx"),
            dynamo=False,
            opset_version=20,
            input_names=["image"],
            dynamic_axes={"image": {2: "height", 3: "width"}},
        )
    made = onnx_file.simplify(tmp_path / "raw.onnx", tmp_path / "simple.onnx")

    assert split(made.graph, "image").rest == []

    made.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    made.graph.output[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    session = onnxruntime.InferenceSession(made.SerializeToString())
    images = torch.randn(3, 3, 24, 16) * torch.tensor([1.0, 5.0, 9.0])[:, None, None, None]
    (found,) = session.run(None, {"image": images.numpy()})
    wanted = torch.cat([network(one[None]) for one in images]).detach()
    np.testing.assert_allclose(found, wanted, atol=1e-4)


def test_a_dynamic_batch_takes_any_number_of_images(tmp_path: Path) -> None:
    model = export(MASK, tmp_path, {"batch": "dynamic"})
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    image = inputs_of(MASK, *IMAGES[0])["image"]
    count = len(run(model, {"image": image})["scores"])

    for number in (1, 3):
        index, boxes = session.run(["image_index", "pred_boxes"], {"image": np.stack([image] * number)})
        assert index.tolist() == [place for place in range(number) for _ in range(count)]
        assert boxes.shape == (number * count, 4)


@pytest.mark.parametrize("name", ["mask_rcnn_dcn_fpn", "keypoint_rcnn_fpn"])
def test_half_precision_halves_the_file_and_keeps_detections(name: str, demo: Any, tmp_path: Path) -> None:
    model, image = demo(name)
    fields = sorted(run(model, {"image": image}))
    for options in ({}, {"fp16": True}, {"fp16": True, "batch": 2}):
        directory = tmp_path / str(len(options))
        directory.mkdir()
        exporter().export(model, {"image": image}, fields, directory, options)

    check(model, tmp_path / "1", {"image": image}, {"fp16": True})
    check(model, tmp_path / "2", {"image": image}, {"fp16": True, "batch": 2})
    whole, half = ((tmp_path / name / "model.onnx").stat().st_size for name in ("0", "1"))
    assert half < 0.6 * whole
    with pytest.raises(Failure, match="differs"):
        check(model, tmp_path / "1", {"image": image}, {})


@pytest.mark.parametrize("name", ["mask_rcnn_fpn", "keypoint_rcnn_fpn", "panoptic_fpn"])
def test_results_in_the_frame_of_the_original_image(name: str, demo: Any, tmp_path: Path) -> None:
    model, image = demo(name)
    options = {"postprocess": True}
    fields = sorted(run(model, {"image": image}))
    exporter().export(model, {"image": image}, fields, tmp_path, options)
    predict = exporter().load(tmp_path, fields, options)

    together = {**options, "batch": 2}  # neighbours have the frame in common
    (tmp_path / "batch").mkdir()
    exporter().export(model, {"image": image}, fields, tmp_path / "batch", together)
    in_batch = exporter().load(tmp_path / "batch", fields, together)
    assert in_batch.in_image_frame  # type: ignore[attr-defined]

    nothing = torch.full((3, 64, 64), 114.0)
    for given in (image, image[:, :200, :170].contiguous(), nothing):
        eager = run(model, {"image": given})
        network = (given.shape[1], given.shape[2])
        for height, width in ((97, 301), network):
            wanted = in_image_frame(eager, network, (height, width))
            inputs = {"image": given.numpy(), "height": np.array(height), "width": np.array(width)}
            for found in (predict(**inputs), in_batch(**inputs)):
                compare_outputs(Sample(name, inputs, wanted), found, exporter().tolerance(options))


def test_detections_without_area_are_dropped_with_every_field() -> None:
    """The first box is outside of the image, the last one a line."""
    boxes = torch.tensor([[70.0, 5, 90, 20], [5, 5, 30, 40], [10, 8, 10, 30]])
    generator = torch.Generator().manual_seed(0)
    fields = {
        "pred_boxes": boxes,
        "scores": torch.tensor([0.9, 0.8, 0.7]),
        "pred_classes": torch.tensor([0, 1, 2]),
        "pred_masks": torch.rand(3, 1, 28, 28, generator=generator),
        "pred_keypoints": torch.rand(3, 5, 3, generator=generator),
        "pred_keypoint_heatmaps": torch.rand(3, 5, 56, 56, generator=generator),
    }
    image = torch.zeros(3, 48, 64)

    wanted = in_image_frame(arrays(fields), (48, 64), (96, 128))
    found = arrays(to_frame(fields, image, torch.tensor(96), torch.tensor(128)))

    assert {name: len(value) for name, value in wanted.items()} == dict.fromkeys(fields, 1)
    found["pred_masks"] = found["pred_masks"][:, None]
    compare_outputs(Sample("sample", {"image": image.numpy()}, wanted), found, exporter().tolerance({}))


@pytest.mark.alone
def test_the_pipeline_verifies_and_evaluates_results_in_the_image_frame(
    demo_zoo: Path, tmp_path: Path, detectron2_metrics: dict[str, dict[str, float]]
) -> None:
    folder, data = demo_zoo / "panoptic_fpn", demo_zoo / "data"
    annotations = data / "annotations"
    dataset = DatasetSource(
        "val",
        annotations / "instances_val.json",
        data / "val",
        panoptic=annotations / "panoptic_val.json",
        panoptic_masks=data / "panoptic_val",
        semantic_masks=data / "stuff_val",
    )
    checkpoint = CheckpointSource("panoptic", folder / "config.yaml", folder / "model_final.pth")
    run_stage: Any = partial(run_isolated, timeout=600, log=tmp_path / "log")
    staging = tmp_path / "staging"
    staging.mkdir()

    pipeline = "zooport.export_core.pipeline"
    run_stage(f"{pipeline}:export_stage", checkpoint, ONNX, {"postprocess": True}, dataset, None, staging)
    metrics = run_stage(f"{pipeline}:verify_stage", staging, dataset)

    for name in ("segm/AP", "panoptic_seg/PQ", "sem_seg/mIoU"):
        assert metrics[name] == pytest.approx(detectron2_metrics["panoptic_fpn"][name], abs=0.02)
    described = json.loads((staging / "model.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in described["inputs"]] == ["image", "height", "width"]


def test_half_precision_refuses_a_weight_that_it_cannot_hold(tmp_path: Path) -> None:
    model: Any = build_for_export(RPN, tiny=True)
    model.proposal_generator.rpn_head.anchor_deltas.weight[0, 0] = 1e5
    inputs = inputs_of(RPN, *IMAGES[0])

    with pytest.raises(
        Failure, match=r"cannot hold the weight \S*anchor_deltas.weight: it goes up to 1e\+05"
    ) as caught:
        exporter().export(model, inputs, sorted(run(model, inputs)), tmp_path, {"fp16": True})

    assert caught.value.code == "unsupported.combination"
    assert list(tmp_path.iterdir()) == []


def test_the_opset_is_the_one_asked_for(tmp_path: Path) -> None:
    model = export(MASK, tmp_path, {"opset": 16})

    check(model, tmp_path, inputs_of(MASK, *IMAGES[1]), {})
    (imported,) = onnx.load(tmp_path / "model.onnx").opset_import
    assert (imported.domain, imported.version) == ("", 16)


def nodes_of(graph: Any) -> Iterator[Any]:
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from nodes_of(attribute.g)


def test_the_file_is_small_checked_plain_and_says_what_it_is(tmp_path: Path) -> None:
    model = export(KEYPOINT, tmp_path)
    inputs = inputs_of(KEYPOINT, *IMAGES[0])
    exporter().annotate(tmp_path, DESCRIPTION)

    path = tmp_path / "model.onnx"
    onnx.checker.check_model(str(path), full_check=True)
    made = onnx.load(path)
    parameters = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert path.stat().st_size <= 1.05 * parameters + (1 << 20)
    assert {node.domain for node in nodes_of(made.graph)} == {""}
    assert {node.op_type for node in made.graph.node} >= {"NonMaxSuppression", "RoiAlign", "Loop"}
    session = onnxruntime.InferenceSession(path)
    assert [(value.name, value.shape) for value in session.get_inputs()] == [
        ("image", [3, "height", "width"])
    ]
    shapes = {value.name: value.shape for value in session.get_outputs()}
    assert sorted(shapes) == sorted(run(model, inputs))
    assert shapes["pred_boxes"] == ["N", 4]
    assert shapes["pred_keypoints"] == ["N", 17, 3]
    told = session.get_modelmeta().custom_metadata_map
    assert told["zooport.name"] == "tiny"
    assert json.loads(told["zooport.classes"])[0]["name"] == "person"
    assert list(tmp_path.iterdir()) == [path]


DESCRIPTION = {
    "name": "tiny",
    "meta_architecture": "GeneralizedRCNN",
    "options": {},
    "inputs": [],
    "outputs": [],
    "preprocessing": {"channel_order": "BGR"},
    "classes": [{"index": 0, "name": "person", "dataset_id": 1}],
    "source": {"config_sha256": "0", "weights_sha256": "1"},
    "versions": {"onnx": onnx.__version__},
}


def test_large_weights_go_to_a_file_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnx_file, "LARGEST_FILE", 100_000)

    model = export(RPN, tmp_path)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert (tmp_path / "model.onnx").stat().st_size < 500_000 < (tmp_path / "model.onnx.data").stat().st_size
    exporter().annotate(tmp_path, DESCRIPTION)
    check(model, tmp_path, inputs_of(RPN, *IMAGES[1]), {})


def test_a_process_with_onnx_runtime_alone_uses_the_artifact(tmp_path: Path) -> None:
    model = export(MASK, tmp_path)
    inputs: dict[str, Any] = arrays(inputs_of(MASK, 80, 100))
    np.savez(tmp_path / "inputs.npz", **inputs)

    arguments = [tmp_path / file for file in ("model.onnx", "inputs.npz", "outputs.npz")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True, cwd=tmp_path, timeout=300)

    wanted = run(model, {name: torch.from_numpy(value) for name, value in inputs.items()})
    with np.load(tmp_path / "outputs.npz") as found:
        compare_outputs(Sample("sample", inputs, wanted), dict(found), exporter().info.tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"opset": 15}, "opset = 15 cannot be exact: RoiAlign has no half-pixel mode before opset 16"),
        ({"opset": 11}, "opset = 11 cannot be exact"),
        ({"opset": 99}, "opset = 99 is later than the last that torch's converter writes, 20"),
        ({"opset": "20"}, "opset = '20' is no whole number"),
        ({"opset": True}, "opset = True is no whole number"),
        ({"batch": 0}, "batch = 0 is neither a positive integer nor 'dynamic'"),
        ({"batch": "any"}, "batch = 'any' is neither"),
        ({"batch": True}, "batch = True is neither"),
        ({"fp16": 1}, "fp16 = 1 is neither true nor false"),
        ({"postprocess": "yes"}, "postprocess = 'yes' is neither true nor false"),
        ({"simplify": True}, "format onnx has no option 'simplify'"),
    ],
)
def test_options_that_cannot_be_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Failure) as caught:
        exporter().check_options(options)
    assert message in caught.value.message
    assert (caught.value.code, caught.value.stage) == ("export.option", Stage.PLAN)


def test_deformable_convolution_is_refused_before_its_opset() -> None:
    exporter().requires(config_of(DEFORMABLE), {"opset": 19})
    exporter().requires(config_of(MASK), {"opset": 16})
    with pytest.raises(Failure, match="needs DeformConv, which opset 18 does not have") as caught:
        exporter().requires(config_of(DEFORMABLE), {"opset": 18})
    assert caught.value.code == "unsupported.combination"
    assert caught.value.details["key"] == "MODEL.RESNETS.DEFORM_ON_PER_STAGE"


class Foreign(torch.nn.Module):
    """Returns what an operator makes of an image that ONNX has no counterpart of."""

    def forward(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        return [{"field": torch.special.i0(batch[0]["image"])}]


class Broken(torch.nn.Module):
    def forward(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        raise ValueError("no such thing")


@pytest.mark.parametrize(
    ("module", "code", "said"),
    [
        (Foreign(), "unsupported.operator", "aten::i0 has no counterpart in ONNX"),
        (Broken(), "export.failed", "ValueError: no such thing"),
    ],
)
def test_what_does_not_convert_is_typed_and_leaves_no_file(
    module: torch.nn.Module, code: str, said: str, tmp_path: Path
) -> None:
    with pytest.raises(Failure) as caught:
        exporter().export(module, {"image": torch.zeros(3, 8, 8)}, ["field"], tmp_path, {})
    assert (caught.value.code, caught.value.stage) == (code, Stage.EXPORT)
    assert said in caught.value.message
    assert list(tmp_path.iterdir()) == []


def test_what_no_artifact_is_is_unloadable(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"this is no graph")

    with pytest.raises(Failure, match="ONNX Runtime cannot read") as caught:
        exporter().load(tmp_path, ["scores"], {})

    assert caught.value.code == "artifact.unloadable"
    assert "\n" not in caught.value.message


def test_sessions_have_as_many_threads_as_the_environment_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for said, threads in (("3", 3), ("", 1), ("many", 1), ("0", 1)):
        monkeypatch.setenv("OMP_NUM_THREADS", said)
        assert asked_threads() == threads


def test_modules_are_whole_again_after_an_export(tmp_path: Path) -> None:
    model = export(KEYPOINT, tmp_path)

    kinds = {type(module) for module in model.modules()}
    assert HeatmapDecoder in kinds
    assert not kinds & {OneImageSelector, MatrixHeatmapDecoder}
    with stand_ins(model):
        assert {type(module) for module in model.modules()} >= {OneImageSelector, MatrixHeatmapDecoder}


def test_a_detector_that_proposes_nothing_finds_nothing(tmp_path: Path) -> None:
    model: Any = build_for_export(MASK, tiny=True)
    inputs = inputs_of(MASK, *IMAGES[0])
    fields = sorted(run(model, inputs))
    model.proposal_generator.min_size = 1e6
    assert len(run(model, inputs)["scores"]) == 0

    exporter().export(model, inputs, fields, tmp_path, {})

    check(model, tmp_path, inputs_of(MASK, *IMAGES[1]), {})


@pytest.mark.parametrize("count", [0, 1, 60, 800])
@pytest.mark.parametrize("classes", [1, 20, 1203])
def test_batched_suppression_is_class_wise_suppression(count: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(count + classes)
    corners = torch.rand((count, 2), generator=generator) * 300
    boxes = torch.cat((corners, corners + 1 + torch.rand((count, 2), generator=generator) * 200), dim=1)
    scores = (torch.rand(count, generator=generator) * 30).round() / 30  # with ties
    labels = torch.randint(classes, (count,), generator=generator)

    found = BatchedClassNms(0.5)(boxes, scores, labels)

    assert found.tolist() == class_nms(boxes, scores, labels, 0.5).tolist()


# Small ones are computed as a whole, of large ones what can be highest, if they are not narrow.
BOXES = [
    [0.3, 4.0],
    [30.5, 80.2],
    [56.0, 56.0],
    [120.7, 33.0],
    [1.0, 1.0],
    [300.0, 400.5],
    [90.0, 1e3],
    [600.0, 290.0],
]


@pytest.mark.parametrize("kind", ["rough", "smooth", "at the border", "flat"])
def test_heatmaps_are_decoded_as_by_interpolation(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    heatmaps = torch.randn((len(BOXES), 3, 56, 56), generator=generator) * 3
    if kind == "smooth":
        heatmaps = torch.nn.functional.avg_pool2d(heatmaps, 7, stride=1, padding=3)
    elif kind == "at the border":
        heatmaps[:, 0, 0, 0], heatmaps[:, 1, 20, 55], heatmaps[:, 2, 55, 54:] = 20.0, 20.0, 20.0
    elif kind == "flat":
        heatmaps = heatmaps[:, :, :1, :1].expand(-1, -1, 56, 56).contiguous()
    corners = torch.rand((len(BOXES), 2), generator=generator) * 50
    boxes = torch.cat((corners, corners + torch.tensor(BOXES)), dim=1)

    found = MatrixHeatmapDecoder(peaks)(heatmaps, boxes)

    wanted = HeatmapDecoder()(heatmaps, boxes)
    torch.testing.assert_close(found[..., 2], wanted[..., 2], rtol=1e-4, atol=1e-5)
    if kind != "flat":  # where any pixel may win
        torch.testing.assert_close(found[..., :2], wanted[..., :2], rtol=0, atol=1e-4)
    assert MatrixHeatmapDecoder(peaks)(heatmaps[:0], boxes[:0]).shape == (0, 3, 3)


def test_no_pixel_is_above_the_bound_of_the_cells_around_it() -> None:
    heatmaps = torch.randn((1, 4, 12, 12), generator=torch.Generator().manual_seed(0))
    bounds = upper_bounds(torch.nn.functional.pad(heatmaps, [2, 2, 2, 2], mode="replicate")[0], 12)

    finely = torch.nn.functional.interpolate(heatmaps, size=(192, 192), mode="bicubic")[0]

    spaces = torch.floor((torch.arange(192) + 0.5) / 16 - 0.5).to(torch.int64) + 1
    assert (finely <= bounds[:, spaces][:, :, spaces] + 1e-6).all()
    assert bounds.mean() < finely.mean() + 2.5 * heatmaps.std()  # and they are not far above


@pytest.mark.parametrize("value", [0.5, 0.6, 0.7, 0.3, 0.1, 0.05])
def test_a_threshold_is_rounded_so_that_comparisons_agree(value: float) -> None:
    rounded = np.float32(float_at_most(value))
    for overlap in (np.nextafter(rounded, np.float32(0)), rounded, np.nextafter(rounded, np.float32(1))):
        assert (overlap > rounded) == (float(overlap) > value)
