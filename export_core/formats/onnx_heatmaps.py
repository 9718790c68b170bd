"""Keypoint decoding for ONNX: the highest pixel of each heatmap resized to its box.

Bicubic interpolation is separable, so resizing to a small box is two matrix products. In a large box, a pixel
between four cells of the heatmap is bounded by the sixteen cells that it is computed from. Only pixels are
computed between those cells whose bound reaches what another pixel has: the result is that of all pixels.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CUBIC = -0.75  # the coefficient of torch's bicubic interpolation
OVERSHOOT = 0.1875  # the outer two of four weights never add up to less than minus this (0.75 * t * (1 - t))
MANY_PIXELS = 256 * 256  # a larger box is not computed as a whole ...
PER_CELL = (
    2  # ... if it has this many pixels for each cell in both directions; else bounds cost more than pixels
)
SLACK = 1e-5  # of bounds against rounding, in logits and again as a share of the logit
NEVER = -1e30  # the logit of a pixel that is not between the cells in question


class MatrixHeatmapDecoder(nn.Module):
    """The highest pixel of each heatmap upsampled to its box; takes the place of HeatmapDecoder.

    Args:
        peaks_of: :func:`peaks`, compiled where it is to be converted.
    """

    def __init__(self, peaks_of: Any) -> None:
        super().__init__()
        self.peaks = peaks_of

    def forward(self, heatmaps: Tensor, boxes: Tensor) -> Tensor:
        """Return float32 (R, K, 3); arguments as of HeatmapDecoder."""
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
        pixels = sides.ceil()
        places, logits = self.peaks(heatmaps, pixels.to(torch.int64))
        widths = pixels[:, :1].to(torch.int64)
        columns = (places % widths).to(heatmaps.dtype)
        rows = torch.div(places, widths, rounding_mode="floor").to(heatmaps.dtype)
        scales = sides / pixels
        x = (columns + 0.5) * scales[:, :1] + boxes[:, :1]
        y = (rows + 0.5) * scales[:, 1:] + boxes[:, 1:2]
        cells = (heatmaps - logits[:, :, None, None]).exp().sum([2, 3])
        return torch.stack((x, y, 1.0 / cells), dim=2)


def peaks(
    heatmaps: Tensor, pixels: Tensor, many_pixels: int = MANY_PIXELS, per_cell: int = PER_CELL
) -> tuple[Tensor, Tensor]:
    """Return place (y * width + x) and value of the highest pixel of each heatmap, resized bicubically.

    Args:
        heatmaps: (R, K, S, S).
        pixels: int64 (R, 2), widths and heights.
        many_pixels: of boxes with more, only what can be highest is computed,
        per_cell: if they are so many in both directions.

    Returns:
        int64 and float32 (R, K).
    """
    side = heatmaps.shape[3]
    bordered = F.pad(heatmaps, [2, 2, 2, 2], mode="replicate")
    # The first entries are none of a detection: there is always something to put together.
    places = [torch.zeros_like(heatmaps[:1, :, 0, 0], dtype=torch.int64)]
    logits = [torch.zeros_like(heatmaps[:1, :, 0, 0])]
    for index in range(heatmaps.shape[0]):
        width, height = pixels[index, 0], pixels[index, 1]
        if bool((width * height > many_pixels) & (torch.minimum(width, height) >= per_cell * side)):
            place, logit = peak_between_cells(bordered[index], width, height, side)
        else:
            place, logit = peak_of_all(bordered[index], width, height, side)
        places.append(place[None])
        logits.append(logit[None])
    return torch.cat(places)[1:], torch.cat(logits)[1:]


def peak_of_all(bordered: Tensor, width: Tensor, height: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Return place and value (K,) of the highest of all pixels; arguments as of peak_between_cells."""
    columns = (torch.arange(int(width)) + 0.5) * (side / width) - 0.5
    rows = (torch.arange(int(height)) + 0.5) * (side / height) - 0.5
    sources = torch.cat((columns, rows))
    weights = cubic_weights((sources[:, None] - torch.arange(-2, side + 2)).abs())
    surface = torch.matmul(torch.matmul(weights[int(width) :], bordered), weights[: int(width)].t())
    logit, place = surface.flatten(1).max(1)
    return place, logit


def peak_between_cells(
    bordered: Tensor, width: Tensor, height: Tensor, side: int, slack: float = SLACK, never: float = NEVER
) -> tuple[Tensor, Tensor]:
    """Return place and value (K,) of the highest pixel, computing only those that may be it.

    Args:
        bordered: (K, S + 4, S + 4), heatmaps with their border repeated twice.
        width: int64 (), of the box in pixels.
        height: likewise.
        side: S.
        slack: of bounds against rounding.
        never: what pixels have that do not count.
    """
    spaces = side + 1  # between cells, and outside of the first and the last one
    bounds = upper_bounds(bordered, side).reshape(-1, spaces * spaces)
    first_row, row_weights, no_rows = pixels_between_cells(height, side)
    first_column, column_weights, no_columns = pixels_between_cells(width, side)
    column_weights = column_weights.transpose(1, 2)
    keypoints = torch.arange(bordered.shape[0])
    steps = torch.arange(4)
    patch = steps[:, None] * (side + 4) + steps
    flat = bordered.reshape(-1)

    start = keypoints * (spaces * spaces)
    likely = bounds.argmax(1)
    reached = (
        surfaces(flat, patch, start + likely, side, row_weights, column_weights, no_rows, no_columns)
        .amax(2)
        .amax(1)
    )
    least = reached - (reached.abs() + 1) * slack
    candidates = torch.nonzero((bounds >= least[:, None]).reshape(-1)).squeeze(1)
    highest = (
        surfaces(flat, patch, candidates, side, row_weights, column_weights, no_rows, no_columns)
        .amax(2)
        .amax(1)
    )
    table = torch.full_like(bounds, never).reshape(-1).scatter(0, candidates, highest)
    best = table.reshape(-1, spaces * spaces).argmax(1)
    surface = surfaces(flat, patch, start + best, side, row_weights, column_weights, no_rows, no_columns)
    logit, place = surface.flatten(1).max(1)
    across = surface.shape[2]
    row = torch.div(best, spaces, rounding_mode="floor").to(torch.int64)
    column = (best % spaces).to(torch.int64)
    y = first_row[row] + torch.div(place, across, rounding_mode="floor")
    x = first_column[column] + place % across
    return y * width + x, logit


def upper_bounds(bordered: Tensor, side: int, overshoot: float = OVERSHOOT) -> Tensor:
    """Return (K, S + 1, S + 1): what no pixel between four cells exceeds, from (K, S + 4, S + 4).

    The inner two weights of a pixel are positive, the outer two negative, and their sum is 1. So no pixel
    is further above the higher inner cell than ``overshoot`` times that cell's distance from the lower
    outer one.
    """
    end = side + 1
    outer, inner = bordered[:, :, :end], bordered[:, :, 1 : end + 1]
    inner2, outer2 = bordered[:, :, 2 : end + 2], bordered[:, :, 3 : end + 3]
    top, bottom = torch.maximum(inner, inner2), torch.minimum(inner, inner2)
    upper = top + (top - torch.minimum(outer, outer2)).relu() * overshoot
    lower = bottom - (torch.maximum(outer, outer2) - bottom).relu() * overshoot
    top = torch.maximum(upper[:, 1 : end + 1], upper[:, 2 : end + 2])
    return top + (top - torch.minimum(lower[:, :end], lower[:, 3 : end + 3])).relu() * overshoot


def pixels_between_cells(length: Tensor, side: int, never: float = NEVER) -> tuple[Tensor, Tensor, Tensor]:
    """Return the pixels of each space between cells, in one direction.

    Args:
        length: int64 (), pixels.
        side: S, cells.
        never: what pixels have that do not count.

    Returns:
        int64 (S + 1,), the first pixel; float32 (S + 1, M, 4), the weights of the cells around M pixels; and
        float32 (S + 1, M), ``never`` where the pixel is in another space or none, else 0.
    """
    spaces = torch.arange(side + 1)
    count = torch.ceil(length / side).to(torch.int64) + 2  # one for the first space, one against rounding
    first = torch.floor((spaces - 0.5) * (length / side) - 0.5).to(torch.int64)
    pixels = first[:, None] + torch.arange(int(count))
    source = (pixels + 0.5) * (side / length) - 0.5
    own = (torch.floor(source) == spaces[:, None] - 1) & (pixels >= 0) & (pixels < length)
    cells = spaces[:, None] + torch.arange(-2, 2)
    weights = cubic_weights((source[:, :, None] - cells[:, None]).abs())
    return first, weights, torch.where(own, 0.0, never)


def surfaces(
    flat: Tensor,
    patch: Tensor,
    spaces: Tensor,
    side: int,
    row_weights: Tensor,
    column_weights: Tensor,
    no_rows: Tensor,
    no_columns: Tensor,
) -> Tensor:
    """Return float32 (C, M, M'): the pixels between cells, NEVER or less in place of others.

    Args:
        flat: (K * (S + 4) * (S + 4),).
        patch: int64 (4, 4), places of a space's cells in it, from the first one.
        spaces: int64 (C,), each keypoint * (S + 1)^2 + row * (S + 1) + column.
        side: S.
        row_weights: (S + 1, M, 4); the others likewise, as from pixels_between_cells.
        column_weights: (S + 1, 4, M').
        no_rows: (S + 1, M).
        no_columns: (S + 1, M').
    """
    # A converter does not know the types of values in a loop: what picks is cast to what it is.
    lines = torch.div(spaces, side + 1, rounding_mode="floor")
    column = (spaces % (side + 1)).to(torch.int64)
    keypoint, row = torch.div(lines, side + 1, rounding_mode="floor"), (lines % (side + 1)).to(torch.int64)
    corner = (keypoint * (side + 4) + row) * (side + 4) + column
    cells = flat[(corner[:, None, None] + patch).to(torch.int64)]
    values = torch.matmul(torch.matmul(row_weights[row], cells), column_weights[column])
    return values + no_columns[column][:, None] + no_rows[row][:, :, None]


def cubic_weights(distance: Tensor, a: float = CUBIC) -> Tensor:
    """Return the float32 weight of cells at these distances from a pixel (Keys 1981), 0 from 2 on.

    It is torch's interpolation with ``align_corners=False``.
    """
    near = ((a + 2) * distance - (a + 3)) * distance * distance + 1
    clipped = distance.clamp(max=2.0)  # where the polynomial is 0
    far = ((a * clipped - 5 * a) * clipped + 8 * a) * clipped - 4 * a
    return torch.where(distance <= 1, near, far)
