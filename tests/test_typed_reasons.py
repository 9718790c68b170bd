"""Models that zooport does not implement are refused by name, from their config alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from zooport.export_core.config import load_config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.build import build_skeleton
from zooport.export_core.modeling.registry import BACKBONES
from zooport.export_core.pipeline import export_stage
from zooport.export_core.sources import CheckpointSource

FPN: dict[str, Any] = {
    "MODEL.META_ARCHITECTURE": "GeneralizedRCNN",
    "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
    "MODEL.RESNETS.OUT_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.FPN.IN_FEATURES": ["res2", "res3", "res4", "res5"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64], [128], [256], [512]],
    "MODEL.RPN.IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
    "MODEL.ROI_HEADS.NAME": "StandardROIHeads",
    "MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p3", "p4", "p5"],
    "MODEL.ROI_BOX_HEAD.NAME": "FastRCNNConvFCHead",
    "MODEL.ROI_BOX_HEAD.NUM_FC": 2,
}
SEMANTIC = {"MODEL.META_ARCHITECTURE": "SemanticSegmentor"}

# What each kind of model changes in the Faster R-CNN above; the first key is the one to be named.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "rotated proposals": (
        "rotated boxes",
        {
            "MODEL.PROPOSAL_GENERATOR.NAME": "RRPN",
            "MODEL.ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator",
            "MODEL.ANCHOR_GENERATOR.ANGLES": [[-90, -45, 0, 45]],
            "MODEL.RPN.HEAD_NAME": "StandardRPNHead",
            "MODEL.RPN.BBOX_REG_WEIGHTS": [1, 1, 1, 1, 1],
            "MODEL.ROI_HEADS.NAME": "RROIHeads",
        },
    ),
    "rotated anchors": ("rotated boxes", {"MODEL.ANCHOR_GENERATOR.NAME": "RotatedAnchorGenerator"}),
    "rotated heads": ("rotated boxes", {"MODEL.ROI_HEADS.NAME": "RROIHeads"}),
    "rotated pooling": ("rotated boxes", {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIAlignRotated"}),
    "trident": (
        "TridentNet",
        {
            "MODEL.BACKBONE.NAME": "build_trident_resnet_backbone",
            "MODEL.PROPOSAL_GENERATOR.NAME": "TridentRPN",
            "MODEL.ROI_HEADS.NAME": "TridentRes5ROIHeads",
            "MODEL.TRIDENT": {"NUM_BRANCH": 3, "TEST_BRANCH_IDX": 1},
        },
    ),
    "dense pose": (
        "DensePose",
        {
            "MODEL.ROI_HEADS.NAME": "DensePoseROIHeads",
            "MODEL.DENSEPOSE_ON": True,
            "MODEL.ROI_DENSEPOSE_HEAD": {"NAME": "DensePoseV1ConvXHead"},
            "TEST.AUG.ROTATION_ANGLES": [],
            "INPUT.ROTATION_ANGLES": [0],
        },
    ),
    "dense pose on HRNet": (
        "DensePose",
        {"MODEL.BACKBONE.NAME": "build_hrfpn_backbone", "MODEL.HRNET": {"STEM_INPLANES": 64}},
    ),
    "point rend": (
        "PointRend",
        {
            "MODEL.ROI_MASK_HEAD.NAME": "PointRendMaskHead",
            "MODEL.MASK_ON": True,
            "MODEL.ROI_MASK_HEAD.OUTPUT_SIDE_RESOLUTION": 7,
            "MODEL.POINT_HEAD": {"NUM_CLASSES": 80},
        },
    ),
    "point rend, as it was": ("PointRend", {"MODEL.ROI_HEADS.NAME": "PointRendROIHeads"}),
    "semantic point rend": ("PointRend", {"MODEL.SEM_SEG_HEAD.NAME": "PointRendSemSegHead", **SEMANTIC}),
    "point supervision": (
        "PointSup",
        {
            "MODEL.ROI_MASK_HEAD.NAME": "MaskRCNNConvUpsamplePointSupHead",
            "MODEL.MASK_ON": True,
            "INPUT.POINT_SUP": True,
            "INPUT.SAMPLE_POINTS": 5,
        },
    ),
    "deep lab": (
        "DeepLab",
        {
            "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
            "MODEL.RESNETS.STEM_TYPE": "deeplab",
            "MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3PlusHead",
            **SEMANTIC,
        },
    ),
    "deep lab head": ("DeepLab", {"MODEL.SEM_SEG_HEAD.NAME": "DeepLabV3Head", **SEMANTIC}),
    "panoptic deep lab": (
        "Panoptic-DeepLab",
        {
            "MODEL.META_ARCHITECTURE": "PanopticDeepLab",
            "MODEL.BACKBONE.NAME": "build_resnet_deeplab_backbone",
            "MODEL.PANOPTIC_DEEPLAB": {"STUFF_AREA": 2048},
            "MODEL.INS_EMBED_HEAD": {"NAME": "PanopticDeepLabInsEmbedHead"},
            "SOLVER.OPTIMIZER": "ADAM",
        },
    ),
    "tensor mask": (
        "TensorMask",
        {"MODEL.META_ARCHITECTURE": "TensorMask", "MODEL.TENSOR_MASK": {"ALIGNED_ON": True}},
    ),
    "adelai": ("AdelaiDet", {"MODEL.META_ARCHITECTURE": "CondInst"}),
    "mask former": ("MaskFormer", {"MODEL.META_ARCHITECTURE": "MaskFormer", "MODEL.MASK_FORMER": {"X": 1}}),
}


def write(folder: Path, values: dict[str, Any], name: str = "config.yaml") -> Path:
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    path = folder / name
    path.write_text(yaml.safe_dump(tree), encoding="utf-8")
    return path


def refused(config: Path) -> Failure:
    with pytest.raises(Failure) as caught:
        build_skeleton(load_config(config))
    assert "\n" not in caught.value.message + caught.value.hint
    return caught.value


def test_the_model_that_the_cases_change_is_built(tmp_path: Path) -> None:
    assert build_skeleton(load_config(write(tmp_path, FPN))).backbone is not None


@pytest.mark.parametrize("case", CASES)
def test_a_project_is_named_with_the_key_and_the_value(tmp_path: Path, case: str) -> None:
    project, changes = CASES[case]
    key, value = next(iter(changes.items()))
    failure = refused(write(tmp_path, {**FPN, **changes}))
    assert failure.code == "unsupported.architecture"
    assert failure.message == f"{key} = {value!r} is for {project}, which zooport does not implement"
    assert failure.hint
    assert failure.details["project"] == project
    assert failure.record().unsupported


def test_a_refusal_comes_before_the_weights_are_read(tmp_path: Path) -> None:
    config = write(tmp_path, {**FPN, **CASES["trident"][1]})
    source = CheckpointSource("one", config, tmp_path / "not_there.pth")
    with pytest.raises(Failure) as caught:
        export_stage(source, "torchscript-trace", {}, None, None, tmp_path, lambda stage: None)
    assert caught.value.code == "unsupported.architecture"


def test_keys_name_a_project_whose_names_are_not_known(tmp_path: Path) -> None:
    changes = {"MODEL.ROI_HEADS.NAME": "MyTridentHeads", "MODEL.TRIDENT": {"NUM_BRANCH": 3}}
    failure = refused(write(tmp_path, {**FPN, **changes}))
    assert failure.code == "unsupported.architecture"
    assert "MODEL.ROI_HEADS.NAME = 'MyTridentHeads'" in failure.message
    assert "keys of TridentNet (MODEL.TRIDENT)" in failure.hint


def test_keys_of_a_project_alone_are_no_reason(tmp_path: Path) -> None:
    config = write(tmp_path, {**FPN, "MODEL.TRIDENT": {"NUM_BRANCH": 3}, "INPUT.POINT_SUP": False})
    assert build_skeleton(load_config(config)).backbone is not None


def test_an_extension_may_bring_what_a_project_is_named_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "build_trident_resnet_backbone"
    monkeypatch.setitem(BACKBONES._builders, name, BACKBONES.get("build_resnet_fpn_backbone"))
    assert build_skeleton(load_config(write(tmp_path, {**FPN, "MODEL.BACKBONE.NAME": name}))) is not None


def test_an_unknown_name_says_how_modules_of_ones_own_come(tmp_path: Path) -> None:
    failure = refused(write(tmp_path, {**FPN, "MODEL.BACKBONE.NAME": "build_my_backbone"}))
    assert failure.code == "unsupported.architecture"
    assert "--import" in failure.hint


@pytest.mark.parametrize("key", ["MODEL.RPN.BBOX_REG_WEIGHTS", "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS"])
def test_five_regression_weights_are_those_of_rotated_boxes(tmp_path: Path, key: str) -> None:
    failure = refused(write(tmp_path, {**FPN, key: [10, 10, 5, 5, 1]}))
    assert failure.code == "config.invalid"
    assert "rotated boxes" in failure.hint


PYTHON = {
    "cascade_mask_rcnn_mvitv2_b.py": (
        "from detectron2.config import LazyCall as L\nfrom detectron2.modeling import MViT\n",
        "MViTv2",
        "line 2: MViT",
    ),
    "huge.py": (
        "from detectron2.modeling import SimpleFeaturePyramid, ViT\n",
        "ViTDet",
        "line 1: SimpleFeaturePyramid",
    ),
    "mask_rcnn_vitdet_l.py": ("from .base import model\n", "ViTDet", "its name says vitdet"),
    "batch_stats.py": (
        "from .mask_rcnn_BNhead import model\n",
        "Rethinking-BatchNorm",
        "line 1: mask_rcnn_BNhead",
    ),
}


@pytest.mark.parametrize("name", PYTHON)
def test_a_python_config_of_a_project_is_recognised_and_not_run(tmp_path: Path, name: str) -> None:
    text, project, evidence = PYTHON[name]
    path = tmp_path / name
    path.write_text(text + "raise SystemError('run')\n", encoding="utf-8")
    failure = refused(path)
    assert failure.code == "unsupported.architecture"
    assert f"{path}: {evidence}: this is a model of {project}," in failure.message


def test_another_python_config_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "my_config.py"
    path.write_text("import os  # ViT is not in it\nos.abort()\n", encoding="utf-8")
    failure = refused(path)
    assert failure.code == "config.invalid"
    assert failure.message == f"{path}: Python configs are not run"
    assert "reads YAML" in failure.hint
    assert "--import" in failure.hint


def test_a_python_config_of_the_official_zoo_is_led_to_its_yaml(tmp_path: Path) -> None:
    path = tmp_path / "mask_rcnn_R_50_FPN_100ep_LSJ.py"
    path.write_text("model = None\n", encoding="utf-8")
    failure = refused(path)
    assert failure.code == "config.invalid"
    assert "new_baselines/mask_rcnn_R_50_FPN_100ep_LSJ" in failure.hint
    named = Path(failure.hint.rpartition(", ")[2])
    assert build_skeleton(load_config(named)) is not None


WITH_PYTHON = """\
    norm_layer: !!python/object/apply:functools.partial
      args: [!!python/name:torch.nn.LayerNorm '']
"""


@pytest.mark.parametrize("more", ["", WITH_PYTHON])
def test_the_dump_of_a_lazy_config_is_recognised(tmp_path: Path, more: str) -> None:
    path = tmp_path / "config.yaml"
    model = "model:\n  _target_: detectron2.modeling.GeneralizedRCNN\n  backbone:\n"
    path.write_text(f"{model}    _target_: detectron2.modeling.backbone.vit.SimpleFeaturePyramid\n{more}")
    failure = refused(path)
    assert failure.code == "unsupported.architecture"
    assert "line 4: _target_ = 'detectron2.modeling.backbone.vit.SimpleFeaturePyramid'" in failure.message
    assert "ViTDet" in failure.message
    path.write_text(f"{model}    _target_: detectron2.modeling.backbone.fpn.FPN\n{more}")
    failure = refused(path)
    assert failure.code == "config.invalid"
    assert "dump of a LazyConfig" in failure.message
