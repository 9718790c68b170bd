"""The region proposal network (Ren et al., Faster R-CNN, section 3)."""

from __future__ import annotations

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.boxes import (
    Size,
    best_first,
    clip_boxes,
    is_finite,
    nonempty,
    suppress,
)

Tensors = list[tf.Tensor]


@translates(".proposals.rpn.StandardRPNHead")
def rpn_head(module: Module, features: Tensors) -> tuple[Tensors, Tensors]:
    """Return logits (N, H * W * A) and deltas (N, H * W * A, 4) of each map."""
    logits, deltas = [], []
    for feature in features:
        hidden = module.conv(feature)
        images = tf.shape(feature)[0]
        logits.append(tf.reshape(module.objectness_logits(hidden), [images, -1]))
        deltas.append(tf.reshape(module.anchor_deltas(hidden), [images, -1, 4]))
    return logits, deltas


@translates(".proposals.rpn.RPN")
def rpn(module: Module, features: dict[str, tf.Tensor], sizes: list[Size]) -> tuple[Tensors, Tensors]:
    """Return the boxes (P, 4) and logits (P,) of each image, best first."""
    maps = [features[name] for name in module.in_features]
    logits, deltas = module.rpn_head(maps)
    anchors = module.anchor_generator(maps)
    boxes, scores = [], []
    for index, size in enumerate(sizes):
        best, best_scores = _select(
            module, [level[index] for level in logits], [level[index] for level in deltas], anchors, size
        )
        boxes.append(best)
        scores.append(best_scores)
    return boxes, scores


def _select(
    module: Module, logits: Tensors, deltas: Tensors, anchors: Tensors, size: Size
) -> tuple[tf.Tensor, tf.Tensor]:
    kept_boxes, kept_scores = [], []
    for level_logits, level_deltas, level_anchors in zip(logits, deltas, anchors, strict=True):
        scores, order = tf.math.top_k(level_logits, tf.minimum(tf.size(level_logits), module.pre_nms_topk))
        boxes = module.box_coder(tf.gather(level_deltas, order), tf.gather(level_anchors, order))
        finite = tf.reduce_all(is_finite(boxes), axis=1) & is_finite(scores)
        boxes = clip_boxes(boxes, size)
        usable = tf.where(finite & nonempty(boxes, module.min_size))[:, 0]
        boxes, scores = tf.gather(boxes, usable), tf.gather(scores, usable)
        # No more of one level than are kept of all.
        kept = suppress(boxes, scores, module.nms_thresh, module.post_nms_topk)
        kept_boxes.append(tf.gather(boxes, kept))
        kept_scores.append(tf.gather(scores, kept))
    boxes, scores = tf.concat(kept_boxes, axis=0), tf.concat(kept_scores, axis=0)
    best = best_first(scores)[: module.post_nms_topk]
    return tf.gather(boxes, best), tf.gather(scores, best)
