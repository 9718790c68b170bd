"""Where in its box each keypoint is (He et al., Mask R-CNN, section 5)."""

from __future__ import annotations

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates

_A = -0.75  # Keys' cubic convolution as torch has it


@translates(".roi_heads.keypoint_head.HeatmapDecoder")
def decode_heatmaps(module: Module, heatmaps: tf.Tensor, boxes: tf.Tensor) -> tf.Tensor:
    """Return float32 (R, K, 3): x, y and score of the highest pixel of each heatmap at its box's size.

    Args:
        module: the decoder.
        heatmaps: logits (R, K, H, W).
        boxes: (R, 4).
    """
    keypoints, height, width = heatmaps.shape[1:]
    sides = tf.maximum(boxes[:, 2:] - boxes[:, :2], 1.0)
    pixels = tf.math.ceil(sides)

    def one(arguments: tuple[tf.Tensor, ...]) -> tf.Tensor:
        heatmap, box, side, size = arguments
        columns, rows = tf.unstack(tf.cast(size, tf.int32))
        # (rows, H) x (K, H, W) x (W, columns)
        surface = tf.matmul(_cubic_weights(height, rows), heatmap)
        surface = tf.matmul(surface, _cubic_weights(width, columns), transpose_b=True)
        surface = tf.reshape(surface, [keypoints, -1])
        place = tf.argmax(surface, axis=1, output_type=tf.int32)
        highest = tf.gather(surface, place, batch_dims=1)
        cells = tf.exp(tf.reshape(heatmap, [keypoints, -1]) - highest[:, None])
        at = tf.cast(tf.stack([place % columns, place // columns], axis=1), tf.float32)
        xy = (at + 0.5) * (side / size) + box[:2]
        return tf.concat([xy, 1.0 / tf.reduce_sum(cells, axis=1, keepdims=True)], axis=1)

    signature = tf.TensorSpec([keypoints, 3], tf.float32)
    found = tf.map_fn(
        tf.autograph.experimental.do_not_convert(one),
        (heatmaps, boxes, sides, pixels),
        fn_output_signature=signature,
        parallel_iterations=1,
    )
    return tf.ensure_shape(found, [None, keypoints, 3])


def _cubic_weights(length: int, target: tf.Tensor) -> tf.Tensor:
    """Return (target, length): what each of ``target`` pixels takes from the cells of a row of ``length``."""
    pixels = tf.cast(target, tf.float32)
    position = (tf.range(pixels) + 0.5) * (length / pixels) - 0.5
    left = tf.floor(position)
    share = position - left
    weights = tf.zeros([target, length])
    for offset, factor in zip((-1, 0, 1, 2), _cubic_factors(share), strict=True):
        cell = tf.clip_by_value(tf.cast(left, tf.int32) + offset, 0, length - 1)
        weights += tf.one_hot(cell, length) * factor[:, None]
    return weights


def _cubic_factors(share: tf.Tensor) -> tuple[tf.Tensor, ...]:
    def near(distance: tf.Tensor) -> tf.Tensor:
        return ((_A + 2) * distance - (_A + 3)) * distance * distance + 1

    def far(distance: tf.Tensor) -> tf.Tensor:
        return ((_A * distance - 5 * _A) * distance + 8 * _A) * distance - 4 * _A

    return far(share + 1), near(share), near(1 - share), far(2 - share)
