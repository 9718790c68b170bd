"""Operators of region proposal networks: proposals of a level, collected, and dealt to the levels again."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from zooport.export_core.caffe2.reference import box_math
from zooport.export_core.caffe2.reference.registry import Call, NotImplementedHere, operator, refuse_unless
from zooport.export_core.caffe2.reference.sorting import best_first


@operator("GenerateProposals", "GenerateProposalsCPP")
def generate_proposals(call: Call) -> tuple[Tensor, Tensor]:
    """Boxes of the best scores of one level, decoded, clipped, filtered and suppressed.

    Inputs are scores (N, A, H, W), deltas (N, 4A, H, W), im_info (N, 3) = height, width, scale, and anchors
    (A, 4) around the origin. Outputs are boxes (n, 5), the image's number first, and scores (n,).
    """
    scores, deltas, im_info, anchors = call.inputs
    if anchors.shape[1] != 4:
        raise NotImplementedHere("with rotated boxes")
    images, count, height, width = scores.shape
    refuse_unless(deltas.shape == (images, 4 * count, height, width), f"deltas of {tuple(deltas.shape)}")
    refuse_unless(anchors.shape[0] == count, f"{anchors.shape[0]} anchors for {count} scores")
    refuse_unless(im_info.shape == (images, 3), f"im_info of {tuple(im_info.shape)}")
    found = [
        _of_image(call, number, scores[number], deltas[number], im_info[number], anchors)
        for number in range(images)
    ]
    return torch.cat([boxes for boxes, _ in found]), torch.cat([chosen for _, chosen in found])


def _of_image(
    call: Call, number: int, scores: Tensor, deltas: Tensor, im_info: Tensor, anchors: Tensor
) -> tuple[Tensor, Tensor]:
    count, height, width = scores.shape
    plus_one = call.integer("legacy_plus_one", 1)
    before = call.integer("pre_nms_topN", 6000)
    after = call.integer("post_nms_topN", 300)
    flat = scores.reshape(-1)
    order = torch.from_numpy(best_first(flat.numpy(), before if before > 0 else None))
    which, place = order // (height * width), order % (height * width)
    stride = torch.tensor(1.0) / torch.tensor(call.number("spatial_scale", 1.0 / 16))
    shift = torch.stack((place % width, place // width), 1).to(torch.float32) * stride
    boxes = box_math.apply_deltas(
        anchors[which] + shift.repeat(1, 2),
        deltas.reshape(count, 4, height * width)[which, :, place],
        (1.0, 1.0, 1.0, 1.0),
        plus_one,
    )
    boxes = box_math.clip(boxes, int(im_info[0]), int(im_info[1]), plus_one)
    sizes = boxes[:, 2:] - boxes[:, :2] + plus_one
    centers = boxes[:, :2] + sizes / 2
    least = call.number("min_size", 16.0) * float(im_info[2])
    inside = (sizes >= least).all(1) & (centers < im_info[[1, 0]]).all(1)
    left = np.flatnonzero(inside.numpy())
    limit = after if 0 < after < len(left) else -1
    kept = box_math.suppress(boxes.numpy(), left, call.number("nms_thresh", 0.7), limit, plus_one)
    chosen = torch.from_numpy(kept)
    image = torch.full((len(kept), 1), float(number))
    return torch.cat((image, boxes[chosen]), 1), flat[order[chosen]]


@operator("CollectRpnProposals")
def collect_proposals(call: Call) -> Tensor:
    """The best proposals of all levels, best first, of equal ones the first; boxes come before the scores."""
    levels = call.integer("rpn_max_level", 6) - call.integer("rpn_min_level", 2) + 1
    refuse_unless(len(call.inputs) == 2 * levels, f"{len(call.inputs)} inputs for {levels} levels")
    boxes = torch.cat(list(call.inputs[:levels]))
    scores = torch.cat([one.reshape(-1) for one in call.inputs[levels:]])
    refuse_unless(len(boxes) == len(scores), f"{len(boxes)} boxes, {len(scores)} scores")
    order = torch.argsort(scores, descending=True, stable=True)
    limit = call.integer("rpn_post_nms_topN", 2000)
    return boxes[order[:limit] if limit > 0 else order]


@operator("DistributeFpnProposals")
def distribute_proposals(call: Call) -> list[Tensor]:
    """Boxes by the level that fits their size, and int32 indices that undo it.

    The level is that of Feature Pyramid Networks (Lin et al. 2017), equation 1.
    """
    (boxes,) = call.inputs
    if boxes.shape[1] == 4:
        boxes = torch.cat((boxes.new_zeros(len(boxes), 1), boxes), 1)
    refuse_unless(boxes.shape[1] == 5, f"boxes of {boxes.shape[1]} columns")
    lowest, highest = call.integer("roi_min_level", 2), call.integer("roi_max_level", 5)
    refuse_unless(highest >= lowest, f"levels from {lowest} to {highest}")
    levels = _levels(call, boxes[:, 1:]).clamp(lowest, highest)
    rows = [torch.nonzero(levels == level).reshape(-1) for level in range(lowest, highest + 1)]
    restore = torch.argsort(torch.cat(rows)).to(torch.int32)
    return [*(boxes[one] for one in rows), restore]


def _levels(call: Call, boxes: Tensor) -> Tensor:
    area = box_math.areas(boxes, call.integer("legacy_plus_one", 1))
    refuse_unless(bool((area >= 0).all()), "a box of negative area")
    relative = area.sqrt() / float(call.integer("roi_canonical_scale", 224)) + 1e-6
    # By way of float64, as the last digit of a float32 logarithm differs between processors.
    exponent = relative.double().log().float() / torch.tensor(math.log(2.0), dtype=torch.float32)
    return (exponent + float(call.integer("roi_canonical_level", 4))).floor()
