"""The semantic branch of Panoptic FPN (Kirillov et al. 2019, section 3.1)."""

import math

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.backbones.base import Backbone
from zooport.export_core.modeling.layers import Conv2d, known_norm
from zooport.export_core.modeling.proposals.rpn import feature_facts
from zooport.export_core.modeling.registry import SEM_SEG_HEADS


@SEM_SEG_HEADS.register("SemSegFPNHead")
class SemSegFPNHead(nn.ModuleDict):
    """Bring every level to the common stride by convolutions and upsampling, add up, classify pixels.

    Args:
        levels: name of each feature map -> its channels and stride.
        common_stride: where the levels meet, and the factor of the last upsampling.
    """

    def __init__(
        self, levels: dict[str, tuple[int, int]], hidden: int, common_stride: int, classes: int, norm: str
    ) -> None:
        super().__init__()
        self.common_stride = float(common_stride)
        for name, (channels, stride) in levels.items():
            self[name] = _to_common_stride(channels, hidden, stride, common_stride, norm)
        self["predictor"] = nn.Conv2d(hidden, classes, 1)

    @classmethod
    def from_config(cls, config: Config, backbone: Backbone) -> "SemSegFPNHead":
        """Build it as MODEL.SEM_SEG_HEAD says."""
        node = config.MODEL.SEM_SEG_HEAD
        names = list(node.IN_FEATURES)
        channels, strides = feature_facts(backbone, names, "MODEL.SEM_SEG_HEAD.IN_FEATURES")
        if any(stride % node.COMMON_STRIDE for stride in strides):
            raise Failure(
                "config.invalid",
                f"MODEL.SEM_SEG_HEAD.COMMON_STRIDE = {node.COMMON_STRIDE} divides not all of {strides}",
            )
        levels = dict(sorted(zip(names, zip(channels, strides, strict=True), strict=True), key=_by_stride))
        norm = known_norm(node.NORM, "MODEL.SEM_SEG_HEAD.NORM")
        return cls(levels, node.CONVS_DIM, node.COMMON_STRIDE, node.NUM_CLASSES, norm)

    def forward(self, features: dict[str, Tensor], image_sizes: list[tuple[int, int]]) -> list[Tensor]:
        """Return float32 logits (classes, height, width) of every image, without the padding."""
        total: list[Tensor] = []
        for name, layers in self.items():
            if name in features:
                level = layers(features[name])
                total = [level] if len(total) == 0 else [total[0] + level]
            else:
                total = [layers(total[0])]
        logits = F.interpolate(
            total[0], scale_factor=self.common_stride, mode="bilinear", align_corners=False
        )
        cropped: list[Tensor] = []
        for index, size in enumerate(image_sizes):
            cropped.append(logits[index, :, : size[0], : size[1]])
        return cropped


def _by_stride(level: tuple[str, tuple[int, int]]) -> int:
    return level[1][1]


def _to_common_stride(
    channels: int, hidden: int, stride: int, common_stride: int, norm: str
) -> nn.Sequential:
    layers: list[nn.Module] = []
    for index in range(max(1, int(math.log2(stride) - math.log2(common_stride)))):
        layers.append(Conv2d(channels if index == 0 else hidden, hidden, 3, norm=norm, relu=True))
        if stride != common_stride:
            layers.append(nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False))
    return nn.Sequential(*layers)
