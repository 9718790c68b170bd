"""Anchors: the reference boxes that regression starts from, one set for every cell of every feature map."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.registry import ANCHOR_GENERATORS

Values = Sequence[float] | Sequence[Sequence[float]]


def cell_anchors(sizes: Sequence[float], aspect_ratios: Sequence[float]) -> Tensor:
    """Return float32 (len(sizes) * len(aspect_ratios), 4) anchors centred on the origin.

    An anchor of size s and ratio r = height / width has the area s * s.
    """
    anchors = []
    for size in sizes:
        for ratio in aspect_ratios:
            width = math.sqrt(size**2.0 / ratio)
            height = ratio * width
            anchors.append([-width / 2.0, -height / 2.0, width / 2.0, height / 2.0])
    return torch.tensor(anchors, device="cpu")


def _per_level(values: Values, levels: int, key: str) -> list[Sequence[float]]:
    """Return the numbers of each feature map; plain numbers, or a single list of them, are those of all."""
    lists: list[Any] = list(values) if any(map(_is_list, values)) else [values]
    if not all(_is_list(numbers) and numbers and not any(map(_is_list, numbers)) for numbers in lists):
        raise Failure(
            "config.invalid",
            f"{key} = {values} holds no numbers for each feature map",
            hint="give a list of numbers for all feature maps, or such a list for each",
        )
    if len(lists) not in {1, levels}:
        raise Failure(
            "config.invalid",
            f"{key} has {len(lists)} entries for {levels} feature maps",
            hint="give one entry, or one for each feature map",
        )
    return lists * levels if len(lists) == 1 else lists


def _is_list(value: object) -> bool:
    return isinstance(value, list | tuple)


@ANCHOR_GENERATORS.register("DefaultAnchorGenerator")
class AnchorGenerator(nn.Module):
    """Anchors of every size and aspect ratio at every cell (Ren et al., Faster R-CNN, section 3.1.1).

    Args:
        sizes: side lengths in pixels, for each feature map or for all of them.
        aspect_ratios: heights over widths, likewise.
        strides: pixels between cells, for each feature map.
        offset: where in its cell the first anchor's centre lies, as a fraction of the stride.
    """

    def __init__(
        self,
        sizes: Values,
        aspect_ratios: Values,
        strides: Sequence[int],
        offset: float = 0.0,
    ) -> None:
        super().__init__()
        levels = len(strides)
        sizes = _per_level(sizes, levels, "MODEL.ANCHOR_GENERATOR.SIZES")
        ratios = _per_level(aspect_ratios, levels, "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS")
        self.strides = [int(stride) for stride in strides]
        self.offset = float(offset)
        self.cells: list[Tensor] = [cell_anchors(*level) for level in zip(sizes, ratios, strict=True)]

    @classmethod
    def from_config(cls, config: Config, strides: Sequence[int]) -> "AnchorGenerator":
        """Build it for feature maps of these strides."""
        node = config.MODEL.ANCHOR_GENERATOR
        return cls(node.SIZES, node.ASPECT_RATIOS, strides, node.OFFSET)

    @property
    def per_cell(self) -> list[int]:
        """Anchors at one cell, for each feature map."""
        return [len(cell) for cell in self.cells]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return float32 (H * W * A, 4) anchors for each feature map (N, C, H, W), cell by cell."""
        anchors: list[Tensor] = []
        for feature, stride, cell in zip(features, self.strides, self.cells):
            rows = torch.arange(feature.shape[2], dtype=torch.float32) * stride + self.offset * stride
            columns = torch.arange(feature.shape[3], dtype=torch.float32) * stride + self.offset * stride
            y, x = torch.meshgrid(rows, columns, indexing="ij")
            shifts = torch.stack((x, y, x, y), dim=-1).reshape(-1, 1, 4)
            anchors.append((shifts + cell[None]).reshape(-1, 4))
        return anchors
