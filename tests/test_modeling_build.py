"""From a config and weights to a model: what is refused and how, skeletons without memory, and checks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core import pipeline, zoo
from zooport.export_core.checkpoints.weights import Weights
from zooport.export_core.config import Config, load_config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.build import build_skeleton, load_model
from zooport.export_core.sources import CheckpointSource
from zooport.tests import official_zoo

FPN = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
C4 = "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x"
CASCADE = "Misc/cascade_mask_rcnn_R_50_FPN_1x"
KEYPOINT = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"
RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x"
REGNET = "COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x"
RPN = "COCO-Detection/rpn_R_50_FPN_1x"
SHALLOW = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}

GREY = {"INPUT.FORMAT": "L", "MODEL.PIXEL_MEAN": [110.0], "MODEL.PIXEL_STD": [57.0]}

# A model, further overrides, and the key and value that nothing here implements.
UNSUPPORTED = [
    (FPN, {}, "MODEL.META_ARCHITECTURE", "TridentNet"),
    (FPN, {}, "MODEL.BACKBONE.NAME", "build_vit_backbone"),
    (FPN, {}, "MODEL.RESNETS.DEPTH", 200),
    (FPN, {}, "MODEL.RESNETS.RES5_DILATION", 4),
    (FPN, {}, "MODEL.RESNETS.OUT_FEATURES", ["res2", "res6"]),
    (FPN, {}, "MODEL.FPN.FUSE_TYPE", "max"),
    (FPN, {}, "MODEL.FPN.IN_FEATURES", ["res2", "res4", "res5"]),
    (FPN, {}, "MODEL.PROPOSAL_GENERATOR.NAME", "RRPN"),
    (FPN, {}, "MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"),
    (FPN, {}, "MODEL.RPN.HEAD_NAME", "StandardRPNHead3D"),
    (FPN, {}, "MODEL.ROI_HEADS.NAME", "RROIHeads"),
    (FPN, {}, "MODEL.ROI_BOX_HEAD.NAME", "FastRCNNTransformerHead"),
    (FPN, {}, "MODEL.ROI_BOX_HEAD.POOLER_TYPE", "ROIAlignRotated"),
    (FPN, {}, "MODEL.ROI_MASK_HEAD.POOLER_TYPE", "ROIWarp"),
    (FPN, {}, "MODEL.ROI_MASK_HEAD.NAME", "PointRendMaskHead"),
    (KEYPOINT, {}, "MODEL.ROI_KEYPOINT_HEAD.NAME", "HourglassHead"),
    (KEYPOINT, {}, "MODEL.ROI_KEYPOINT_HEAD.POOLER_TYPE", "ROIWarp"),
    (PANOPTIC, {}, "MODEL.SEM_SEG_HEAD.NAME", "DeepLabV3PlusHead"),
    (FPN, SHALLOW, "MODEL.RESNETS.RES2_OUT_CHANNELS", 256),
    (FPN, SHALLOW, "MODEL.RESNETS.NUM_GROUPS", 32),
    (FPN, SHALLOW, "MODEL.RESNETS.RES5_DILATION", 2),
    (FPN, SHALLOW, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]),
    (C4, {}, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, False, False, True]),
    (C4, {}, "MODEL.KEYPOINT_ON", True),
    (CASCADE, {}, "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False),
    (RPN, {}, "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals"),
    (REGNET, {}, "MODEL.REGNETS.OUT_FEATURES", ["s1", "s5"]),
]
NORMS = [
    (FPN, "MODEL.RESNETS.NORM"),
    (FPN, "MODEL.FPN.NORM"),
    (CASCADE, "MODEL.ROI_BOX_HEAD.NORM"),
    (FPN, "MODEL.ROI_MASK_HEAD.NORM"),
    (PANOPTIC, "MODEL.SEM_SEG_HEAD.NORM"),
    (RETINANET, "MODEL.RETINANET.NORM"),
    (FCOS, "MODEL.FCOS.NORM"),
    (REGNET, "MODEL.REGNETS.NORM"),
]


def config_of(name: str, overrides: dict[str, Any] | None = None) -> Config:
    return load_config(zoo.find(name).config, overrides or {})


@pytest.mark.parametrize(("name", "more", "key", "value"), UNSUPPORTED, ids=lambda value: str(value)[-40:])
def test_what_is_not_implemented_is_refused_by_key_and_value(
    name: str, more: dict[str, Any], key: str, value: Any
) -> None:
    with pytest.raises(Failure) as caught:
        build_skeleton(config_of(name, {**more, key: value}))

    assert caught.value.code == "unsupported.architecture"
    assert f"{key} = {value!r}" in caught.value.message
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(("name", "key"), NORMS)
def test_an_unknown_norm_is_refused_by_key_and_value(name: str, key: str) -> None:
    overrides = {"MODEL.ROI_BOX_HEAD.NUM_CONV": 1, key: "InstanceNorm"}
    with pytest.raises(Failure, match="'InstanceNorm'") as caught:
        build_skeleton(config_of(name, overrides))

    assert caught.value.code == "unsupported.architecture"
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("name", "overrides", "key"),
    [
        (FPN, {"MODEL.RPN.IN_FEATURES": ["p2", "p9"]}, "MODEL.RPN.IN_FEATURES"),
        (FPN, {"MODEL.ROI_HEADS.IN_FEATURES": ["res4"]}, "MODEL.ROI_HEADS.IN_FEATURES"),
        (FPN, {"MODEL.RPN.CONV_DIMS": []}, "MODEL.RPN.CONV_DIMS"),
        (FPN, {"MODEL.ROI_BOX_HEAD.NUM_FC": 0}, "MODEL.ROI_BOX_HEAD"),
        (FPN, {"MODEL.ANCHOR_GENERATOR.SIZES": [[32], [64]]}, "MODEL.ANCHOR_GENERATOR.SIZES"),
        (FPN, {"MODEL.ANCHOR_GENERATOR.SIZES": []}, "MODEL.ANCHOR_GENERATOR.SIZES"),
        (FPN, {"MODEL.ANCHOR_GENERATOR.SIZES": [32, [64]]}, "MODEL.ANCHOR_GENERATOR.SIZES"),
        (FPN, {"MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[]]}, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
        (FPN, {**GREY, "INPUT.FORMAT": "BGR"}, "INPUT.FORMAT"),
        (FPN, {**GREY, "INPUT.FORMAT": "BGR"}, "MODEL.PIXEL_MEAN"),
        (RETINANET, {**GREY, "MODEL.PIXEL_MEAN": [1.0] * 4, "INPUT.FORMAT": "RGB"}, "INPUT.FORMAT"),
        (FPN, {**GREY, "MODEL.PIXEL_STD": [1.0] * 3}, "MODEL.PIXEL_STD"),
        (FPN, {"MODEL.PIXEL_STD": [1.0] * 2}, "MODEL.PIXEL_STD"),
        (FPN, {"MODEL.PIXEL_MEAN": []}, "MODEL.PIXEL_MEAN"),
        (FPN, {"MODEL.FPN.IN_FEATURES": ["res2", "res7"]}, "MODEL.FPN.IN_FEATURES"),
        (RETINANET, {"MODEL.RETINANET.IN_FEATURES": ["p2"]}, "MODEL.RETINANET.IN_FEATURES"),
        (RETINANET, {"TEST.DETECTIONS_PER_IMAGE": -1}, "TEST.DETECTIONS_PER_IMAGE"),
        (FCOS, {"TEST.DETECTIONS_PER_IMAGE": -1}, "TEST.DETECTIONS_PER_IMAGE"),
        (CASCADE, {"MODEL.ROI_BOX_CASCADE_HEAD.IOUS": [0.5]}, "MODEL.ROI_BOX_CASCADE_HEAD"),
        (PANOPTIC, {"MODEL.SEM_SEG_HEAD.COMMON_STRIDE": 8}, "MODEL.SEM_SEG_HEAD.COMMON_STRIDE"),
        (C4, {"MODEL.ROI_HEADS.IN_FEATURES": ["res4"], "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}, ""),
    ],
)
@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_what_contradicts_itself_is_an_invalid_config(name: str, overrides: dict[str, Any], key: str) -> None:
    if not key:
        build_skeleton(config_of(name, overrides))  # narrower than usual, but consistent
        return
    with pytest.raises(Failure) as caught:
        build_skeleton(config_of(name, overrides))

    assert caught.value.code == "config.invalid"
    assert key in caught.value.message


@pytest.mark.parametrize(
    ("overrides", "channels"),
    [
        (GREY, 1),
        ({"INPUT.FORMAT": "L"}, 3),  # detectron2 normalises the one channel by each mean
        ({"INPUT.FORMAT": "RGBA", "MODEL.PIXEL_MEAN": [110.0] * 4, "MODEL.PIXEL_STD": [57.0]}, 4),
    ],
)
@pytest.mark.parametrize(("name", "stem"), [(RETINANET, "stem.conv1.weight"), (REGNET, "stem.conv.weight")])
def test_a_network_takes_as_many_channels_as_there_are_means(
    name: str, stem: str, overrides: dict[str, Any], channels: int
) -> None:
    state = build_skeleton(config_of(name, overrides)).state_dict()

    assert state[f"backbone.bottom_up.{stem}"].shape[1] == channels


def test_an_architecture_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"
    config.write_text("VERSION: 2\nMODEL: {META_ARCHITECTURE: TridentNet}\n")
    source = CheckpointSource("model", config, tmp_path / "no such file.pth")

    with pytest.raises(Failure) as caught:
        pipeline.export_stage(source, "torchscript-script", {}, None, None, tmp_path, lambda stage: None)

    assert caught.value.code == "unsupported.architecture"


@pytest.mark.parametrize("name", [FPN, C4, CASCADE, KEYPOINT, PANOPTIC, RETINANET, FCOS, REGNET, RPN])
def test_a_skeleton_has_no_memory_for_what_a_checkpoint_gives(name: str) -> None:
    model = build_skeleton(config_of(name))

    assert all(value.is_meta for value in model.state_dict().values())
    assert not any(module.training for module in model.modules())
    kept = [value for key, value in model.named_buffers() if not value.is_meta]
    assert sum(value.numel() for value in kept) == 6  # pixel mean and deviation


def tiny() -> tuple[Config, dict[str, np.ndarray[Any, Any]]]:
    config = official_zoo.config_of(FPN, official_zoo.TINY)
    weights = official_zoo.weights_for(build_skeleton(config), FPN, config)
    return config, {key: value.numpy() for key, value in weights.items()}


def test_a_loaded_model_is_ready_to_run() -> None:
    config, arrays = tiny()
    halves = {key: value.astype(np.float16) for key, value in arrays.items()}

    model = load_model(config, Weights(halves), "weights.pth")

    assert {str(value.dtype) for value in model.state_dict().values()} == {"torch.float32"}
    assert not model.training
    assert not any(value.requires_grad for value in model.parameters())
    (found,) = model([{"image": torch.full((3, 64, 64), 100.0)}])
    assert sorted(found) == ["pred_boxes", "pred_classes", "pred_masks", "scores"]


def test_missing_weights_are_named() -> None:
    config, arrays = tiny()
    del arrays["backbone.fpn_output3.weight"], arrays["roi_heads.mask_head.predictor.bias"]

    with pytest.raises(Failure, match=r"2 parameters missing: .*fpn_output3\.weight") as caught:
        load_model(config, Weights(arrays), "weights.pth")

    assert caught.value.code == "checkpoint.mismatch"


def test_weights_of_another_architecture_are_refused() -> None:
    _, arrays = tiny()
    deeper = official_zoo.config_of(FPN, {**official_zoo.TINY, "MODEL.RESNETS.DEPTH": 101})

    with pytest.raises(Failure) as caught:
        load_model(deeper, Weights(arrays), "weights.pth")

    assert caught.value.code == "checkpoint.mismatch"


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_named(bad: float) -> None:
    config, arrays = tiny()
    arrays["proposal_generator.rpn_head.conv.weight"][3, 2, 1, 0] = bad

    with pytest.raises(Failure, match=r"rpn_head\.conv\.weight") as caught:
        load_model(config, Weights(arrays), "weights.pth")

    assert caught.value.code == "checkpoint.nonfinite"
