"""Draws what was found on a picture: boxes, translucent masks, keypoints and names. It knows no files."""

from __future__ import annotations

import colorsys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Picture = npt.NDArray[np.uint8]
Colour = tuple[int, int, int]

_LEGIBLE = 640  # pixels of the longer side that smaller pictures are enlarged to at least
_ENLARGED_AT_MOST = 8
_GOLDEN = 0.618034  # hues that follow each other at this distance (of the circle) stay apart, however many
_TONES = ((0.85, 0.95), (0.95, 0.70), (0.55, 1.0))  # saturation and value, in turn
_OPACITY = 0.42  # of masks
_COARSE = 48  # cells a side in which the middle of a region is looked for


class Region(NamedTuple):
    """Pixels of a picture: bool ``crop`` at (``top``, ``left``)."""

    crop: npt.NDArray[np.bool_]
    top: int
    left: int


@dataclass(frozen=True)
class Mark:
    """One thing to draw; coordinates are in pixels of the picture, (0, 0) at its upper left corner.

    Attributes:
        text: beside it; "" for none.
        colour: equal numbers have the same colour, in every picture.
        box: x1, y1, x2, y2; None draws none.
        region: its pixels; None draws none.
        points: (K, 2); a point that is not finite is left out.
        lines: pairs of points that are joined.
    """

    text: str
    colour: int
    box: Sequence[float] | None = None
    region: Region | None = None
    points: npt.NDArray[Any] | None = None
    lines: Sequence[tuple[int, int]] = ()


def colour_of(number: int) -> Colour:
    """Return the RGB colour of a number, unlike those of its neighbours."""
    saturation, value = _TONES[number % len(_TONES)]
    red, green, blue = colorsys.hsv_to_rgb((0.02 + number * _GOLDEN) % 1.0, saturation, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def draw(picture: Picture, marks: Sequence[Mark]) -> Picture:
    """Return the picture with the marks on it; a small one is enlarged so that its text can be read.

    Args:
        picture: RGB, uint8 (H, W, 3).
        marks: the most important first: its text gets the best place.

    Returns:
        uint8 (F * H, F * W, 3), F a whole number.
    """
    factor = scale_of(picture.shape[0], picture.shape[1])
    canvas = _enlarged(picture, factor)
    unit = max(canvas.shape[:2])
    width = max(2, round(unit / 400))
    regions = [mark for mark in marks if mark.region is not None]
    for mark in sorted(regions, key=lambda mark: -_area(mark)):
        _paint(canvas, mark, factor, width)
    image = Image.fromarray(canvas)
    pen = ImageDraw.Draw(image)
    for mark in reversed(marks):
        _outline(pen, mark, factor, width)
    font = ImageFont.load_default(max(12, round(unit / 48)))
    taken: list[tuple[float, float, float, float]] = []
    for mark in marks:
        if mark.text:
            taken.append(_write(pen, mark, factor, font, image.size, taken))
    return np.asarray(image)


def side_by_side(pictures: Sequence[tuple[str, Picture]]) -> Picture:
    """Return pictures of equal height next to each other, each below its title."""
    unit = max(max(picture.shape[:2]) for _, picture in pictures)
    size = max(14, round(unit / 40))
    font = ImageFont.load_default(size)
    bar, gap = round(size * 1.6), max(4, round(unit / 160))
    height = max(picture.shape[0] for _, picture in pictures) + bar
    width = sum(picture.shape[1] for _, picture in pictures) + gap * (len(pictures) - 1)
    image = Image.new("RGB", (width, height), (24, 24, 24))
    pen = ImageDraw.Draw(image)
    left = 0
    for title, picture in pictures:
        image.paste(Image.fromarray(picture), (left, bar))
        pen.text((left + gap, bar / 2), title, fill=(255, 255, 255), font=font, anchor="lm")
        left += picture.shape[1] + gap
    return np.asarray(image)


def scale_of(height: int, width: int) -> int:
    """Return how many times a picture of this size is enlarged."""
    return min(max(1, -(-_LEGIBLE // max(height, width))), _ENLARGED_AT_MOST)


def _enlarged(picture: Picture, factor: int) -> Picture:
    if factor == 1:
        return np.array(picture)
    size = picture.shape[1] * factor, picture.shape[0] * factor
    return np.array(Image.fromarray(np.ascontiguousarray(picture)).resize(size, Image.Resampling.BICUBIC))


def _area(mark: Mark) -> int:
    return 0 if mark.region is None else int(np.count_nonzero(mark.region.crop))


def _paint(canvas: Picture, mark: Mark, factor: int, width: int) -> None:
    """Tint a region and draw its outline, in place."""
    assert mark.region is not None  # noqa: S101 - the caller has chosen those that have one
    crop, top, left = mark.region
    inside: npt.NDArray[np.bool_] = crop.repeat(factor, axis=0).repeat(factor, axis=1)
    view = canvas[top * factor : top * factor + len(inside), left * factor :][:, : inside.shape[1]]
    colour = np.array(colour_of(mark.colour), dtype=np.float32)
    view[inside] = np.rint(view[inside] * (1 - _OPACITY) + colour * _OPACITY).astype(np.uint8)
    core = inside
    for _ in range(width):
        core = _eroded(core)
    view[inside & ~core] = colour.astype(np.uint8)


def _eroded(region: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return the pixels whose four neighbours belong to the region too."""
    padded = np.pad(region, 1)
    inner = padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    core: npt.NDArray[np.bool_] = inner & region
    return core


def _outline(pen: ImageDraw.ImageDraw, mark: Mark, factor: int, width: int) -> None:
    colour = colour_of(mark.colour)
    if mark.box is not None:
        x1, y1, x2, y2 = (round(side * factor) for side in mark.box)
        pen.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour, width=width)
    if mark.points is None:
        return
    points = np.asarray(mark.points, dtype=np.float64)[:, :2] * factor
    seen = np.asarray(np.isfinite(points).all(axis=1))
    for first, second in mark.lines:
        if seen[first] and seen[second]:
            pen.line([tuple(points[first]), tuple(points[second])], fill=colour, width=width)
    radius = width * 1.6
    for x, y in points[seen].tolist():
        around = (x - radius, y - radius, x + radius, y + radius)
        pen.ellipse(around, fill=(255, 255, 255), outline=colour, width=max(1, width // 2 + 1))


def _write(
    pen: ImageDraw.ImageDraw,
    mark: Mark,
    factor: int,
    font: Any,
    size: tuple[int, int],
    taken: Sequence[tuple[float, float, float, float]],
) -> tuple[float, float, float, float]:
    """Write a mark's text on a plate of its colour where it hides no other text, and return the plate."""
    left, top, right, bottom = pen.textbbox((0, 0), mark.text, font=font)
    pad = max(2, round(font.size / 6))
    width, height = right - left + 2 * pad, bottom - top + 2 * pad
    plates = [_within((x, y, x + width, y + height), size) for x, y in _places(mark, factor, width, height)]
    plate = next((one for one in plates if not any(_overlap(one, other) for other in taken)), plates[0])
    colour = colour_of(mark.colour)
    pen.rectangle(plate, fill=colour)
    luminance = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2]  # ITU-R BT.601
    ink = (0, 0, 0) if luminance > 140 else (255, 255, 255)
    pen.text((plate[0] + pad - left, plate[1] + pad - top), mark.text, fill=ink, font=font)
    return plate


def _places(mark: Mark, factor: int, width: float, height: float) -> Iterator[tuple[float, float]]:
    """Yield upper left corners for a text of this size, the best first."""
    if mark.box is not None:
        x1, y1, x2, y2 = (side * factor for side in mark.box)
        yield from ((x1, y1 - height), (x1, y1), (x1, y2), (x2 - width, y2), (x2, y1), (x1, y2 - height))
    elif mark.region is not None:
        y, x = _middle(mark.region)
        x, y = x * factor - width / 2, y * factor - height / 2
        yield from ((x, y + step * height) for step in (0, 1.1, -1.1, 2.2, -2.2))
    elif mark.points is not None and len(mark.points):
        x, y = mark.points[0][0] * factor, mark.points[0][1] * factor
        yield from ((x, y - height), (x, y))
    else:
        yield from ((0.0, step * height) for step in range(4))


def _middle(region: Region) -> tuple[float, float]:
    """Return (y, x) of a place deep inside a region: where it is left after the most erosions."""
    crop, top, left = region
    step = max(1, max(crop.shape) // _COARSE)
    core: npt.NDArray[np.bool_] = crop[step // 2 :: step, step // 2 :: step]
    if not core.any():
        core, step = crop, 1
    while True:
        smaller = _eroded(core)
        if not smaller.any():
            break
        core = smaller
    rows, columns = np.nonzero(core)
    if not len(rows):
        return top, left
    index = len(rows) // 2
    return top + (rows[index] + 0.5) * step, left + (columns[index] + 0.5) * step


def _within(
    plate: tuple[float, float, float, float], size: tuple[int, int]
) -> tuple[float, float, float, float]:
    """Move a plate into a picture of (width, height)."""
    x1, y1, x2, y2 = plate
    x = min(max(x1, 0), max(size[0] - (x2 - x1), 0))
    y = min(max(y1, 0), max(size[1] - (y2 - y1), 0))
    return round(x), round(y), round(x + x2 - x1), round(y + y2 - y1)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
