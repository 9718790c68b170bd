"""What modules compute, in TensorFlow's operators; importing the package fills the table."""

from zooport.export_core.tensorflow.translators import (
    anchors,
    backbones,
    box_heads,
    boxes,
    deformable,
    dense_detection,
    instance_heads,
    keypoints,
    layers,
    meta_architectures,
    poolers,
    proposals,
    semantic,
)

__all__ = [
    "anchors",
    "backbones",
    "box_heads",
    "boxes",
    "deformable",
    "dense_detection",
    "instance_heads",
    "keypoints",
    "layers",
    "meta_architectures",
    "poolers",
    "proposals",
    "semantic",
]
