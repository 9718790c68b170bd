"""ResNets, RegNets and feature pyramids."""

from __future__ import annotations

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.layers import convolve, enlarge_nearest

Maps = dict[str, tf.Tensor]


@translates(".backbones.resnet.Stem")
def stem(module: Module, x: tf.Tensor) -> tf.Tensor:
    """7x7 convolution, ReLU and 3x3 max pooling, each of stride 2."""
    # What ReLU has passed is not below 0, so a border of zeros is never the largest.
    padded = tf.pad(module.conv1(x), [[0, 0], [1, 1], [1, 1], [0, 0]])
    return tf.nn.max_pool2d(padded, ksize=3, strides=2, padding="VALID")


@translates(".backbones.resnet.StagedBackbone")
def staged_backbone(module: Module, x: tf.Tensor) -> Maps:
    """Return the maps of ``out_features``."""
    features: Maps = {}
    for name, stage in module.children.items():
        x = stage(x)
        if name in module.out_features:
            features[name] = x
    return features


@translates(".backbones.resnet_blocks.BasicBlock")
def basic_block(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Two convolutions beside a shortcut."""
    return tf.nn.relu(module.conv2(module.conv1(x)) + module.shortcut(x))


@translates(".backbones.resnet_blocks.BottleneckBlock")
def bottleneck_block(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Three convolutions beside a shortcut."""
    return tf.nn.relu(module.conv3(module.conv2(module.conv1(x))) + module.shortcut(x))


@translates(".backbones.resnet_blocks.DeformableBottleneckBlock")
def deformable_block(module: Module, x: tf.Tensor) -> tf.Tensor:
    """As a bottleneck, the middle convolution sampling where another one says."""
    hidden = module.conv1(x)
    sampling = module.conv2_offset(hidden)
    if module.modulated:
        # All offsets, y and x in turn, lie in the first two thirds of the channels.
        third = sampling.shape[-1] // 3
        offsets, factors = sampling[..., : 2 * third], tf.sigmoid(sampling[..., 2 * third :])
        hidden = module.conv2(hidden, offsets, factors)
    else:
        hidden = module.conv2(hidden, sampling, None)
    return tf.nn.relu(module.conv3(hidden) + module.shortcut(x))


@translates(".backbones.regnet.SqueezeExcitation")
def squeeze_excitation(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Scale channels by what a small network makes of their means."""
    return x * module.f_ex(tf.reduce_mean(x, axis=[1, 2], keepdims=True))


@translates(".backbones.regnet.ResBottleneckBlock")
def regnet_block(module: Module, x: tf.Tensor) -> tf.Tensor:
    """A bottleneck beside the identity or a projection."""
    beside = convolve(module.proj, x, module.bn) if module.proj.arrays else x
    return module.af(beside + module.f(x))


@translates(".backbones.fpn.FPN")
def fpn(module: Module, x: tf.Tensor) -> Maps:
    """Return the maps of a pyramid."""
    bottom_up = module.bottom_up(x)
    laterals, outputs = _levels(module, "fpn_lateral"), _levels(module, "fpn_output")
    merged = [lateral(bottom_up[name]) for lateral, name in zip(laterals, module.in_features, strict=True)]
    for level in range(len(merged) - 2, -1, -1):
        total = merged[level] + enlarge_nearest(merged[level + 1], 2)
        merged[level] = total if module.scale == 1.0 else total * module.scale
    features = {name: output(each) for name, output, each in zip(module.names, outputs, merged, strict=True)}
    source = bottom_up[module.source] if module.source in bottom_up else features[module.source]
    features.update(zip(module.top_names, module.top_block(source), strict=True))
    return features


def _levels(module: Module, prefix: str) -> list[Module]:
    """Return the convolutions of this prefix from the finest level to the coarsest."""
    levels = sorted(int(name.removeprefix(prefix)) for name in module.children if name.startswith(prefix))
    return [module.children[f"{prefix}{level}"] for level in levels]


@translates(".backbones.fpn.LastLevelMaxPool")
def every_second_cell(module: Module, x: tf.Tensor) -> list[tf.Tensor]:
    """Return one more level."""
    return [x[:, ::2, ::2]]


@translates(".backbones.fpn.LastLevelP6P7")
def strided_levels(module: Module, x: tf.Tensor) -> list[tf.Tensor]:
    """Return p6 and p7."""
    p6 = module.p6(x)
    return [p6, module.p7(tf.nn.relu(p6))]
