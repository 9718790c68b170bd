"""ROI heads of the C4 models: the last stage of the ResNet runs on every pooled region."""

from typing import Optional

import torch
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.backbones.base import Backbone
from zooport.export_core.modeling.backbones.resnet_blocks import BottleneckBlock, StageSettings, make_stage
from zooport.export_core.modeling.poolers import RoiPooler
from zooport.export_core.modeling.proposals.rpn import feature_facts
from zooport.export_core.modeling.registry import MASK_HEADS, ROI_HEADS, unsupported
from zooport.export_core.modeling.roi_heads.box_predictor import BoxPredictor, DetectionSelector
from zooport.export_core.modeling.roi_heads.mask_head import add_masks
from zooport.export_core.modeling.roi_heads.standard import make_pooler

RES5_BLOCKS = 3
RES5_CHANNEL_FACTOR = 8  # widths double in each of the three stages after res2


@ROI_HEADS.register("Res5ROIHeads")
class Res5ROIHeads(nn.Module):
    """Pool once, run res5 on the regions, and share the result between boxes and masks."""

    def __init__(
        self,
        in_features: list[str],
        pooler: RoiPooler,
        res5: nn.Module,
        box_predictor: BoxPredictor,
        selector: DetectionSelector,
        mask_head: Optional[nn.Module],
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.pooler = pooler
        self.res5 = res5
        self.box_predictor = box_predictor
        self.selector = selector
        self.mask_head = mask_head

    @classmethod
    def from_config(cls, config: Config, backbone: Backbone) -> "Res5ROIHeads":
        """Build it over the one map that MODEL.ROI_HEADS.IN_FEATURES names."""
        model = config.MODEL
        names = list(model.ROI_HEADS.IN_FEATURES)
        channels, strides = feature_facts(backbone, names, "MODEL.ROI_HEADS.IN_FEATURES")
        if len(names) != 1:
            raise unsupported("MODEL.ROI_HEADS.IN_FEATURES", names, why="Res5ROIHeads pools from one map")
        if model.KEYPOINT_ON:
            raise unsupported("MODEL.KEYPOINT_ON", True, why="Res5ROIHeads has no keypoint branch")
        settings = res5_settings(config, channels[0])
        mask_head = None
        if model.MASK_ON:
            mask_head = MASK_HEADS.get(model.ROI_MASK_HEAD.NAME).from_config(config, settings.out_channels)
        return cls(
            names,
            make_pooler(config, "ROI_BOX_HEAD", strides),
            make_stage(BottleneckBlock, settings),
            BoxPredictor.from_config(config, settings.out_channels),
            DetectionSelector.from_config(config),
            mask_head,
        )

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the fields of every image's detections; arguments as of StandardROIHeads."""
        maps = [features[name] for name in self.in_features]
        pooled = self.res5(self.pooler(maps, proposals))
        logits, deltas = self.box_predictor(pooled.mean([2, 3]))
        boxes = self.box_predictor.decode(deltas, torch.cat(proposals))
        scores = self.box_predictor.probabilities(logits)
        detections = self.selector(boxes, scores, proposals, image_sizes)
        if self.mask_head is not None:
            found = [fields["pred_boxes"] for fields in detections]
            add_masks(detections, self.mask_head(self.res5(self.pooler(maps, found))))
        return detections


def res5_settings(config: Config, in_channels: int) -> StageSettings:
    """Return the settings of the res5 stage that runs on pooled regions.

    Raises:
        Failure: ``unsupported.architecture`` for deformable convolution in it, which detectron2 refuses too.
    """
    node = config.MODEL.RESNETS
    if len(node.DEFORM_ON_PER_STAGE) > 3 and node.DEFORM_ON_PER_STAGE[3]:
        raise unsupported(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE", node.DEFORM_ON_PER_STAGE, why="res5 of Res5ROIHeads"
        )
    out_channels = node.RES2_OUT_CHANNELS * RES5_CHANNEL_FACTOR
    if in_channels * 2 != out_channels:
        raise Failure(
            "config.invalid",
            f"MODEL.ROI_HEADS.IN_FEATURES gives {in_channels} channels; res5 needs {out_channels // 2}",
            hint="Res5ROIHeads takes res4",
        )
    return StageSettings(
        blocks=RES5_BLOCKS,
        in_channels=in_channels,
        out_channels=out_channels,
        stride=2,
        norm=node.NORM,
        width=node.NUM_GROUPS * node.WIDTH_PER_GROUP * RES5_CHANNEL_FACTOR,
        groups=node.NUM_GROUPS,
        stride_in_1x1=node.STRIDE_IN_1X1,
    )
