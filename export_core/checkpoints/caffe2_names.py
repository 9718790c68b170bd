"""Checkpoints of the first Detectron (Caffe2): its blob names and class order in detectron2's terms.

The names are facts of the two model zoos; ``res2_0_branch2a_w`` is ``res2.0.conv1.weight``, and the first
Detectron put the background class first where detectron2 puts it last.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

from zooport.export_core.checkpoints.weights import Array

# The end of a blob's name says which parameter of a layer it is; longer ends come first.
_PARAMETERS = (
    ("_bn_running_mean", "norm.running_mean"),
    ("_bn_running_var", "norm.running_var"),
    ("_bn_gamma", "norm.weight"),
    ("_bn_beta", "norm.bias"),
    ("_bn_riv", "norm.running_var"),
    ("_bn_rm", "norm.running_mean"),
    ("_bn_s", "norm.weight"),
    ("_bn_b", "norm.bias"),
    ("_gn_s", "norm.weight"),
    ("_gn_b", "norm.bias"),
    ("_w", "weight"),
    ("_b", "bias"),
)

# The rest says which layer. An FPN's RPN is stored once, under level 2, and shared by all levels; a keypoint
# head's convolutions carry no name of their head.
_LAYERS = tuple(
    (re.compile(pattern), layer)
    for pattern, layer in (
        (r"(?:res_)?conv1", r"stem.conv1"),
        (r"res(\d)_(\d+)_branch1", r"res\1.\2.shortcut"),
        (r"res(\d)_(\d+)_branch2a", r"res\1.\2.conv1"),
        (r"res(\d)_(\d+)_branch2b", r"res\1.\2.conv2"),
        (r"res(\d)_(\d+)_branch2c", r"res\1.\2.conv3"),
        (r"fpn_inner_res(\d)_\d+_sum(?:_lateral)?", r"fpn_lateral\1"),
        (r"fpn_res(\d)_\d+_sum", r"fpn_output\1"),
        (r"conv_rpn(?:_fpn2)?", r"proposal_generator.rpn_head.conv"),
        (r"rpn_bbox_pred(?:_fpn2)?", r"proposal_generator.rpn_head.anchor_deltas"),
        (r"rpn_cls_logits(?:_fpn2)?", r"proposal_generator.rpn_head.objectness_logits"),
        (r"bbox_pred", r"bbox_pred"),
        (r"cls_score", r"cls_score"),
        (r"fc6", r"box_head.fc1"),
        (r"fc7", r"box_head.fc2"),
        (r"head_conv(\d+)", r"box_head.conv\1"),
        (r"_(?:\[mask\]|mask)_fcn(\d+)", r"mask_head.mask_fcn\1"),
        (r"mask_fcn_logits", r"mask_head.predictor"),
        (r"conv5_mask", r"mask_head.deconv"),
        (r"conv_fcn(\d+)", r"roi_heads.keypoint_head.conv_fcn\1"),
        (r"kps_score_lowres", r"roi_heads.keypoint_head.score_lowres"),
    )
)

# What the first Detectron carried along without using it: ImageNet's classifier, the bias that the stem's
# normalisation absorbed, and the fixed bilinear kernel of the keypoint head.
_LEFTOVER = re.compile(r"(?:fc1000|pred|kps_score)_[wb]|conv1_b")


def convert(arrays: Mapping[str, Array]) -> tuple[dict[str, Array], dict[str, str]]:
    """Rename the blobs of a checkpoint and move its background class.

    Args:
        arrays: blob name -> array; momentum is already left out.

    Returns:
        The arrays under detectron2's names (without the model's own prefixes, which suffix matching finds),
        and for each of these names the blob's.
    """
    converted: dict[str, Array] = {}
    origins: dict[str, str] = {}
    for blob in sorted(arrays):
        name = parameter_name(blob)
        converted[name] = _reorder(name, arrays[blob])
        origins[name] = blob
    return converted, origins


def parameter_name(blob: str) -> str:
    """Return detectron2's name of a blob; one that no rule knows gets dots for underscores."""
    ending = next((end for end, _ in _PARAMETERS if blob.endswith(end)), "")
    parameter = dict(_PARAMETERS).get(ending, "")
    layer = blob.removesuffix(ending)
    for pattern, name in _LAYERS:
        match = pattern.fullmatch(layer)
        if match and ending:
            return f"{match.expand(name)}.{parameter}"
    return f"{layer.replace('_', '.')}.{parameter}".strip(".")


def is_leftover(blob: str) -> bool:
    """Return whether the first Detectron kept this blob without using it."""
    return _LEFTOVER.fullmatch(blob) is not None


def _reorder(name: str, array: Array) -> Array:
    """Classes: background from first to last. Boxes and masks: without the background's unused rows."""
    if not array.ndim:
        return array
    if name.startswith("cls_score."):
        return np.concatenate([array[1:], array[:1]])
    if name.startswith("bbox_pred."):
        return array[4:]
    return array[1:] if name.startswith("mask_head.predictor.") else array
