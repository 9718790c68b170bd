"""Models that label every pixel: Panoptic FPN (Kirillov et al. 2019) and its semantic branch alone."""

from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.images import ImageNormalizer
from zooport.export_core.modeling.meta_architectures.generalized_rcnn import GeneralizedRCNN
from zooport.export_core.modeling.registry import BACKBONES, META_ARCHITECTURES, SEM_SEG_HEADS


@META_ARCHITECTURES.register("SemanticSegmentor")
class SemanticSegmentor(nn.Module):
    """Backbone and semantic head."""

    def __init__(self, normalizer: ImageNormalizer, backbone: nn.Module, sem_seg_head: nn.Module) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.sem_seg_head = sem_seg_head

    @classmethod
    def from_config(cls, config: Config) -> "SemanticSegmentor":
        """Build the model that a config describes."""
        backbone = BACKBONES.get(config.MODEL.BACKBONE.NAME)(config)
        return cls(
            ImageNormalizer.from_config(config, backbone),
            backbone,
            SEM_SEG_HEADS.get(config.MODEL.SEM_SEG_HEAD.NAME).from_config(config, backbone),
        )

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return {"sem_seg": float32 logits (classes, H, W)} of every image; arguments as GeneralizedRCNN."""
        batch, sizes = self.normalizer([inputs["image"] for inputs in batched_inputs])
        labels = self.sem_seg_head(self.backbone(batch), sizes)
        return [{"sem_seg": logits} for logits in labels]


@META_ARCHITECTURES.register("PanopticFPN")
class PanopticFPN(GeneralizedRCNN):
    """Mask R-CNN with a semantic head; post-processing merges the two."""

    def __init__(
        self,
        normalizer: ImageNormalizer,
        backbone: nn.Module,
        proposal_generator: nn.Module,
        roi_heads: nn.Module,
        sem_seg_head: nn.Module,
    ) -> None:
        super().__init__(normalizer, backbone, proposal_generator, roi_heads)
        self.sem_seg_head = sem_seg_head

    @classmethod
    def parts(cls, config: Config) -> list[nn.Module]:
        """Return the parts of the detector and the semantic head."""
        parts = super().parts(config)
        head = SEM_SEG_HEADS.get(config.MODEL.SEM_SEG_HEAD.NAME).from_config(config, parts[1])
        return [*parts, head]

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return the fields of every image's detections and its "sem_seg" logits (classes, H, W)."""
        batch, sizes = self.normalizer([inputs["image"] for inputs in batched_inputs])
        features = self.backbone(batch)
        proposals = self.proposal_generator(features, sizes)
        results = self.roi_heads(features, proposals.boxes, sizes)
        for fields, logits in zip(results, self.sem_seg_head(features, sizes)):
            fields["sem_seg"] = logits
        return results
