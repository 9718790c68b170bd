"""Every official model equals detectron2's: its parameters, and every stage that was recorded of it.

Tolerances, and what they are for. Both sides compute in float32, but convolutions add up in another order on
another machine and with another number of threads:

- tensors: 1e-4 of the largest magnitude in them, what is left of float32's 6e-8 after up to 150 layers;
- boxes and keypoints: 0.01 pixels, far below what an overlap threshold or a metric notices;
- scores and mask probabilities: 1e-4 absolute; those of keypoints, exponentials of logits, what the tolerance
  of the logits makes of it;
- classes, the order of detections, thresholded masks at the sampled positions, panoptic segments and map:
  equal;
- counted pixels (areas of stuff segments, the mean of thresholded masks): one in 10,000 may flip, because a
  probability next to its threshold falls on either side.

Deterministic weights are not trained: in some networks they blow rounding up by orders of magnitude, and put
scores and box sides right at their thresholds. Where a stage is beyond its tolerance, the model is run in
float64 too. What float32 and float64 of the same model disagree about on this machine, two float32 programs
on two machines need not agree about; a mistake in the model shows in both, and fails.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import nn

from zooport.export_core.modeling.build import build_skeleton
from zooport.tests.official_zoo import SAME_NETWORK, config_of, observe, parameters, recorded

Array = np.ndarray[Any, Any]

RELATIVE, PIXELS, SCORE, FLIPPED = 1e-4, 0.01, 1e-4, 1e-4
# An exponential of logits up to 40, each of which may be off by RELATIVE of that, over a sum of such ones.
KEYPOINT_SCORE = 2 * RELATIVE * 40
ROUNDINGS = 4.0  # times the rounding of this machine that two machines may be apart
ABSOLUTE = {
    "pred_boxes": PIXELS,
    "proposal_boxes": PIXELS,
    "places": PIXELS,
    "scores": SCORE,
    "pred_masks": SCORE,
}
EXACT = {
    "raw_detections/pred_classes",
    "detections/pred_classes",
    "detections/pred_masks",
    "panoptic/map",
}
SEGMENT = ("id", "isthing", "category_id")

STAGES = {
    "features",
    "proposals",
    "pooled_on_given_boxes",
    "box_head_on_given_boxes",
    "raw_detections",
    "detections",
    "sem_seg",
    "panoptic",
}

# One of each kind of architecture runs always, the rest with the slow tests.
FAST = {
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/fcos_R_50_FPN_1x",
    "COCO-Detection/rpn_R_50_FPN_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
}
MODELS = [
    pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow], id=name) for name in recorded()
]


def test_all_official_models_are_recorded() -> None:
    assert len(recorded()) == len(parameters()) == 59 + 7
    assert set(recorded()) == set(parameters()) >= FAST


@pytest.mark.parametrize("name", recorded())
def test_parameters_are_detectron2s(name: str) -> None:
    state = build_skeleton(config_of(name)).state_dict()

    found = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")] for key, value in state.items()
    }

    assert found == parameters()[name]


@pytest.mark.parametrize(("name", "twin"), SAME_NETWORK.items())
def test_models_of_one_network_differ_in_nothing(name: str, twin: str) -> None:
    assert describe(build_skeleton(config_of(name))) == describe(build_skeleton(config_of(twin)))


def describe(model: nn.Module) -> list[Any]:
    """Every module's class and settings, and the shapes or values of its tensors."""
    described = []
    for name, module in model.named_modules():
        settings = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        tensors = {**module._parameters, **module._buffers}
        shown = {
            key: None if value is None else value.shape if value.is_meta else value.tolist()
            for key, value in tensors.items()
        }
        described.append((name, type(module), repr(settings), shown))
    return described


@pytest.mark.parametrize("name", MODELS)
def test_every_stage_equals_detectron2s(name: str) -> None:
    record = recorded()[name]

    seen = observe(name)

    assert seen["padded"] == record["padded"]
    checks = list(compare(record, seen))
    beyond = [check for check in checks if not check.within]
    if beyond:
        exact = observe(name, torch.float64)
        beyond = [check for check in beyond if not is_rounding(check, seen, exact)]
    assert [f"{check.place} {check.finding}" for check in beyond] == []
    assert {check.place.split("/")[0] for check in checks} == set(record) & STAGES


class Check(NamedTuple):
    """One comparison: of what, what was found, whether it is within tolerance, and by how much it is off."""

    place: str
    finding: str
    within: bool
    off: float = float("nan")


def is_rounding(check: Check, seen: Mapping[str, Any], exact: Mapping[str, Any]) -> bool:
    """Whether float32 and float64 disagree as much as zooport and the record do."""
    found: Any = seen
    wanted: Any = exact
    for key in check.place.split("/"):
        found, wanted = found[key], wanted[key]
    if isinstance(found, list):
        return bool(found != wanted)
    if found.shape != wanted.shape:
        return True
    return check.off <= ROUNDINGS * float(np.abs(found.astype(np.float64) - wanted).max(initial=0.0))


def compare(record: Mapping[str, Any], seen: Mapping[str, Any], path: str = "") -> Iterator[Check]:
    """Walk the record and compare every tensor in it."""
    for name, wanted in record.items():
        place = f"{path}{name}"
        if name == "segments":
            yield from compare_segments(place, wanted, seen[name])
        elif isinstance(wanted, dict) and "value" in wanted:
            yield from compare_tensor(place, name, wanted, np.asarray(seen[name]))
        elif path or name in STAGES:
            yield from compare(wanted, seen[name], f"{place}/") if isinstance(wanted, dict) else ()


def compare_tensor(place: str, name: str, wanted: Mapping[str, Any], found: Array) -> Iterator[Check]:
    if list(found.shape) != wanted["shape"]:
        yield Check(place, f"has shape {found.shape} instead of {wanted['shape']}", within=False)
        return
    values = np.asarray(wanted["value"], dtype=np.float64)
    sampled = found.reshape(-1)[wanted["index"]] if "index" in wanted else found[: len(values)]
    yield from compare_values(place, name, values.reshape(sampled.shape), sampled.astype(np.float64))
    if "mean" in wanted and found.size:
        spread = max(abs(wanted["mean"]), wanted["std"], 1e-12)
        limit = FLIPPED if found.dtype in (np.bool_, np.int32) else RELATIVE
        off = abs(found.mean(dtype=np.float64) - wanted["mean"])
        yield Check(
            place, f"has its mean off by {off / spread:.2g} of its spread", off <= limit * spread, off
        )


def compare_values(place: str, name: str, wanted: Array, found: Array) -> Iterator[Check]:
    if name == "pred_keypoints":
        yield from compare_values(place, "places", wanted[..., :2], found[..., :2])
        yield from compare_values(place, "keypoint scores", wanted[..., 2], found[..., 2])
        return
    largest = float(np.abs(wanted).max(initial=0.0))
    if name == "keypoint scores":
        limit = max(SCORE, KEYPOINT_SCORE * largest)
    else:
        limit = 0.0 if place in EXACT else ABSOLUTE.get(name, RELATIVE * largest)
    off = float(np.abs(wanted - found).max(initial=0.0))
    yield Check(place, f"is off by {off:.3g}, allowed {limit:.3g}", off <= limit, off)


def compare_segments(
    place: str, wanted: list[dict[str, Any]], found: list[dict[str, Any]]
) -> Iterator[Check]:
    facts = [[[entry[key] for key in SEGMENT] for entry in entries] for entries in (wanted, found)]
    yield Check(place, f"are {facts[1]} instead of {facts[0]}", facts[0] == facts[1])
    for theirs, ours in zip(wanted, found, strict=False):
        if "area" in theirs:
            off = abs(ours.get("area", 0) - theirs["area"])
            yield Check(place, f"{theirs['id']} is off by {off} pixels", off <= FLIPPED * 480 * 640)
