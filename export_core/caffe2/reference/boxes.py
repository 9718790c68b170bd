"""Operators that turn the outputs of a box head into detections."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zooport.export_core.caffe2.reference import box_math
from zooport.export_core.caffe2.reference.registry import Call, operator, refuse_unless
from zooport.export_core.caffe2.reference.sorting import best_first


@operator("BBoxTransform")
def transform_boxes(call: Call) -> tuple[Tensor, Tensor]:
    """Boxes of every class, in the frame of the original image, and how many belong to each image.

    Inputs are proposals (n, 4) or (n, 5) with the image's number first, deltas (n, 4 * classes) and im_info
    (N, 3) = height, width, scale. Boxes are clipped to the size of the original image, rounded, and scaled
    back with ``apply_scale``. The counts are float32 (N,).
    """
    call.only("rotated", 0)
    rois, deltas, im_info = call.inputs
    images, columns = im_info.shape[0], rois.shape[1]
    refuse_unless(columns in {4, 5}, f"proposals of {columns} columns")
    refuse_unless(columns == 5 or images == 1, "proposals of several images need the image's number")
    refuse_unless(len(rois) == len(deltas) and deltas.shape[1] % 4 == 0, f"deltas of {tuple(deltas.shape)}")
    weights = call.numbers("weights", (1.0, 1.0, 1.0, 1.0))
    refuse_unless(len(weights) == 4, f"{len(weights)} weights")
    numbers = rois[:, 0].to(torch.int64) if columns == 5 else torch.zeros(len(rois), dtype=torch.int64)
    refuse_unless(bool((numbers[1:] >= numbers[:-1]).all()), "proposals that are not sorted by image")
    counts = torch.bincount(numbers, minlength=images)
    refuse_unless(len(counts) == images, f"a proposal of image {len(counts) - 1} of {images}")
    made = [
        _of_image(call, rois[rows, -4:], deltas[rows], im_info[number], weights)
        for number, rows in enumerate(_slices(counts))
    ]
    return torch.cat(made), counts.to(torch.float32)


def _slices(counts: Tensor) -> list[slice]:
    ends = counts.cumsum(0).tolist()
    return [slice(start, end) for start, end in zip([0, *ends], ends, strict=False)]


def _of_image(call: Call, rois: Tensor, deltas: Tensor, im_info: Tensor, weights: list[float]) -> Tensor:
    plus_one = call.integer("legacy_plus_one", 1)
    scale = im_info[2]
    height, width = (int(float(length / scale) + 0.5) for length in im_info[:2])
    original = rois / scale
    classes = [
        box_math.clip(box_math.apply_deltas(original, some, weights, plus_one), height, width, plus_one)
        for some in deltas.split(4, 1)
    ]
    boxes = torch.cat(classes, 1)
    return boxes * scale if call.flag("apply_scale", True) else boxes


@operator("BoxWithNMSLimit")
def limit_detections(call: Call) -> tuple[Tensor, ...]:
    """Detections after a score threshold, suppression within each class, and a limit on their number.

    Inputs are scores (n, classes + 1), boxes (n, 4 * classes) and, optionally, how many belong to each image
    (N,). Outputs are scores (d,), boxes (d, 4) and classes (d,) float, grouped by image and class, the best
    first; then the number per image (N,), rows of the input within their image, int32 (d,), and the number
    per image and class, int32 (N, classes + 1).
    """
    call.only("rotated", 0)
    call.only("soft_nms_enabled", 0)
    scores, boxes = (one.numpy() for one in call.inputs[:2])
    limits = _Limits(call, scores.shape[1])
    refuse_unless(len(scores) == len(boxes), f"{len(scores)} rows of scores, {len(boxes)} of boxes")
    refuse_unless(
        boxes.shape[1] == limits.columns, f"boxes have {boxes.shape[1]}, not {limits.columns} columns"
    )
    splits = call.inputs[2] if len(call.inputs) == 3 else torch.tensor([float(len(scores))])
    made = [limits.of_image(scores[rows], boxes[rows]) for rows in _slices(splits.to(torch.int64))]
    per_image = torch.tensor([len(one.rows) for one in made], dtype=splits.dtype)
    joined = [
        np.concatenate(parts) for parts in zip(*((m.scores, m.boxes, m.classes) for m in made), strict=True)
    ]
    rows = np.concatenate([one.rows for one in made]).astype(np.int32)
    counts = np.stack([one.counts for one in made]).astype(np.int32)
    return (
        *(torch.from_numpy(one) for one in joined),
        per_image,
        torch.from_numpy(rows),
        torch.from_numpy(counts),
    )


class _Found:
    """Detections of one image."""

    def __init__(self, limits: _Limits, scores: Floats, boxes: Floats, kept: list[NDArray[np.int64]]) -> None:
        labels = np.concatenate([np.full(len(rows), number + 1) for number, rows in enumerate(kept)])
        self.rows = np.concatenate(kept)
        columns = np.array([limits.score_column(label) for label in labels], dtype=np.int64)
        starts = np.array([4 * limits.box_column(label) for label in labels], dtype=np.int64)
        self.scores = scores[self.rows, columns]
        self.boxes = boxes[self.rows[:, None], starts[:, None] + np.arange(4)]
        self.classes = (labels - limits.first_class).astype(np.float32)
        self.counts = np.array([0, *(len(rows) for rows in kept)])


Floats = NDArray[np.float32]


class _Limits:
    """The arguments of BoxWithNMSLimit and what it does with the rows of one image.

    A label counts from 1; where the background stands in scores and boxes is a matter of the arguments.
    """

    def __init__(self, call: Call, columns: int) -> None:
        self._threshold = np.float32(call.number("score_thresh", 0.05))
        self._overlap = call.number("nms", 0.3)
        self._most = call.integer("detections_per_im", 100)
        self._plus_one = call.integer("legacy_plus_one", 1)
        self._background = call.integer("input_boxes_include_bg_cls", 1)
        self._agnostic = call.flag("cls_agnostic_bbox_reg", False)
        self.first_class = 0 if call.flag("output_classes_include_bg_cls", True) else 1
        self._labels = range(1, columns)
        self.columns = 4 * (self.box_column(columns - 1) + 1)

    def score_column(self, label: int) -> int:
        """Where the scores of a label are."""
        return label - 1 + self._background

    def box_column(self, label: int) -> int:
        """Which four columns hold the boxes of a label."""
        return 0 if self._agnostic else label - 1 + self._background

    def of_image(self, scores: Floats, boxes: Floats) -> _Found:
        """Return the detections of one image."""
        kept = [self._of_class(scores, boxes, label) for label in self._labels]
        total = sum(len(rows) for rows in kept)
        if 0 < self._most < total:
            kept = self._best(scores, kept)
        return _Found(self, scores, boxes, kept)

    def _of_class(self, scores: Floats, boxes: Floats, label: int) -> NDArray[np.int64]:
        own = scores[:, self.score_column(label)]
        above = np.flatnonzero(own > self._threshold)
        order = above[best_first(own[above])]
        start = 4 * self.box_column(label)
        limit = self._most if self._most > 0 else -1
        return box_math.suppress(boxes[:, start : start + 4], order, self._overlap, limit, self._plus_one)

    def _best(self, scores: Floats, kept: list[NDArray[np.int64]]) -> list[NDArray[np.int64]]:
        labels = np.concatenate([np.full(len(rows), place) for place, rows in enumerate(kept)])
        rows = np.concatenate(kept)
        columns = np.array([self.score_column(place + 1) for place in range(len(kept))])
        chosen = best_first(scores[rows, columns[labels]])[: self._most]
        return [rows[chosen[labels[chosen] == place]] for place in range(len(kept))]
