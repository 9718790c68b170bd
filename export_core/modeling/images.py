"""From raw images of any size to one normalised, padded batch."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.evaluation.images import image_channels
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.backbones.base import Backbone


class ImageNormalizer(nn.Module):
    """Subtract the pixel mean, divide by the deviation, pad with zeros on the right and at the bottom.

    Args:
        pixel_mean: for each channel, 0-255.
        pixel_std: for each channel.
        size_divisibility: padded heights and widths are a multiple of it; 0 pads only to the largest image.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, pixel_mean: Sequence[float], pixel_std: Sequence[float], size_divisibility: int
    ) -> None:
        super().__init__()
        self.size_divisibility = max(size_divisibility, 1)
        self.register_buffer("mean", _per_channel(pixel_mean), persistent=False)
        self.register_buffer("std", _per_channel(pixel_std), persistent=False)

    @classmethod
    def from_config(cls, config: Config, backbone: Backbone) -> "ImageNormalizer":
        """Build what MODEL.PIXEL_MEAN and MODEL.PIXEL_STD describe, for a backbone's needs.

        Raises:
            Failure: ``config.invalid`` when they do not fit each other or the channels of INPUT.FORMAT.
        """
        _check_channels(config)
        return cls(config.MODEL.PIXEL_MEAN, config.MODEL.PIXEL_STD, backbone.size_divisibility)

    def forward(self, images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return a batch (N, C, H, W) and every image's own (height, width).

        Args:
            images: float32 (C, h, w) each, 0-255; an image of one channel is normalised by each mean.
        """
        sizes: list[tuple[int, int]] = []
        height, width = images[0].shape[1], images[0].shape[2]
        for index, image in enumerate(images):
            sizes.append((image.shape[1], image.shape[2]))
            if index > 0:
                height, width = max(height, image.shape[1]), max(width, image.shape[2])
        step = self.size_divisibility
        height = (height + step - 1) // step * step
        width = (width + step - 1) // step * step
        padded: list[Tensor] = []
        for image in images:
            right, bottom = width - image.shape[2], height - image.shape[1]
            padded.append(F.pad((image - self.mean) / self.std, [0, right, 0, bottom], value=0.0))
        return torch.stack(padded), sizes


def _check_channels(config: Config) -> None:
    """Refuse numbers that fit no image; one channel or one deviation may be for all, as in detectron2."""
    means, deviations = len(config.MODEL.PIXEL_MEAN), len(config.MODEL.PIXEL_STD)
    if not means or deviations not in {1, means}:
        raise Failure(
            "config.invalid",
            f"MODEL.PIXEL_MEAN and MODEL.PIXEL_STD have {means} and {deviations} numbers",
            hint="both have one for each channel",
        )
    channels = image_channels(config)
    if channels not in {1, means}:
        raise Failure(
            "config.invalid",
            f"INPUT.FORMAT = {config.INPUT.FORMAT!r} has {channels} channels, MODEL.PIXEL_MEAN {means}",
            hint="give a mean and a deviation for each channel; grey images are of INPUT.FORMAT L",
        )


def _per_channel(values: Sequence[float]) -> Tensor:
    # The device is named: a model's skeleton is built on the meta device, but these values are no weights.
    return torch.tensor(values, dtype=torch.float32, device="cpu").view(-1, 1, 1)
