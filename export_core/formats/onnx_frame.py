"""Results in the frame of the original image, computed in the graph: the option ``postprocess``.

It is what ``evaluation.postprocess`` does with numpy: boxes and keypoints scaled, boxes clipped, those
without area dropped, masks pasted, and the best label of each pixel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from zooport.export_core.formats.onnx_stand_ins import compiled

INSTANCES = ("pred_boxes", "proposal_boxes")
ROWS = (
    "scores",
    "pred_classes",
    "pred_masks",
    "pred_keypoints",
    "pred_keypoint_heatmaps",
    "objectness_logits",
)


def to_frame(fields: Mapping[str, Tensor], image: Tensor, height: Tensor, width: Tensor) -> dict[str, Tensor]:
    """Return fields in the original image's frame; others than the known ones stay as they are.

    Args:
        fields: of one image, in the network's frame.
        image: (..., C, H, W), what the network saw.
        height: int64 (), of the original image.
        width: likewise.

    Returns:
        As given, but pred_masks bool (N, height, width), sem_seg int64 (height, width), and maybe fewer rows.
    """
    framed = dict(fields)
    scale = torch.stack((width / image.shape[-1], height / image.shape[-2])).to(torch.float32)
    for name in INSTANCES:
        if name not in framed:
            continue
        limit = torch.stack((width, height, width, height)).to(torch.float32)
        boxes = torch.minimum((framed[name] * torch.cat((scale, scale))).clamp(min=0), limit)
        kept = torch.nonzero(((boxes[:, 2:] - boxes[:, :2]) > 0).all(1)).squeeze(1)
        framed |= {other: framed[other][kept] for other in ROWS if other in framed}
        framed[name] = boxes[kept]
    if "pred_masks" in framed:
        masks = framed["pred_masks"][:, 0]
        framed["pred_masks"] = compiled(paste)(masks, framed["pred_boxes"], height, width)
    if "pred_keypoints" in framed:
        points = framed["pred_keypoints"]
        framed["pred_keypoints"] = torch.cat((points[:, :, :2] * scale, points[:, :, 2:]), dim=2)
    if "sem_seg" in framed:
        framed["sem_seg"] = labels(framed["sem_seg"], height, width)
    return framed


def paste(masks: Tensor, boxes: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Return bool (N, height, width) for probabilities (N, M, M) and boxes (N, 4) with area."""
    y, x = torch.arange(int(height)) + 0.5, torch.arange(int(width)) + 0.5
    # The first entry is none of a detection: there is always something to put together.
    pasted = [torch.zeros_like(y[:, None] * x, dtype=torch.bool)[None]]
    for index in range(masks.shape[0]):
        rows = mask_weights(y, boxes[index, 1], boxes[index, 3], masks.shape[1])
        columns = mask_weights(x, boxes[index, 0], boxes[index, 2], masks.shape[2])
        sampled = torch.matmul(torch.matmul(rows, masks[index]), columns.t())
        pasted.append((sampled >= 0.5)[None])
    return torch.cat(pasted)[1:]


def mask_weights(centres: Tensor, low: Tensor, high: Tensor, cells: int) -> Tensor:
    """Return float32 (pixels, cells): how much each cell of a mask between low and high is in each pixel.

    Bilinear sampling, corners not aligned, zeros outside of the mask.
    """
    position = (centres - low) / (high - low) * cells - 0.5
    return (1 - (position[:, None] - torch.arange(cells)).abs()).clamp(min=0)


def labels(logits: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Return the best label of each pixel, int64 (height, width), for logits (C, H, W) resized bilinearly."""
    rows, columns = _taps(logits.shape[1], height), _taps(logits.shape[2], width)
    tall = logits[:, rows[0]] * (1 - rows[2])[:, None] + logits[:, rows[1]] * rows[2][:, None]
    resized = tall[:, :, columns[0]] * (1 - columns[2]) + tall[:, :, columns[1]] * columns[2]
    return resized.argmax(0)


def _taps(cells: Any, length: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each pixel the two cells that it is between, and the part of the second."""
    last = torch.ones_like(length) * cells - 1
    source = (torch.arange(length) + 0.5) * ((last + 1) / length) - 0.5  # type: ignore[call-overload]
    source = source.clamp(min=0)
    low = source.floor().to(torch.int64)
    return torch.minimum(low, last), torch.minimum(low + 1, last), source - low
