"""Box arithmetic and suppression. Boxes are float32 (N, 4): x1, y1, x2, y2 in input pixels."""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates

Size = tuple[Any, Any]


def clip_boxes(boxes: tf.Tensor, size: Size) -> tf.Tensor:
    """Clip boxes (..., 4) to an image of (height, width)."""
    height, width = (tf.cast(side, boxes.dtype) for side in size)
    highest = tf.stack([width, height, width, height])
    return tf.minimum(tf.maximum(boxes, 0.0), highest)


def nonempty(boxes: tf.Tensor, min_size: float) -> tf.Tensor:
    """Return which of the boxes (N, 4) have both sides longer than ``min_size``; bool (N,)."""
    return tf.reduce_all(boxes[:, 2:] - boxes[:, :2] > min_size, axis=1)


@translates(".boxes.BoxCoder")
def decode_boxes(module: Module, deltas: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Return boxes (N, C * 4) for deltas (N, C * 4) relative to boxes (N, 4) (R-CNN, appendix C)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + 0.5 * sides
    sides, centres = sides[:, None], centres[:, None]
    each = tf.reshape(deltas, [-1, deltas.shape[1] // 4, 4])
    shift = each[..., :2] / tf.constant([module.wx, module.wy])
    growth = tf.minimum(each[..., 2:] / tf.constant([module.ww, module.wh]), module.max_log_scale)
    middle = shift * sides + centres
    half = 0.5 * (tf.exp(growth) * sides)
    decoded = tf.concat([middle - half, middle + half], axis=-1)
    return tf.reshape(decoded, [-1, deltas.shape[1]])


def suppress(boxes: tf.Tensor, scores: tf.Tensor, threshold: float, at_most: Any) -> tf.Tensor:
    """Return int32 indices of the boxes that no better one overlaps by more, best first.

    Of equal scores the first is the better one, as in torchvision.
    """
    found, count = tf.raw_ops.NonMaxSuppressionV4(
        boxes=boxes,
        scores=scores,
        max_output_size=at_most,
        iou_threshold=threshold,
        score_threshold=float("-inf"),
    )
    return found[:count]  # TensorFlow Lite fills up to max_output_size


@translates(".boxes.ClassNms")
def suppress_classwise(module: Module, boxes: tf.Tensor, scores: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
    """Return int32 indices of the kept boxes, best first; the classes (N,) are suppressed one by one."""
    count = tf.size(classes)
    none = tf.constant(-1, classes.dtype)

    def next_class(last: tf.Tensor, kept: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        later = tf.where(classes > last, classes, classes.dtype.max)
        current = tf.reduce_min(later)
        members = tf.cast(tf.where(tf.equal(classes, current))[:, 0], tf.int32)
        best = suppress(
            tf.gather(boxes, members), tf.gather(scores, members), module.iou_threshold, tf.size(members)
        )
        places = tf.gather(members, best)[:, None]
        return current, kept + tf.scatter_nd(places, tf.ones_like(best), [count])

    _, kept = tf.while_loop(
        lambda last, _: tf.reduce_any(classes > last),
        next_class,
        (none, tf.zeros([count], tf.int32)),
        shape_invariants=(none.shape, tf.TensorShape([None])),
        parallel_iterations=1,
    )
    by_position = tf.cast(tf.where(kept > 0)[:, 0], tf.int32)
    return tf.gather(by_position, best_first(tf.gather(scores, by_position)))


def best_first(scores: tf.Tensor) -> tf.Tensor:
    """Return the int32 order of scores (N,) from the highest on, equal ones as they stand."""
    return tf.math.top_k(scores, tf.size(scores)).indices


def is_finite(x: tf.Tensor) -> tf.Tensor:
    """Return which numbers are neither infinite nor NaN; in operators that TensorFlow Lite has."""
    return tf.equal(x - x, 0.0)
