"""ROI heads with one pooler for each task: Faster, Mask and Keypoint R-CNN on FPN or a dilated C5."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.backbones.base import Backbone
from zooport.export_core.modeling.poolers import RoiPooler
from zooport.export_core.modeling.proposals.rpn import feature_facts
from zooport.export_core.modeling.registry import BOX_HEADS, KEYPOINT_HEADS, MASK_HEADS, ROI_HEADS
from zooport.export_core.modeling.roi_heads.box_predictor import BoxPredictor, DetectionSelector
from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder, add_keypoints
from zooport.export_core.modeling.roi_heads.mask_head import add_masks


class InstanceHeads(nn.Module):
    """Boxes first; then masks and keypoints of what was found. Subclasses say how boxes are found.

    Args:
        in_features: names of the feature maps that are pooled.
        box: the modules of the box task, each under its name.
        selector: from refined boxes and scores to detections.
        mask: pooler and head of the mask task, None without one; likewise ``keypoint``.
    """

    if TYPE_CHECKING:  # TorchScript takes no annotation of a module
        box_pooler: Any
        box_head: Any
        box_predictor: Any
        mask_pooler: Any
        mask_head: Any
        keypoint_pooler: Any
        keypoint_head: Any
        keypoint_decoder: Any

    def __init__(
        self,
        in_features: list[str],
        box: dict[str, Any],
        selector: DetectionSelector,
        mask: Any,
        keypoint: Any,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        for name, module in box.items():
            self.add_module(name, module)
        self.selector = selector
        self.mask_pooler, self.mask_head = mask or (None, None)
        self.keypoint_pooler, self.keypoint_head = keypoint or (None, None)
        self.keypoint_decoder = HeatmapDecoder() if keypoint else None

    @classmethod
    def from_config(cls, config: Config, backbone: Backbone) -> "InstanceHeads":
        """Build the heads over the maps that MODEL.ROI_HEADS.IN_FEATURES names."""
        model = config.MODEL
        names = list(model.ROI_HEADS.IN_FEATURES)
        channels, strides = feature_facts(backbone, names, "MODEL.ROI_HEADS.IN_FEATURES")
        pooler = make_pooler(config, "ROI_BOX_HEAD", strides)
        mask = keypoint = None
        if model.MASK_ON:
            head = MASK_HEADS.get(model.ROI_MASK_HEAD.NAME).from_config(config, channels[0])
            mask = make_pooler(config, "ROI_MASK_HEAD", strides), head
        if model.KEYPOINT_ON:
            head = KEYPOINT_HEADS.get(model.ROI_KEYPOINT_HEAD.NAME).from_config(config, channels[0])
            keypoint = make_pooler(config, "ROI_KEYPOINT_HEAD", strides), head
        box = {"box_pooler": pooler, **cls.box_modules(config, channels[0], pooler.resolution)}
        return cls(names, box, DetectionSelector.from_config(config), mask, keypoint)

    @classmethod
    def box_modules(cls, config: Config, channels: int, resolution: int) -> dict[str, nn.Module]:
        """Return the heads and predictors of the box task, by name, for pooled maps of these sizes."""
        raise NotImplementedError

    def forward(
        self, features: dict[str, Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return the fields of every image's detections.

        Args:
            features: name -> (N, C, H, W).
            proposals: (P, 4) boxes of each image.
            image_sizes: (height, width) of each image.
        """
        maps = [features[name] for name in self.in_features]
        detections = self.detect(maps, proposals, image_sizes)
        found = [fields["pred_boxes"] for fields in detections]
        if self.mask_head is not None:
            add_masks(detections, self.mask_head(self.mask_pooler(maps, found)))
        if self.keypoint_head is not None:
            heatmaps = self.keypoint_head(self.keypoint_pooler(maps, found))
            add_keypoints(detections, heatmaps, self.keypoint_decoder(heatmaps, torch.cat(found)))
        return detections

    def detect(
        self, maps: list[Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return pred_boxes, scores and pred_classes of every image; ``maps`` are those of in_features."""
        raise NotImplementedError


@ROI_HEADS.register("StandardROIHeads")
class StandardROIHeads(InstanceHeads):
    """One box head and one refinement."""

    @classmethod
    def box_modules(cls, config: Config, channels: int, resolution: int) -> dict[str, nn.Module]:
        """Return box_head and box_predictor."""
        head = BOX_HEADS.get(config.MODEL.ROI_BOX_HEAD.NAME).from_config(config, channels, resolution)
        return {"box_head": head, "box_predictor": BoxPredictor.from_config(config, head.out_features)}

    def detect(
        self, maps: list[Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return pred_boxes, scores and pred_classes of every image."""
        logits, deltas = self.box_predictor(self.box_head(self.box_pooler(maps, proposals)))
        boxes = self.box_predictor.decode(deltas, torch.cat(proposals))
        scores = self.box_predictor.probabilities(logits)
        return self.selector(boxes, scores, proposals, image_sizes)


def make_pooler(config: Config, head: str, strides: list[int]) -> RoiPooler:
    """Build the pooler that a node of MODEL such as "ROI_BOX_HEAD" describes."""
    node = config.MODEL[head]
    return RoiPooler(
        node.POOLER_RESOLUTION,
        strides,
        node.POOLER_SAMPLING_RATIO,
        node.POOLER_TYPE,
        key=f"MODEL.{head}.POOLER_TYPE",
    )
