"""Feature pyramid network (Lin et al. 2017): top-down path, lateral connections and extra coarse levels."""

import math
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.backbones.base import Backbone
from zooport.export_core.modeling.backbones.resnet import build_resnet
from zooport.export_core.modeling.layers import Conv2d, alias, known_norm
from zooport.export_core.modeling.registry import BACKBONES, unsupported


class LastLevelMaxPool(nn.Module):
    """One more level: every second cell of the coarsest one."""

    levels = 1
    source = ""

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return [(N, C, ceil(H / 2), ceil(W / 2))]."""
        return [F.max_pool2d(x, kernel_size=1, stride=2, padding=0)]


class LastLevelP6P7(nn.Module):
    """p6 and p7 by strided 3x3 convolutions (Lin et al., RetinaNet).

    Args:
        source: the feature map that p6 is computed from, of the bottom-up network or of the pyramid.
    """

    levels = 2

    def __init__(self, in_channels: int, out_channels: int, source: str = "res5") -> None:
        super().__init__()
        self.source = source
        self.p6 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(out_channels, out_channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Return p6 and p7."""
        p6 = self.p6(x)
        return [p6, self.p7(F.relu(p6))]


class FPN(nn.Module):
    """Pyramid maps p<k> of stride 2**k over a bottom-up network.

    Args:
        bottom_up: a backbone; its feature maps ``in_features`` must double in stride from one to the next.
        fuse: "sum" or "avg" of the top-down and the lateral map.
        top_block: what computes the levels above, from the map that it names as its ``source``
            (the coarsest map of the pyramid if it names none).
    """

    if TYPE_CHECKING:  # TorchScript takes no annotation of a module
        laterals: nn.ModuleList
        outputs: nn.ModuleList

    def __init__(
        self,
        bottom_up: Any,
        in_features: list[str],
        out_channels: int,
        *,
        norm: str = "",
        fuse: str = "sum",
        top_block: Any,
    ) -> None:
        super().__init__()
        if fuse not in {"sum", "avg"}:
            raise unsupported("MODEL.FPN.FUSE_TYPE", fuse, known=("sum", "avg"))
        strides = [_stride(bottom_up, name) for name in in_features]
        if any(coarse != 2 * fine for fine, coarse in pairwise(strides)):
            raise unsupported("MODEL.FPN.IN_FEATURES", in_features, why=f"strides {strides} do not double")
        self.names = [f"p{int(math.log2(stride))}" for stride in strides]
        laterals: list[nn.Module] = []
        outputs: list[nn.Module] = []
        for name, stride in zip(in_features, strides, strict=True):
            level = int(math.log2(stride))
            lateral = Conv2d(bottom_up.channels[name], out_channels, 1, norm=norm)
            output = Conv2d(out_channels, out_channels, 3, norm=norm)
            self.add_module(f"fpn_lateral{level}", lateral)
            self.add_module(f"fpn_output{level}", output)
            laterals.append(lateral)
            outputs.append(output)
        alias(self, "laterals", laterals)
        alias(self, "outputs", outputs)
        self.top_block = top_block
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        self.scale = 0.5 if fuse == "avg" else 1.0
        top = int(math.log2(strides[-1]))
        self.top_names = [f"p{top + 1 + index}" for index in range(top_block.levels)]
        self.source = str(top_block.source) or self.names[-1]
        self.channels = dict.fromkeys(self.names + self.top_names, out_channels)
        self.strides = {name: 2 ** int(name[1:]) for name in self.channels}
        self.size_divisibility = strides[-1]

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return "p2".. -> (N, out_channels, H / stride, W / stride) for x (N, C, H, W)."""
        bottom_up = self.bottom_up(x)
        merged: list[Tensor] = []
        for index, lateral in enumerate(self.laterals):
            merged.append(lateral(bottom_up[self.in_features[index]]))
        for level in range(len(merged) - 2, -1, -1):
            upsampled = F.interpolate(merged[level + 1], scale_factor=2.0, mode="nearest")
            merged[level] = (merged[level] + upsampled) * self.scale
        features: dict[str, Tensor] = {}
        for index, output in enumerate(self.outputs):
            features[self.names[index]] = output(merged[index])
        source = bottom_up[self.source] if self.source in bottom_up else features[self.source]
        for index, value in enumerate(self.top_block(source)):
            features[self.top_names[index]] = value
        return features


def _stride(bottom_up: Backbone, name: str) -> int:
    if name not in bottom_up.strides:
        raise Failure(
            "config.invalid",
            f"MODEL.FPN.IN_FEATURES names {name!r}, which the bottom-up network does not return",
            hint="known: " + ", ".join(bottom_up.strides),
        )
    return bottom_up.strides[name]


def build_pyramid(config: Config, bottom_up: Backbone, top_block: nn.Module) -> FPN:
    """Build the pyramid that MODEL.FPN describes over ``bottom_up``."""
    node = config.MODEL.FPN
    return FPN(
        bottom_up,
        list(node.IN_FEATURES),
        node.OUT_CHANNELS,
        norm=known_norm(node.NORM, "MODEL.FPN.NORM"),
        fuse=node.FUSE_TYPE,
        top_block=top_block,
    )


@BACKBONES.register("build_resnet_fpn_backbone")
def build_resnet_fpn(config: Config) -> FPN:
    """ResNet with p2 to p6, p6 by pooling."""
    return build_pyramid(config, build_resnet(config), LastLevelMaxPool())


@BACKBONES.register("build_retinanet_resnet_fpn_backbone")
def build_retinanet_resnet_fpn(config: Config) -> FPN:
    """ResNet with p3 to p7, p6 and p7 by convolutions on res5."""
    bottom_up = build_resnet(config)
    if "res5" not in bottom_up.channels:
        raise Failure("config.invalid", "MODEL.RESNETS.OUT_FEATURES must contain 'res5' for p6 and p7")
    top_block = LastLevelP6P7(bottom_up.channels["res5"], config.MODEL.FPN.OUT_CHANNELS)
    return build_pyramid(config, bottom_up, top_block)


@BACKBONES.register("build_fcos_resnet_fpn_backbone")
def build_fcos_resnet_fpn(config: Config) -> FPN:
    """ResNet with p3 to p7, p6 and p7 by convolutions on p5."""
    channels = config.MODEL.FPN.OUT_CHANNELS
    return build_pyramid(config, build_resnet(config), LastLevelP6P7(channels, channels, source="p5"))
