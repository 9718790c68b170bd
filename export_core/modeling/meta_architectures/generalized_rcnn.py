"""Two-stage detectors and their halves: backbone, proposals, then heads on the proposed regions."""

from typing import Any

from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.modeling.images import ImageNormalizer
from zooport.export_core.modeling.registry import (
    BACKBONES,
    META_ARCHITECTURES,
    PROPOSAL_GENERATORS,
    ROI_HEADS,
    unsupported,
)

PRECOMPUTED = "PrecomputedProposals"
PROPOSAL_BOXES = "proposal_boxes"


@META_ARCHITECTURES.register("GeneralizedRCNN")
class GeneralizedRCNN(nn.Module):
    """Faster, Mask, Keypoint and Cascade R-CNN; Fast R-CNN where proposals are given.

    Args:
        proposal_generator: None where proposals come with each image.

    Attributes:
        extra_inputs: names of what an image's inputs hold besides "image".
    """

    def __init__(
        self,
        normalizer: ImageNormalizer,
        backbone: nn.Module,
        proposal_generator: Any,
        roi_heads: nn.Module,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.proposal_generator = proposal_generator
        self.roi_heads = roi_heads
        self.extra_inputs = [PROPOSAL_BOXES] if proposal_generator is None else []

    @classmethod
    def from_config(cls, config: Config) -> "GeneralizedRCNN":
        """Build the detector that a config describes."""
        return cls(*cls.parts(config))

    @classmethod
    def parts(cls, config: Config) -> list[Any]:
        """Return normalizer, backbone, proposal generator and ROI heads."""
        model = config.MODEL
        backbone = BACKBONES.get(model.BACKBONE.NAME)(config)
        generator = None
        if model.PROPOSAL_GENERATOR.NAME != PRECOMPUTED:
            make = PROPOSAL_GENERATORS.get(model.PROPOSAL_GENERATOR.NAME).from_config
            generator = make(config, backbone)
        return [
            ImageNormalizer.from_config(config, backbone),
            backbone,
            generator,
            ROI_HEADS.get(model.ROI_HEADS.NAME).from_config(config, backbone),
        ]

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return the fields of every image's detections, in pixels of the given images.

        Args:
            batched_inputs: for each image {"image": float32 (C, H, W), 0-255, in the config's channel order},
                and "proposal_boxes" (P, 4) in pixels of that image where there is no proposal generator.
        """
        batch, sizes = self.normalizer([inputs["image"] for inputs in batched_inputs])
        features = self.backbone(batch)
        if self.proposal_generator is not None:
            proposals = self.proposal_generator(features, sizes).boxes
        else:
            proposals = [inputs["proposal_boxes"] for inputs in batched_inputs]
        return self.roi_heads(features, proposals, sizes)


@META_ARCHITECTURES.register("ProposalNetwork")
class ProposalNetwork(nn.Module):
    """The first stage alone: class-agnostic proposals."""

    def __init__(
        self, normalizer: ImageNormalizer, backbone: nn.Module, proposal_generator: nn.Module
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.proposal_generator = proposal_generator

    @classmethod
    def from_config(cls, config: Config) -> "ProposalNetwork":
        """Build the network that a config describes."""
        model = config.MODEL
        backbone = BACKBONES.get(model.BACKBONE.NAME)(config)
        if model.PROPOSAL_GENERATOR.NAME == PRECOMPUTED:
            raise unsupported("MODEL.PROPOSAL_GENERATOR.NAME", PRECOMPUTED, why="nothing would be computed")
        make = PROPOSAL_GENERATORS.get(model.PROPOSAL_GENERATOR.NAME).from_config
        return cls(ImageNormalizer.from_config(config, backbone), backbone, make(config, backbone))

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return proposal_boxes (P, 4) and objectness_logits (P,) of every image, best first."""
        batch, sizes = self.normalizer([inputs["image"] for inputs in batched_inputs])
        proposals = self.proposal_generator(self.backbone(batch), sizes)
        results: list[dict[str, Tensor]] = []
        for boxes, logits in zip(proposals.boxes, proposals.logits):
            results.append({"proposal_boxes": boxes, "objectness_logits": logits})
        return results
