"""What takes the place of a detector's parts while ONNX is made gives what they give, on one image."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from zooport.export_core.formats.onnx_regions import (
    OneImageNormalizer,
    OneImagePooler,
    OneImageRPN,
    OneImageSelector,
    PairedBoxCoder,
)
from zooport.export_core.modeling.boxes import BoxCoder
from zooport.export_core.modeling.images import ImageNormalizer
from zooport.export_core.modeling.poolers import RoiPooler
from zooport.export_core.modeling.roi_heads.box_predictor import DetectionSelector
from zooport.tests.official_zoo import build_for_export

SIZE = (90, 130)
RPN_MODELS = ["COCO-Detection/rpn_R_50_FPN_1x", "COCO-Detection/rpn_R_50_C4_1x"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def some_boxes(count: int) -> torch.Tensor:
    """Return boxes of all sizes, some beyond the image."""
    corners = random(count, 2).abs() * 60
    return torch.cat((corners, corners + random(count, 2, seed=1).exp() * 30), dim=1)


@pytest.mark.parametrize("weights", [[1.0, 1.0, 1.0, 1.0], [10.0, 10.0, 5.0, 5.0], [10.0, 9.0, 5.0, 4.0]])
@pytest.mark.parametrize(("count", "classes"), [(7, 1), (7, 3), (0, 3)])
def test_boxes_are_decoded_to_the_same_bits(weights: list[float], count: int, classes: int) -> None:
    coder, deltas = BoxCoder(weights), random(count, 4 * classes) * 3
    assert torch.equal(PairedBoxCoder(coder)(deltas, some_boxes(count)), coder(deltas, some_boxes(count)))


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("kind", ["plain", "tied", "not finite", "none"])
def test_the_same_detections_are_selected(kind: str, shared: bool) -> None:
    count, classes = (0 if kind == "none" else 60), 5
    selector = DetectionSelector(0.2, 0.4, 30, classes)
    boxes = some_boxes(count).repeat(1, 1 if shared else classes) + random(count, 1)
    scores = random(count, classes + 1, seed=2).sigmoid()
    if kind == "tied":
        scores = (scores * 8).round() / 8
    elif kind == "not finite":
        boxes[3, 1], boxes[7, 0], scores[9, 2], scores[11, -1] = torch.nan, torch.inf, torch.nan, torch.nan

    (found,) = OneImageSelector(selector)(boxes, scores, [boxes], [SIZE])

    (wanted,) = selector(boxes, scores, [boxes], [SIZE])
    assert (len(wanted["scores"]) == 30) == (kind != "none")
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("topk", [-1, 0])
def test_a_negative_limit_selects_all_and_zero_none(topk: int) -> None:
    boxes, scores = some_boxes(60), random(60, 6, seed=2).sigmoid()

    (found,) = OneImageSelector(DetectionSelector(0.2, 0.4, topk, 5))(boxes, scores, [boxes], [SIZE])

    (wanted,) = DetectionSelector(0.2, 0.4, 300 if topk else 0, 5)(boxes, scores, [boxes], [SIZE])
    assert (len(wanted["scores"]) > 30) == bool(topk)
    for name, value in wanted.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("name", RPN_MODELS)
@pytest.mark.parametrize("kind", ["plain", "not finite", "large ones only"])
def test_the_same_regions_are_proposed(name: str, kind: str) -> None:
    rpn: Any = build_for_export(name, tiny=True).proposal_generator
    rpn.post_nms_topk, rpn.pre_nms_topk = 80, 100
    channels, strides = rpn.rpn_head.conv.in_channels, rpn.anchor_generator.strides
    features = {
        level: random(1, channels, -(-SIZE[0] // stride), -(-SIZE[1] // stride), seed=stride)
        for level, stride in zip(rpn.in_features, strides, strict=True)
    }
    if kind == "not finite":
        features[rpn.in_features[0]][0, :, 0, 0] = torch.nan
    elif kind == "large ones only":
        rpn.min_size = 40.0

    with torch.no_grad():
        found, wanted = OneImageRPN(rpn)(features, [SIZE]), rpn(features, [SIZE])

    assert len(wanted.logits[0]) > 5
    assert torch.equal(found.logits[0], wanted.logits[0])
    assert torch.equal(found.boxes[0], wanted.boxes[0])


@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("count", [0, 40])
def test_regions_are_pooled_from_the_same_levels(levels: int, count: int) -> None:
    pooler = RoiPooler(5, [2**level for level in range(2, 2 + levels)], 0, "ROIAlignV2")
    features = [random(1, 6, 64 >> level, 64 >> level) for level in range(levels)]
    boxes = some_boxes(count) * 4

    assert torch.equal(OneImagePooler(pooler)(features, [boxes]), pooler(features, [boxes]))


@pytest.mark.parametrize("step", [0, 32])
def test_an_image_is_padded_likewise(step: int) -> None:
    normalizer = ImageNormalizer([100.0, 110.0, 120.0], [57.0, 58.0, 59.0], step)
    image = random(3, 61, 64)

    found, sizes = OneImageNormalizer(normalizer)([image])

    wanted, wanted_sizes = normalizer([image])
    assert torch.equal(found, wanted)
    assert sizes == wanted_sizes
