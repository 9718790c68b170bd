"""Weights and a picture that follow from names and sizes alone.

detectron2's outputs under these weights are recorded in ``data/official``, so that its numbers can be checked
without any of its checkpoints.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Gains that keep activations of deep stacks in range and give enough, but not too many, detections.
_FIRST_SUFFICES = (("fpn_lateral", 0.7), ("fpn_output", 0.7), ("cls_score", 4.0), ("conv2_offset", 0.5))
_SPREADS = {"running_mean": (0.0, 0.1), "bias": (0.0, 0.02), "scale": (1.0, 0.1)}
_REGRESSION = ("bbox_pred", "anchor_deltas")
_UNSCALED_STEM = 60.0  # a stem that sees 0-255 instead of values of deviation 1


def parameter(name: str, shape: Sequence[int], *, shallow: bool, pixel_std: float) -> Array:
    """Return the value of one parameter or buffer.

    Args:
        name: in the state dict; it is the seed.
        shape: of the parameter.
        shallow: whether the ResNet has basic blocks, that is a depth below 50.
        pixel_std: the smallest divisor of the input's normalisation.

    Returns:
        float32, or int64 for the counters of batch norms.
    """
    shape = tuple(shape)
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    generator = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    normal = np.asarray(generator.standard_normal(shape), dtype=np.float32)
    if kind in _SPREADS:
        centre, spread = _SPREADS[kind]
        return (centre + spread * normal).astype(np.float32)
    if kind == "running_var":
        return 0.75 + 0.5 * generator.random(shape).astype(np.float32)
    if kind == "weight" and len(shape) == 1:
        # The last norm of a residual block is damped, or the sum would grow from block to block.
        last = ".conv3.norm." in name or (shallow and ".conv2.norm." in name)
        return (0.9 + 0.2 * generator.random(shape).astype(np.float32)) * (0.25 if last else 1.0)
    return (1.0 + 0.1 * normal) if len(shape) < 2 else _gain(name, shape, pixel_std) * normal


def _gain(name: str, shape: tuple[int, ...], pixel_std: float) -> float:
    gain = math.sqrt(2.0 / math.prod(shape[1:]))
    if name.endswith("stem.conv1.weight") and pixel_std < 2:
        gain /= _UNSCALED_STEM
    for part, factor in _FIRST_SUFFICES:
        if part in name:
            on_res5 = part == "cls_score" and len(shape) == 2 and shape[1] == 2048
            gain *= 14.0 if on_res5 else factor
            break
    return gain * 0.3 if any(part in name for part in _REGRESSION) else gain


def picture(height: int, width: int) -> npt.NDArray[np.uint8]:
    """Return (3, height, width): crossing waves of another length in each channel, and noise."""
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    channel = np.arange(3, dtype=np.float32)[:, None, None]
    waves = 127 + 80 * np.sin(columns / (9 + 4 * channel) + channel) * np.cos(rows / (13 + 3 * channel))
    noise = np.random.Generator(np.random.PCG64(7)).standard_normal(waves.shape).astype(np.float32)
    pixels: npt.NDArray[np.uint8] = np.clip(np.rint(waves + 12 * noise), 0, 255).astype(np.uint8)
    return pixels
