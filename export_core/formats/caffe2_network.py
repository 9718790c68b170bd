"""A model as a network of Caffe2's operators: from a padded batch of one image to what is found in it.

Inputs and outputs are those that detectron2's Caffe2 models have. Convolutions and fully connected layers are
the model's own modules; proposals, pooling, and the selection of detections are operators of Caffe2, told to
compute what the eager model computes:

* padding is masked after normalisation, since the consumer pads before it;
* boxes do not depend on the scale that ``im_info`` carries;
* proposals without area are dropped by the smallest size above zero;
* bilinear upsampling, which the runtime lacks, is a transposed convolution over repeated borders.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from zooport.export_core.failures import Failure
from zooport.export_core.formats.caffe2_operators import inside, record, unit_scale, upsample_bilinear
from zooport.export_core.modeling.poolers import RoiPooler

# Defaults of Caffe2's operators that a consumer of the net may look for.
_PLAIN_BOXES = {
    "angle_bound_on": 1,
    "angle_bound_lo": -180,
    "angle_bound_hi": 180,
    "clip_angle_thresh": 1.0,
    "legacy_plus_one": 0,
}
DATA, IM_INFO = "data", "im_info"
Outputs = dict[str, Tensor]


class Caffe2Network(nn.Module):
    """What every network has: normalisation and the backbone. Subclasses go on from the feature maps.

    Args:
        model: in evaluation mode; its modules are used as they are.

    Attributes:
        names: of the outputs, in their order; known once it has run.
        heatmap_max: whether keypoints are found here, and not in the heatmaps by a consumer.
    """

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.names: tuple[str, ...] = ()
        self.heatmap_max = False
        normalizer = model.normalizer
        self.register_buffer("pixel_mean", normalizer.mean[None].clone(), persistent=False)
        self.register_buffer("pixel_std", normalizer.std[None].clone(), persistent=False)
        self.divides = bool((normalizer.std != 1.0).any())

    def forward(self, data: Tensor, im_info: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs for data (1, C, H, W), 0-255, padded, and im_info (1, 3).

        Args:
            data: the image at the top left, in the config's channel order.
            im_info: height and width of the image without its padding, and a scale that is not used.
        """
        normalised = data - self.pixel_mean
        if self.divides:
            normalised = normalised / self.pixel_std
        features = self.model.backbone(normalised * inside(data, im_info))
        found = self.outputs(features, unit_scale(im_info))
        self.names = tuple(found)
        return tuple(found.values())

    def outputs(self, features: dict[str, Tensor], info: Tensor) -> Outputs:
        """Return the outputs by name.

        Args:
            features: what the backbone gives.
            info: (1, 3), height, width, 1.
        """
        raise NotImplementedError


class RcnnNetwork(Caffe2Network):
    """Faster, Mask, Keypoint and Cascade R-CNN, and Panoptic FPN."""

    def outputs(self, features: dict[str, Tensor], info: Tensor) -> Outputs:
        """Return bbox_nms (N, 4), score_nms (N), class_nms (N), and what the heads say of each."""
        heads = self.model.roi_heads
        rois = propose(self.model.proposal_generator, features, info)[0]
        maps = [features[name] for name in heads.in_features]
        shared = hasattr(heads, "res5")
        boxes, scores, agnostic = self._refined(heads, maps, rois, info)
        found = select(heads.selector, boxes, scores, agnostic=agnostic)
        kept = found["bbox_nms"]
        if heads.mask_head is not None:
            pooler = heads.pooler if shared else heads.mask_pooler
            pooled = pool(pooler, maps, kept)
            logits = heads.mask_head(heads.res5(pooled) if shared else pooled)
            found["mask_fcn_probs"] = logits.sigmoid()
        if getattr(heads, "keypoint_head", None) is not None:
            pooled = pool(heads.keypoint_pooler, maps, kept)
            heatmaps = run_layers(heads.keypoint_head, pooled, of_regions=True)
            if self.heatmap_max:
                found["keypoints_out"] = highest_points(heatmaps, kept)
            else:
                found["kps_score"] = heatmaps
        if hasattr(self.model, "sem_seg_head"):
            found["sem_seg"] = semantic_logits(self.model.sem_seg_head, features)
        return found

    def _refined(
        self, heads: Any, maps: list[Tensor], rois: Tensor, info: Tensor
    ) -> tuple[Tensor, Tensor, bool]:
        """Return boxes (R, 4 or classes * 4), scores (R, classes + 1), and whether classes share a box."""
        if hasattr(heads, "res5"):
            predictor: Any = heads.box_predictor
            x = heads.res5(pool(heads.pooler, maps, rois)).mean([2, 3])
            logits, deltas = predictor.cls_score(x), predictor.bbox_pred(x)
        elif isinstance(heads.box_head, nn.ModuleList):
            return self._cascade(heads, maps, rois, info)
        else:
            predictor = heads.box_predictor
            logits, deltas = predictor(heads.box_head(pool(heads.box_pooler, maps, rois)))
        return (
            transform(rois, deltas, info, predictor.box_coder),
            predictor.probabilities(logits),
            predictor.bbox_pred.out_features == 4,
        )

    def _cascade(
        self, heads: Any, maps: list[Tensor], rois: Tensor, info: Tensor
    ) -> tuple[Tensor, Tensor, bool]:
        """Each stage refines the boxes of the one before; scores are the mean of all stages."""
        total: list[Tensor] = []
        boxes = rois
        for head, predictor in zip(heads.box_head, heads.box_predictor, strict=True):
            logits, deltas = predictor(head(pool(heads.box_pooler, maps, boxes)))
            boxes = transform(boxes, deltas, info, predictor.box_coder)
            scores = predictor.probabilities(logits)
            total = [scores if not total else total[0] + scores]
        return boxes, total[0] * (1.0 / len(heads.box_head)), True


class RpnNetwork(Caffe2Network):
    """The first stage alone: the proposals of each level, to be merged by their scores."""

    def outputs(self, features: dict[str, Tensor], info: Tensor) -> Outputs:
        """Return rpn_rois (P, 5), whose first column is 0, and rpn_roi_probs (P), objectness logits."""
        rois, scores = propose(self.model.proposal_generator, features, info, collect=False)
        return {"rpn_rois": rois, "rpn_roi_probs": scores}


class RetinaNetwork(Caffe2Network):
    """RetinaNet's head; a consumer decodes and selects with the net's arguments."""

    def outputs(self, features: dict[str, Tensor], info: Tensor) -> Outputs:
        """Return feature_i (1, C, H, W), box_cls_i (1, A * K, H, W) and box_delta_i (1, A * 4, H, W)."""
        head = self.model.head
        found: Outputs = {}
        maps = [features[name] for name in self.model.in_features]
        for index, feature in enumerate(maps):
            found[f"feature_{index}"] = feature
        towers = zip(head.cls_subnet(maps), head.bbox_subnet(maps), strict=True)
        for index, (of_classes, of_boxes) in enumerate(towers):
            found[f"box_cls_{index}"] = head.cls_score(of_classes)
            found[f"box_delta_{index}"] = head.bbox_pred(of_boxes)
        return found


class SemanticNetwork(Caffe2Network):
    """The semantic head alone."""

    def outputs(self, features: dict[str, Tensor], info: Tensor) -> Outputs:
        """Return sem_seg (1, classes, H, W), padding included."""
        return {"sem_seg": semantic_logits(self.model.sem_seg_head, features)}


NETWORKS: dict[str, type[Caffe2Network]] = {
    "GeneralizedRCNN": RcnnNetwork,
    "PanopticFPN": RcnnNetwork,
    "ProposalNetwork": RpnNetwork,
    "RetinaNet": RetinaNetwork,
    "SemanticSegmentor": SemanticNetwork,
}
"""Meta-architecture -> the network that expresses it."""


def propose(rpn: Any, features: dict[str, Tensor], info: Tensor, *, collect: bool = True) -> list[Tensor]:
    """Return proposals (P, 5), whose first column is the image's index, and scores where not collected.

    Args:
        rpn: the region proposal network.
        features: what the backbone gives.
        info: (1, 3), height, width, 1.
        collect: whether to keep the best of all levels.
    """
    boxes, scores = [], []
    # Eager drops sides of at most min_size; the operator drops sides of less.
    least = float(np.nextafter(np.float32(rpn.min_size), np.float32(np.inf)))
    strides = rpn.anchor_generator.strides
    for index, name in enumerate(rpn.in_features):
        hidden = rpn.rpn_head.conv(features[name])
        logits, deltas = rpn.rpn_head.objectness_logits(hidden), rpn.rpn_head.anchor_deltas(hidden)
        weights = divisors_of(rpn.box_coder)
        if any(weight != 1.0 for weight in weights):
            divisors = torch.tensor(weights).repeat(len(rpn.anchor_generator.cells[index]))
            deltas = deltas / divisors[None, :, None, None]
        offset = rpn.anchor_generator.offset * strides[index]
        arguments = {
            "spatial_scale": 1.0 / strides[index],
            "pre_nms_topN": rpn.pre_nms_topk,
            "post_nms_topN": rpn.post_nms_topk,
            "nms_thresh": rpn.nms_thresh,
            "min_size": least,
            **_PLAIN_BOXES,
        }
        inputs = [logits, deltas, info, rpn.anchor_generator.cells[index] + offset]
        rois, probabilities = record("GenerateProposals", inputs, [[1, 5], [1]], arguments)
        boxes.append(rois)
        scores.append(probabilities)
    if len(boxes) == 1:
        return [boxes[0], scores[0]]
    if not collect:
        return [torch.cat(boxes), torch.cat(scores)]
    levels = {"rpn_min_level": 2, "rpn_max_level": 1 + len(boxes), "rpn_post_nms_topN": rpn.post_nms_topk}
    return list(record("CollectRpnProposals", [*boxes, *scores], [[1, 5]], levels))


def pool(pooler: RoiPooler, maps: Sequence[Tensor], rois: Tensor) -> Tensor:
    """Return (R, C, resolution, resolution) of rois (R, 5) or (R, 4)."""
    resolution = pooler.resolution
    shape = [1, int(maps[0].shape[1]), resolution, resolution]
    arguments = {
        "order": "NCHW",
        "pooled_h": resolution,
        "pooled_w": resolution,
        "sampling_ratio": pooler.sampling_ratio,
        "aligned": int(pooler.aligned),
    }
    if len(maps) == 1:
        return record("RoIAlign", [maps[0], rois], [shape], {"spatial_scale": pooler.scales[0], **arguments})[
            0
        ]
    levels = {
        "roi_canonical_scale": int(pooler.canonical_size),
        "roi_canonical_level": pooler.canonical_level,
        "roi_min_level": pooler.min_level,
        "roi_max_level": pooler.max_level,
        "legacy_plus_one": 0,
    }
    *parts, order = record("DistributeFpnProposals", [rois], [[1, 5]] * len(maps) + [[1]], levels)
    pooled = [
        record("RoIAlign", [feature, part], [shape], {"spatial_scale": scale, **arguments})[0]
        for feature, part, scale in zip(maps, parts, pooler.scales, strict=True)
    ]
    return record("BatchPermutation", [torch.cat(pooled), order], [shape])[0]


def divisors_of(coder: Any) -> list[float]:
    """Return what a box coder divides dx, dy, dw and dh by."""
    return [coder.wx, coder.wy, coder.ww, coder.wh]


def transform(rois: Tensor, deltas: Tensor, info: Tensor, coder: Any) -> Tensor:
    """Return boxes (R, 4 or classes * 4), clipped to the image, for rois (R, 5) or (R, 4) and deltas."""
    arguments = {
        "weights": divisors_of(coder),
        "apply_scale": 1,
        "rotated": 0,
        **_PLAIN_BOXES,
    }
    shapes = [[1, int(deltas.shape[1])], [1]]
    return record("BBoxTransform", [rois, deltas, info], shapes, arguments)[0]


def select(selector: Any, boxes: Tensor, scores: Tensor, *, agnostic: bool) -> Outputs:
    """Return the detections, class by class."""
    arguments = {
        "score_thresh": selector.score_thresh,
        "nms": float(selector.nms.iou_threshold),
        "detections_per_im": selector.topk,
        "soft_nms_enabled": 0,
        "soft_nms_method": "linear",
        "soft_nms_sigma": 0.5,
        "soft_nms_min_score_thres": 0.001,
        "rotated": 0,
        "cls_agnostic_bbox_reg": int(agnostic),
        "input_boxes_include_bg_cls": 0,
        "output_classes_include_bg_cls": 0,
        "legacy_plus_one": 0,
    }
    shapes = [[1], [1, 4], [1], [1], [1], [1]]
    found = record("BoxWithNMSLimit", [scores, boxes], shapes, arguments)
    return {"bbox_nms": found[1], "score_nms": found[0], "class_nms": found[2]}


def highest_points(heatmaps: Tensor, boxes: Tensor) -> Tensor:
    """Return (N, 4, K): x, y, logit and probability of each keypoint, from logits (N, K, S, S) and (N, 4)."""
    shape = [1, 4, int(heatmaps.shape[1])]
    return record("HeatmapMaxKeypoint", [heatmaps, boxes], [shape], {"should_output_softmax": 1})[0]


def semantic_logits(head: Any, features: dict[str, Tensor]) -> Tensor:
    """Return the semantic head's logits (1, classes, H, W), padding included."""
    total: list[Tensor] = []
    for name, layers in head.items():
        if name in features:
            level = run_layers(layers, features[name])
            total = [level if not total else total[0] + level]
        else:
            total = [layers(total[0])]
    return upsample_bilinear(total[0], head["predictor"].out_channels, int(head.common_stride))


def run_layers(layers: Any, x: Tensor, *, of_regions: bool = False) -> Tensor:
    """Run layers one after the other, bilinear upsampling as :func:`upsample_bilinear`."""
    for layer in layers:
        if not isinstance(layer, nn.Upsample):
            x = layer(x)
        elif layer.mode == "bilinear" and not layer.align_corners and layer.scale_factor in {2.0, 4.0}:
            x = upsample_bilinear(x, int(x.shape[1]), int(layer.scale_factor), of_regions=of_regions)
        else:
            raise Failure("unsupported.operator", f"Caffe2 has no counterpart of {layer}")
    return x
