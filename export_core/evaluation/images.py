"""Reads and resizes images as detectron2 does at test time."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from zooport.export_core.failures import Failure

Uint8Image = npt.NDArray[np.uint8]

# detectron2's formats that stay uint8, and their channels; it also knows YUV-BT.601, whose floats it resizes
# by other means.
CHANNELS = {"BGR": 3, "RGB": 3, "L": 1}
FORMATS = tuple(CHANNELS)

_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def require_format(fmt: str) -> None:
    """Refuse a channel order that zooport does not read.

    Raises:
        Failure: ``unsupported.architecture`` naming ``INPUT.FORMAT``.
    """
    if fmt not in FORMATS:
        raise Failure(
            "unsupported.architecture",
            f"INPUT.FORMAT is {fmt!r}; zooport reads images as {', '.join(FORMATS)}",
        )


def image_channels(config: Any) -> int:
    """Return the channels of a config's images; of a format that zooport does not read, those of its mean."""
    return CHANNELS.get(config.INPUT.FORMAT, len(config.MODEL.PIXEL_MEAN))


def read_image(path: Path, fmt: str) -> Uint8Image:
    """Read an image file upright and in the asked channel order.

    EXIF orientation is applied; grey, palette, alpha, CMYK and 16-bit images become three channels, or one
    for L, as PIL's ``convert`` makes them. An animation gives its first frame.

    Args:
        path: any file that PIL can read.
        fmt: "BGR", "RGB" or "L".

    Returns:
        uint8 (H, W, 3), or (H, W, 1) for "L".

    Raises:
        Failure: ``dataset.invalid`` naming the file: missing, not an image, truncated, or larger than PIL's
            limit against decompression bombs; ``unsupported.architecture`` for another format.
    """
    require_format(fmt)
    try:
        with warnings.catch_warnings():
            # Large but allowed images, and palettes with alpha, which convert() treats as meant here.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            warnings.filterwarnings("ignore", message="Palette images with Transparency")
            with Image.open(path) as image:
                return pixels_of(image, fmt)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError, struct.error and more
        reason = (
            (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
        )
        raise Failure("dataset.invalid", f"cannot read image {path}: {reason}") from error


def pixels_of(image: Image.Image, fmt: str) -> Uint8Image:
    """Return an image of PIL's upright and in the asked channel order, as :func:`read_image` does a file.

    Raises:
        Failure: ``unsupported.architecture`` for another format than those of :func:`read_image`.
    """
    require_format(fmt)
    pixels = np.asarray(_upright(image).convert("L" if fmt == "L" else "RGB"))
    if fmt == "L":
        return pixels[:, :, None]
    return pixels[:, :, ::-1] if fmt == "BGR" else pixels


def resized_shape(height: int, width: int, min_size: int, max_size: int) -> tuple[int, int]:
    """Return (height, width) with the shortest edge at ``min_size`` and the longest at most ``max_size``.

    ``min_size`` 0 leaves the size as it is. Rounding is detectron2's: scaled sides stay fractions until the
    last step, which adds a half and truncates.
    """
    if min_size == 0:
        return height, width
    scale = min_size * 1.0 / min(height, width)
    if height < width:
        new_height, new_width = min_size * 1.0, scale * width
    else:
        new_height, new_width = scale * height, min_size * 1.0
    if max(new_height, new_width) > max_size:
        scale = max_size * 1.0 / max(new_height, new_width)
        new_height, new_width = new_height * scale, new_width * scale
    return int(new_height + 0.5), int(new_width + 0.5)


def resize_shortest_edge(image: Uint8Image, min_size: int, max_size: int) -> Uint8Image:
    """Resize with PIL's bilinear filter on uint8.

    Args:
        image: uint8 (H, W, 3) or (H, W, 1).
        min_size: shortest edge in pixels, 0 for no resizing (``INPUT.MIN_SIZE_TEST``).
        max_size: limit of the longest edge in pixels (``INPUT.MAX_SIZE_TEST``).

    Raises:
        Failure: ``dataset.invalid``: the image is so elongated that a side would vanish.
    """
    if min_size == 0:
        return image
    height, width = resized_shape(image.shape[0], image.shape[1], min_size, max_size)
    if not height or not width:
        raise Failure(
            "dataset.invalid",
            f"an image of {image.shape[1]}x{image.shape[0]} pixels is too elongated to fit"
            f" INPUT.MIN_SIZE_TEST {min_size} and INPUT.MAX_SIZE_TEST {max_size}",
        )
    single = image.shape[2] == 1
    source = Image.fromarray(image[:, :, 0] if single else np.ascontiguousarray(image))
    resized = np.asarray(source.resize((width, height), Image.Resampling.BILINEAR))
    return resized[:, :, None] if single else resized


def _upright(image: Image.Image) -> Image.Image:
    image.load()  # PIL turns some formats (TIFF) upright itself while loading; only then is the tag true
    method = _UPRIGHT.get(_orientation(image))
    return image if method is None else image.transpose(method)


def _orientation(image: Image.Image) -> Any:
    """Return the EXIF orientation, None when there is none or the EXIF block is damaged."""
    try:
        return image.getexif().get(_EXIF_ORIENTATION)
    except Exception:  # an image with a damaged EXIF block is still an image; detectron2 shows it unrotated
        return None
