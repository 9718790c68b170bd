"""ROI heads: boxes first, then masks and keypoints of what was found.

Heads never run on nothing: TensorFlow's convolutions on oneDNN give an empty batch the number of channels
that it had before (2.21). Where there is no region one is made up, and its results are cut off.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.box_heads import Fields, probabilities
from zooport.export_core.tensorflow.translators.boxes import Size, clip_boxes

Maps = dict[str, tf.Tensor]
Tensors = list[tf.Tensor]


class Regions:
    """Boxes of all images, at least one.

    Args:
        boxes: (R_i, 4) of each image.

    Attributes:
        boxes: the same, with one more in the last image if there was none at all.
    """

    def __init__(self, boxes: Tensors) -> None:
        self._count = tf.add_n([tf.shape(each)[0] for each in boxes])
        spare = tf.cast(tf.equal(self._count, 0), tf.int32)
        self.boxes = [*boxes[:-1], tf.pad(boxes[-1], [[0, spare], [0, 0]])]

    def results(self, values: tf.Tensor) -> tf.Tensor:
        """Return the rows of values (R, ...) that belong to given boxes."""
        return values[: self._count]


@translates(".roi_heads.standard.StandardROIHeads")
def standard_heads(module: Module, features: Maps, proposals: Tensors, sizes: list[Size]) -> list[Fields]:
    """One box head and one refinement."""
    maps = [features[name] for name in module.in_features]
    regions = Regions(proposals)
    logits, deltas = module.box_predictor(module.box_head(module.box_pooler(maps, regions.boxes)))
    logits, deltas = regions.results(logits), regions.results(deltas)
    boxes = module.box_predictor.box_coder(deltas, tf.concat(proposals, axis=0))
    scores = probabilities(module.box_predictor, logits)
    return _with_branches(module, maps, module.selector(boxes, scores, proposals, sizes))


@translates(".roi_heads.cascade.CascadeROIHeads")
def cascade_heads(module: Module, features: Maps, proposals: Tensors, sizes: list[Size]) -> list[Fields]:
    """Box heads in a row; scores are their mean, boxes the last one's."""
    maps = [features[name] for name in module.in_features]
    current, counts = proposals, [tf.shape(each)[0] for each in proposals]
    scores: Tensors = []
    boxes: Any = None
    heads, predictors = module.box_head.children.values(), module.box_predictor.children.values()
    for head, predictor in zip(heads, predictors, strict=True):
        if scores:
            split = tf.split(boxes, counts) if len(counts) > 1 else [boxes]
            current = [clip_boxes(each, size) for each, size in zip(split, sizes, strict=True)]
        regions = Regions(current)
        logits, deltas = predictor(head(module.box_pooler(maps, regions.boxes)))
        boxes = predictor.box_coder(regions.results(deltas), tf.concat(current, axis=0))
        scores.append(probabilities(predictor, regions.results(logits)))
    mean = tf.add_n(scores) * (1.0 / len(scores))
    return _with_branches(module, maps, module.selector(boxes, mean, proposals, sizes))


@translates(".roi_heads.res5.Res5ROIHeads")
def res5_heads(module: Module, features: Maps, proposals: Tensors, sizes: list[Size]) -> list[Fields]:
    """The last stage of the ResNet runs on pooled regions, for boxes and for masks."""
    maps = [features[name] for name in module.in_features]
    regions = Regions(proposals)
    pooled = module.res5(module.pooler(maps, regions.boxes))
    logits, deltas = module.box_predictor(tf.reduce_mean(pooled, axis=[1, 2]))
    logits, deltas = regions.results(logits), regions.results(deltas)
    boxes = module.box_predictor.box_coder(deltas, tf.concat(proposals, axis=0))
    scores = probabilities(module.box_predictor, logits)
    detections: list[Fields] = module.selector(boxes, scores, proposals, sizes)
    if "mask_head" in module.children:
        found = Regions([fields["pred_boxes"] for fields in detections])
        logits = module.mask_head(module.res5(module.pooler(maps, found.boxes)))
        _add_masks(detections, found.results(logits))
    return detections


def _with_branches(module: Module, maps: Tensors, detections: list[Fields]) -> list[Fields]:
    found = [fields["pred_boxes"] for fields in detections]
    regions = Regions(found)
    if "mask_head" in module.children:
        logits = module.mask_head(module.mask_pooler(maps, regions.boxes))
        _add_masks(detections, regions.results(logits))
    if "keypoint_head" in module.children:
        heatmaps = regions.results(module.keypoint_head(module.keypoint_pooler(maps, regions.boxes)))
        heatmaps = tf.transpose(heatmaps, [0, 3, 1, 2])
        keypoints = module.keypoint_decoder(heatmaps, tf.concat(found, axis=0))
        _deal(detections, "pred_keypoints", keypoints)
        _deal(detections, "pred_keypoint_heatmaps", heatmaps)
    return detections


def _add_masks(detections: list[Fields], logits: tf.Tensor) -> None:
    """Enter pred_masks (N, 1, M, M) from logits (R, M, M, classes), or (R, M, M, 1) of all classes."""
    own = tf.transpose(logits, [0, 3, 1, 2])
    if logits.shape[-1] > 1:
        classes = tf.concat([fields["pred_classes"] for fields in detections], axis=0)
        own = tf.gather(own, classes, batch_dims=1)[:, None]
    _deal(detections, "pred_masks", tf.sigmoid(own))


def _deal(detections: list[Fields], name: str, values: tf.Tensor) -> None:
    """Give each image its rows of the values (R, ...) of all detections."""
    counts = [tf.shape(fields["scores"])[0] for fields in detections]
    parts = tf.split(values, counts) if len(counts) > 1 else [values]
    for fields, part in zip(detections, parts, strict=True):
        fields[name] = part
