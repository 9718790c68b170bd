"""The torch-export format: the same results at every size, a file for strangers, and what is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from zooport.export_core import formats
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import load_config
from zooport.export_core.evaluation import read_image
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import Format
from zooport.export_core.formats.torch_export_stand_ins import LoopedHeatmapDecoder, stand_ins
from zooport.export_core.modeling.build import load_model
from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder
from zooport.export_core.samples import Sample
from zooport.export_core.verification import compare_outputs, verify
from zooport.tests.artifact_processes import arrays
from zooport.tests.official_zoo import build_for_export, inputs_of

SEMANTIC = "Misc/semantic_R_50_FPN_1x"
KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"
FAST = "COCO-Detection/fast_rcnn_R_50_FPN_1x"
C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x"
SLOWER = [
    "COCO-Detection/fcos_R_50_FPN_1x",
    "COCO-Detection/rpn_R_50_C4_1x",
    "COCO-Detection/rpn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x",
    "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
]
FULL_SIZE = ["COCO-Detection/faster_rcnn_R_50_FPN_1x", "Misc/mask_rcnn_R_50_FPN_3x_gn", KEYPOINT]
IMAGES = [(96, 128), (110, 90), (75, 133), (33, 40)]
PICTURE = "000000100026.png"
# So that some picture has nothing in it.
THRESHOLDS = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.3}

# A process that has nothing of zooport reads the artifact and its inputs, and writes what came out.
STRANGER = """
import sys, torch, torchvision
model = torch.export.load(sys.argv[1]).module()
inputs = torch.load(sys.argv[2], weights_only=True)
torch.save(model(inputs.pop("image"), **inputs), sys.argv[3])
assert not [name for name in sys.modules if name.split(".")[0] in ("zooport", "detectron2")]
"""

Fields = dict[str, np.ndarray[Any, Any]]


def exporter() -> Format:
    return formats.get("torch-export")


@torch.no_grad()
def run(model: Any, inputs: dict[str, torch.Tensor]) -> Fields:
    return arrays(model([inputs])[0])


def export(name: str, directory: Path, *, tiny: bool = True, size: tuple[int, int] = IMAGES[0]) -> Any:
    """Export an official architecture with made-up weights; return the eager model."""
    model = build_for_export(name, tiny=tiny)
    inputs = inputs_of(name, *size)
    directory.mkdir(exist_ok=True)
    exporter().export(model, inputs, sorted(run(model, inputs)), directory, {})
    return model


def check(model: Any, predict: Any, inputs: dict[str, torch.Tensor]) -> Fields:
    """Compare an artifact with the eager model as verification does; return what it found."""
    wanted, given = run(model, inputs), arrays(inputs)
    found: Fields = predict(**given)
    compare_outputs(Sample("sample", given, wanted), found, exporter().info.tolerance)
    assert {name: value.dtype for name, value in found.items()} == {
        name: value.dtype for name, value in wanted.items()
    }
    return found


def check_sizes(name: str, directory: Path, *, tiny: bool) -> None:
    model = export(name, directory, tiny=tiny)
    predict = exporter().load(directory, sorted(run(model, inputs_of(name, *IMAGES[0]))), {})
    for size in IMAGES:
        found = check(model, predict, inputs_of(name, *size))
        assert all(len(value) for value in found.values()), "a comparison of nothing"


@pytest.mark.parametrize("name", [FAST, C4, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOWER)])
def test_every_kind_is_the_same_at_every_size(name: str, tmp_path: Path) -> None:
    check_sizes(name, tmp_path, tiny=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_networks_are_the_same_at_every_size(name: str, tmp_path: Path) -> None:
    check_sizes(name, tmp_path, tiny=False)

    shutil.rmtree(tmp_path)  # pytest would keep gigabytes


@pytest.mark.parametrize(
    "name",
    [
        "keypoint_rcnn_fpn",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in (
                "retinanet_fpn",
                "faster_rcnn_c4",
                "mask_rcnn_dcn_fpn",
                "cascade_mask_rcnn_fpn",
                "panoptic_fpn",
            )
        ),
    ],
)
def test_a_trained_model_holds_for_an_image_without_detections(
    name: str, demo_zoo: Path, tmp_path: Path
) -> None:
    config = load_config(demo_zoo / name / "config.yaml", THRESHOLDS)
    (weights,) = (demo_zoo / name).glob("model_final.*")
    model = load_model(config, read_weights(weights), name)
    picture = read_image(demo_zoo / "data" / "val" / PICTURE, config.INPUT.FORMAT)
    image = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32))
    fields = sorted(run(model, {"image": image}))
    exporter().export(model, {"image": image}, fields, tmp_path, {})
    predict = exporter().load(tmp_path, fields, {})

    for part in (image, image[:, :200, :170], image[:, 30:, 45:]):
        found = check(model, predict, {"image": part.contiguous()})
        assert len(found["scores"]) > 0
    nothing = check(model, predict, {"image": torch.full((3, 64, 64), 114.0)})
    assert len(nothing["scores"]) == 0


def test_a_file_is_for_strangers_and_holds_the_weights_and_no_sample(tmp_path: Path) -> None:
    model = export(SEMANTIC, tmp_path / "one")
    export(SEMANTIC, tmp_path / "other", size=IMAGES[2])
    inputs = inputs_of(SEMANTIC, 80, 100)
    torch.save(inputs, tmp_path / "inputs.pt")

    arguments = [tmp_path / file for file in ("one/model.pt2", "inputs.pt", "outputs.pt")]
    subprocess.run([sys.executable, "-c", STRANGER, *arguments], check=True, cwd=tmp_path, timeout=300)

    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    compare_outputs(
        Sample("sample", arrays(inputs), run(model, inputs)), arrays(found), exporter().info.tolerance
    )
    one, other = ((tmp_path / name / "model.pt2").read_bytes() for name in ("one", "other"))
    assert one == other, "the file depends on the sample"
    assert str(Path(formats.__file__).parents[2]).encode() not in one
    parameters = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    assert parameters < len(one) <= 1.05 * parameters + (3 << 20)
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["model.pt2"]


class Outer(torch.nn.Module):
    """A model whose head is of an extension."""

    def __init__(self, head: torch.nn.Module) -> None:
        super().__init__()
        self.head = torch.nn.Sequential(torch.nn.Identity(), head)

    def forward(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
        return [{"field": self.head(batch[0]["image"])}]


class Branch(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.mean() > 3 else x


class Loop(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = x.sum()
        for index in range(torch.nonzero(x > 3).shape[0]):
            total = total + index
        return total


class Shapeless(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.zooport_tests.shapeless(x)
        return found


class Foreign(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = torch.ops.zooport_tests.foreign(x)
        return found


class Broken(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise ValueError("no such thing")


@pytest.fixture(scope="module", autouse=True)
def operators() -> Any:
    """Operators of a library of one's own; of one it is known what its result looks like."""
    with torch.library._scoped_library("zooport_tests", "DEF") as library:
        for name in ("shapeless", "foreign"):
            library.define(f"{name}(Tensor x) -> Tensor")
            library.impl(name, torch.clone, "CPU")
        torch.library.register_fake("zooport_tests::foreign", torch.empty_like, lib=library)
        yield


@pytest.mark.parametrize(
    ("head", "code", "said"),
    [
        (Branch(), "unsupported.operator", ["Python decides or loops by a value", "if x.mean() > 3 else x"]),
        (Loop(), "unsupported.operator", ["Python decides or loops by a value", "for index in range("]),
        (Shapeless(), "unsupported.operator", ["the operator zooport_tests.shapeless", f"{__file__}:"]),
        (Foreign(), "unsupported.operator", ["neither torch nor torchvision has", "zooport_tests.foreign"]),
        (Broken(), "export.failed", ["ValueError: no such thing", 'raise ValueError("no such thing")']),
    ],
)
def test_what_cannot_be_expressed_is_typed_and_named(
    head: torch.nn.Module, code: str, said: list[str], tmp_path: Path
) -> None:
    with pytest.raises(Failure) as caught:
        exporter().export(Outer(head), {"image": torch.zeros(3, 8, 8)}, ["field"], tmp_path, {})

    assert (caught.value.code, caught.value.stage) == (code, Stage.EXPORT)
    assert all(part in caught.value.message for part in said), caught.value.message
    assert f"in head.1 ({type(head).__name__})" in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message
    assert list(tmp_path.iterdir()) == []


class Fixed(torch.nn.Module):
    """Takes the sample's height to be that of every image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ones(8, 1)


class Cells(torch.nn.Module):
    """Takes the sample's number of pixels to be that of every image."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.view(3, 64)


def test_a_length_that_a_module_fixes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Failure, match="expects every image to have the height 8") as caught:
        exporter().export(Outer(Fixed()), {"image": torch.zeros(3, 8, 8)}, ["field"], tmp_path, {})
    assert caught.value.code == "export.failed"


def test_a_product_of_lengths_that_a_module_fixes_is_explained(tmp_path: Path) -> None:
    exporter().export(Outer(Cells()), {"image": torch.zeros(3, 8, 8)}, ["field"], tmp_path, {})
    taller = np.zeros((3, 9, 8), dtype=np.float32)

    with pytest.raises(Failure, match="the artifact fails on sample 'taller'") as caught:
        verify(
            exporter().load(tmp_path, ["field"], {}),
            [Sample("taller", {"image": taller}, {"field": taller})],
            exporter().info.tolerance,
        )

    assert "expects a length of the first sample" in exporter().explain(caught.value, []).hint


def test_what_no_artifact_is_is_unloadable(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"PK\x03\x04 this is no archive")

    with pytest.raises(Failure, match=r"torch\.export\.load cannot read .*model\.pt2") as caught:
        exporter().load(tmp_path, ["scores"], {})

    assert caught.value.code == "artifact.unloadable"
    assert "\n" not in caught.value.message


def test_a_place_that_cannot_be_written_is_a_typed_failure(tmp_path: Path) -> None:
    model = Outer(torch.nn.Identity())
    with pytest.raises(Failure, match=r"missing.*model\.pt2") as caught:
        exporter().export(model, {"image": torch.zeros(3, 8, 8)}, ["field"], tmp_path / "missing", {})
    assert (caught.value.code, caught.value.stage) == ("resource.disk", Stage.EXPORT)


def test_a_torch_that_is_too_old_is_a_typed_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.fx.experimental.dynamic_spec", None)
    model = Outer(torch.nn.Identity())
    with pytest.raises(Failure, match=f"torch {re.escape(torch.__version__.split('+')[0])}") as caught:
        exporter().export(model, {"image": torch.zeros(3, 8, 8)}, ["field"], tmp_path, {})
    assert caught.value.code == "dependency.missing"


def test_the_format_has_no_options() -> None:
    with pytest.raises(Failure, match="format torch-export has no option 'batch'") as caught:
        exporter().check_options({"batch": 2})
    assert caught.value.code == "export.option"


def test_modules_are_whole_again_after_an_export() -> None:
    model = build_for_export(KEYPOINT, tiny=True)
    before = [type(module) for module in model.modules()]

    with stand_ins(model):
        within = {type(module) for module in model.modules()}

    assert LoopedHeatmapDecoder in within
    assert HeatmapDecoder not in within
    assert [type(module) for module in model.modules()] == before


def test_nms_that_keeps_one_box_runs_in_a_program(tmp_path: Path) -> None:
    class Suppress(torch.nn.Module):
        def forward(self, batch: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
            boxes = batch[0]["proposal_boxes"]
            return [{"scores": nms(boxes, boxes[:, 0], 0.5)}]

    boxes = torch.tensor([[0.0, 0, 9, 9], [20, 20, 30, 30], [40, 40, 50, 50]])
    inputs = {"image": torch.zeros(3, 8, 8), "proposal_boxes": boxes}
    exporter().export(Suppress(), inputs, ["scores"], tmp_path, {})
    predict = exporter().load(tmp_path, ["scores"], {})

    for count in (3, 1, 0):
        found = predict(inputs["image"].numpy(), proposal_boxes=boxes[:count].numpy())
        assert sorted(found["scores"].tolist()) == list(range(count))
