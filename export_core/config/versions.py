"""Configs from before detectron2's public release (version 1): their keys under today's names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CURRENT = 2

_PANOPTIC = "MODEL.PANOPTIC_FPN."

# Facts of detectron2's config versions: old name -> name in version 2.
RENAMED: dict[str, str] = {
    "MODEL.RPN_HEAD.NAME": "MODEL.RPN.HEAD_NAME",
    "MODEL.WEIGHT": "MODEL.WEIGHTS",
    _PANOPTIC + "SEMANTIC_LOSS_SCALE": "MODEL.SEM_SEG_HEAD.LOSS_WEIGHT",
    _PANOPTIC + "RPN_LOSS_SCALE": "MODEL.RPN.LOSS_WEIGHT",
    _PANOPTIC + "INSTANCE_LOSS_SCALE": _PANOPTIC + "INSTANCE_LOSS_WEIGHT",
    _PANOPTIC + "COMBINE_ON": _PANOPTIC + "COMBINE.ENABLED",
    _PANOPTIC + "COMBINE_OVERLAP_THRESHOLD": _PANOPTIC + "COMBINE.OVERLAP_THRESH",
    _PANOPTIC + "COMBINE_STUFF_AREA_LIMIT": _PANOPTIC + "COMBINE.STUFF_AREA_LIMIT",
    _PANOPTIC + "COMBINE_INSTANCES_CONFIDENCE_THRESHOLD": _PANOPTIC + "COMBINE.INSTANCES_CONFIDENCE_THRESH",
    "MODEL.ROI_HEADS.SCORE_THRESH": "MODEL.ROI_HEADS.SCORE_THRESH_TEST",
    "MODEL.ROI_HEADS.NMS": "MODEL.ROI_HEADS.NMS_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_SCORE_THRESHOLD": "MODEL.RETINANET.SCORE_THRESH_TEST",
    "MODEL.RETINANET.INFERENCE_TOPK_CANDIDATES": "MODEL.RETINANET.TOPK_CANDIDATES_TEST",
    "MODEL.RETINANET.INFERENCE_NMS_THRESHOLD": "MODEL.RETINANET.NMS_THRESH_TEST",
    "TEST.DETECTIONS_PER_IMG": "TEST.DETECTIONS_PER_IMAGE",
    "TEST.AUG_ON": "TEST.AUG.ENABLED",
    "TEST.AUG_MIN_SIZES": "TEST.AUG.MIN_SIZES",
    "TEST.AUG_MAX_SIZE": "TEST.AUG.MAX_SIZE",
    "TEST.AUG_FLIP": "TEST.AUG.FLIP",
}

# Anchors belonged to the RPN or to RetinaNet, whichever the meta architecture used.
_ANCHORS = {"ANCHOR_SIZES": "SIZES", "ANCHOR_ASPECT_RATIOS": "ASPECT_RATIOS"}


def guess_version(chain: list[Mapping[str, Any]]) -> int | None:
    """Return the version of files that state none: 1 if they use version 1's signature keys, else None."""
    signature = ("MODEL.WEIGHT", "TEST.AUG_ON")
    return 1 if any(_get(values, key) is not None for values in chain for key in signature) else None


def upgrade(values: dict[str, Any], meta_architecture: str) -> tuple[dict[str, Any], list[str]]:
    """Rename the keys of a version 1 file.

    Args:
        values: the file's nested mapping; left as it is.
        meta_architecture: of the whole chain of files, which decides whose anchors count.

    Returns:
        The mapping under version 2's names, and one remark per renamed key.
    """
    upgraded = _copy(values)
    renames = dict(RENAMED)
    owner, other = ("RETINANET", "RPN") if meta_architecture == "RetinaNet" else ("RPN", "RETINANET")
    for old, new in _ANCHORS.items():
        renames[f"MODEL.{owner}.{old}"] = f"MODEL.ANCHOR_GENERATOR.{new}"
    notes = []
    for old, new in renames.items():
        value = _pop(upgraded, old)
        if value is not None:
            _set(upgraded, new, value)
            notes.append(f"{old} is read as {new} (a version 1 config)")
    meaningless = [*(f"MODEL.{other}.{old}" for old in _ANCHORS), "MODEL.RETINANET.ANCHOR_STRIDES"]
    notes += [
        f"{dropped} has no meaning for {meta_architecture} and is dropped"
        for dropped in meaningless
        if _pop(upgraded, dropped) is not None
    ]
    upgraded.pop("VERSION", None)
    return upgraded, notes


def _copy(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: _copy(item) if isinstance(item, Mapping) else item for key, item in values.items()}


def _get(values: Mapping[str, Any], dotted: str) -> Any:
    node: Any = values
    for part in dotted.split("."):
        if not isinstance(node, Mapping):
            return None
        node = node.get(part)
    return node


def _pop(values: dict[str, Any], dotted: str) -> Any:
    """Remove a key, and its nodes where they become empty."""
    head, _, rest = dotted.partition(".")
    if not rest:
        return values.pop(head, None)
    node = values.get(head)
    if not isinstance(node, dict):
        return None
    value = _pop(node, rest)
    if value is not None and not node:
        del values[head]
    return value


def _set(values: dict[str, Any], dotted: str, value: Any) -> None:
    *parents, leaf = dotted.split(".")
    node = values
    for part in parents:
        child = node.setdefault(part, {})
        if not isinstance(child, dict):
            return
        node = child
    node.setdefault(leaf, value)
