"""What every backbone tells the modules that use it."""

from typing import Protocol

from torch import Tensor


class Backbone(Protocol):
    """An image batch in, named feature maps out.

    Attributes:
        channels: feature name -> channels.
        strides: feature name -> input pixels between neighbouring cells.
        size_divisibility: heights and widths are padded to a multiple of it; 0 asks for no padding.
    """

    channels: dict[str, int]
    strides: dict[str, int]
    size_divisibility: int

    def __call__(self, x: Tensor) -> dict[str, Tensor]:
        """Return feature name -> (N, C', H', W') for a normalised batch x (N, C, H, W)."""
        ...
