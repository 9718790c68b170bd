"""Cascade R-CNN (Cai and Vasconcelos 2018): box heads in a row, each refining the boxes of the one before."""

import torch
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.boxes import clip_boxes
from zooport.export_core.modeling.registry import BOX_HEADS, ROI_HEADS, unsupported
from zooport.export_core.modeling.roi_heads.box_predictor import BoxPredictor
from zooport.export_core.modeling.roi_heads.standard import InstanceHeads


@ROI_HEADS.register("CascadeROIHeads")
class CascadeROIHeads(InstanceHeads):
    """Scores are the mean over the stages, boxes are the last stage's."""

    @classmethod
    def box_modules(cls, config: Config, channels: int, resolution: int) -> dict[str, nn.Module]:
        """Return box_head and box_predictor, each a list with one entry for each stage."""
        model = config.MODEL
        weights = model.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        if len(weights) != len(model.ROI_BOX_CASCADE_HEAD.IOUS):
            raise Failure(
                "config.invalid",
                f"MODEL.ROI_BOX_CASCADE_HEAD has {len(weights)} BBOX_REG_WEIGHTS"
                f" for {len(model.ROI_BOX_CASCADE_HEAD.IOUS)} IOUS",
                hint="both have one entry for each stage",
            )
        if not model.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG:
            raise unsupported(
                "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, why="stages of a cascade share one box"
            )
        make_head = BOX_HEADS.get(model.ROI_BOX_HEAD.NAME).from_config
        heads = [make_head(config, channels, resolution) for _ in weights]
        predictors = [
            BoxPredictor.from_config(config, head.out_features, box_weights)
            for head, box_weights in zip(heads, weights, strict=True)
        ]
        return {"box_head": nn.ModuleList(heads), "box_predictor": nn.ModuleList(predictors)}

    def detect(
        self, maps: list[Tensor], proposals: list[Tensor], image_sizes: list[tuple[int, int]]
    ) -> list[dict[str, Tensor]]:
        """Return pred_boxes, scores and pred_classes of every image."""
        current = proposals
        boxes = torch.cat(proposals)
        scores: list[Tensor] = []
        for head, predictor in zip(self.box_head, self.box_predictor):
            if len(scores) > 0:
                current = split_and_clip(boxes, proposals, image_sizes)
            logits, deltas = predictor(head(self.box_pooler(maps, current)))
            boxes = predictor.decode(deltas, torch.cat(current))
            scores.append(predictor.probabilities(logits))
        mean = torch.stack(scores).sum(0) * (1.0 / len(scores))
        return self.selector(boxes, mean, proposals, image_sizes)


def split_and_clip(
    boxes: Tensor, proposals: list[Tensor], image_sizes: list[tuple[int, int]]
) -> list[Tensor]:
    """Return the boxes (R, 4) of all images image by image, as many as proposals, clipped to the image."""
    result: list[Tensor] = []
    start = 0
    for image_proposals, size in zip(proposals, image_sizes):
        end = start + image_proposals.shape[0]
        result.append(clip_boxes(boxes[start:end], size))
        start = end
    return result
