"""A backbone of depthwise separable convolutions, and the pyramid over it."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.backbones.fpn import FPN, LastLevelMaxPool, build_pyramid
from zooport.export_core.modeling.layers import Conv2d
from zooport.export_core.modeling.registry import BACKBONES


class SeparableBlock(nn.Module):
    """A depthwise 3x3 and a pointwise 1x1 convolution, with a residual connection where shapes allow."""

    def __init__(self, in_channels: int, channels: int, stride: int, norm: str) -> None:
        super().__init__()
        self.depthwise = Conv2d(in_channels, in_channels, 3, stride=stride, groups=in_channels, norm=norm)
        self.pointwise = Conv2d(in_channels, channels, 1, norm=norm)
        self.residual = stride == 1 and in_channels == channels

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, channels, H / stride, W / stride) for x (N, in_channels, H, W)."""
        y = self.pointwise(F.silu(self.depthwise(x)))
        return F.silu(x + y if self.residual else y)


class PocketNet(nn.Module):
    """A stem and four stages. What every backbone has to say of itself: channels, strides, divisibility."""

    def __init__(self, widths: list[int], blocks: int, norm: str) -> None:
        super().__init__()
        self.stem = Conv2d(3, widths[0], 3, stride=2, norm=norm, relu=True)
        self.stages = nn.ModuleList()
        channels = widths[0]
        for width in widths:
            first = SeparableBlock(channels, width, 2, norm)
            rest = [SeparableBlock(width, width, 1, norm) for _ in range(blocks)]
            self.stages.append(nn.Sequential(first, *rest))
            channels = width
        self.names = [f"stage{index + 1}" for index in range(len(widths))]
        self.channels = dict(zip(self.names, widths, strict=True))
        self.strides = {name: 4 * 2**index for index, name in enumerate(self.names)}
        self.size_divisibility = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return "stage1".. -> (N, C, H / stride, W / stride) for a normalised batch x (N, 3, H, W)."""
        features: dict[str, Tensor] = {}
        x = self.stem(x)
        for index, stage in enumerate(self.stages):  # a loop that TorchScript takes; zip() with names is not
            x = stage(x)
            features[self.names[index]] = x
        return features


@BACKBONES.register("build_pocketnet_fpn_backbone")
def build_pocketnet_fpn(config: Config) -> FPN:
    """PocketNet with zooport's own pyramid over it, as MODEL.POCKETNET and MODEL.FPN say."""
    node = config.MODEL.POCKETNET
    bottom_up = PocketNet(list(node.WIDTHS), node.BLOCKS, node.NORM)
    return build_pyramid(config, bottom_up, LastLevelMaxPool())
