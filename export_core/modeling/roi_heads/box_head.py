"""Box heads: from pooled regions to one feature vector per proposal."""

from torch import nn

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.layers import Conv2d, known_norm
from zooport.export_core.modeling.registry import BOX_HEADS


@BOX_HEADS.register("FastRCNNConvFCHead")
class ConvFCHead(nn.Sequential):
    """3x3 convolutions, then fully connected layers, each followed by ReLU.

    Takes (R, C, resolution, resolution) and returns (R, out_features), or (R, C, resolution, resolution)
    without fully connected layers.
    """

    def __init__(
        self, in_channels: int, resolution: int, convs: list[int], fcs: list[int], norm: str
    ) -> None:
        super().__init__()
        channels = in_channels
        for index, width in enumerate(convs, start=1):
            self.add_module(f"conv{index}", Conv2d(channels, width, 3, norm=norm, relu=True))
            channels = width
        features = channels * resolution * resolution
        for index, width in enumerate(fcs, start=1):
            if index == 1:
                self.add_module("flatten", nn.Flatten())
            self.add_module(f"fc{index}", nn.Linear(features, width))
            self.add_module(f"fc_relu{index}", nn.ReLU())
            features = width
        self.out_features = features

    @classmethod
    def from_config(cls, config: Config, in_channels: int, resolution: int) -> "ConvFCHead":
        """Build it as MODEL.ROI_BOX_HEAD says."""
        node = config.MODEL.ROI_BOX_HEAD
        if node.NUM_CONV + node.NUM_FC == 0:
            raise Failure("config.invalid", "MODEL.ROI_BOX_HEAD has NUM_CONV = 0 and NUM_FC = 0: no layers")
        return cls(
            in_channels,
            resolution,
            [node.CONV_DIM] * node.NUM_CONV,
            [node.FC_DIM] * node.NUM_FC,
            known_norm(node.NORM, "MODEL.ROI_BOX_HEAD.NORM"),
        )
