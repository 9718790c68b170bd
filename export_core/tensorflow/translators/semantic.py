"""The semantic branch of Panoptic FPN (Kirillov et al. 2019)."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.boxes import Size
from zooport.export_core.tensorflow.translators.layers import enlarge_bilinear


@translates(".semantic_head.SemSegFPNHead")
def semantic_head(module: Module, features: dict[str, tf.Tensor], sizes: list[Size]) -> list[tf.Tensor]:
    """Return float32 logits (classes, height, width) of every image, without the padding."""
    total: Any = None
    for name, layers in module.children.items():
        if name in features:
            level = layers(features[name])
            total = level if total is None else total + level
        else:
            total = layers(total)
    logits = enlarge_bilinear(total, int(module.common_stride))
    return [tf.transpose(logits[index, : size[0], : size[1]], [2, 0, 1]) for index, size in enumerate(sizes)]
