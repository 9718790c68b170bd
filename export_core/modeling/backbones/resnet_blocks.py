"""The blocks that ResNets are made of, and stages of them (He et al. 2015; Xie et al. 2017).

Their convolutions have no biases, not even where there is no norm either: detectron2's have none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.modeling.deformable import DeformableConv2d
from zooport.export_core.modeling.layers import Conv2d

KERNEL = 3  # of a bottleneck's middle convolution


@dataclass(frozen=True)
class StageSettings:
    """How the blocks of one stage are built.

    Attributes:
        stride: of the first block; the rest keep the resolution.
        width: channels of a bottleneck's 3x3 convolution; basic blocks have none.
        stride_in_1x1: whether a bottleneck's stride is in its first 1x1 convolution (MSRA's models) or in
            the 3x3 one (torchvision's and ResNeXt).
        deform_modulated: deformable convolutions also learn the weight of each sample.
        deform_groups: channel groups with offsets of their own.
    """

    blocks: int
    in_channels: int
    out_channels: int
    stride: int
    norm: str
    width: int = 0
    groups: int = 1
    dilation: int = 1
    stride_in_1x1: bool = True
    deform_modulated: bool = False
    deform_groups: int = 1


def shortcut(settings: StageSettings, in_channels: int, stride: int) -> nn.Module:
    """Return the projection beside a block's convolutions, the identity where the channels stay."""
    if in_channels == settings.out_channels:
        return nn.Identity()
    return Conv2d(in_channels, settings.out_channels, 1, stride=stride, norm=settings.norm, bias=False)


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a residual connection, for depths 18 and 34."""

    def __init__(self, settings: StageSettings, in_channels: int, stride: int) -> None:
        super().__init__()
        out, norm = settings.out_channels, settings.norm
        self.shortcut = shortcut(settings, in_channels, stride)
        self.conv1 = Conv2d(in_channels, out, 3, stride=stride, norm=norm, relu=True, bias=False)
        self.conv2 = Conv2d(out, out, 3, norm=norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        return F.relu(self.conv2(self.conv1(x)) + self.shortcut(x))


class BottleneckBlock(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a residual connection."""

    def __init__(self, settings: StageSettings, in_channels: int, stride: int) -> None:
        super().__init__()
        norm, width = settings.norm, settings.width
        stride_1x1, stride_3x3 = (stride, 1) if settings.stride_in_1x1 else (1, stride)
        self.shortcut = shortcut(settings, in_channels, stride)
        self.conv1 = Conv2d(in_channels, width, 1, stride=stride_1x1, norm=norm, relu=True, bias=False)
        self.conv2 = Conv2d(
            width,
            width,
            3,
            stride=stride_3x3,
            dilation=settings.dilation,
            groups=settings.groups,
            norm=norm,
            relu=True,
            bias=False,
        )
        self.conv3 = Conv2d(width, settings.out_channels, 1, norm=norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        return F.relu(self.conv3(self.conv2(self.conv1(x))) + self.shortcut(x))


class DeformableBottleneckBlock(nn.Module):
    """As the plain bottleneck; an ordinary convolution computes where the 3x3 one samples."""

    def __init__(self, settings: StageSettings, in_channels: int, stride: int) -> None:
        super().__init__()
        norm, width = settings.norm, settings.width
        stride_1x1, stride_3x3 = (stride, 1) if settings.stride_in_1x1 else (1, stride)
        self.modulated = settings.deform_modulated
        per_cell = 3 if self.modulated else 2
        self.shortcut = shortcut(settings, in_channels, stride)
        self.conv1 = Conv2d(in_channels, width, 1, stride=stride_1x1, norm=norm, relu=True, bias=False)
        self.conv2_offset = Conv2d(
            width,
            per_cell * KERNEL * KERNEL * settings.deform_groups,
            KERNEL,
            stride=stride_3x3,
            dilation=settings.dilation,
        )
        self.conv2 = DeformableConv2d(
            width,
            width,
            KERNEL,
            stride=stride_3x3,
            dilation=settings.dilation,
            groups=settings.groups,
            norm=norm,
        )
        self.conv3 = Conv2d(width, settings.out_channels, 1, norm=norm, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        hidden = self.conv1(x)
        sampling = self.conv2_offset(hidden)
        if self.modulated:
            offset_y, offset_x, mask = sampling.chunk(3, dim=1)
            hidden = self.conv2(hidden, torch.cat((offset_y, offset_x), dim=1), mask.sigmoid())
        else:
            hidden = self.conv2(hidden, sampling, None)
        return F.relu(self.conv3(hidden) + self.shortcut(x))


Block = Callable[[StageSettings, int, int], nn.Module]


def make_stage(block: Block, settings: StageSettings) -> nn.Sequential:
    """Return the blocks of one stage in a row."""
    first = block(settings, settings.in_channels, settings.stride)
    rest = [block(settings, settings.out_channels, 1) for _ in range(settings.blocks - 1)]
    return nn.Sequential(first, *rest)
