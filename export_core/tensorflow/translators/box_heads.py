"""From box features to detections (Girshick, Fast R-CNN)."""

from __future__ import annotations

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.boxes import Size, clip_boxes, is_finite
from zooport.export_core.tensorflow.translators.layers import linear_of_maps

Fields = dict[str, tf.Tensor]


@translates(".roi_heads.box_predictor.BoxPredictor")
def box_predictor(module: Module, x: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Return logits (R, classes + 1) and deltas (R, 4 or classes * 4)."""
    if x.shape.rank == 4:
        return linear_of_maps(module.cls_score, x), linear_of_maps(module.bbox_pred, x)
    return module.cls_score(x), module.bbox_pred(x)


def probabilities(predictor: Module, logits: tf.Tensor) -> tf.Tensor:
    """Return class scores (R, classes + 1) of a box predictor."""
    return tf.sigmoid(logits) if predictor.sigmoid else tf.nn.softmax(logits)


@translates(".roi_heads.box_predictor.DetectionSelector")
def select_detections(
    module: Module, boxes: tf.Tensor, scores: tf.Tensor, proposals: list[tf.Tensor], sizes: list[Size]
) -> list[Fields]:
    """Return pred_boxes (N, 4), scores (N,) and int64 pred_classes (N,) of each image, best first."""
    counts = [tf.shape(each)[0] for each in proposals]
    if len(counts) == 1:
        return [_select(module, boxes, scores, sizes[0])]
    split = zip(tf.split(boxes, counts), tf.split(scores, counts), sizes, strict=True)
    return [_select(module, *each) for each in split]


def _select(module: Module, boxes: tf.Tensor, scores: tf.Tensor, size: Size) -> Fields:
    finite = tf.reduce_all(is_finite(boxes), axis=1)
    finite &= tf.reduce_all(is_finite(scores), axis=1)
    rows = tf.where(finite)[:, 0]
    boxes, scores = tf.gather(boxes, rows), tf.gather(scores, rows)[:, :-1]
    places = tf.cast(tf.where(scores > module.score_thresh), tf.int32)  # (N, 2): row, class
    # Only the boxes that are candidates are clipped, and in a class-agnostic head they are the same for all.
    own = tf.reshape(boxes, [-1, boxes.shape[1] // 4, 4])
    agnostic = own.shape[1] == 1
    candidates = tf.gather(own[:, 0], places[:, 0]) if agnostic else tf.gather_nd(own, places)
    candidates, scores = clip_boxes(candidates, size), tf.gather_nd(scores, places)
    kept = module.nms(candidates, scores, places[:, 1])
    if module.topk >= 0:  # a negative number sets no limit
        kept = kept[: module.topk]
    return {
        "pred_boxes": tf.gather(candidates, kept),
        "scores": tf.gather(scores, kept),
        "pred_classes": tf.cast(tf.gather(places[:, 1], kept), tf.int64),
    }
