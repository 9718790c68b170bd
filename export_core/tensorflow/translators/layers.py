"""Convolutions, fully connected layers, norms, activations, upsampling, and sequences of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from zooport.export_core.tensorflow.translation import (
    Module,
    require_settings,
    translates,
    unsupported_setting,
)

Array = npt.NDArray[Any]

IDENTITY = "torch.nn.modules.linear.Identity"
FLATTEN = "torch.nn.modules.flatten.Flatten"
FROZEN_NORM = ".layers.FrozenBatchNorm2d"
LEVEL_NORM = ".layers.LevelBatchNorm"
BATCH_NORM = "torch.nn.modules.batchnorm.BatchNorm2d"
CONV = "torch.nn.modules.conv.Conv2d"


@translates(IDENTITY)
def identity(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return the input."""
    return x


@translates("torch.nn.modules.activation.ReLU")
def relu(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return max(x, 0)."""
    return tf.nn.relu(x)


@translates("torch.nn.modules.activation.Sigmoid")
def sigmoid(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return 1 / (1 + exp(-x))."""
    return tf.sigmoid(x)


@translates(CONV)
def plain_convolution(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return the convolution of x (N, H, W, C)."""
    return convolve(module, x, None)


@translates(".layers.Conv2d")
def convolution(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return the convolution of x (N, H, W, C), normalised and activated; batch norms are folded in."""
    return module.activation(convolve(module, x, module.norm))


def convolve(module: Module, x: tf.Tensor, norm: Module | None) -> tf.Tensor:
    """Return the convolution of x (N, H, W, C) and what a norm makes of it.

    Strided ones get their padding in numbers: TensorFlow's SAME puts an odd row at the other side.
    """
    require_settings(module, padding_mode="zeros")
    padding = _padding(module)
    if module.lite and not isinstance(padding, str):
        x, padding = tf.pad(x, padding), "VALID"
    y = tf.nn.conv2d(
        x,
        module.constant("kernel", lambda: kernel_and_bias(module, norm)[0]),
        strides=module.stride,
        padding=padding,
        dilations=module.dilation,
    )
    if "bias" in module.arrays or is_foldable(norm):
        y = tf.nn.bias_add(y, module.constant("bias", lambda: kernel_and_bias(module, norm)[1]))
    return y if norm is None or is_foldable(norm) else norm(y)


def kernel_and_bias(module: Module, norm: Module | None) -> tuple[Array, Array]:
    """Return a convolution's kernel (K, K, C / groups, C') and bias (C',), a batch norm folded into them."""
    weight = module.arrays["weight"].astype(np.float64)
    bias = module.arrays.get("bias", np.zeros(len(weight))).astype(np.float64)
    if norm is not None and is_foldable(norm):
        scale, shift = _affine(norm, norm)
        weight, bias = weight * scale[:, None, None, None], bias * scale + shift
    return weight.transpose(2, 3, 1, 0).astype(np.float32), bias.astype(np.float32)


def is_foldable(norm: Module | None) -> bool:
    """Whether a norm multiplies and adds numbers that are known beforehand."""
    return norm is not None and (norm.is_kind(FROZEN_NORM) or norm.is_kind(BATCH_NORM))


def _affine(norm: Module, statistics: Module) -> tuple[Array, Array]:
    """Return scale and shift, float64 (C,), of a norm with the statistics that a module has."""
    weight, bias = (norm.arrays[name].astype(np.float64) for name in ("weight", "bias"))
    mean, variance = (statistics.arrays[name].astype(np.float64) for name in ("running_mean", "running_var"))
    scale = weight / np.sqrt(variance + norm.eps)
    return scale, bias - mean * scale


def _padding(module: Module) -> str | list[list[int]]:
    """Return a convolution's padding: by its name where it has one, else in numbers."""
    if isinstance(module.padding, str):  # torch's own word for it
        return str(module.padding).upper()
    if not any(module.padding):
        return "VALID"
    sides = zip(module.kernel_size, module.dilation, module.padding, strict=True)
    if set(module.stride) == {1} and all(2 * padded == (size - 1) * apart for size, apart, padded in sides):
        return "SAME"
    rows, columns = module.padding
    return [[0, 0], [rows, rows], [columns, columns], [0, 0]]


@translates(FROZEN_NORM, BATCH_NORM)
def batch_norm(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Normalise with the numbers of training, where no convolution is in front to take them."""
    return _normalise(module, module, x)


def norm_at_level(module: Module, x: tf.Tensor, level: int) -> tf.Tensor:
    """Normalise the maps of a level with a LevelBatchNorm."""
    return _normalise(module, module.children[str(level)], x)


def _normalise(norm: Module, statistics: Module, x: tf.Tensor) -> tf.Tensor:
    scale = statistics.constant("scale", lambda: _affine(norm, statistics)[0].astype(np.float32))
    shift = statistics.constant("shift", lambda: _affine(norm, statistics)[1].astype(np.float32))
    return x * scale + shift


@translates("torch.nn.modules.normalization.GroupNorm")
def group_norm(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Normalise each group of channels over all pixels (Wu and He 2018)."""
    shape = tf.shape(x)
    channels = x.shape[-1] // module.num_groups
    grouped = tf.reshape(x, [shape[0], -1, module.num_groups, channels])
    mean, variance = tf.nn.moments(grouped, axes=[1, 3], keepdims=True)
    factor = tf.math.rsqrt(variance + module.eps)
    weight = module.constant("weight", lambda: module.arrays["weight"].reshape(1, 1, -1, channels))
    bias = module.constant("bias", lambda: module.arrays["bias"].reshape(1, 1, -1, channels))
    scale = factor * weight
    return tf.reshape(grouped * scale + (bias - mean * scale), shape)


@translates(".layers.ChannelLayerNorm")
def layer_norm(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Normalise the channels of each pixel."""
    centred = x - tf.reduce_mean(x, axis=-1, keepdims=True)
    scaled = centred / tf.sqrt(tf.reduce_mean(tf.square(centred), axis=-1, keepdims=True) + module.eps)
    weight = module.constant("weight", lambda: module.arrays["weight"])
    bias = module.constant("bias", lambda: module.arrays["bias"])
    return weight * scaled + bias


@translates("torch.nn.modules.linear.Linear")
def linear(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return the linear map of x (R, features)."""
    weight = module.constant("weight", lambda: np.ascontiguousarray(module.arrays["weight"].T))
    return _with_bias(module, tf.matmul(x, weight))


def linear_of_maps(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return the linear map of maps x (R, H, W, C), whose weights count the columns as (C, H, W)."""
    _, height, width, channels = x.shape

    def reordered() -> Array:
        weight = module.arrays["weight"].reshape(-1, channels, height, width)
        return np.ascontiguousarray(weight.transpose(2, 3, 1, 0).reshape(height * width * channels, -1))

    flat = tf.reshape(x, [-1, height * width * channels])
    return _with_bias(module, tf.matmul(flat, module.constant("weight", reordered)))


def _with_bias(module: Module, y: tf.Tensor) -> tf.Tensor:
    if "bias" not in module.arrays:
        return y
    return tf.nn.bias_add(y, module.constant("bias", lambda: module.arrays["bias"]))


@translates("torch.nn.modules.conv.ConvTranspose2d")
def transposed_convolution(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Return the transposed convolution of x (N, H, W, C)."""
    require_settings(module, groups=1, dilation=[1, 1], output_padding=[0, 0])
    (kernel, _), (stride, _), (padding, _) = module.kernel_size, module.stride, module.padding
    if kernel == stride and not padding:
        return _with_bias(module, _upsampling_convolution(module, x, kernel))
    # (in, out, K, K) -> (K, K, out, in)
    weight = module.constant(
        "kernel", lambda: np.ascontiguousarray(module.arrays["weight"].transpose(2, 3, 1, 0))
    )
    shape = tf.shape(x)
    sides = [(shape[axis] - 1) * stride - 2 * padding + kernel for axis in (1, 2)]
    same = kernel - stride == 2 * padding
    y = tf.nn.conv2d_transpose(
        x,
        weight,
        tf.stack([shape[0], *sides, module.out_channels]),
        strides=stride,
        padding="SAME" if same else [[0, 0], [padding, padding], [padding, padding], [0, 0]],
    )
    return _with_bias(module, tf.ensure_shape(y, [None, None, None, module.out_channels]))


def _upsampling_convolution(module: Module, x: tf.Tensor, factor: int) -> tf.Tensor:
    """Make ``factor`` x ``factor`` cells of each: a 1x1 convolution whose channels are dealt to them."""

    def kernel() -> Array:
        weight = module.arrays["weight"].transpose(0, 2, 3, 1)  # (in, K, K, out)
        return np.ascontiguousarray(weight.reshape(1, 1, len(weight), -1))

    cells = tf.nn.conv2d(x, module.constant("kernel", kernel), strides=1, padding="VALID")
    return tf.nn.depth_to_space(cells, factor)


@translates("torch.nn.modules.upsampling.Upsample")
def upsample(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Enlarge maps bilinearly, pixel centres aligned (``align_corners=False``)."""
    require_settings(module, mode="bilinear", size=None)
    if module.align_corners:
        raise unsupported_setting(module, "align_corners", False)
    if not isinstance(module.scale_factor, float) or not module.scale_factor.is_integer():
        raise unsupported_setting(module, "scale_factor", "a whole number")
    return enlarge_bilinear(x, int(module.scale_factor))


def enlarge_bilinear(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Return (N, H * factor, W * factor, C); pixel centres are aligned, as in ``align_corners=False``."""
    size = [side * factor for side in sides_of(x)]
    return tf.raw_ops.ResizeBilinear(images=x, size=size, half_pixel_centers=True)


def enlarge_nearest(x: tf.Tensor, factor: int) -> tf.Tensor:
    """Return (N, H * factor, W * factor, C), every pixel repeated."""
    size = [side * factor for side in sides_of(x)]
    return tf.raw_ops.ResizeNearestNeighbor(images=x, size=size)


def sides_of(x: tf.Tensor) -> list[Any]:
    """Return height and width of maps (N, H, W, C): numbers where they are known, else tensors."""
    known, found = x.shape, tf.shape(x)
    return [found[axis] if known[axis] is None else known[axis] for axis in (1, 2)]


@translates("torch.nn.modules.container.Sequential")
def sequential(module: Module, x: tf.Tensor) -> tf.Tensor:
    """Run the parts in a row.

    A batch norm behind a plain convolution is folded into it, and what flattens maps leaves the order of
    their columns to the fully connected layer behind it.
    """
    parts = list(module.children.values())
    index = 0
    while index < len(parts):
        part, following = parts[index], parts[index + 1] if index + 1 < len(parts) else None
        if part.is_kind(CONV) and is_foldable(following):
            x, index = convolve(part, x, following), index + 2
        elif part.is_kind(FLATTEN) and following is not None and x.shape.rank == 4:
            x, index = linear_of_maps(following, x), index + 2
        else:
            x, index = part(x), index + 1
    return x
