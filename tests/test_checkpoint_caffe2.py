"""Checkpoints of the first Detectron load under detectron2's names, with the background class moved."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zooport.export_core.checkpoints import Weights, match_weights, read_weights
from zooport.export_core.checkpoints.caffe2_names import parameter_name
from zooport.export_core.failures import Failure

# Blob names of the published models of the first Detectron, and what detectron2 calls them.
NAMES = {
    "conv1_w": "stem.conv1.weight",
    "res_conv1_bn_s": "stem.conv1.norm.weight",
    "res_conv1_bn_b": "stem.conv1.norm.bias",
    "conv1_gn_s": "stem.conv1.norm.weight",
    "res2_0_branch1_w": "res2.0.shortcut.weight",
    "res2_0_branch1_bn_s": "res2.0.shortcut.norm.weight",
    "res4_22_branch2a_w": "res4.22.conv1.weight",
    "res4_22_branch2b_bn_b": "res4.22.conv2.norm.bias",
    "res5_2_branch2c_bn_rm": "res5.2.conv3.norm.running_mean",
    "res5_2_branch2c_bn_riv": "res5.2.conv3.norm.running_var",
    "res3_3_branch2c_gn_b": "res3.3.conv3.norm.bias",
    "fpn_inner_res5_2_sum_w": "fpn_lateral5.weight",
    "fpn_inner_res4_22_sum_lateral_b": "fpn_lateral4.bias",
    "fpn_inner_res3_3_sum_lateral_gn_s": "fpn_lateral3.norm.weight",
    "fpn_res2_2_sum_w": "fpn_output2.weight",
    "fpn_res5_2_sum_gn_b": "fpn_output5.norm.bias",
    "conv_rpn_fpn2_w": "proposal_generator.rpn_head.conv.weight",
    "conv_rpn_b": "proposal_generator.rpn_head.conv.bias",
    "rpn_cls_logits_fpn2_w": "proposal_generator.rpn_head.objectness_logits.weight",
    "rpn_cls_logits_b": "proposal_generator.rpn_head.objectness_logits.bias",
    "rpn_bbox_pred_fpn2_b": "proposal_generator.rpn_head.anchor_deltas.bias",
    "rpn_bbox_pred_w": "proposal_generator.rpn_head.anchor_deltas.weight",
    "fc6_w": "box_head.fc1.weight",
    "fc7_b": "box_head.fc2.bias",
    "head_conv1_w": "box_head.conv1.weight",
    "head_conv4_gn_s": "box_head.conv4.norm.weight",
    "cls_score_w": "cls_score.weight",
    "bbox_pred_b": "bbox_pred.bias",
    "_[mask]_fcn1_w": "mask_head.mask_fcn1.weight",
    "_mask_fcn4_b": "mask_head.mask_fcn4.bias",
    "conv5_mask_w": "mask_head.deconv.weight",
    "mask_fcn_logits_b": "mask_head.predictor.bias",
    "conv_fcn8_w": "roi_heads.keypoint_head.conv_fcn8.weight",
    "kps_score_lowres_w": "roi_heads.keypoint_head.score_lowres.weight",
}


@pytest.mark.parametrize("blob", NAMES)
def test_blob_names_are_translated(blob: Any) -> None:
    assert parameter_name(blob) == NAMES[blob]


def blob_of(name: str) -> str:
    """The first Detectron's name of a detectron2 parameter, written independently of the translation."""
    name = name.removeprefix("backbone.").removeprefix("bottom_up.").removeprefix("roi_heads.")
    for new, old in (
        ("box_predictor.", ""),
        ("proposal_generator.rpn_head.conv.", "conv_rpn_fpn2."),
        ("proposal_generator.rpn_head.objectness_logits.", "rpn_cls_logits_fpn2."),
        ("proposal_generator.rpn_head.anchor_deltas.", "rpn_bbox_pred_fpn2."),
        ("box_head.fc1.", "fc6."),
        ("box_head.fc2.", "fc7."),
        ("mask_head.mask_fcn", "_[mask]_fcn"),
        ("mask_head.deconv.", "conv5_mask."),
        ("mask_head.predictor.", "mask_fcn_logits."),
        ("keypoint_head.score_lowres.", "kps_score_lowres."),
        ("keypoint_head.conv_fcn", "conv_fcn"),
        ("fpn_lateral5", "fpn_inner_res5_2_sum"),
        ("fpn_lateral4", "fpn_inner_res4_5_sum_lateral"),
        ("fpn_lateral3", "fpn_inner_res3_3_sum_lateral"),
        ("fpn_lateral2", "fpn_inner_res2_2_sum_lateral"),
        ("fpn_output5", "fpn_res5_2_sum"),
        ("fpn_output4", "fpn_res4_5_sum"),
        ("fpn_output3", "fpn_res3_3_sum"),
        ("fpn_output2", "fpn_res2_2_sum"),
        ("stem.conv1.norm.", "res_conv1_bn."),
        ("stem.conv1.", "conv1."),
        (".shortcut.", ".branch1."),
        (".norm.", "_bn."),
    ):
        name = name.replace(new, old)
    if name.startswith("res"):
        for digit, letter in zip("123", "abc", strict=True):
            name = name.replace(f".conv{digit}", f".branch2{letter}")
    last = {"weight": "s" if "_bn." in name else "w", "bias": "b"}
    layer, _, parameter = name.rpartition(".")
    return f"{layer.replace('.', '_')}_{last[parameter]}"


def old_array(name: str, array: np.ndarray) -> np.ndarray:
    """Put the background class first, with rows of its own where detectron2 has none."""
    if "cls_score" in name:
        return np.concatenate([array[-1:], array[:-1]])
    if "bbox_pred" in name:
        return np.concatenate([np.full_like(array[:4], 9), array])
    if "mask_head.predictor" in name:
        return np.concatenate([np.full_like(array[:1], 9), array])
    return array


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("nested", [True, False], ids=["blobs", "bare"])
@pytest.mark.parametrize("model", ["mask_rcnn_fpn", "keypoint_rcnn_fpn"])
def test_a_whole_model_under_its_old_names_is_the_same_model(
    tmp_path: Path, demo_zoo: Path, model: str, nested: bool, protocol: int
) -> None:
    new = match_weights(
        {
            name: array.shape
            for name, array in read_weights(demo_zoo / model / "model_final.pth").arrays.items()
        },
        read_weights(demo_zoo / model / "model_final.pth"),
        source="new",
    )
    old = {blob_of(name): old_array(name, array) for name, array in new.items() if "running" not in name}
    assert len(old) == sum("running" not in name for name in new)
    assert all("." not in blob for blob in old)
    extra = {f"{blob}_momentum": np.zeros_like(array) for blob, array in old.items() if array.size < 99}
    extra |= {"fc1000_w": np.ones((3, 2)), "pred_b": np.ones(3), "conv1_b": np.zeros(16)}
    extra |= {"kps_score_w": np.ones((5, 5, 4, 4)), "kps_score_b": np.zeros(5)}
    path = tmp_path / "model_final.pkl"
    path.write_bytes(
        pickle.dumps({"blobs": old | extra, "cfg": "MODEL: {}"} if nested else old | extra, protocol)
    )

    weights = read_weights(path)
    notes: list[str] = []
    matched = match_weights({name: a.shape for name, a in new.items()}, weights, source="old", notes=notes)

    assert weights.era == "caffe2"
    assert set(matched) == set(new)
    for name, array in new.items():
        absent = {"running_mean": np.zeros_like(array), "running_var": np.ones_like(array)}
        assert np.array_equal(matched[name], absent.get(name.rsplit(".", 1)[-1], array)), name
    assert any("background" in note for note in notes)


def test_what_is_not_understood_is_listed_under_its_old_name() -> None:
    old = {
        "conv1_w": np.ones((4, 3, 7, 7)),
        "bbox_pred_w": np.ones((8, 5)),
        "retnet_cls_pred_fpn3_w": np.ones(2),
    }
    weights = Weights(old, era="caffe2")
    expected = {
        "backbone.stem.conv1.weight": (4, 3, 7, 7),
        "roi_heads.box_predictor.bbox_pred.weight": (4, 5),
    }
    with pytest.raises(Failure) as caught:
        match_weights(expected, weights, source="old.pkl")
    assert caught.value.details["unexpected"] == ["retnet_cls_pred_fpn3_w"]
    assert caught.value.details["missing"] == []
