"""The official models under deterministic weights, and what detectron2 recorded of each of them.

``data/official/outputs.json.gz`` holds for every model what detectron2 computed stage by stage, large tensors
as values at sampled positions. :func:`observe` computes the same stages with zooport's model.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from zooport.export_core import zoo
from zooport.export_core.config import Config, load_config
from zooport.export_core.evaluation.postprocess import paste_mask, paste_masks, to_image_frame
from zooport.export_core.evaluation.segmentation import merge_panoptic, semantic_labels
from zooport.export_core.modeling.build import build_skeleton
from zooport.tests import deterministic_weights

DATA = Path(__file__).parent / "data" / "official"
# Models that differ in training only: the two build the same modules with the same settings and parameters.
SAME_NETWORK = {
    "COCO-Detection/faster_rcnn_R_50_C4_3x": "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/faster_rcnn_R_50_DC5_3x": "COCO-Detection/faster_rcnn_R_50_DC5_1x",
    "COCO-Detection/faster_rcnn_R_50_FPN_3x": "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/retinanet_R_50_FPN_3x": "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_3x": "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_3x": "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x_giou": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x": "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x": "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_3x": "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "Misc/mask_rcnn_R_50_FPN_3x_dconv_c3-c5": "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "Misc/scratch_mask_rcnn_R_50_FPN_3x_gn": "Misc/mask_rcnn_R_50_FPN_3x_gn",
}
# Deterministic weights make activations of these so large that no box is finite, no score is above 0,
# thousands are exactly 1 (and which of them are the best is then up to the order of the sort), or rounding
# shows in the second digit of a softmax.
OUT_OF_RANGE = {
    "regnetx": ("fpn_output", 1e-4),
    "regnety": ("fpn_output", 1e-2),
    "_C4": ("cls_score", 0.1),
    "cascade": ("cls_score", 0.1),
    "retinanet": ("cls_score", 0.02),
    "keypoint": ("score_lowres", 0.1),
}
# The same architecture with about 200,000 parameters.
TINY: Tree = {
    "MODEL.RESNETS.STEM_OUT_CHANNELS": 8,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": 32,
    "MODEL.RESNETS.WIDTH_PER_GROUP": 4,
    "MODEL.FPN.OUT_CHANNELS": 64,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 32,
    "MODEL.ROI_MASK_HEAD.CONV_DIM": 16,
    "MODEL.ROI_KEYPOINT_HEAD.CONV_DIMS": [16, 16],
    "MODEL.SEM_SEG_HEAD.CONVS_DIM": 32,
    "MODEL.ROI_HEADS.NUM_CLASSES": 6,
    "MODEL.RETINANET.NUM_CLASSES": 6,
}
TINY_REGNET = {
    "MODEL.REGNETS.DEPTH": 6,
    "MODEL.REGNETS.W_0": 16,
    "MODEL.REGNETS.W_A": 12.0,
    "MODEL.REGNETS.W_M": 1.8,
    "MODEL.REGNETS.GROUP_WIDTH": 8,
    "MODEL.REGNETS.STEM_OUT_CHANNELS": 8,
}
MERGED_FIELDS = ("scores", "pred_classes", "pred_masks", "pred_boxes")
Tree = dict[str, Any]
Array = np.ndarray[Any, Any]


@cache
def recorded() -> Mapping[str, Tree]:
    """Model name -> its stages as detectron2 computed them."""
    with gzip.open(DATA / "outputs.json.gz") as file:
        outputs: Mapping[str, Tree] = json.load(file)
    return outputs


@cache
def parameters() -> Mapping[str, Any]:
    """Model name -> parameter name -> shape and dtype, as detectron2 builds it."""
    with gzip.open(DATA / "parameters.json.gz") as file:
        specs: Mapping[str, Any] = json.load(file)
    return specs


def config_of(name: str, overrides: Tree | None = None) -> Config:
    """The model's config with the overrides of the measurement, and further ones."""
    return load_config(zoo.find(name).config, {**recorded()[name]["overrides"], **(overrides or {})})


def weights_for(model: nn.Module, name: str, config: Config) -> dict[str, torch.Tensor]:
    """Deterministic values of every parameter of the model."""
    deviations = recorded()[name].get("pixel_std") or config.MODEL.PIXEL_STD
    settings: Any = {"shallow": config.MODEL.RESNETS.DEPTH < 50, "pixel_std": min(deviations)}
    return {
        key: torch.from_numpy(deterministic_weights.parameter(key, tuple(value.shape), **settings))
        for key, value in model.state_dict().items()
    }


def build(name: str, overrides: Tree | None = None) -> nn.Module:
    """The model with its deterministic weights, of the default type."""
    config = config_of(name, overrides)
    model = build_skeleton(config)
    model.load_state_dict(weights_for(model, name, config), assign=True)
    return model.to(torch.get_default_dtype()).requires_grad_(False)


def build_for_export(name: str, *, tiny: bool = False, more: Tree | None = None) -> nn.Module:
    """The model, adjusted where it finds next to nothing, so that artifacts have something to say.

    Fewer proposals than in the measurement: what is compared is an artifact with its own eager model.

    Args:
        name: of an official model.
        tiny: of the same architecture, but with few channels.
        more: further overrides of its config.
    """
    overrides = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.01, "MODEL.RPN.POST_NMS_TOPK_TEST": 30}
    if tiny:
        overrides |= TINY | (TINY_REGNET if "regnet" in name else {})
    model = build(name, overrides | (more or {}))
    if tiny and "retinanet" not in name:
        return model
    tame(name, model.state_dict())
    return model


def tame(name: str, weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Scale the weights of a model in place as :data:`OUT_OF_RANGE` says, and return them."""
    for kind, (part, factor) in OUT_OF_RANGE.items():
        for key, value in weights.items():
            if kind in name and part in key and key.endswith("weight"):
                value.mul_(factor)
    return weights


def inputs_of(name: str, height: int, width: int) -> dict[str, torch.Tensor]:
    """What the model takes for a picture of this size; given proposals are those of the measurement."""
    image = torch.from_numpy(deterministic_weights.picture(height, width))
    inputs = {"image": image.to(torch.get_default_dtype())}
    if "given_proposals" in recorded()[name]:
        inputs["proposal_boxes"] = torch.tensor(recorded()[name]["given_proposals"])
    return inputs


def observe(name: str, dtype: torch.dtype = torch.float32) -> Tree:
    """Compute every stage that is recorded of a model; whole tensors as numpy arrays."""
    torch.set_default_dtype(dtype)
    try:
        return _observe(name)
    finally:
        torch.set_default_dtype(torch.float32)


@torch.no_grad()
def _observe(name: str) -> Tree:
    model, record = build(name), recorded()[name]
    inputs = inputs_of(name, record["input"]["height"], record["input"]["width"])
    parts: Any = model
    batch, sizes = parts.normalizer([inputs["image"]])
    features = parts.backbone(batch)
    seen: Tree = {"padded": list(batch.shape), "features": _arrays(features)}
    if "proposals" in record:
        proposals = parts.proposal_generator(features, sizes)
        seen["proposals"] = {
            "proposal_boxes": proposals.boxes[0].numpy(),
            "objectness_logits": proposals.logits[0].numpy(),
        }
    if "box_head_on_given_boxes" in record:
        boxes = torch.tensor(record["box_head_on_given_boxes"]["boxes"])
        seen |= _box_stages(parts.roi_heads, features, boxes)
    fields = _arrays(model([inputs])[0])
    seen["raw_detections"] = fields
    seen |= _post_process(fields, record, config_of(name))
    return seen


def _arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: value.numpy() for name, value in tensors.items()}


def _box_stages(heads: Any, features: dict[str, torch.Tensor], boxes: torch.Tensor) -> Tree:
    """Pooled regions and box predictions of the first stage."""
    maps = [features[name] for name in heads.in_features]
    if hasattr(heads, "res5"):
        pooled = heads.pooler(maps, [boxes])
        logits, deltas = heads.box_predictor(heads.res5(pooled).mean([2, 3]))
    else:
        pooled = heads.box_pooler(maps, [boxes])
        cascade = isinstance(heads.box_head, nn.ModuleList)
        head, predictor = (
            (heads.box_head[0], heads.box_predictor[0]) if cascade else (heads.box_head, heads.box_predictor)
        )
        logits, deltas = predictor(head(pooled))
    return {
        "pooled_on_given_boxes": pooled.numpy(),
        "box_head_on_given_boxes": {"class_logits": logits.numpy(), "deltas": deltas.numpy()},
    }


def _post_process(fields: Tree, record: Tree, config: Config) -> Tree:
    """Results in the frame of the output size, which is not the input's: masks pasted, maps merged."""
    given = record["input"]
    network, image = (given["height"], given["width"]), (given["output_height"], given["output_width"])
    framed = to_image_frame(fields, network, image)
    seen: Tree = {"detections": dict(framed)}
    if "pred_masks" in framed:
        seen["detections"]["pred_masks"] = paste_masks(framed["pred_masks"], framed["pred_boxes"], *image)
    if "sem_seg" in fields:
        logits = torch.from_numpy(fields["sem_seg"])[None]
        resized = F.interpolate(logits, size=image, mode="bilinear", align_corners=False)[0].numpy()
        labels = semantic_labels(fields["sem_seg"], network, image)
        seen |= {"sem_seg": resized, "labels": labels}
        if "panoptic" in record:
            order = _recorded_order(framed["scores"], record["panoptic"]["segments"])
            instances = {field: framed[field][order] for field in MERGED_FIELDS}
            seen["panoptic"] = _merge(instances, labels, image, config)
    return seen


def _recorded_order(scores: Array, segments: list[Tree]) -> list[int]:
    """Best first; equal scores as detectron2 took them.

    It sorts with torch.argsort, whose order of equal values is that of the CPU's vector unit; many scores of
    deterministic weights are exactly 1. zooport's merge keeps the order in which it is given equal ones.
    """
    rank = {entry["instance_id"]: place for place, entry in enumerate(segments) if entry["isthing"]}
    return sorted(range(len(scores)), key=lambda index: (-scores[index], rank.get(index, len(scores))))


def _merge(framed: Tree, labels: Any, image: tuple[int, int], config: Config) -> Tree:
    settings = config.MODEL.PANOPTIC_FPN.COMBINE
    masks = [
        paste_mask(mask[0], box, *image)
        for mask, box in zip(framed["pred_masks"], framed["pred_boxes"], strict=True)
    ]
    panoptic, segments = merge_panoptic(
        framed["scores"],
        framed["pred_classes"],
        masks,
        labels,
        overlap=settings.OVERLAP_THRESH,
        stuff_area=settings.STUFF_AREA_LIMIT,
        confidence=settings.INSTANCES_CONFIDENCE_THRESH,
    )
    areas = np.bincount(panoptic.ravel())
    listed = [
        {"id": id_, "isthing": thing, "category_id": label} | ({} if thing else {"area": int(areas[id_])})
        for id_, thing, label, _ in segments
    ]
    return {"map": panoptic, "segments": listed}


def networks() -> list[str]:
    """Names of all models but those whose network another one has, see :data:`SAME_NETWORK`."""
    return [name for name in recorded() if name not in SAME_NETWORK]
