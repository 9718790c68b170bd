"""ResNet and ResNeXt (He et al. 2015; Xie et al. 2017) with the choices that detectron2's configs offer."""

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.backbones.resnet_blocks import (
    BasicBlock,
    Block,
    BottleneckBlock,
    DeformableBottleneckBlock,
    StageSettings,
    make_stage,
)
from zooport.export_core.modeling.layers import Conv2d, known_norm
from zooport.export_core.modeling.registry import BACKBONES, unsupported

BLOCKS_PER_STAGE = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
FIRST_BOTTLENECK_DEPTH = 50
STAGES = ("res2", "res3", "res4", "res5")


class Stem(nn.Module):
    """7x7 convolution and 3x3 max pooling, each of stride 2."""

    def __init__(self, in_channels: int, out_channels: int, norm: str) -> None:
        super().__init__()
        self.conv1 = Conv2d(
            in_channels, out_channels, 7, stride=2, padding=3, norm=norm, relu=True, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H / 4, W / 4) for x (N, in_channels, H, W)."""
        return F.max_pool2d(self.conv1(x), kernel_size=3, stride=2, padding=1)


class StagedBackbone(nn.ModuleDict):
    """A stem and stages in order, each under its detectron2 name.

    Args:
        stages: "stem", then for a ResNet "res2" to "res5" as far as they are needed.
        channels: the same names -> output channels.
        strides: the same names -> stride relative to the image.
        out_features: the names to return.
    """

    def __init__(
        self,
        stages: dict[str, nn.Module],
        channels: dict[str, int],
        strides: dict[str, int],
        out_features: list[str],
    ) -> None:
        super().__init__(stages)
        self.out_features = out_features
        self.channels = {name: channels[name] for name in out_features}
        self.strides = {name: strides[name] for name in out_features}
        self.size_divisibility = 0

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """Return feature name -> (N, C', H / stride, W / stride) for x (N, C, H, W)."""
        features: dict[str, Tensor] = {}
        for name, stage in self.items():
            x = stage(x)
            if name in self.out_features:
                features[name] = x
        return features


def stage_settings(config: Config) -> list[StageSettings]:
    """Return the settings of res2 to res5 as MODEL.RESNETS asks for them.

    Raises:
        Failure: ``unsupported.architecture`` for a depth or a combination that does not exist.
    """
    node = config.MODEL.RESNETS
    if node.DEPTH not in BLOCKS_PER_STAGE:
        raise unsupported("MODEL.RESNETS.DEPTH", node.DEPTH, known=BLOCKS_PER_STAGE)
    if node.RES5_DILATION not in {1, 2}:
        raise unsupported("MODEL.RESNETS.RES5_DILATION", node.RES5_DILATION, known=(1, 2))
    if node.DEPTH < FIRST_BOTTLENECK_DEPTH:
        _refuse_bottleneck_choices(config)
    norm = known_norm(node.NORM, "MODEL.RESNETS.NORM")
    stages = []
    in_channels, out_channels = node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS
    width = node.NUM_GROUPS * node.WIDTH_PER_GROUP
    for index, blocks in enumerate(BLOCKS_PER_STAGE[node.DEPTH]):
        dilation = node.RES5_DILATION if index == 3 else 1
        stages.append(
            StageSettings(
                blocks=blocks,
                in_channels=in_channels,
                out_channels=out_channels,
                stride=1 if index == 0 or dilation == 2 else 2,
                norm=norm,
                width=width,
                groups=node.NUM_GROUPS,
                dilation=dilation,
                stride_in_1x1=node.STRIDE_IN_1X1,
                deform_modulated=node.DEFORM_MODULATED,
                deform_groups=node.DEFORM_NUM_GROUPS,
            )
        )
        in_channels, out_channels, width = out_channels, out_channels * 2, width * 2
    return stages


def _refuse_bottleneck_choices(config: Config) -> None:
    node = config.MODEL.RESNETS
    why = f"MODEL.RESNETS.DEPTH = {node.DEPTH} has basic blocks"
    for key, value, only in (
        ("RES2_OUT_CHANNELS", node.RES2_OUT_CHANNELS, 64),
        ("RES5_DILATION", node.RES5_DILATION, 1),
        ("NUM_GROUPS", node.NUM_GROUPS, 1),
        ("DEFORM_ON_PER_STAGE", node.DEFORM_ON_PER_STAGE, [False] * len(node.DEFORM_ON_PER_STAGE)),
    ):
        if value != only:
            raise unsupported(f"MODEL.RESNETS.{key}", value, known=(only,), why=why)


@BACKBONES.register("build_resnet_backbone")
def build_resnet(config: Config) -> StagedBackbone:
    """Build the ResNet that MODEL.RESNETS describes, without the stages that nobody asks for."""
    node = config.MODEL.RESNETS
    unknown = [name for name in node.OUT_FEATURES if name not in ("stem", *STAGES)]
    if unknown or not node.OUT_FEATURES:
        raise unsupported("MODEL.RESNETS.OUT_FEATURES", node.OUT_FEATURES, known=("stem", *STAGES))
    settings = stage_settings(config)
    deepest = max((STAGES.index(name) for name in node.OUT_FEATURES if name != "stem"), default=-1)
    stages: dict[str, nn.Module] = {
        "stem": Stem(len(config.MODEL.PIXEL_MEAN), node.STEM_OUT_CHANNELS, node.NORM)
    }
    channels, strides = {"stem": node.STEM_OUT_CHANNELS}, {"stem": 4}
    stride = 4
    for index in range(deepest + 1):
        stage = settings[index]
        stride *= stage.stride
        deformable = index < len(node.DEFORM_ON_PER_STAGE) and node.DEFORM_ON_PER_STAGE[index]
        stages[STAGES[index]] = make_stage(_block(node.DEPTH, deformable), stage)
        channels[STAGES[index]], strides[STAGES[index]] = stage.out_channels, stride
    return StagedBackbone(stages, channels, strides, list(node.OUT_FEATURES))


def _block(depth: int, deformable: bool) -> Block:
    if depth < FIRST_BOTTLENECK_DEPTH:
        return BasicBlock
    return DeformableBottleneckBlock if deformable else BottleneckBlock
