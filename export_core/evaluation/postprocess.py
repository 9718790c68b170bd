"""From the network's frame to the original image: boxes, masks and keypoints, as detectron2 does on CPU.

Everything is computed in float32 like detectron2's tensors, so that boxes and thresholded masks come out
equal, not merely close.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from pycocotools import mask as mask_util

Array = npt.NDArray[Any]
BoolMask = npt.NDArray[np.bool_]

MASK_THRESHOLD = 0.5

# Fields with one row per instance, the boxes first.
INSTANCE_FIELDS = (
    ("pred_boxes", "scores", "pred_classes", "pred_masks", "pred_keypoints", "pred_keypoint_heatmaps"),
    ("proposal_boxes", "objectness_logits"),
)


class PastedMask(NamedTuple):
    """A thresholded mask in the original image: ``crop`` at (``top``, ``left``), background elsewhere."""

    crop: BoolMask
    top: int
    left: int

    def full(self, height: int, width: int) -> BoolMask:
        """Return the mask of the whole image, bool (height, width), column-major as run lengths want it."""
        whole = np.zeros((height, width), dtype=np.bool_, order="F")
        self.draw(whole)
        return whole

    def draw(self, whole: BoolMask) -> None:
        """Set its part of the mask of the whole image, (height, width)."""
        rows, columns = self.crop.shape
        whole[self.top : self.top + rows, self.left : self.left + columns] = self.crop


def to_image_frame(
    outputs: Mapping[str, Array], network_size: tuple[int, int], image_size: tuple[int, int]
) -> dict[str, Array]:
    """Scale instances to the original image, clip their boxes and drop those left without area.

    Args:
        outputs: fields in the network's frame: pred_boxes (N, 4) with scores, pred_classes, pred_masks,
            pred_keypoints and pred_keypoint_heatmaps, or proposal_boxes (N, 4) with objectness_logits, where
            present. Others pass unchanged.
        network_size: (H, W) of the resized image that the network saw.
        image_size: (H, W) of the original image.

    Returns:
        The same fields with N' <= N instances; masks are still probabilities in their boxes.
    """
    framed = dict(outputs)
    if "pred_keypoints" in framed:
        framed["pred_keypoints"] = scale_keypoints(framed["pred_keypoints"], network_size, image_size)
    for boxes, *others in INSTANCE_FIELDS:
        if boxes not in framed:
            continue
        framed[boxes] = scale_boxes(framed[boxes], network_size, image_size)
        sides = framed[boxes][:, 2:] - framed[boxes][:, :2]
        keep = (sides > 0).all(axis=1)
        framed |= {name: framed[name][keep] for name in (boxes, *others) if name in framed}
    return framed


def scale_boxes(boxes: Array, network_size: tuple[int, int], image_size: tuple[int, int]) -> Array:
    """Scale xyxy boxes (N, 4) from the network's frame to the image's, and clip them to the image."""
    height, width = image_size
    scaled = boxes.astype(np.float32)
    scaled[:, 0::2] *= np.float32(width / network_size[1])
    scaled[:, 1::2] *= np.float32(height / network_size[0])
    scaled[:, 0::2] = scaled[:, 0::2].clip(0, width)
    scaled[:, 1::2] = scaled[:, 1::2].clip(0, height)
    return scaled


def scale_keypoints(keypoints: Array, network_size: tuple[int, int], image_size: tuple[int, int]) -> Array:
    """Scale x and y of keypoints (N, K, 3) from the network's frame to the image's; scores stay."""
    scaled = keypoints.astype(np.float32)
    scaled[:, :, 0] *= np.float32(image_size[1] / network_size[1])
    scaled[:, :, 1] *= np.float32(image_size[0] / network_size[0])
    return scaled


def paste_each(
    masks: Array, boxes: Array, height: int, width: int, threshold: float = MASK_THRESHOLD
) -> list[PastedMask]:
    """Paste masks of M x M probabilities into their boxes and threshold them.

    Equal to bilinear grid sampling at pixel centres with corners not aligned and zeros outside the mask, over
    the box grown by one pixel on each side. Bilinear sampling is separable, so it is two small matrix
    products.

    Args:
        masks: float (N, 1, M, M) or (N, M, M) probabilities.
        boxes: xyxy float32 (N, 4) in image pixels, with positive width and height.
        height: of the image in pixels.
        width: of the image in pixels.
        threshold: a pixel is set where the probability is at least this.
    """
    squares = (masks[:, 0] if masks.ndim == 4 else masks).astype(np.float32)
    rows = _sampling_weights(boxes[:, 1], boxes[:, 3], height, squares.shape[1])
    columns = _sampling_weights(boxes[:, 0], boxes[:, 2], width, squares.shape[2])
    return [
        PastedMask(down @ square @ across.T >= threshold, top, left)
        for square, (top, down), (left, across) in zip(squares, rows, columns, strict=True)
    ]


def paste_mask(
    mask: Array, box: Array, height: int, width: int, threshold: float = MASK_THRESHOLD
) -> PastedMask:
    """Paste one mask (M, M) into its box (4,) as :func:`paste_each` does."""
    return paste_each(mask[None], box[None], height, width, threshold)[0]


def paste_masks(
    masks: Array, boxes: Array, height: int, width: int, threshold: float = MASK_THRESHOLD
) -> BoolMask:
    """Paste masks (N, 1, M, M) or (N, M, M) into boxes (N, 4): bool (N, height, width)."""
    pasted = np.zeros((len(boxes), height, width), dtype=np.bool_)
    for whole, mask in zip(pasted, paste_each(masks, boxes, height, width, threshold), strict=True):
        mask.draw(whole)
    return pasted


def encode_mask(mask: PastedMask, height: int, width: int) -> dict[str, Any]:
    """Return the mask of the whole image as COCO's compressed run lengths, JSON-ready."""
    rle = mask_util.encode(mask.full(height, width).view(np.uint8))
    return {"size": [height, width], "counts": rle["counts"].decode("ascii")}


def _sampling_weights(low: Array, high: Array, limit: int, size: int) -> list[tuple[int, Array]]:
    """Return for each box the first pixel that its side can touch, and how much of each cell each pixel gets.

    Args:
        low: float32 (N,), where the sides begin.
        high: the same, where they end.
        limit: pixels of the image.
        size: cells of a mask.

    Returns:
        Pixel, and float32 (pixels, size), one pixel generous at either end.
    """
    first = np.maximum(np.floor(low).astype(np.int64) - 1, 0)
    counts = np.minimum(np.ceil(high).astype(np.int64) + 1, limit) - first
    ends = np.cumsum(counts)
    # All boxes in one row of pixels: a call of numpy costs more than what it does for one box.
    pixels = np.arange(counts.sum())
    centres = (pixels - np.repeat(ends - counts - first, counts)).astype(np.float32) + np.float32(0.5)
    begin, end = np.repeat(low, counts), np.repeat(high, counts)
    # The same order of float32 steps as sampling with normalised coordinates in [-1, 1].
    normalised = (centres - begin) / (end - begin) * np.float32(2) - np.float32(1)
    position = ((normalised + np.float32(1)) * np.float32(size) - np.float32(1)) / np.float32(2)
    below = np.floor(position)
    fraction = position - below
    # Two cells more at either end take what lies outside of the mask, and are cut off.
    cell = np.clip(below, -2, size).astype(np.int64) + 2
    weights = np.zeros((len(pixels), size + 4), dtype=np.float32)
    weights[pixels, cell] = np.float32(1) - fraction
    weights[pixels, cell + 1] = fraction
    weights = weights[:, 2 : size + 2]
    rows = zip(first.tolist(), (ends - counts).tolist(), ends.tolist(), strict=True)
    return [(pixel, weights[start:stop]) for pixel, start, stop in rows]
