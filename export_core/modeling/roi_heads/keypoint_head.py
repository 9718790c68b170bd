"""Keypoint heads (He et al., Mask R-CNN, section 5): a heatmap for every keypoint of every detection."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.layers import Conv2d
from zooport.export_core.modeling.registry import KEYPOINT_HEADS


@KEYPOINT_HEADS.register("KRCNNConvDeconvUpsampleHead")
class ConvDeconvKeypointHead(nn.Sequential):
    """3x3 convolutions, a transposed convolution of stride 2, and bilinear upsampling by 2.

    Takes (R, C, S, S) and returns logits (R, keypoints, 4 * S, 4 * S).
    """

    def __init__(self, in_channels: int, convs: list[int], keypoints: int) -> None:
        super().__init__()
        channels = in_channels
        for index, width in enumerate(convs, start=1):
            self.add_module(f"conv_fcn{index}", Conv2d(channels, width, 3, relu=True))
            channels = width
        self.add_module("score_lowres", nn.ConvTranspose2d(channels, keypoints, 4, stride=2, padding=1))
        self.add_module("upsample", nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False))

    @classmethod
    def from_config(cls, config: Config, in_channels: int) -> "ConvDeconvKeypointHead":
        """Build it as MODEL.ROI_KEYPOINT_HEAD says."""
        node = config.MODEL.ROI_KEYPOINT_HEAD
        return cls(in_channels, list(node.CONV_DIMS), node.NUM_KEYPOINTS)


class HeatmapDecoder(nn.Module):
    """Where in its box each keypoint is: the highest pixel of its heatmap, upsampled to the box's size.

    Boxes have different sizes, so the heatmaps are upsampled one detection after the other.
    """

    # A recorded graph would repeat the loop as often as the sample has detections.
    loops_over_data = True

    def forward(self, heatmaps: Tensor, boxes: Tensor) -> Tensor:
        """Return float32 (R, K, 3): x and y in input pixels, and a score.

        Args:
            heatmaps: logits (R, K, H, W).
            boxes: (R, 4).
        """
        count, keypoints = heatmaps.shape[0], heatmaps.shape[1]
        found = torch.zeros((count, keypoints, 3), dtype=heatmaps.dtype)
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
        pixels = sides.ceil()
        for index in range(count):
            width, height = int(pixels[index, 0]), int(pixels[index, 1])
            heatmap = heatmaps[index : index + 1]
            surface = F.interpolate(heatmap, size=[height, width], mode="bicubic", align_corners=False)
            surface = surface.reshape(keypoints, -1)
            logit, place = surface.max(1)
            # The score is a softmax over the heatmap's own cells, so that it does not depend on box size.
            cells = (heatmap.reshape(keypoints, -1) - logit[:, None]).exp()
            column = (place % width).to(heatmaps.dtype)
            row = torch.div(place, width, rounding_mode="floor").to(heatmaps.dtype)
            scale = sides[index] / pixels[index]
            found[index, :, 0] = (column + 0.5) * scale[0] + boxes[index, 0]
            found[index, :, 1] = (row + 0.5) * scale[1] + boxes[index, 1]
            found[index, :, 2] = 1.0 / cells.sum(1)
        return found


def add_keypoints(detections: list[dict[str, Tensor]], heatmaps: Tensor, keypoints: Tensor) -> None:
    """Enter pred_keypoints (N, K, 3) and pred_keypoint_heatmaps (N, K, H, W) into each image's fields.

    Args:
        detections: fields of each image.
        heatmaps: (R, K, H, W) for the detections of all images.
        keypoints: (R, K, 3) likewise.
    """
    start = 0
    for fields in detections:
        end = start + fields["pred_boxes"].shape[0]
        fields["pred_keypoints"] = keypoints[start:end]
        fields["pred_keypoint_heatmaps"] = heatmaps[start:end]
        start = end
