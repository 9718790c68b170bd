"""Pooling of box regions out of a feature pyramid."""

import math

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from zooport.export_core.modeling.registry import unsupported

CANONICAL_SIZE = 224.0  # pixels; a box of this size belongs to ...
CANONICAL_LEVEL = 4  # ... the level of stride 16 (Lin et al., FPN, equation 1)
POOLER_TYPES = ("ROIAlignV2", "ROIAlign", "ROIPool")


class RoiPooler(nn.Module):
    """Pool every box from the level that fits its size.

    Args:
        resolution: cells on each side of the result.
        strides: of the feature maps, each twice the one before.
        sampling_ratio: samples per cell and direction; 0 takes as many as the region has pixels.
        pooler_type: "ROIAlignV2" aligns pixel centres, "ROIAlign" is half a pixel off, "ROIPool" rounds.
        key: the config key of ``pooler_type``, for messages.
    """

    def __init__(
        self,
        resolution: int,
        strides: list[int],
        sampling_ratio: int,
        pooler_type: str,
        key: str = "POOLER_TYPE",
    ) -> None:
        super().__init__()
        if pooler_type not in POOLER_TYPES:
            raise unsupported(key, pooler_type, known=POOLER_TYPES)
        levels = [math.log2(stride) for stride in strides]
        if any(level != int(level) for level in levels) or len(strides) != levels[-1] - levels[0] + 1:
            raise unsupported(key, strides, why="the strides of pooled feature maps must double")
        self.output_size = (resolution, resolution)
        self.scales = [1.0 / stride for stride in strides]
        self.sampling_ratio = sampling_ratio
        self.rounds = pooler_type == "ROIPool"
        self.aligned = pooler_type == "ROIAlignV2"
        self.min_level = int(levels[0])
        self.max_level = int(levels[-1])
        self.canonical_size = CANONICAL_SIZE
        self.canonical_level = CANONICAL_LEVEL

    @property
    def resolution(self) -> int:
        """Cells on each side of the result."""
        return self.output_size[0]

    def forward(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        """Return (R, C, resolution, resolution) for all boxes of all images, in their order.

        Args:
            features: (N, C, H, W) of each level.
            boxes: (R_i, 4) of each of N images, in input pixels.
        """
        rois = batch_rois(boxes)
        if len(features) == 1:
            return self.pool(features[0], rois, self.scales[0])
        levels = self.assign(rois[:, 1:])
        pooled: list[Tensor] = []
        members: list[Tensor] = []
        for index, feature in enumerate(features):
            member = torch.nonzero(levels == index).squeeze(1)
            pooled.append(self.pool(feature, rois[member], self.scales[index]))
            members.append(member)
        # Undo the grouping by level: the inverse of a permutation is its argsort.
        return torch.cat(pooled)[torch.cat(members).argsort()]

    def assign(self, boxes: Tensor) -> Tensor:
        """Return the int64 (R,) index of the feature map for each box (R, 4)."""
        size = torch.sqrt((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1]))
        level = torch.floor(self.canonical_level + torch.log2(size / self.canonical_size + 1e-8))
        return level.clamp(min=self.min_level, max=self.max_level).to(torch.int64) - self.min_level

    def pool(self, feature: Tensor, rois: Tensor, scale: float) -> Tensor:
        """Pool rois (R, 5), whose first column is the image's index, from one feature map."""
        if self.rounds:
            return roi_pool(feature, rois, self.output_size, scale)
        return roi_align(feature, rois, self.output_size, scale, self.sampling_ratio, self.aligned)


def batch_rois(boxes: list[Tensor]) -> Tensor:
    """Return (R, 5): the boxes of all images under each other, each behind its image's index."""
    rois: list[Tensor] = []
    for index, image_boxes in enumerate(boxes):
        rois.append(torch.cat((torch.full_like(image_boxes[:, :1], float(index)), image_boxes), dim=1))
    return torch.cat(rois)
