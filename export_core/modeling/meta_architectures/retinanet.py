"""RetinaNet (Lin et al. 2017): dense classification and regression of anchors on a pyramid."""

from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.boxes import BoxCoder
from zooport.export_core.modeling.dense_detection import DenseDetector, tower
from zooport.export_core.modeling.proposals.rpn import feature_facts
from zooport.export_core.modeling.registry import (
    ANCHOR_GENERATORS,
    BACKBONES,
    META_ARCHITECTURES,
    unsupported,
)


class RetinaNetHead(nn.Module):
    """Two towers of 3x3 convolutions shared by all levels: class scores and box deltas of every anchor."""

    def __init__(self, channels: int, convs: int, anchors: int, classes: int, norm: str, levels: int) -> None:
        super().__init__()
        self.classes = classes
        self.cls_subnet = tower(channels, convs, norm, "MODEL.RETINANET.NORM", levels)
        self.bbox_subnet = tower(channels, convs, norm, "MODEL.RETINANET.NORM", levels)
        self.cls_score = nn.Conv2d(channels, anchors * classes, 3, padding=1)
        self.bbox_pred = nn.Conv2d(channels, anchors * 4, 3, padding=1)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Return scores (N, H * W * A, classes) and deltas (N, H * W * A, 4) of each level."""
        scores: list[Tensor] = []
        deltas: list[Tensor] = []
        for of_classes, of_boxes in zip(self.cls_subnet(features), self.bbox_subnet(features)):
            logits = self.cls_score(of_classes).permute(0, 2, 3, 1).flatten(1)
            boxes = self.bbox_pred(of_boxes).permute(0, 2, 3, 1).flatten(1)
            scores.append(logits.unflatten(1, [-1, self.classes]).sigmoid())
            deltas.append(boxes.unflatten(1, [-1, 4]))
        return scores, deltas


@META_ARCHITECTURES.register("RetinaNet")
class RetinaNet(DenseDetector):
    """One-stage detector with anchors."""

    @classmethod
    def from_config(cls, config: Config) -> "RetinaNet":
        """Build the detector that MODEL.RETINANET describes."""
        model, node = config.MODEL, config.MODEL.RETINANET
        backbone = BACKBONES.get(model.BACKBONE.NAME)(config)
        channels, strides = feature_facts(backbone, list(node.IN_FEATURES), "MODEL.RETINANET.IN_FEATURES")
        anchors = ANCHOR_GENERATORS.get(model.ANCHOR_GENERATOR.NAME).from_config(config, strides)
        if len(set(anchors.per_cell)) != 1:
            raise unsupported(
                "MODEL.ANCHOR_GENERATOR.SIZES", anchors.per_cell, why="one head needs equal anchor numbers"
            )
        head = RetinaNetHead(
            channels[0], node.NUM_CONVS, anchors.per_cell[0], node.NUM_CLASSES, node.NORM, len(strides)
        )
        return cls.from_node(config, node, backbone, head, anchors, BoxCoder(node.BBOX_REG_WEIGHTS))
