"""The contracts of both TorchScript formats: what goes in, what comes out, options, and what is refused."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core import formats
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import load_config
from zooport.export_core.evaluation import read_image
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats import torchscript_runtime
from zooport.export_core.modeling.build import load_model
from zooport.tests.artifact_processes import SCRIPT, TRACE, arrays
from zooport.tests.official_zoo import build_for_export, inputs_of

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x"
KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"
FAST = "COCO-Detection/fast_rcnn_R_50_FPN_1x"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x"
RPN = "COCO-Detection/rpn_R_50_FPN_1x"

# detectron2's convention: the fields of an image's instances in alphabetical order.
FIELDS = {
    MASK: ["pred_boxes", "pred_classes", "pred_masks", "scores"],
    KEYPOINT: ["pred_boxes", "pred_classes", "pred_keypoint_heatmaps", "pred_keypoints", "scores"],
    PANOPTIC: ["pred_boxes", "pred_classes", "pred_masks", "scores", "sem_seg"],
    FCOS: ["pred_boxes", "pred_classes", "scores"],
    RPN: ["objectness_logits", "proposal_boxes"],
}
# A batch is added up in another order than one image, and each make of processor has its own orders.
RELATIVE = 1e-4
IMAGES = [(96, 128), (110, 90), (75, 133)]

# A process that has nothing of zooport reads the artifact and an image, and writes what came out.
STRANGER = """
import sys, torch, torchvision
model = torch.jit.load(sys.argv[1])
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save(model(*inputs), sys.argv[3])
assert not [name for name in sys.modules if name.split(".")[0] in ("zooport", "detectron2", "numpy.testing")]
"""


def export(name: str, format_: str, directory: Path, options: dict[str, Any] | None = None) -> Any:
    """Export a tiny model of an architecture; return the eager model."""
    model = build_for_export(name, tiny=True)
    inputs = inputs_of(name, *IMAGES[0])
    with torch.no_grad():
        fields = sorted(model([inputs])[0])
    formats.get(format_).export(model, inputs, fields, directory, options or {})
    return model


def assert_close(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert list(found) == sorted(wanted)
    for name, value in arrays(wanted).items():
        scale = float(np.abs(value).max(initial=1e-12))
        np.testing.assert_allclose(found[name].numpy(), value, rtol=0, atol=RELATIVE * scale, err_msg=name)


@pytest.mark.parametrize("name", FIELDS)
@torch.no_grad()
def test_a_trace_returns_fields_in_alphabetical_order_and_the_size(name: str, tmp_path: Path) -> None:
    model = export(name, TRACE, tmp_path)
    traced = torch.jit.load(tmp_path / "model.ts")

    for size in IMAGES:
        image = inputs_of(name, *size)["image"]
        *values, last = traced(image)
        assert len(values) == len(FIELDS[name])
        assert last.tolist() == list(size)
        assert_close(dict(zip(FIELDS[name], values, strict=True)), model([{"image": image}])[0])


@torch.no_grad()
def test_a_trace_of_masks_has_the_documented_types_and_shapes(tmp_path: Path) -> None:
    export(MASK, TRACE, tmp_path)

    boxes, classes, masks, scores, size = torch.jit.load(tmp_path / "model.ts")(
        inputs_of(MASK, 96, 128)["image"]
    )

    count = len(scores)
    assert count > 1
    assert [value.dtype for value in (boxes, masks, scores)] == [torch.float32] * 3
    assert [value.dtype for value in (classes, size)] == [torch.int64] * 2
    assert [tuple(value.shape) for value in (boxes, classes, masks)] == [
        (count, 4),
        (count,),
        (count, 1, 28, 28),
    ]
    assert 0 <= float(masks.min()) <= float(masks.max()) <= 1
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)


@pytest.mark.parametrize(
    "name", ["mask_rcnn_fpn", "keypoint_rcnn_fpn", "retinanet_fpn", "cascade_mask_rcnn_fpn"]
)
@pytest.mark.parametrize("format_", [TRACE, SCRIPT])
@torch.no_grad()
def test_artifacts_hold_for_an_image_without_detections(
    name: str, format_: str, tmp_path: Path, demo_zoo: Path
) -> None:
    thresholds = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.3}
    config = load_config(demo_zoo / name / "config.yaml", thresholds)
    model = load_model(config, read_weights(demo_zoo / name / "model_final.pth"), name)
    picture = read_image(demo_zoo / "data" / "val" / "000000100026.png", config.INPUT.FORMAT)
    image = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))
    something, nothing = model([{"image": image}, {"image": torch.full((3, 64, 64), 114.0)}])
    assert len(something["scores"]) > 0
    assert len(nothing["scores"]) == 0, "the sample finds something"
    formats.get(format_).export(model, {"image": image}, sorted(something), tmp_path, {})

    predict = formats.get(format_).load(tmp_path, sorted(something), {})
    found = predict(np.full((3, 64, 64), 114, dtype=np.float32))

    for field, value in nothing.items():
        assert found[field].shape == value.shape
        assert found[field].shape[1:] == something[field].shape[1:]


@pytest.mark.parametrize("name", [MASK, C4, CASCADE, KEYPOINT, PANOPTIC, FAST, FCOS])
@torch.no_grad()
def test_in_a_traced_batch_neighbours_do_not_matter(name: str, tmp_path: Path) -> None:
    model = export(name, TRACE, tmp_path, {"batch": 2})
    traced = torch.jit.load(tmp_path / "model.ts")
    inputs = inputs_of(name, 90, 120)
    image, neighbours = inputs["image"], [inputs["image"].flip(2), torch.zeros(3, 90, 120)]
    boxes = [inputs[key].repeat(2, 1, 1) for key in inputs if key != "image"]

    wanted = model([inputs])[0]

    for neighbour in neighbours:
        first, _ = traced(torch.stack((image, neighbour)), *boxes)
        _, second = traced(torch.stack((neighbour, image)), *boxes)
        for values in (first, second):
            assert values[-1].tolist() == [90, 120]
            assert_close(dict(zip(sorted(wanted), values[:-1], strict=True)), wanted)


@pytest.mark.parametrize("name", [MASK, C4, KEYPOINT, PANOPTIC, FAST])
@torch.no_grad()
def test_a_script_takes_any_number_of_images_of_any_sizes(name: str, tmp_path: Path) -> None:
    model = export(name, SCRIPT, tmp_path)
    scripted = torch.jit.load(tmp_path / "model.ts")

    for count in (1, 2, 3):
        batch = [inputs_of(name, *size) for size in IMAGES[:count]]
        found = scripted(batch)
        assert len(found) == count
        for fields, wanted in zip(found, model(batch), strict=True):
            assert_close({key: fields[key] for key in sorted(fields)}, wanted)


@pytest.mark.parametrize("format_", [TRACE, SCRIPT])
def test_a_process_with_torch_alone_uses_the_artifact(format_: str, tmp_path: Path) -> None:
    model = export(MASK, format_, tmp_path)
    image = inputs_of(MASK, 80, 100)["image"]
    inputs = (image,) if format_ == TRACE else ([{"image": image}],)
    torch.save(inputs, tmp_path / "inputs.pt")

    arguments = [tmp_path / file for file in ("model.ts", "inputs.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True, cwd=tmp_path, timeout=300)

    outputs = torch.load(tmp_path / "outputs.pt", weights_only=True)
    found = dict(zip(FIELDS[MASK], outputs, strict=False)) if format_ == TRACE else outputs[0]
    with torch.no_grad():
        assert_close({key: found[key] for key in sorted(found)}, model([{"image": image}])[0])


@pytest.mark.parametrize("value", [0, -1, 1.0, "2", True, None, [2]])
def test_a_batch_is_a_positive_integer(value: Any) -> None:
    with pytest.raises(Failure, match=r"batch = .* is not a positive integer") as caught:
        formats.get(TRACE).check_options({"batch": value})
    assert (caught.value.code, caught.value.stage) == ("export.option", Stage.PLAN)


@pytest.mark.parametrize(("format_", "option"), [(TRACE, "batches"), (SCRIPT, "batch")])
def test_an_option_that_a_format_lacks_is_refused(format_: str, option: str) -> None:
    with pytest.raises(Failure, match=f"format {format_} has no option '{option}'") as caught:
        formats.get(format_).check_options({option: 2})
    assert caught.value.code == "export.option"


def test_an_unknown_format_suggests_a_known_one() -> None:
    with pytest.raises(Failure, match="there is no format 'torchscript-tracing'") as caught:
        formats.get("torchscript-tracing")
    assert "did you mean 'torchscript-trace'" in caught.value.hint


def test_formats_are_listed_without_torch() -> None:
    code = "import sys; from zooport.export_core import formats; formats.describe()"
    code += "; print('torch' in sys.modules)"

    said = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )

    assert said.stdout.strip() == "False"
    assert [info.name for info in formats.describe()] == formats.names()
    assert all(info.summary and info.call and info.main_file for info in formats.describe())


def test_a_disk_that_refuses_is_a_typed_failure(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"missing.*model\.ts") as caught:
        export(MASK, SCRIPT, tmp_path / "missing")
    assert (caught.value.code, caught.value.stage) == ("resource.disk", Stage.EXPORT)


def test_a_disk_that_is_too_small_ends_no_process(tmp_path: Path) -> None:
    module = torch.jit.script(torch.nn.Linear(1000, 1000))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, limits[1]))
    try:
        with pytest.raises(Failure, match=r"cannot write .*model\.ts") as caught:
            torchscript_runtime.save(module, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.code == "resource.disk"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("format_", [TRACE, SCRIPT])
def test_what_no_artifact_is_is_unloadable(format_: str, tmp_path: Path) -> None:
    path = tmp_path / "model.ts"
    path.write_bytes(b"PK\x03\x04 this is no archive")

    with pytest.raises(Failure, match=r"torch\.jit\.load cannot read") as caught:
        formats.get(format_).load(tmp_path, ["scores"], {})

    assert caught.value.code == "artifact.unloadable"
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


def test_modules_are_whole_again_after_a_trace(tmp_path: Path) -> None:
    model = export(KEYPOINT, TRACE, tmp_path)

    assert not any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
