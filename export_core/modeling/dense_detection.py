"""What one-stage detectors share: convolution towers and the way from dense scores to detections."""

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from zooport.export_core.config import Config
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.boxes import ClassNms
from zooport.export_core.modeling.images import ImageNormalizer
from zooport.export_core.modeling.layers import LevelBatchNorm, alias, make_norm

# Other batch norms have one set of statistics for all levels, in detectron2 too.
NORMS_BY_LEVEL = ("BN", "SyncBN")


class Tower(nn.Sequential):
    """Layers that all levels of a pyramid go through."""

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return (N, C, H, W) for each level's (N, C, H, W)."""
        results: list[Tensor] = []
        for feature in features:
            x = feature
            for layer in self:
                x = layer(x)
            results.append(x)
        return results


class LevelNormTower(nn.Module):
    """3x3 convolutions that all levels go through, each with a norm by level and ReLU.

    The submodules "0", "1" ... are named as in a :class:`Tower`.
    """

    if TYPE_CHECKING:  # TorchScript takes no annotation of a module
        by_level: nn.ModuleList

    def __init__(self, channels: int, convs: int, levels: int) -> None:
        super().__init__()
        by_level: list[list[nn.Module]] = [[] for _ in range(levels)]
        for index in range(convs):
            conv = nn.Conv2d(channels, channels, 3, padding=1)
            norm = LevelBatchNorm(channels, levels)
            relu = nn.ReLU()
            for offset, layer in enumerate((conv, norm, relu)):
                self.add_module(str(3 * index + offset), layer)
            for level, layers in enumerate(by_level):
                layers += [conv, norm.at(level), relu]
        alias(self, "by_level", [nn.Sequential(*layers) for layers in by_level])

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Return (N, C, H, W) for each level's (N, C, H, W)."""
        results: list[Tensor] = []
        for index, layers in enumerate(self.by_level):
            results.append(layers(features[index]))
        return results


def tower(channels: int, convs: int, norm: str, key: str, levels: int) -> nn.Module:
    """Return 3x3 convolutions, each with a norm (of the config key ``key``) if there is one, and ReLU."""
    if norm in NORMS_BY_LEVEL:
        return LevelNormTower(channels, convs, levels)
    layers: list[nn.Module] = []
    for _ in range(convs):
        layers.append(nn.Conv2d(channels, channels, 3, padding=1))
        if norm:
            layers.append(make_norm(norm, channels, key))
        layers.append(nn.ReLU())
    return Tower(*layers)


class DenseSelector(nn.Module):
    """Detections of one image from dense scores: the best of each level, then class-wise NMS over all.

    Args:
        score_thresh: only higher scores are candidates.
        topk_candidates: candidates kept in each level.
        nms_thresh: overlap (IoU) above which the weaker of two boxes of a class goes.
        topk: detections per image.
    """

    def __init__(self, score_thresh: float, topk_candidates: int, nms_thresh: float, topk: int) -> None:
        super().__init__()
        self.score_thresh = float(score_thresh)
        self.topk_candidates = topk_candidates
        self.nms = ClassNms(nms_thresh)
        self.topk = topk

    def candidates(self, scores: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return score, anchor index and class of the best entries of one level's scores (A, classes)."""
        flat = scores.flatten()
        above = torch.nonzero(flat > self.score_thresh).squeeze(1)
        values = flat[above]
        best, order = values.topk(values[: self.topk_candidates].shape[0])
        chosen = above[order]
        classes = scores.shape[1]
        return best, torch.div(chosen, classes, rounding_mode="floor"), chosen % classes

    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> dict[str, Tensor]:
        """Return pred_boxes (N, 4), scores (N,) and pred_classes (N,), best first, from all candidates."""
        kept = self.nms(boxes, scores, classes)[: self.topk]
        return {"pred_boxes": boxes[kept], "scores": scores[kept], "pred_classes": classes[kept]}


class DenseDetector(nn.Module):
    """Backbone and a head over its levels; subclasses say what the head's outputs mean.

    Args:
        head: from feature maps to scores (N, A, classes) and deltas (N, A, 4) of each level.
        anchor_generator: from feature maps to anchors (A, 4) of each level.
        box_coder: from deltas (K, 4) and anchors (K, 4) to boxes.
    """

    def __init__(
        self,
        normalizer: ImageNormalizer,
        backbone: nn.Module,
        in_features: list[str],
        head: nn.Module,
        anchor_generator: nn.Module,
        box_coder: nn.Module,
        selector: DenseSelector,
    ) -> None:
        super().__init__()
        self.normalizer = normalizer
        self.backbone = backbone
        self.in_features = in_features
        self.head = head
        self.anchor_generator = anchor_generator
        self.box_coder = box_coder
        self.selector = selector

    @classmethod
    def from_node(
        cls,
        config: Config,
        node: Any,
        backbone: Any,
        head: nn.Module,
        anchor_generator: nn.Module,
        box_coder: nn.Module,
    ) -> Any:
        """Put a detector together, with the test settings of a node such as MODEL.RETINANET.

        Raises:
            Failure: ``config.invalid`` for a negative TEST.DETECTIONS_PER_IMAGE, which means no limit in
                two-stage detectors only: detectron2's one-stage ones drop so many of what they found.
        """
        limit = config.TEST.DETECTIONS_PER_IMAGE
        if limit < 0:
            raise Failure(
                "config.invalid",
                f"TEST.DETECTIONS_PER_IMAGE = {limit} is no number of detections",
                hint="a one-stage detector knows no value for all of them; give a large number",
            )
        selector = DenseSelector(
            node.SCORE_THRESH_TEST,
            node.TOPK_CANDIDATES_TEST,
            node.NMS_THRESH_TEST,
            limit,
        )
        normalizer = ImageNormalizer.from_config(config, backbone)
        names = list(node.IN_FEATURES)
        return cls(normalizer, backbone, names, head, anchor_generator, box_coder, selector)

    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        """Return the fields of every image's detections, in pixels of the given images.

        Boxes are not clipped to the image: detectron2 does that in post-processing, after scaling.

        Args:
            batched_inputs: for each image {"image": float32 (C, H, W), 0-255, in the config's channel order}.
        """
        batch, sizes = self.normalizer([inputs["image"] for inputs in batched_inputs])
        features = self.backbone(batch)
        maps = [features[name] for name in self.in_features]
        scores, deltas = self.head(maps)
        anchors = self.anchor_generator(maps)
        detections: list[dict[str, Tensor]] = []
        for index in range(len(sizes)):
            boxes: list[Tensor] = []
            best: list[Tensor] = []
            classes: list[Tensor] = []
            for level_scores, level_deltas, level_anchors in zip(scores, deltas, anchors):
                values, chosen, labels = self.selector.candidates(level_scores[index])
                boxes.append(self.box_coder(level_deltas[index][chosen], level_anchors[chosen]))
                best.append(values)
                classes.append(labels)
            detections.append(self.selector(torch.cat(boxes), torch.cat(best), torch.cat(classes)))
        return detections
