"""RegNetX and RegNetY (Radosavovic et al., Designing Network Design Spaces, 2020)."""

import math

from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.backbones.fpn import FPN, LastLevelMaxPool, build_pyramid
from zooport.export_core.modeling.backbones.resnet import StagedBackbone
from zooport.export_core.modeling.layers import make_norm
from zooport.export_core.modeling.registry import BACKBONES, unsupported

QUANTUM = 8  # widths are multiples of it


def stage_widths(depth: int, w_0: float, w_a: float, w_m: float) -> list[tuple[int, int]]:
    """Return (width, blocks) of each stage: the linear rule of equations 2 to 4, quantised."""
    widths: list[int] = []
    for block in range(depth):
        steps = round(math.log((w_0 + w_a * block) / w_0) / math.log(w_m))
        widths.append(int(round(w_0 * w_m**steps / QUANTUM) * QUANTUM))
    return [(width, widths.count(width)) for width in sorted(set(widths))]


def fit_groups(width: int, group_width: int) -> tuple[int, int]:
    """Return a width that the group width divides, and that group width."""
    group_width = min(group_width, width)
    return int(round(width / group_width) * group_width), group_width


class SqueezeExcitation(nn.Module):
    """Scale channels by what a small network makes of their means (Hu et al. 2018)."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.f_ex = nn.Sequential(
            nn.Conv2d(channels, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, channels, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return x (N, C, H, W), scaled."""
        return x * self.f_ex(x.mean([2, 3], keepdim=True))


class BottleneckTransform(nn.Sequential):
    """1x1, grouped 3x3 and 1x1 convolutions, each with its norm; ReLU between them."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, group_width: int, se_ratio: float, norm: str
    ) -> None:
        super().__init__()
        groups = out_channels // group_width
        self.add_module("a", nn.Conv2d(in_channels, out_channels, 1, bias=False))
        self.add_module("a_bn", make_norm(norm, out_channels, "MODEL.REGNETS.NORM"))
        self.add_module("a_af", nn.ReLU())
        self.add_module(
            "b", nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, groups=groups, bias=False)
        )
        self.add_module("b_bn", make_norm(norm, out_channels, "MODEL.REGNETS.NORM"))
        self.add_module("b_af", nn.ReLU())
        if se_ratio:
            self.add_module("se", SqueezeExcitation(out_channels, round(in_channels * se_ratio)))
        self.add_module("c", nn.Conv2d(out_channels, out_channels, 1, bias=False))
        self.add_module("c_bn", make_norm(norm, out_channels, "MODEL.REGNETS.NORM"))


class ResBottleneckBlock(nn.Module):
    """A bottleneck beside the identity, or beside a projection where the shape changes."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, group_width: int, se_ratio: float, norm: str
    ) -> None:
        super().__init__()
        self.proj: nn.Module = nn.Identity()
        self.bn: nn.Module = nn.Identity()
        if in_channels != out_channels or stride != 1:
            self.proj = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
            self.bn = make_norm(norm, out_channels, "MODEL.REGNETS.NORM")
        self.f = BottleneckTransform(in_channels, out_channels, stride, group_width, se_ratio, norm)
        self.af = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / stride, W / stride)."""
        return self.af(self.bn(self.proj(x)) + self.f(x))


class RegNetStem(nn.Sequential):
    """3x3 convolution of stride 2."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.add_module("conv", nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False))
        self.add_module("bn", make_norm(norm, out_channels, "MODEL.REGNETS.NORM"))
        self.add_module("af", nn.ReLU())


@BACKBONES.register("build_regnet_backbone")
def build_regnet(config: Config) -> StagedBackbone:
    """Build the RegNet that MODEL.REGNETS describes, without the stages that nobody asks for."""
    node = config.MODEL.REGNETS
    widths = stage_widths(node.DEPTH, node.W_0, node.W_A, node.W_M)
    names = [f"s{index}" for index in range(1, len(widths) + 1)]
    if not node.OUT_FEATURES or not set(node.OUT_FEATURES) <= {"stem", *names}:
        raise unsupported("MODEL.REGNETS.OUT_FEATURES", node.OUT_FEATURES, known=("stem", *names))
    stem = RegNetStem(len(config.MODEL.PIXEL_MEAN), node.STEM_OUT_CHANNELS, node.NORM)
    stages: dict[str, nn.Module] = {"stem": stem}
    channels, strides = {"stem": node.STEM_OUT_CHANNELS}, {"stem": 2}
    previous = node.STEM_OUT_CHANNELS
    for index, (name, (width, blocks)) in enumerate(zip(names, widths, strict=True), start=2):
        if not any(later in node.OUT_FEATURES for later in names[index - 2 :]):
            break
        width, group_width = fit_groups(width, node.GROUP_WIDTH)  # noqa: PLW2901
        stage = nn.Sequential()
        for block in range(blocks):
            made = ResBottleneckBlock(
                previous, width, 2 if block == 0 else 1, group_width, node.SE_RATIO, node.NORM
            )
            stage.add_module(f"b{block + 1}", made)
            previous = width
        stages[name], channels[name], strides[name] = stage, width, 2**index
    return StagedBackbone(stages, channels, strides, list(node.OUT_FEATURES))


@BACKBONES.register("build_regnet_fpn_backbone")
def build_regnet_fpn(config: Config) -> FPN:
    """RegNet with p2 to p6, p6 by pooling."""
    return build_pyramid(config, build_regnet(config), LastLevelMaxPool())
