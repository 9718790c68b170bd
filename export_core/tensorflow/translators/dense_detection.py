"""RetinaNet (Lin et al. 2017) and FCOS (Tian et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterable

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.layers import LEVEL_NORM, norm_at_level, sequential

Tensors = list[tf.Tensor]
Fields = dict[str, tf.Tensor]


@translates(".dense_detection.Tower")
def tower(module: Module, features: Tensors) -> Tensors:
    """Return (N, H, W, C) for each level's (N, H, W, C)."""
    return [sequential(module, feature) for feature in features]


@translates(".dense_detection.LevelNormTower")
def level_norm_tower(module: Module, features: Tensors) -> Tensors:
    """Return (N, H, W, C) for each level's (N, H, W, C).

    The norms are not folded into the convolutions, whose kernels would then be others on every level.
    """
    results = []
    for level, x in enumerate(features):
        for layer in module.children.values():
            x = norm_at_level(layer, x, level) if layer.is_kind(LEVEL_NORM) else layer(x)  # noqa: PLW2901
        results.append(x)
    return results


def _towers(module: Module, features: Tensors) -> Iterable[tuple[tf.Tensor, tf.Tensor]]:
    return zip(module.cls_subnet(features), module.bbox_subnet(features), strict=True)


@translates(".meta_architectures.retinanet.RetinaNetHead")
def retinanet_head(module: Module, features: Tensors) -> tuple[Tensors, Tensors]:
    """Return scores (N, H * W * A, classes) and deltas (N, H * W * A, 4) of each level."""
    scores, deltas = [], []
    for of_classes, of_boxes in _towers(module, features):
        images = tf.shape(of_classes)[0]
        logits = module.cls_score(of_classes)
        boxes = module.bbox_pred(of_boxes)
        scores.append(tf.sigmoid(tf.reshape(logits, [images, -1, module.classes])))
        deltas.append(tf.reshape(boxes, [images, -1, 4]))
    return scores, deltas


@translates(".meta_architectures.fcos.FCOSHead")
def fcos_head(module: Module, features: Tensors) -> tuple[Tensors, Tensors]:
    """Return scores (N, H * W, classes), means of class probability and centerness, and deltas."""
    scores, deltas = [], []
    for of_classes, of_boxes in _towers(module, features):
        images = tf.shape(of_classes)[0]
        logits = module.cls_score(of_classes)
        score = tf.sqrt(tf.sigmoid(logits) * tf.sigmoid(module.ctrness(of_boxes)))
        scores.append(tf.reshape(score, [images, -1, logits.shape[-1]]))
        deltas.append(tf.reshape(module.bbox_pred(of_boxes), [images, -1, 4]))
    return scores, deltas


@translates(".meta_architectures.fcos.DistanceCoder")
def decode_distances(module: Module, deltas: tf.Tensor, cells: tf.Tensor) -> tf.Tensor:
    """Return boxes (K, 4) from distances to their sides, in units of the cells (K, 4)."""
    sides = cells[:, 2:] - cells[:, :2]
    distances = tf.nn.relu(deltas) * tf.concat([sides, sides], axis=1)
    centres = 0.5 * (cells[:, :2] + cells[:, 2:])
    return tf.concat([centres - distances[:, :2], centres + distances[:, 2:]], axis=1)


@translates(".dense_detection.DenseSelector")
def select_dense(module: Module, boxes: tf.Tensor, scores: tf.Tensor, classes: tf.Tensor) -> Fields:
    """Return the detections among all candidates, best first."""
    kept = module.nms(boxes, scores, classes)[: module.topk]
    return {
        "pred_boxes": tf.gather(boxes, kept),
        "scores": tf.gather(scores, kept),
        "pred_classes": tf.cast(tf.gather(classes, kept), tf.int64),
    }


def _candidates(module: Module, scores: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Return score, anchor and class of the best entries of one level's scores (A, classes)."""
    classes = scores.shape[1]
    flat = tf.reshape(scores, [-1])
    above = tf.cast(tf.where(flat > module.score_thresh)[:, 0], tf.int32)
    values = tf.gather(flat, above)
    best, order = tf.math.top_k(values, tf.minimum(tf.size(values), module.topk_candidates))
    chosen = tf.gather(above, order)
    return best, chosen // classes, chosen % classes


@translates(".dense_detection.DenseDetector")
def dense_detector(module: Module, images: list[tf.Tensor]) -> list[Fields]:
    """Return the detections of every image (H, W, C)."""
    batch, sizes = module.normalizer(images)
    features = module.backbone(batch)
    maps = [features[name] for name in module.in_features]
    scores, deltas = module.head(maps)
    anchors = module.anchor_generator(maps)
    return [_detect(module, index, scores, deltas, anchors) for index in range(len(sizes))]


def _detect(module: Module, index: int, scores: Tensors, deltas: Tensors, anchors: Tensors) -> Fields:
    boxes, best, classes = [], [], []
    for level_scores, level_deltas, level_anchors in zip(scores, deltas, anchors, strict=True):
        values, chosen, labels = _candidates(module.selector, level_scores[index])
        boxes.append(
            module.box_coder(tf.gather(level_deltas[index], chosen), tf.gather(level_anchors, chosen))
        )
        best.append(values)
        classes.append(labels)
    return module.selector(  # type: ignore[no-any-return]
        tf.concat(boxes, axis=0), tf.concat(best, axis=0), tf.concat(classes, axis=0)
    )
