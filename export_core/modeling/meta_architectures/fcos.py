"""FCOS (Tian et al. 2019): every cell of a pyramid predicts the distances to the sides of its box."""

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.anchors import AnchorGenerator
from zooport.export_core.modeling.dense_detection import DenseDetector, tower
from zooport.export_core.modeling.proposals.rpn import feature_facts
from zooport.export_core.modeling.registry import BACKBONES, META_ARCHITECTURES


class FCOSHead(nn.Module):
    """Two towers shared by all levels; the box tower also says how central a cell is in its box."""

    def __init__(self, channels: int, convs: int, classes: int, norm: str, levels: int) -> None:
        super().__init__()
        self.cls_subnet = tower(channels, convs, norm, "MODEL.FCOS.NORM", levels)
        self.bbox_subnet = tower(channels, convs, norm, "MODEL.FCOS.NORM", levels)
        self.cls_score = nn.Conv2d(channels, classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, 4, 3, padding=1)
        self.ctrness = nn.Conv2d(channels, 1, 3, padding=1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return scores (N, H * W, classes) and deltas (N, H * W, 4) of each level.

        A score is the geometric mean of class probability and centerness.
        """
        scores: list[Tensor] = []
        deltas: list[Tensor] = []
        for of_classes, of_boxes in zip(self.cls_subnet(features), self.bbox_subnet(features)):
            classes = self.cls_score(of_classes).flatten(2).permute(0, 2, 1)
            centerness = self.ctrness(of_boxes).flatten(2).permute(0, 2, 1)
            scores.append((classes.sigmoid() * centerness.sigmoid()).sqrt())
            deltas.append(self.bbox_pred(of_boxes).flatten(2).permute(0, 2, 1))
        return scores, deltas


class DistanceCoder(nn.Module):
    """Boxes from the distances of a point to the left, top, right and bottom side."""

    def forward(self, deltas: Tensor, cells: Tensor) -> Tensor:
        """Return boxes (K, 4).

        Args:
            deltas: (K, 4) distances in units of the cell's size; negative ones count as 0.
            cells: (K, 4) boxes whose centres are the points.
        """
        distances = F.relu(deltas) * (cells[:, 2:] - cells[:, :2]).repeat(1, 2)
        centres = 0.5 * (cells[:, :2] + cells[:, 2:])
        return torch.cat((centres - distances[:, :2], centres + distances[:, 2:]), dim=1)


@META_ARCHITECTURES.register("FCOS")
class FCOS(DenseDetector):
    """One-stage detector without anchors."""

    @classmethod
    def from_config(cls, config: Config) -> "FCOS":
        """Build the detector that MODEL.FCOS describes."""
        node = config.MODEL.FCOS
        backbone = BACKBONES.get(config.MODEL.BACKBONE.NAME)(config)
        channels, strides = feature_facts(backbone, list(node.IN_FEATURES), "MODEL.FCOS.IN_FEATURES")
        cells = AnchorGenerator([[stride] for stride in strides], [[1.0]], strides, offset=0.5)
        head = FCOSHead(channels[0], node.NUM_CONVS, node.NUM_CLASSES, node.NORM, len(strides))
        return cls.from_node(config, node, backbone, head, cells, DistanceCoder())
