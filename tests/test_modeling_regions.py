"""Anchors, pooling of regions from the right level, and keypoints from heatmaps."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.ops import roi_align, roi_pool

from zooport.export_core.failures import Failure
from zooport.export_core.modeling.anchors import AnchorGenerator, cell_anchors
from zooport.export_core.modeling.poolers import RoiPooler
from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder
from zooport.export_core.modeling.roi_heads.mask_head import add_masks

STRIDES = [4, 8, 16, 32]


def test_cell_anchors_have_their_area_and_ratio_about_the_origin() -> None:
    anchors = cell_anchors([32, 100], [0.5, 1.0, 2.0])

    sides = anchors[:, 2:] - anchors[:, :2]
    torch.testing.assert_close(anchors[:, :2], -anchors[:, 2:])
    torch.testing.assert_close(sides.prod(1), torch.tensor([32.0**2] * 3 + [100.0**2] * 3))
    torch.testing.assert_close(sides[:, 1] / sides[:, 0], torch.tensor([0.5, 1.0, 2.0] * 2))


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_anchors_lie_cell_by_cell_row_by_row(offset: float) -> None:
    generator = AnchorGenerator([[8], [32]], [[0.5, 2.0]], [4, 16], offset)

    fine, coarse = generator([torch.zeros(1, 1, 2, 3), torch.zeros(1, 1, 1, 2)])

    centres = (fine[:, :2] + fine[:, 2:]) / 2
    places = [((x + offset) * 4, (y + offset) * 4) for y in range(2) for x in range(3) for _ in range(2)]
    torch.testing.assert_close(centres, torch.tensor(places))
    shapes = cell_anchors([8], [0.5, 2.0])
    torch.testing.assert_close(fine[4:6], shapes + centres[4].repeat(2))
    assert coarse.shape == (4, 4)
    assert generator.per_cell == [2, 2]


def test_plain_numbers_are_the_anchors_of_every_map() -> None:
    flat = AnchorGenerator([32, 64, 128], [0.5, 1.0, 2.0], [4, 8])
    spelled_out = AnchorGenerator([[32, 64, 128]] * 2, [[0.5, 1.0, 2.0]] * 2, [4, 8])

    assert flat.per_cell == [9, 9]
    assert all(torch.equal(one, other) for one, other in zip(flat.cells, spelled_out.cells, strict=True))


def test_anchor_sizes_fit_the_number_of_maps() -> None:
    with pytest.raises(Failure, match=r"ANCHOR_GENERATOR\.SIZES has 2 entries for 3") as caught:
        AnchorGenerator([[8], [16]], [[1.0]], [4, 8, 16])
    assert caught.value.code == "config.invalid"


@pytest.mark.parametrize(
    ("side", "level"),
    [(0.0, 0), (1.0, 0), (111.9, 0), (112.0, 1), (223.9, 1), (224.0, 2), (447.9, 2), (448.0, 3), (1e4, 3)],
)
def test_boxes_go_to_the_level_of_their_size(side: float, level: int) -> None:
    pooler = RoiPooler(7, STRIDES, 0, "ROIAlignV2")

    assert pooler.assign(torch.tensor([[10.0, 20.0, 10 + side, 20 + side]])).tolist() == [level]


@pytest.mark.parametrize("kind", ["ROIAlignV2", "ROIAlign", "ROIPool"])
def test_regions_come_back_in_the_order_of_their_boxes(kind: str) -> None:
    pooler = RoiPooler(3, STRIDES, 2, kind)
    maps = [torch.randn(2, 5, 512 // stride, 512 // stride) for stride in STRIDES]
    sides = [[400.0, 20.0, 130.0], [300.0, 500.0, 60.0, 240.0]]
    boxes = [torch.tensor([[3.0, 5.0, 3 + side, 5 + side / 2] for side in image]) for image in sides]

    pooled = pooler(maps, boxes)

    expected = []
    for image, image_boxes in enumerate(boxes):
        for box in image_boxes:
            level = int(pooler.assign(box[None]))
            roi = torch.cat((torch.tensor([float(image)]), box))[None]
            if kind == "ROIPool":
                expected.append(roi_pool(maps[level], roi, 3, 1 / STRIDES[level]))
            else:
                aligned = kind == "ROIAlignV2"
                expected.append(roi_align(maps[level], roi, 3, 1 / STRIDES[level], 2, aligned))
    torch.testing.assert_close(pooled, torch.cat(expected))


def test_no_box_at_all_is_pooled_to_nothing() -> None:
    pooler = RoiPooler(7, STRIDES, 0, "ROIAlignV2")
    maps = [torch.randn(1, 5, 64 // stride, 64 // stride) for stride in STRIDES]

    assert pooler(maps, [torch.zeros(0, 4)]).shape == (0, 5, 7, 7)


def test_keypoints_lie_at_the_highest_cell_of_a_box_of_the_heatmaps_size() -> None:
    heatmap = torch.full((1, 2, 8, 8), -4.0)
    heatmap[0, 0, 2, 5], heatmap[0, 1, 7, 0] = 6.0, 3.0

    found = HeatmapDecoder()(heatmap, torch.tensor([[100.0, 50.0, 108.0, 58.0]]))

    assert found[0, :, :2].tolist() == [[105.5, 52.5], [100.5, 57.5]]
    softmax = heatmap.flatten(2).softmax(-1).amax(-1)
    torch.testing.assert_close(found[0, :, 2], softmax[0])


def test_keypoints_of_scaled_and_of_vanishing_boxes() -> None:
    heatmap = torch.zeros(2, 1, 8, 8)
    heatmap[:, 0, 1, 6] = 10.0

    found = HeatmapDecoder()(heatmap, torch.tensor([[10.0, 10.0, 90.0, 50.0], [5.0, 5.0, 5.1, 5.1]]))

    # Cell (1, 6) of 8 x 8, in a box of 80 x 40: x within 10 + 60 to 70, y within 10 + 5 to 10.
    assert 70 <= found[0, 0, 0] <= 80
    assert 15 <= found[0, 0, 1] <= 20
    # A box counts as at least one pixel large.
    assert found[1, 0, :2].tolist() == pytest.approx([5.5, 5.5])


def test_keypoints_of_no_box() -> None:
    assert HeatmapDecoder()(torch.zeros(0, 17, 56, 56), torch.zeros(0, 4)).shape == (0, 17, 3)


def test_each_mask_is_that_of_its_class() -> None:
    logits = torch.arange(3 * 4, dtype=torch.float32).reshape(3, 4, 1, 1).repeat(1, 1, 2, 2) - 5
    detections = [{"pred_classes": torch.tensor([3, 0])}, {"pred_classes": torch.tensor([1])}]

    add_masks(detections, logits)

    wanted = [-2.0, -1.0, 4.0]
    masks = torch.cat([fields["pred_masks"] for fields in detections])
    assert masks.shape == (3, 1, 2, 2)
    assert masks[:, 0, 0, 0].tolist() == pytest.approx([1 / (1 + math.exp(-value)) for value in wanted])


def test_class_agnostic_masks_are_taken_as_they_are() -> None:
    detections = [{"pred_classes": torch.tensor([3, 0])}]

    add_masks(detections, torch.tensor([0.0, 2.0]).reshape(2, 1, 1, 1))

    assert detections[0]["pred_masks"].flatten().tolist() == pytest.approx([0.5, 1 / (1 + math.exp(-2))])
