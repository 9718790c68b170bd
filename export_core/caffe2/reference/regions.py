"""Operators on regions: pooling, order, keypoints."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import roi_align

from zooport.export_core.caffe2.reference.registry import Call, operator, refuse_unless

_MAX_STEP = 1.5  # pixels that a refined maximum may be away from the largest one
_FLAT = 1e-4  # a determinant below this means that there is no curvature to follow


@operator("RoIAlign")
def align_regions(call: Call) -> Tensor:
    """Features of regions by bilinear samples: features (N, C, H, W), regions (n, 4) or (n, 5)."""
    call.only("order", "NCHW")
    features, regions = call.inputs
    refuse_unless(features.dim() == 4 and regions.dim() == 2, "features or regions of another kind")
    refuse_unless(regions.shape[1] in {4, 5}, f"regions of {regions.shape[1]} columns")
    if regions.shape[1] == 4:
        regions = torch.cat((regions.new_zeros(len(regions), 1), regions), 1)
    images = regions[:, 0]
    refuse_unless(
        bool(((images >= 0) & (images < len(features))).all()), "a region of an image that is not there"
    )
    size = (call.integer("pooled_h", 1), call.integer("pooled_w", 1))
    scale, ratio = call.number("spatial_scale", 1.0), call.integer("sampling_ratio", -1)
    aligned = call.flag("aligned", False)
    if not len(regions):
        return features.new_zeros(0, features.shape[1], *size)
    pooled: Tensor = roi_align(features, regions, size, scale, ratio, aligned)
    if aligned:
        sides = (regions[:, 3:] * scale - 0.5) - (regions[:, 1:3] * scale - 0.5)
        refuse_unless(bool((sides >= 0).all()), "a region of negative size")
        if ratio <= 0:  # the number of samples follows the size, and of none there is no mean
            pooled[(sides == 0).any(1)] = torch.nan
    return pooled


@operator("BatchPermutation")
def permute_batch(call: Call) -> Tensor:
    """Rows in the order of int32 indices."""
    x, indices = call.inputs
    refuse_unless(indices.dim() == 1 and indices.dtype == torch.int32, "indices are a list of int32")
    refuse_unless(len(indices) == len(x), f"{len(indices)} indices for {len(x)} rows")
    return x[indices.to(torch.int64)]


@operator("HeatmapMaxKeypoint")
def heatmap_keypoints(call: Call) -> Tensor:
    """Keypoints (N, 4, K): x, y, logit and probability of each heatmap's maximum.

    Inputs are heatmaps (N, K, S, S) and boxes (N, 4) or more columns, x1, y1, x2, y2 first. The maximum is
    refined by one step of Newton's method on the pixels around it. The probability is the softmax's at the
    maximum with ``should_output_softmax``, 0 otherwise.
    """
    heatmaps, boxes = call.inputs
    refuse_unless(heatmaps.dim() == 4 and heatmaps.shape[2] == heatmaps.shape[3], "heatmaps are square")
    refuse_unless(boxes.shape[0] == heatmaps.shape[0] and boxes.shape[1] >= 4, "a box for each heatmap")
    count, keypoints, side, _ = heatmaps.shape
    flat = heatmaps.reshape(count, keypoints, side * side)
    best = flat.amax(-1, keepdim=True)
    place = (flat == best).to(torch.uint8).argmax(-1)  # of equal ones the first
    y, x = place // side, place % side
    step, logit = _refine(heatmaps, y, x)
    corner = boxes[:, None, :2]
    extent = (boxes[:, None, 2:4] - corner).clamp(min=1.0)
    positions = torch.stack((x, y), -1).to(torch.float32) + 0.5 + step
    positions = corner + positions * extent / side
    if call.flag("should_output_softmax", False):
        probability = 1.0 / (flat - best).exp().sum(-1)
    else:
        probability = torch.zeros_like(logit)
    return torch.stack((positions[..., 0], positions[..., 1], logit, probability), 1)


def _refine(heatmaps: Tensor, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the step (N, K, 2) in x and y from each maximum to that of a parabola, and its value (N, K)."""
    side = heatmaps.shape[-1]
    flat = heatmaps.flatten(2)
    around = {}
    for dy in (-1, 0, 1):
        for dx in (-1, 0, 1):
            rows, columns = _mirrored(y + dy, side), _mirrored(x + dx, side)
            around[dx, dy] = flat.gather(2, (rows * side + columns)[..., None])[..., 0]
    bx = -(around[1, 0] - around[-1, 0]) / 2
    by = -(around[0, 1] - around[0, -1]) / 2
    xx = around[-1, 0] - 2 * around[0, 0] + around[1, 0]
    yy = around[0, -1] - 2 * around[0, 0] + around[0, 1]
    xy = (around[1, 1] - around[1, -1] - around[-1, 1] + around[-1, -1]) / 4
    determinant = xx * yy - xy * xy
    curved = determinant.abs() >= _FLAT
    safe = torch.where(curved, determinant, 1.0)
    step = torch.stack(((bx * yy - by * xy) / safe, (by * xx - bx * xy) / safe), -1)
    longest = step.abs().amax(-1, keepdim=True)
    step = torch.where(longest > _MAX_STEP, step / longest * _MAX_STEP, step)
    step = torch.where(curved[..., None], step, 0.0)
    right, down = step.unbind(-1)
    bent = 0.5 * (right * right * xx + 2 * right * down * xy + down * down * yy)
    value = around[0, 0] - (bx * right + by * down) + bent
    return step, torch.where(curved, value, around[0, 0])


def _mirrored(place: Tensor, side: int) -> Tensor:
    """Return places with those outside mirrored at the edge."""
    inner = torch.where(place >= side, side - 2, place)
    return torch.where(inner < 0, 1, inner)
