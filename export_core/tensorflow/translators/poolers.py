"""RoIAlign with adaptive sampling (He et al., Mask R-CNN, section 3), by TensorFlow's CropAndResize.

Samples of a region lie on a regular grid, which is what CropAndResize computes, bilinearly. Cells are means
of their samples. How many samples a cell has depends on the region's size, so regions of equal numbers are
pooled together. The borders differ: RoIAlign repeats the outermost pixels for one pixel beyond the map, and
has zeros farther out; on a map with its border repeated once, CropAndResize does the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from zooport.export_core.tensorflow.translation import Module, translates
from zooport.export_core.tensorflow.translators.layers import sides_of

_SAMPLES_AT_A_TIME = 1 << 24  # numbers of one CropAndResize: 64 MiB
Part = Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]

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
        return tf.gather(pooled, _inverse(order))
    levels = _assign(module, rois)
    parts, members = [], []
    for index, feature in enumerate(features):
        member = tf.cast(tf.where(tf.equal(levels, index))[:, 0], tf.int32)
        pooled, order = _pool_level(
            module, feature, tf.gather(rois, member), tf.gather(images, member), module.scales[index]
        )
        parts.append(pooled)
        members.append(tf.gather(member, order))
    return tf.gather(tf.concat(parts, axis=0), _inverse(tf.concat(members, axis=0)))


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
    resolution, channels = module.output_size[0], feature.shape[-1]
    grids = _grids(module, feature, rois, images, scale)
    kinds = grids.samples[:, 0] * _GRID_LIMIT + grids.samples[:, 1]
    order = tf.argsort(kinds, stable=True)
    kinds = tf.gather(kinds, order)
    bordered = _repeat_border(feature)
    crop = _crop_by_gathering if module.lite else tf.image.crop_and_resize

    def pool_some(start: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Pool regions with as many samples from ``start`` on; return where they end, and their cells."""
        rows, columns = tf.unstack(grids.samples[order[start]])
        height, width = rows * resolution, columns * resolution
        at_a_time = tf.maximum(_SAMPLES_AT_A_TIME // (height * width * channels), 1)
        alike = tf.reduce_sum(tf.cast(kinds <= kinds[start], tf.int32))
        end = tf.minimum(alike, start + at_a_time)
        members = order[start:end]
        boxes, owners = tf.gather(grids.boxes, members), tf.gather(grids.images, members)
        samples = crop(bordered, boxes, owners, tf.stack([height, width]))
        # Means of neighbours in two steps, each over the middle one of three axes.
        means = tf.reduce_mean(tf.reshape(samples, tf.stack([-1, rows, width * channels])), axis=1)
        means = tf.reduce_mean(tf.reshape(means, tf.stack([-1, columns, channels])), axis=1)
        return end, tf.reshape(means, [-1, resolution, resolution, channels])

    collect = _collect_by_joining if module.lite else _collect
    cells = collect(pool_some, tf.size(order), [None, resolution, resolution, channels])
    return cells * tf.gather(grids.present, order)[:, None, None, None], order


def _collect(part: Part, count: tf.Tensor, shape: list[int | None]) -> tf.Tensor:
    """Return the results of a function for parts of ``count`` things under each other."""
    results = tf.TensorArray(tf.float32, size=0, dynamic_size=True, infer_shape=False, element_shape=shape)

    def step(start: tf.Tensor, index: tf.Tensor, results: tf.TensorArray) -> tuple[Any, ...]:
        end, values = part(start)
        return end, index + 1, results.write(index, values)

    _, _, results = tf.while_loop(
        lambda start, *_: start < count, step, (0, 0, results), parallel_iterations=1
    )
    return tf.ensure_shape(results.concat(), shape)


def _collect_by_joining(part: Part, count: tf.Tensor, shape: list[int | None]) -> tf.Tensor:
    """Do the same without the lists that TensorFlow Lite lacks: each part is joined to those before."""

    def step(start: tf.Tensor, results: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        end, values = part(start)
        return end, tf.concat([results, values], axis=0)

    begin = tf.constant(0)
    _, results = tf.while_loop(
        lambda start, _: start < count,
        step,
        (begin, tf.zeros([0, *shape[1:]])),
        shape_invariants=(begin.shape, tf.TensorShape(shape)),
        parallel_iterations=1,
    )
    return results


def _crop_by_gathering(image: tf.Tensor, boxes: tf.Tensor, owners: tf.Tensor, size: tf.Tensor) -> tf.Tensor:
    """Return what CropAndResize does, (R, H', W', C), in operators of TensorFlow Lite."""
    rows, columns = sides_of(image)
    y, x = (
        _places_along(boxes[:, axis], boxes[:, axis + 2], size[axis], side)
        for axis, side in ((0, rows), (1, columns))
    )
    flat = tf.reshape(image, [-1, image.shape[-1]])
    first = tf.reshape(owners, [-1, 1, 1]) * rows * columns

    def at(row: tf.Tensor, column: tf.Tensor) -> tf.Tensor:
        return tf.gather(flat, first + tf.expand_dims(row, 2) * columns + tf.expand_dims(column, 1))

    right = tf.expand_dims(tf.expand_dims(x.share, 1), 3)
    upper = at(y.before, x.before) * (1 - right) + at(y.before, x.after) * right
    lower = at(y.after, x.before) * (1 - right) + at(y.after, x.after) * right
    below = tf.expand_dims(tf.expand_dims(y.share, 2), 3)
    inside = tf.expand_dims(y.inside, 2) * tf.expand_dims(x.inside, 1)
    return (upper * (1 - below) + lower * below) * tf.expand_dims(inside, 3)


@dataclass(frozen=True)
class _Places:
    """Where samples (R, S) lie on an axis: the pixels around each, its share of the second, 1 if on it."""

    before: tf.Tensor
    after: tf.Tensor
    share: tf.Tensor
    inside: tf.Tensor


def _places_along(first: tf.Tensor, last: tf.Tensor, count: tf.Tensor, side: Any) -> _Places:
    extent = tf.cast(side - 1, tf.float32)
    steps = tf.cast(tf.maximum(count - 1, 1), tf.float32)
    along = tf.range(tf.cast(count, tf.float32)) / steps
    places = first[:, None] * extent + along[None] * (last - first)[:, None] * extent
    held = tf.clip_by_value(places, 0.0, extent)
    before = tf.floor(held)
    pixel = tf.cast(before, tf.int32)
    inside = tf.cast(tf.equal(places, held), tf.float32)
    return _Places(pixel, tf.minimum(pixel + 1, side - 1), held - before, inside)


def _inverse(order: tf.Tensor) -> tf.Tensor:
    """Return the inverse of a permutation, int32 (R,)."""
    return tf.scatter_nd(order[:, None], tf.range(tf.size(order)), tf.shape(order))


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
