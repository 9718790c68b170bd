"""Cases of Caffe2's detection operators: equal scores, boxes without area, nothing at all."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from zooport.tests.caffe2_cases import EXACT, F4, I4, Cases, Inputs, boxes, gauss, normals, regions

PROPOSALS: dict[str, Any] = {
    "spatial_scale": 1 / 16,
    "pre_nms_topN": 50,
    "post_nms_topN": 20,
    "nms_thresh": 0.7,
    "min_size": 0.0,
    "legacy_plus_one": 0,
}
LEVELS: dict[str, Any] = {
    "roi_canonical_scale": 224,
    "roi_canonical_level": 4,
    "roi_min_level": 2,
    "roi_max_level": 5,
    "legacy_plus_one": 0,
}
TRANSFORM: dict[str, Any] = {
    "weights": [10.0, 10.0, 5.0, 5.0],
    "apply_scale": 1,
    "rotated": 0,
    "legacy_plus_one": 0,
}
LIMIT: dict[str, Any] = {
    "score_thresh": 0.3,
    "nms": 0.5,
    "detections_per_im": 20,
    "soft_nms_enabled": 0,
    "rotated": 0,
    "cls_agnostic_bbox_reg": 0,
    "input_boxes_include_bg_cls": 0,
    "output_classes_include_bg_cls": 0,
    "legacy_plus_one": 0,
}


def detection_cases() -> Cases:
    """Return all of them."""
    cases = Cases()
    for add in (_generate, _collect, _distribute, _align, _transform, _limit, _keypoints):
        add(cases)
    return cases


def _anchors(count: int) -> NDArray[np.float32]:
    side = np.linspace(8, 64, count)
    return np.stack([-side, -side * 0.7, side, side * 0.7], 1).astype(F4)


def _level(
    height: int = 6,
    width: int = 7,
    images: int = 1,
    steps: float | None = None,
    deltas: float = 0.3,
    im_info: Sequence[Sequence[float]] | None = None,
) -> Inputs:
    """Inputs of GenerateProposals; ``steps`` per unit make scores equal, 0 all of them."""
    about = im_info or [[height * 16 - 5, width * 16 - 3, 1.0]] * images

    def make(random: Generator) -> list[NDArray[Any]]:
        scores = gauss(random, images, 3, height, width)
        if steps is not None:
            scores = np.round(scores * steps).astype(F4)
        moves = gauss(random, images, 12, height, width) * F4(deltas)
        return [scores, moves, np.array(about, F4), _anchors(3)]

    return make


def _generate(cases: Cases) -> None:
    def add(inputs: Inputs, times: int = 1, **arguments: Any) -> None:
        cases.add("GenerateProposals", inputs, 2, 1e-4, times, **PROPOSALS | arguments)

    add(_level(), times=4)
    add(_level(images=2))
    add(_level(steps=1.0), times=4)
    add(_level(12, 11, steps=0.0))
    # std::partial_sort, then std::sort, of many that are equal.
    add(_level(20, 31, steps=2.0), times=3, pre_nms_topN=1000, post_nms_topN=1000)
    add(_level(20, 31, steps=2.0), times=3, pre_nms_topN=6000, post_nms_topN=1000, nms_thresh=0.9)
    add(_level(20, 31, steps=0.0), pre_nms_topN=6000, post_nms_topN=1000, nms_thresh=0.9)
    # Boxes that leave the image shrink to nothing.
    add(_level(deltas=3.0), times=4)
    add(_level(im_info=[[40, 30, 1.0]]), times=4)
    add(_level(im_info=[[40.7, 30.6, 1.7]]), times=4, min_size=9.0)
    add(_level(im_info=[[0, 0, 1.0]]))
    add(_level(im_info=[[90, 90, 1.0]]), min_size=1000.0)
    add(_level(), legacy_plus_one=1)
    add(_level(), pre_nms_topN=0, post_nms_topN=0)
    add(_level(), pre_nms_topN=-1, post_nms_topN=-1)
    add(_level(), min_size=0)  # not a float
    add(lambda random: [*_level()(random)[:3], _anchors(4)])
    cases.add("GenerateProposals", _level(), 2)


def _collected(sizes: Sequence[int], equal: bool = False) -> Inputs:
    def make(random: Generator) -> list[NDArray[Any]]:
        scores = [gauss(random, count) for count in sizes]
        return [
            *(regions(random, count) for count in sizes),
            *(np.round(one) if equal else one for one in scores),
        ]

    return make


def _collect(cases: Cases) -> None:
    for sizes, limit in (
        ((5, 0, 9), 8),
        ((50, 40, 9), 30),
        ((50, 40, 9), 3000),
        ((0, 0, 0), 30),
        ((5, 6, 7), 0),
    ):
        for equal in (False, True):
            inputs = _collected(sizes, equal)
            cases.add(
                "CollectRpnProposals",
                inputs,
                tolerance=EXACT,
                rpn_min_level=2,
                rpn_max_level=4,
                rpn_post_nms_topN=limit,
            )
    cases.add("CollectRpnProposals", _collected([5, 6]), rpn_min_level=2, rpn_max_level=4)
    cases.add("CollectRpnProposals", _collected([5]), rpn_min_level=2, rpn_max_level=2, rpn_post_nms_topN=3)


def _squares(*sides: float) -> NDArray[np.float32]:
    ends = np.array(sides, F4)
    return np.stack([0 * ends, 0 * ends, 0 * ends, ends, ends], 1).astype(F4)


def _distribute(cases: Cases) -> None:
    def add(inputs: Inputs, outputs: int = 5, **arguments: Any) -> None:
        cases.add("DistributeFpnProposals", inputs, outputs, EXACT, **LEVELS | arguments)

    def powers(random: Generator) -> list[NDArray[Any]]:
        """Areas of a power of four, but for what rounding does."""
        made = np.zeros((400, 5), F4)
        side, ratio = 56 * 2.0 ** random.integers(0, 5, 400), np.exp(random.uniform(-1, 1, 400))
        made[:, 3], made[:, 4] = side * ratio, side / ratio
        return [made]

    def inverted(random: Generator) -> list[NDArray[Any]]:
        made = regions(random, 20)
        made[:10, 3] -= 300
        return [made]

    edges = [0, 1e-3, 1, 55.9, 56, 111.99999, 112, 112.00001, 223.9999, 224, 224.0001, 448, 448.001, 2000]
    add(lambda random: [regions(random, 60, size=400)])
    add(lambda random: [regions(random, 60, size=400, empty=0.3)])
    add(lambda random: [_squares(*edges)])
    add(lambda random: [_squares(*edges)], legacy_plus_one=1)
    add(lambda random: [_squares(*np.exp(random.uniform(2, 7.5, 4000)))])
    add(powers)
    add(inverted)
    add(lambda random: [regions(random, 0)])
    add(lambda random: [boxes(random, 30)])
    add(lambda random: [regions(random, 30)], 2, roi_min_level=4, roi_max_level=4)


def _align(cases: Cases) -> None:
    def add(inputs: Inputs, **arguments: Any) -> None:
        cases.add(
            "RoIAlign",
            inputs,
            tolerance=1e-4,
            **{"spatial_scale": 0.2, "pooled_h": 7, "pooled_w": 5} | arguments,
        )

    outside = [[0, -50, -50, -20, -20], [0, 300, 300, 400, 400], [0, -5, -5, 5, 5]]
    for aligned in (0, 1):
        for ratio in (0, 2, -1, 1):
            same = {"aligned": aligned, "sampling_ratio": ratio}
            add(lambda random: [gauss(random, 2, 3, 20, 24), regions(random, 30, 2, size=100)], **same)
            add(lambda random: [gauss(random, 1, 3, 20, 24), regions(random, 30, empty=0.5)], **same)
            add(lambda random: [gauss(random, 1, 3, 20, 24), np.array(outside, F4)], **same)
    add(lambda random: [gauss(random, 1, 3, 20, 24), boxes(random, 9, size=50)])
    add(lambda random: [gauss(random, 1, 3, 20, 24), regions(random, 0)], aligned=1, sampling_ratio=0)
    inverted = [0, 3, 2, 1, 4]
    add(lambda random: [gauss(random, 1, 3, 20, 24), regions(random, 4)[:, inverted]], sampling_ratio=0)
    for count, kind in ((9, I4), (9, np.int64), (8, I4)):
        cases.add(
            "BatchPermutation",
            lambda random, count=count, kind=kind: [  # type: ignore[misc]
                gauss(random, 9, 2, 3),
                random.permutation(count).astype(kind),
            ],
        )
    cases.add("BatchPermutation", lambda random: [gauss(random, 0, 2, 3), np.zeros(0, I4)])


def _transform(cases: Cases) -> None:
    def add(rois: Inputs, im_info: Sequence[Sequence[float]], moves: float = 1.0, **arguments: Any) -> None:
        def make(random: Generator) -> list[NDArray[Any]]:
            (found,) = rois(random)
            return [found, gauss(random, len(found), 12) * F4(moves), np.array(im_info, F4)]

        cases.add("BBoxTransform", make, 2, **arguments)

    def some(random: Generator) -> list[NDArray[Any]]:
        return [regions(random, 30)]

    for scale in (1.0, 1.37, 0.73):
        add(some, [[190, 230, scale]], **TRANSFORM)
        add(some, [[190, 230, scale]], **TRANSFORM | {"apply_scale": 0})
        add(some, [[190.5, 230.4, scale]], **TRANSFORM | {"legacy_plus_one": 1})
    add(
        lambda random: [regions(random, 30, 3)],
        [[190, 230, 1.1], [90, 80, 1], [100, 50, 0.5]],
        9.0,
        **TRANSFORM,
    )
    add(lambda random: [boxes(random, 30)], [[190, 230, 1]], 20.0, **TRANSFORM)
    add(lambda random: [regions(random, 0)], [[190, 230, 1]], **TRANSFORM)
    add(lambda random: [np.zeros((5, 5), F4)], [[190, 230, 1], [3, 3, 1]], **TRANSFORM)
    add(some, [[190, 230, 1]])
    add(some, [[190, 230, 1]], **TRANSFORM | {"weights": [1.0, 1.0, 1.0]})


def _scored(
    count: int,
    classes: int = 5,
    columns: int | None = None,
    steps: int | None = None,
    empty: float = 0.0,
    splits: Sequence[int] | None = None,
) -> Inputs:
    """Inputs of BoxWithNMSLimit; scores are multiples of 1 / ``steps``."""

    def make(random: Generator) -> list[NDArray[Any]]:
        scores = random.random((count, classes + 1)).astype(F4)
        if steps is not None:
            scores = (np.round(scores * steps) / steps).astype(F4)
        found = [boxes(random, count, 60, empty) for _ in range(columns or classes)]
        return [scores, np.concatenate(found, 1), np.array(splits or [count], F4)]

    return make


def _limit(cases: Cases) -> None:
    def add(inputs: Inputs, outputs: int = 6, times: int = 1, **arguments: Any) -> None:
        cases.add("BoxWithNMSLimit", inputs, outputs, EXACT, times, **LIMIT | arguments)

    for count in (3, 15, 60, 300):
        for steps in (None, 8, 1):
            add(_scored(count, steps=steps), times=3)
        add(_scored(count, steps=3, empty=0.3), times=3, detections_per_im=100)
    add(lambda random: _scored(40)(random)[:2], 3)
    add(_scored(40, splits=[10, 30]))
    add(_scored(40, splits=[10, 0, 30]))
    add(_scored(0))
    add(_scored(40), score_thresh=2.0)
    add(_scored(40, columns=1), cls_agnostic_bbox_reg=1)
    add(_scored(40, columns=1))
    add(_scored(40, columns=6), input_boxes_include_bg_cls=1)
    add(
        _scored(40, columns=6),
        input_boxes_include_bg_cls=1,
        output_classes_include_bg_cls=1,
        legacy_plus_one=1,
    )
    add(_scored(40), detections_per_im=0)
    add(_scored(40), detections_per_im=-1)
    add(_scored(40, 1))
    cases.add("BoxWithNMSLimit", lambda random: _scored(40, columns=6)(random)[:2], 3, EXACT)


def _keypoints(cases: Cases) -> None:
    def add(heatmaps: Inputs, more: Inputs | None = None, **arguments: Any) -> None:
        def make(random: Generator) -> list[NDArray[Any]]:
            (maps,) = heatmaps(random)
            return [maps, *(more(random) if more else [boxes(random, len(maps))])]

        cases.add("HeatmapMaxKeypoint", make, tolerance=2e-4, **arguments)

    def hills(side: int) -> Inputs:
        def make(random: Generator) -> list[NDArray[Any]]:
            grid, (x, y) = np.arange(side), random.random((2, 9, 4, 1, 1)) * side
            width = random.random((9, 4, 1, 1)) * 6 + 0.6
            return [(9 * np.exp(-((grid[:, None] - y) ** 2 + (grid - x) ** 2) / width**2)).astype(F4)]

        return make

    for softmax in (0, 1):
        for inputs in (
            normals((5, 4, 14, 14)),
            hills(14),
            hills(56),
            lambda random: [np.round(gauss(random, 6, 4, 10, 10))],
            lambda random: [np.zeros((2, 3, 8, 8), F4)],
        ):
            add(inputs, should_output_softmax=softmax)
    add(normals((3, 4, 8, 8)), lambda random: [boxes(random, 3, empty=1.0)])
    add(normals((3, 4, 8, 8)), lambda random: [regions(random, 3)])
    add(normals((3, 4, 8, 8)), lambda random: [boxes(random, 2)])
    add(normals((0, 4, 8, 8)))
    add(normals((3, 4, 8, 6)))
