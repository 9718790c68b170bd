"""Deformable convolution (Dai et al. 2017; modulated: Zhu et al. 2019) by gathering.

TensorFlow has no such operator. The samples of all cells of the kernel are taken by four gatherings, weighted
bilinearly; with those of a pixel in a row, the convolution is a 1x1 one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.layers import is_foldable, kernel_and_bias


@translates(".deformable.DeformableConv2d")
def deformable_convolution(
    module: Module, x: tf.Tensor, offsets: tf.Tensor, factors: tf.Tensor | None
) -> tf.Tensor:
    """Return (N, H', W', C').

    Args:
        module: the convolution.
        x: (N, H, W, C).
        offsets: (N, H', W', 2 * G * K * K), pixels in y and x for each kernel cell of each group of channels.
        factors: (N, H', W', G * K * K) of each sample, None for all 1.
    """
    kernel = module.arrays["weight"].shape[-1]
    cells = kernel * kernel
    groups = offsets.shape[-1] // (2 * cells)
    width = x.shape[-1] // groups
    shape = tf.shape(offsets)
    regular_y, regular_x = _regular_places(module, kernel, shape[1], shape[2])
    parts = []
    for group in range(groups):
        source = _ZeroBordered(x[..., group * width : (group + 1) * width])
        own = offsets[..., group * 2 * cells : (group + 1) * 2 * cells]
        found = source.sample(own[..., ::2] + regular_y, own[..., 1::2] + regular_x)
        if factors is not None:
            found *= tf.expand_dims(factors[..., group * cells : (group + 1) * cells], -1)
        parts.append(found)
    samples = parts[0] if groups == 1 else tf.concat(parts, axis=-1)
    return module.activation(_combine(module, samples, cells))


def _combine(module: Module, samples: tf.Tensor, cells: int) -> tf.Tensor:
    """Convolve what was sampled, (N, H', W', K * K, C), by a 1x1 convolution, then normalise."""
    shape, channels = tf.shape(samples), samples.shape[-1]
    per_group = module.arrays["weight"].shape[1]
    groups = channels // per_group
    if groups > 1:  # a group's samples stand together
        samples = tf.reshape(samples, [shape[0], shape[1] * shape[2], cells, groups, per_group])
        samples = tf.transpose(samples, [0, 1, 3, 2, 4])
    columns = tf.reshape(samples, [shape[0], shape[1], shape[2], cells * channels])
    norm = module.norm

    def kernel() -> npt.NDArray[Any]:
        folded = kernel_and_bias(module, norm)[0]  # (K, K, C / groups, C')
        return np.ascontiguousarray(folded.reshape(1, 1, cells * per_group, -1))

    y = tf.nn.conv2d(columns, module.constant("kernel", kernel), strides=1, padding="VALID")
    if is_foldable(norm):
        return tf.nn.bias_add(y, module.constant("bias", lambda: kernel_and_bias(module, norm)[1]))
    return norm(y)


def _regular_places(module: Module, kernel: int, rows: tf.Tensor, columns: tf.Tensor) -> list[tf.Tensor]:
    """Return y (H', 1, K * K) and x (W', K * K): where an ordinary convolution samples, in input pixels."""
    cells = np.indices((kernel, kernel)).reshape(2, -1) * module.dilation - module.padding
    along = [
        tf.range(length)[:, None] * module.stride + axis
        for length, axis in zip((rows, columns), cells, strict=True)
    ]
    return [tf.expand_dims(tf.cast(along[0], tf.float32), 1), tf.cast(along[1], tf.float32)]


class _ZeroBordered:
    """A map that has zeros around it, to be sampled anywhere."""

    def __init__(self, x: tf.Tensor) -> None:
        self._rows, self._columns = tf.shape(x)[1], tf.shape(x)[2]
        self._channels = x.shape[-1]
        padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])
        pixels = (self._rows + 2) * (self._columns + 2)
        self._images = tf.range(tf.shape(x)[0])[:, None, None, None] * pixels
        self._flat = tf.reshape(padded, [-1, self._channels])

    def sample(self, y: tf.Tensor, x: tf.Tensor) -> tf.Tensor:
        """Return (N, H', W', K * K, C) at positions y and x (N, H', W', K * K), bilinearly."""
        # A pixel or more outside of the map there is nothing but zeros, however far.
        y = tf.clip_by_value(y, -1.0, tf.cast(self._rows, tf.float32)) + 1.0
        x = tf.clip_by_value(x, -1.0, tf.cast(self._columns, tf.float32)) + 1.0
        top, left = tf.floor(y), tf.floor(x)
        below, right = tf.expand_dims(y - top, -1), tf.expand_dims(x - left, -1)
        row, column = tf.cast(top, tf.int32), tf.cast(left, tf.int32)
        next_row, next_column = tf.minimum(row + 1, self._rows + 1), tf.minimum(column + 1, self._columns + 1)
        upper = self._at(row, column) * (1 - right) + self._at(row, next_column) * right
        lower = self._at(next_row, column) * (1 - right) + self._at(next_row, next_column) * right
        return upper * (1 - below) + lower * below

    def _at(self, row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        return tf.gather(self._flat, self._images + row * (self._columns + 2) + column)
