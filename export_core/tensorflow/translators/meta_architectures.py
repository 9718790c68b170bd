"""Whole models: from images (H, W, C) to the fields of each."""

from __future__ import annotations

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.boxes import Size

Fields = dict[str, tf.Tensor]


@translates(".images.ImageNormalizer")
def normalise(module: Module, images: list[tf.Tensor]) -> tuple[tf.Tensor, list[Size]]:
    """Return a batch (N, H', W', C), zeros at the right and bottom, and each image's (height, width)."""
    mean = module.constant("mean", lambda: module.arrays["mean"].reshape(-1))
    std = module.constant("std", lambda: module.arrays["std"].reshape(-1))
    sizes = [(tf.shape(image)[0], tf.shape(image)[1]) for image in images]
    step = module.size_divisibility
    largest = [tf.reduce_max(tf.stack([size[axis] for size in sizes])) for axis in (0, 1)]
    height, width = ((side + step - 1) // step * step for side in largest)
    normalised = [(image - mean) / std for image in images]
    padded = [
        tf.pad(image, [[0, height - size[0]], [0, width - size[1]], [0, 0]])
        for image, size in zip(normalised, sizes, strict=True)
    ]
    channels = normalised[0].shape[-1]  # which padding by computed numbers makes unknown
    return tf.reshape(tf.stack(padded), tf.stack([len(images), height, width, channels])), sizes


@translates(".meta_architectures.generalized_rcnn.GeneralizedRCNN")
def generalized_rcnn(
    module: Module, images: list[tf.Tensor], proposals: list[tf.Tensor] | None = None
) -> list[Fields]:
    """Return the detections of every image; proposals (P, 4) are given where the model has no generator."""
    batch, sizes = module.normalizer(images)
    features = module.backbone(batch)
    if proposals is None:
        proposals, _ = module.proposal_generator(features, sizes)
    return module.roi_heads(features, proposals, sizes)  # type: ignore[no-any-return]


@translates(".meta_architectures.dense_labels.PanopticFPN")
def panoptic_fpn(module: Module, images: list[tf.Tensor]) -> list[Fields]:
    """Return the detections of every image and the logits of its pixels' labels."""
    batch, sizes = module.normalizer(images)
    features = module.backbone(batch)
    proposals, _ = module.proposal_generator(features, sizes)
    results = module.roi_heads(features, proposals, sizes)
    for fields, logits in zip(results, module.sem_seg_head(features, sizes), strict=True):
        fields["sem_seg"] = logits
    return results  # type: ignore[no-any-return]


@translates(".meta_architectures.dense_labels.SemanticSegmentor")
def semantic_segmentor(module: Module, images: list[tf.Tensor]) -> list[Fields]:
    """Return the logits of every image's labels."""
    batch, sizes = module.normalizer(images)
    return [{"sem_seg": logits} for logits in module.sem_seg_head(module.backbone(batch), sizes)]


@translates(".meta_architectures.generalized_rcnn.ProposalNetwork")
def proposal_network(module: Module, images: list[tf.Tensor]) -> list[Fields]:
    """Return the proposals of every image, best first."""
    batch, sizes = module.normalizer(images)
    boxes, logits = module.proposal_generator(module.backbone(batch), sizes)
    return [
        {"proposal_boxes": each, "objectness_logits": scores}
        for each, scores in zip(boxes, logits, strict=True)
    ]
