"""Operators that give images another size. Images are float32 (N, C, H, W)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from zooport.export_core.caffe2.reference.registry import Call, operator, refuse_unless


def _scales(call: Call) -> tuple[float, float]:
    """Return (vertical, horizontal) factors, which a second input may give."""
    call.only("order", "NCHW")
    if len(call.inputs) == 2:
        scales = call.inputs[1].tolist()
        refuse_unless(len(scales) == 2, "two scales")
        return scales[0], scales[1]
    height, width = call.number("height_scale", 1.0), call.number("width_scale", 1.0)
    refuse_unless(height > 0 and width > 0, "scales that are not positive")
    return height, width


def _nearest(length: int, made: int, scale: float) -> Tensor:
    places = torch.arange(made, dtype=torch.float32) / torch.tensor(scale, dtype=torch.float32)
    return places.to(torch.int64).clamp(max=length - 1)


@operator("ResizeNearest")
def resize_nearest(call: Call) -> Tensor:
    """Each pixel is that of the input whose corner lies there."""
    vertical, horizontal = _scales(call)
    x = call.inputs[0]
    rows = _nearest(x.shape[2], int(x.shape[2] * vertical), vertical)
    columns = _nearest(x.shape[3], int(x.shape[3] * horizontal), horizontal)
    return x[:, :, rows][:, :, :, columns]


@operator("UpsampleNearest")
def upsample_nearest(call: Call) -> Tensor:
    """Each pixel ``scale`` times in both directions."""
    scale = call.integer("scale", 2)
    return call.inputs[0].repeat_interleave(scale, 2).repeat_interleave(scale, 3)


@operator("UpsampleBilinear")
def upsample_bilinear(call: Call) -> Tensor:
    """Bilinear, the corners of both images on one another."""
    vertical, horizontal = _scales(call)
    x = call.inputs[0]
    size = (int(x.shape[2] * vertical), int(x.shape[3] * horizontal))
    return functional.interpolate(x, size, mode="bilinear", align_corners=True)


@operator("PadImage")
def pad_image(call: Call) -> Tensor:
    """More pixels at each side: a constant, or what is there mirrored or repeated."""
    call.only("order", "NCHW")
    refuse_unless(math.prod(call.inputs[0].shape[1:]) > 0, "images without pixels")
    four = call.integers("pads")
    if not four and any(call.has(f"pad_{side}") for side in "tlbr"):
        four = [call.integer(f"pad_{side}", 0) for side in "tlbr"]
    top, left, bottom, right = four or [call.integer("pad", 0)] * 4
    modes = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}
    mode = call.text("mode", "constant")
    refuse_unless(mode in modes, f"there is no mode {mode}")
    sides = (left, right, top, bottom)
    if mode == "constant":
        return functional.pad(call.inputs[0], sides, value=call.number("value", 0.0))
    return functional.pad(call.inputs[0], sides, mode=modes[mode])
