"""RoIAlign with adaptive sampling (He et al., Mask R-CNN, section 3), by TensorFlow's CropAndResize.

Samples of a region lie on a regular grid, which is what CropAndResize computes, bilinearly. Cells are means
of their samples. How many samples a cell has depends on the region's size, so regions of equal numbers are
pooled together. The borders differ: RoIAlign repeats the outermost pixels for one pixel beyond the map, and
has zeros farther out; on a map with its border repeated once, CropAndResize does the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.layers import sides_of

_SAMPLES_AT_A_TIME = 1 << 24  # numbers of one CropAndResize: 64 MiB
_GRID_LIMIT = 1 << 12  # samples a cell and direction, more than any map has pixels


@dataclass(frozen=True)
class Grids:
    """Where the samples of regions lie, in a map with its border repeated.

    Attributes:
        boxes: (R, 4) y1, x1, y2, x2 of the first and last sample, as shares of the map.
        samples: int32 (R, 2) for each cell in y and x.
        images: int32 (R,).
        present: float32 (R,): 0 for a region without area, whose cells are 0.
    """

    boxes: tf.Tensor
    samples: tf.Tensor
    images: tf.Tensor
    present: tf.Tensor


@translates(".poolers.RoiPooler")
def pool(module: Module, features: list[tf.Tensor], boxes: list[tf.Tensor]) -> tf.Tensor:
    """Return (R, resolution, resolution, C) for the boxes (R_i, 4) of all images, in their order."""
    counts = [tf.shape(each)[0] for each in boxes]
    images = tf.concat([tf.fill([count], index) for index, count in enumerate(counts)], axis=0)
    rois = tf.concat(boxes, axis=0)
    if len(features) == 1:
        pooled, order = _pool_level(module, features[0], rois, images, module.scales[0])
        return tf.gather(pooled, tf.math.invert_permutation(order))
    levels = _assign(module, rois)
    parts, members = [], []
    for index, feature in enumerate(features):
        member = tf.cast(tf.where(tf.equal(levels, index))[:, 0], tf.int32)
        pooled, order = _pool_level(
            module, feature, tf.gather(rois, member), tf.gather(images, member), module.scales[index]
        )
        parts.append(pooled)
        members.append(tf.gather(member, order))
    return tf.gather(tf.concat(parts, axis=0), tf.math.invert_permutation(tf.concat(members, axis=0)))


def _assign(module: Module, boxes: tf.Tensor) -> tf.Tensor:
    """Return the int32 (R,) index of the map for each box (Lin et al., FPN, equation 1)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    size = tf.sqrt(sides[:, 0] * sides[:, 1])
    octaves = tf.math.log(size / module.canonical_size + 1e-8) / tf.math.log(2.0)
    level = tf.floor(module.canonical_level + octaves)
    level = tf.clip_by_value(level, module.min_level, module.max_level)
    return tf.cast(level, tf.int32) - module.min_level


def _pool_level(
    module: Module, feature: tf.Tensor, rois: tf.Tensor, images: tf.Tensor, scale: float
) -> tuple[tf.Tensor, tf.Tensor]:
    """Return pooled regions (R, P, P, C) in an order of their own, and that order, int32 (R,)."""
    resolution = module.output_size[0]
    grids = _grids(module, feature, rois, images, scale)
    kinds = grids.samples[:, 0] * _GRID_LIMIT + grids.samples[:, 1]
    order = tf.argsort(kinds, stable=True)
    _, places, sizes = tf.unique_with_counts(tf.gather(kinds, order))
    ends = tf.gather(tf.cumsum(sizes), places)  # of the group that each region belongs to
    bordered = _repeat_border(feature)
    channels = feature.shape[-1]
    count = tf.size(order)

    def some(start: tf.Tensor, index: tf.Tensor, pooled: tf.TensorArray) -> tuple[Any, ...]:
        rows, columns = tf.unstack(grids.samples[order[start]])
        height, width = rows * resolution, columns * resolution
        at_a_time = tf.maximum(_SAMPLES_AT_A_TIME // (height * width * channels), 1)
        end = tf.minimum(ends[start], start + at_a_time)
        members = order[start:end]
        samples = tf.image.crop_and_resize(
            bordered,
            tf.gather(grids.boxes, members),
            tf.gather(grids.images, members),
            tf.stack([height, width]),
        )
        # Means of neighbours in two steps, each over the middle one of three axes.
        means = tf.reduce_mean(tf.reshape(samples, [-1, rows, width * channels]), axis=1)
        means = tf.reduce_mean(tf.reshape(means, [-1, columns, channels]), axis=1)
        cells = tf.reshape(means, [-1, resolution, resolution, channels])
        return end, index + 1, pooled.write(index, cells)

    pooled = tf.TensorArray(
        tf.float32,
        size=0,
        dynamic_size=True,
        infer_shape=False,
        element_shape=[None, resolution, resolution, channels],
    )
    _, _, pooled = tf.while_loop(lambda start, *_: start < count, some, (0, 0, pooled), parallel_iterations=1)
    cells = tf.ensure_shape(pooled.concat(), [None, resolution, resolution, channels])
    return cells * tf.gather(grids.present, order)[:, None, None, None], order


def _grids(module: Module, feature: tf.Tensor, rois: tf.Tensor, images: tf.Tensor, scale: float) -> Grids:
    resolution = module.output_size[0]
    corners = tf.gather(rois, [1, 0, 3, 2], axis=1) * scale - (0.5 if module.aligned else 0.0)
    first, sides = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not module.aligned:
        sides = tf.maximum(sides, 1.0)
    if module.sampling_ratio > 0:
        samples = tf.fill(tf.shape(sides), module.sampling_ratio)
        present = tf.ones_like(images, tf.float32)
    else:
        wanted = tf.math.ceil(sides / resolution)
        present = tf.cast(tf.reduce_all(wanted > 0, axis=1), tf.float32)
        samples = tf.cast(tf.clip_by_value(wanted, 1.0, _GRID_LIMIT - 1.0), tf.int32)
    along = tf.cast(samples, tf.float32)
    step = sides / (resolution * along)
    begin = first + 0.5 * step + 1.0  # one pixel of border
    end = begin + step * (resolution * along - 1.0)
    extent = tf.stack([tf.cast(side + 1, tf.float32) for side in sides_of(feature)])
    return Grids(tf.concat([begin / extent, end / extent], axis=1), samples, images, present)


def _repeat_border(x: tf.Tensor) -> tf.Tensor:
    """Return (N, H + 2, W + 2, C)."""
    x = tf.concat([x[:, :1], x, x[:, -1:]], axis=1)
    return tf.concat([x[:, :, :1], x, x[:, :, -1:]], axis=2)
