"""Box arithmetic: suppression class by class, regression deltas, clipping, and images without any box."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from zooport.export_core.modeling.boxes import BoxCoder, class_nms, clip_boxes, nonempty
from zooport.export_core.modeling.dense_detection import DenseSelector
from zooport.export_core.modeling.meta_architectures.fcos import DistanceCoder
from zooport.export_core.modeling.roi_heads.box_predictor import DetectionSelector


def random_boxes(count: int, extent: float, seed: int) -> Tensor:
    """Boxes of all sizes, some of them partly at negative coordinates."""
    generator = torch.Generator().manual_seed(seed)
    corners = (torch.rand((count, 2), generator=generator) - 0.1) * extent
    sides = 0.01 + torch.rand((count, 2), generator=generator) ** 2 * extent / 2
    return torch.cat((corners, corners + sides), dim=1)


def overlaps(boxes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Intersection over union of each box with each."""
    low = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    shared = (high - low).clip(min=0).prod(-1)
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return np.asarray(shared / (areas[:, None] + areas[None] - shared))


def greedy(boxes: Tensor, scores: Tensor, classes: Tensor, threshold: float) -> list[int]:
    """NMS by its definition: best first, a box goes if one of its class that is kept overlaps it too much."""
    rivals = overlaps(boxes.double().numpy()) > threshold
    rivals &= classes.numpy()[:, None] == classes.numpy()[None]
    kept: list[int] = []
    for index in np.argsort(-scores.numpy(), kind="stable").tolist():
        if not rivals[index, kept].any():
            kept.append(index)
    return kept


@pytest.mark.parametrize(
    ("count", "class_count", "groups"),
    [(1, 1, 1), (60, 1, 1), (300, 3, 1), (300, 80, 1), (300, 1203, 4), (700, 20, 3)],
)
@pytest.mark.parametrize("extent", [50.0, 1333.0])
def test_suppression_is_greedy_within_each_class(
    count: int, class_count: int, groups: int, extent: float
) -> None:
    boxes = random_boxes(count, extent, seed=count)
    generator = torch.Generator().manual_seed(class_count)
    scores = torch.rand(count, generator=generator)
    classes = torch.randint(class_count, (count,), generator=generator)

    kept = class_nms(boxes, scores, classes, 0.5, groups)

    assert kept.tolist() == greedy(boxes, scores, classes, 0.5)


@pytest.mark.parametrize("groups", [1, 4])
def test_suppression_of_more_boxes_than_torchvision_takes_at_once(groups: int) -> None:
    boxes, scores = random_boxes(1500, 200, seed=1), torch.linspace(1, 0.1, 1500)
    classes = torch.arange(1500) % 7

    assert class_nms(boxes, scores, classes, 0.3, groups).tolist() == greedy(boxes, scores, classes, 0.3)


@pytest.mark.parametrize("count", [40, 1400])
def test_equal_scores_keep_all_that_do_not_overlap(count: int) -> None:
    places = torch.arange(count, dtype=torch.float32) * 10
    boxes = torch.stack((places, places, places + 5, places + 5), dim=1)
    doubled = boxes.repeat(2, 1)

    kept = class_nms(doubled, torch.ones(2 * count), torch.zeros(2 * count, dtype=torch.int64), 0.5)

    assert sorted(kept.tolist()) == list(range(count)), "of two equal boxes the first stays"


def test_a_few_equal_scores_are_ordered_by_position() -> None:
    boxes = random_boxes(100, 5000, seed=3)
    scores = torch.tensor([0.25, 1.0, 0.5, 1.0]).repeat(25)
    classes = torch.arange(100)

    assert class_nms(boxes, scores, classes, 0.5).tolist() == greedy(boxes, scores, classes, 0.5)


def test_one_class_never_suppresses_another() -> None:
    boxes = torch.tensor([[0.0, 0.0, 800.0, 1333.0]]).repeat(1230, 1)

    kept = class_nms(boxes, torch.rand(1230), torch.arange(1230), 0.5)

    assert sorted(kept.tolist()) == list(range(1230))


@pytest.mark.parametrize("groups", [1, 3])
def test_no_boxes_give_none(groups: int) -> None:
    kept = class_nms(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64), 0.5, groups)

    assert kept.shape == (0,)
    assert kept.dtype == torch.int64


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_scripted_suppression_is_the_same() -> None:
    boxes, scores, classes = random_boxes(200, 300, seed=9), torch.rand(200), torch.randint(4, (200,))

    assert torch.equal(
        torch.jit.script(class_nms)(boxes, scores, classes, 0.5), class_nms(boxes, scores, classes, 0.5)
    )


def test_zero_deltas_keep_boxes() -> None:
    boxes = random_boxes(20, 400, seed=0)

    moved = BoxCoder([10.0, 10.0, 5.0, 5.0])(torch.zeros(20, 8), boxes)

    torch.testing.assert_close(moved, boxes.repeat(1, 2))


def test_deltas_move_centres_by_sizes_and_scale_sizes_by_exponentials() -> None:
    box = torch.tensor([[10.0, 20.0, 50.0, 40.0]])  # centre (30, 30), 40 x 20
    delta = torch.tensor([[5.0, -10.0, 5 * math.log(2), -5 * math.log(4)]])

    moved = BoxCoder([10.0, 10.0, 5.0, 5.0])(delta, box)

    # The centre moves by 0.5 widths and -1 heights; the width doubles, the height becomes a quarter.
    torch.testing.assert_close(moved, torch.tensor([[10.0, 7.5, 90.0, 12.5]]))


def test_growth_of_one_step_is_bounded() -> None:
    box = torch.tensor([[0.0, 0.0, 16.0, 32.0]])

    moved = BoxCoder([1.0, 1.0, 1.0, 1.0])(torch.tensor([[0.0, 0.0, 100.0, 88.8]]), box)

    sides = moved[0, 2:] - moved[0, :2]
    torch.testing.assert_close(sides, torch.tensor([1000.0, 2000.0]))


def test_boxes_are_clipped_to_height_and_width() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 500.0, 500.0], [150.0, 90.0, 400.0, 95.0]])

    clipped = clip_boxes(boxes, (100, 200))

    assert clipped.tolist() == [[0, 0, 200, 100], [150, 90, 200, 95]]


def test_nonempty_needs_both_sides_longer() -> None:
    boxes = torch.tensor(
        [[0.0, 0.0, 3.0, 3.0], [0.0, 0.0, 2.0, 3.0], [0.0, 0.0, 3.0, 2.0], [5.0, 5.0, 4.0, 9.0]]
    )

    assert nonempty(boxes, 2.0).tolist() == [True, False, False, False]
    assert nonempty(boxes).tolist() == [True, True, True, False]


def test_distances_are_in_units_of_the_cell_and_never_negative() -> None:
    cells = torch.tensor([[-4.0, -4.0, 4.0, 4.0]]) + 20

    boxes = DistanceCoder()(torch.tensor([[1.0, 0.5, -3.0, 2.0]]), cells)

    assert boxes.tolist() == [[12.0, 16.0, 20.0, 36.0]]


def test_selection_drops_what_is_not_finite_below_the_threshold_or_background() -> None:
    selector = DetectionSelector(score_thresh=0.5, nms_thresh=0.5, topk=10, classes=2)
    proposals = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 4) + torch.arange(4)[:, None] * 100
    scores = torch.tensor([[0.9, 0.6, 0.0], [0.5, 0.1, 0.9], [math.nan, 0.9, 0.0], [0.7, 0.2, 0.0]])
    boxes = proposals.clone()
    boxes[3, 2] = math.inf

    (found,) = selector(boxes, scores, [proposals], [(500, 500)])

    assert found["scores"].tolist() == pytest.approx([0.9, 0.6])
    assert found["pred_classes"].tolist() == [0, 1]
    assert found["pred_boxes"].tolist() == [[0, 0, 10, 10]] * 2


def test_selection_takes_the_box_of_the_class_and_the_best_only() -> None:
    selector = DetectionSelector(score_thresh=0.1, nms_thresh=0.5, topk=3, classes=2)
    proposals = torch.zeros(2, 4)
    boxes = torch.tensor([[0.0, 0, 5, 5, 10, 10, 20, 20], [50, 50, 60, 60, 70, 70, 999, 999]])
    scores = torch.tensor([[0.3, 0.4, 0.3], [0.2, 0.8, 0.0]])

    (found,) = selector(boxes, scores, [proposals], [(100, 100)])

    assert found["pred_boxes"].tolist() == [[70, 70, 100, 100], [10, 10, 20, 20], [0, 0, 5, 5]]
    assert found["pred_classes"].tolist() == [1, 1, 0]


@pytest.mark.parametrize(("topk", "count"), [(-1, 3), (-7, 3), (0, 0), (2, 2)])
def test_a_negative_limit_keeps_all_detections_and_zero_none(topk: int, count: int) -> None:
    selector = DetectionSelector(score_thresh=0.1, nms_thresh=0.5, topk=topk, classes=1)
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [20, 0, 29, 9], [40, 0, 49, 9]])
    scores = torch.tensor([[0.3, 0.7], [0.9, 0.1], [0.6, 0.4]])

    (found,) = selector(boxes, scores, [boxes], [(50, 50)])

    assert found["scores"].tolist() == pytest.approx([0.9, 0.6, 0.3][:count])


def test_selection_of_a_batch_without_proposals() -> None:
    selector = DetectionSelector(score_thresh=0.1, nms_thresh=0.5, topk=3, classes=2)

    found = selector(torch.zeros(0, 4), torch.zeros(0, 3), [torch.zeros(0, 4)] * 2, [(9, 9)] * 2)

    assert [fields["pred_boxes"].shape for fields in found] == [(0, 4), (0, 4)]


def test_dense_candidates_are_the_best_above_the_threshold() -> None:
    selector = DenseSelector(score_thresh=0.2, topk_candidates=3, nms_thresh=0.5, topk=5)
    scores = torch.tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7]])

    best, anchors, classes = selector.candidates(scores)

    assert best.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert anchors.tolist() == [0, 1, 2]
    assert classes.tolist() == [1, 0, 1]
