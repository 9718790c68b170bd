"""Anchors of feature maps."""

from __future__ import annotations

from functools import partial

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.layers import sides_of


@translates(".anchors.AnchorGenerator")
def anchors(module: Module, features: list[tf.Tensor]) -> list[tf.Tensor]:
    """Return float32 (H * W * A, 4) anchors for each map (N, H, W, C), cell by cell."""
    found = []
    for level, (feature, stride) in enumerate(zip(features, module.strides, strict=True)):
        rows, columns = (
            tf.range(tf.cast(side, tf.float32)) * float(stride) + module.offset * stride
            for side in sides_of(feature)
        )
        y, x = tf.meshgrid(rows, columns, indexing="ij")
        shifts = tf.reshape(tf.stack([x, y, x, y], axis=-1), [-1, 1, 4])
        cell = module.constant(f"cell{level}", partial(module.arrays.__getitem__, f"cells.{level}"))
        found.append(tf.reshape(shifts + cell[None], [-1, 4]))
    return found
