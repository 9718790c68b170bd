"""Mask heads (He et al., Mask R-CNN): a small probability map for every detection."""

import torch
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.layers import Conv2d, known_norm
from zooport.export_core.modeling.registry import MASK_HEADS


@MASK_HEADS.register("MaskRCNNConvUpsampleHead")
class ConvUpsampleMaskHead(nn.Sequential):
    """3x3 convolutions, a transposed convolution of stride 2, and 1x1 logits.

    Takes (R, C, S, S) and returns logits (R, classes or 1, 2 * S, 2 * S).
    """

    def __init__(self, in_channels: int, convs: list[int], deconv: int, classes: int, norm: str) -> None:
        super().__init__()
        channels = in_channels
        for index, width in enumerate(convs, start=1):
            self.add_module(f"mask_fcn{index}", Conv2d(channels, width, 3, norm=norm, relu=True))
            channels = width
        self.add_module("deconv", nn.ConvTranspose2d(channels, deconv, 2, stride=2))
        self.add_module("deconv_relu", nn.ReLU())
        self.add_module("predictor", nn.Conv2d(deconv, classes, 1))

    @classmethod
    def from_config(cls, config: Config, in_channels: int) -> "ConvUpsampleMaskHead":
        """Build it as MODEL.ROI_MASK_HEAD says."""
        node = config.MODEL.ROI_MASK_HEAD
        classes = 1 if node.CLS_AGNOSTIC_MASK else config.MODEL.ROI_HEADS.NUM_CLASSES
        norm = known_norm(node.NORM, "MODEL.ROI_MASK_HEAD.NORM")
        return cls(in_channels, [node.CONV_DIM] * node.NUM_CONV, node.CONV_DIM, classes, norm)


def add_masks(detections: list[dict[str, Tensor]], logits: Tensor) -> None:
    """Enter pred_masks, (N, 1, M, M) probabilities of each detection's own class, into each image's fields.

    Args:
        detections: fields of each image, with pred_classes int64 (N,).
        logits: (R, classes, M, M) for the detections of all images, or (R, 1, M, M) where masks do not
            depend on the class.
    """
    start = 0
    for fields in detections:
        classes = fields["pred_classes"]
        end = start + classes.shape[0]
        own = logits[start:end]
        if logits.shape[1] > 1:
            own = own[torch.arange(classes.shape[0]), classes][:, None]
        fields["pred_masks"] = own.sigmoid()
        start = end
