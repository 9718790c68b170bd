"""Models of the demo zoo equal detectron2's on three images: proposals, raw and final outputs, merged maps.

Trained weights, so unlike with deterministic ones scores are spread out and thresholds cut between them. The
tolerances are those of the official models: 1e-4 of the largest magnitude for tensors, 0.01 pixels for boxes
and keypoints, 1e-4 for scores and mask probabilities; classes, order and segments are equal, and of the
pixels of thresholded masks and of maps one in 10,000 may flip: a probability next to its threshold falls on
either side, depending on how the processor's vector units add up.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import Config, load_config
from zooport.export_core.evaluation import read_image, resize_shortest_edge
from zooport.export_core.evaluation.postprocess import paste_mask, paste_masks, to_image_frame
from zooport.export_core.evaluation.segmentation import merge_panoptic, semantic_labels
from zooport.export_core.modeling.build import load_model
from zooport.tests.official_zoo import DATA

Array = np.ndarray[Any, Any]

MODELS = (
    "cascade_mask_rcnn_fpn",
    "faster_rcnn_c4",
    "faster_rcnn_fpn",
    "keypoint_rcnn_fpn",
    "mask_rcnn_dcn_fpn",
    "mask_rcnn_fpn",
    "panoptic_fpn",
    "retinanet_fpn",
)
PIXELS, SCORE, RELATIVE, FLIPPED = 0.01, 1e-4, 1e-4, 1e-4
JPEG_ROUNDING = 2  # grey levels between decoders


@cache
def reference() -> dict[str, Array]:
    with np.load(DATA / "demo_zoo.npz", allow_pickle=False) as arrays:
        return dict(arrays)


def recorded(model: str, image: int) -> dict[str, Array]:
    prefix = f"{model}/{image}/"
    return {key.removeprefix(prefix): value for key, value in reference().items() if key.startswith(prefix)}


@cache
def load(folder: Path) -> tuple[Config, Any]:
    config = load_config(folder / "config.yaml")
    (weights,) = folder.glob("model_final.*")
    return config, load_model(config, read_weights(weights), str(weights))


@pytest.mark.parametrize("image", range(3))
def test_network_input_is_detectron2s(image: int, demo_zoo: Path) -> None:
    wanted = reference()[f"images/{image}/pixels"]
    path = demo_zoo / "data" / "val" / str(reference()[f"images/{image}/file_name"])
    config, _ = load(demo_zoo / "faster_rcnn_fpn")

    pixels = read_image(path, config.INPUT.FORMAT)
    found = resize_shortest_edge(pixels, config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)

    allowed = 0 if path.suffix == ".png" else JPEG_ROUNDING
    np.testing.assert_allclose(found.transpose(2, 0, 1).astype(int), wanted, rtol=0, atol=allowed)


@pytest.mark.parametrize("image", range(3))
@pytest.mark.parametrize("model", MODELS)
@torch.no_grad()
def test_outputs_are_detectron2s(model: str, image: int, demo_zoo: Path) -> None:
    record = recorded(model, image)
    config, network = load(demo_zoo / model)
    stored = reference()[f"images/{image}/pixels"]  # blue, green, red
    pixels = torch.from_numpy(stored[:: -1 if config.INPUT.FORMAT == "RGB" else 1].astype(np.float32))

    batch, sizes = network.normalizer([pixels])
    features = network.backbone(batch)
    outputs = {name: value.numpy() for name, value in network([{"image": pixels}])[0].items()}

    assert list(batch.shape[-2:]) == record["padded_hw"].tolist()
    check_statistics(record, features)
    if "rpn_proposal_boxes" in record:
        proposals = network.proposal_generator(features, sizes)
        check("proposal_boxes", proposals.boxes[0][:50].numpy(), record["rpn_proposal_boxes"])
        check("objectness_logits", proposals.logits[0][:50].numpy(), record["rpn_objectness_logits"])
    check_fields(record, "raw_", outputs)
    check_final(record, outputs, (pixels.shape[1], pixels.shape[2]), config)


def check_statistics(record: dict[str, Array], features: dict[str, torch.Tensor]) -> None:
    names = [key.removeprefix("feat_").removesuffix("_meanstd") for key in record if "_meanstd" in key]
    assert sorted(names) == sorted(features)
    for name in names:
        mean, deviation = record[f"feat_{name}_meanstd"]
        values = features[name].double()
        assert abs(float(values.mean()) - mean) < RELATIVE * deviation
        assert float(values.std()) == pytest.approx(deviation, rel=1e-3)


def check_fields(record: dict[str, Array], prefix: str, outputs: dict[str, Array]) -> None:
    """Compare what is recorded under a prefix; of large fields only the first detections are."""
    for key, wanted in record.items():
        name = key.removeprefix(prefix)
        if key.startswith(prefix) and name in outputs and name != "pred_masks":
            if name in {"pred_boxes", "scores", "pred_classes"}:
                assert len(outputs[name]) == len(wanted)
            check(name, outputs[name][: len(wanted)], wanted)
    if f"{prefix}pred_masks" in record and prefix == "raw_":
        wanted = record["raw_pred_masks"]
        check("pred_masks", outputs["pred_masks"][: len(wanted)], wanted)


def check(name: str, found: Array, wanted: Array) -> None:
    limits = {"pred_boxes": PIXELS, "proposal_boxes": PIXELS, "scores": SCORE, "pred_masks": SCORE}
    limits |= {"pred_classes": 0.0, "pred_keypoints": PIXELS}
    limit = limits.get(name, RELATIVE * float(np.abs(wanted).max(initial=1e-12)))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=limit, err_msg=name)
    if name == "pred_keypoints":
        np.testing.assert_allclose(found[..., 2], wanted[..., 2], rtol=0, atol=SCORE, err_msg=name)


def check_final(
    record: dict[str, Array], outputs: dict[str, Array], network: tuple[int, int], config: Config
) -> None:
    height, width = (int(side) for side in record["orig_hw"])
    image = height, width
    framed = to_image_frame(outputs, network, image)
    check_fields(record, "post_instances_", framed)
    if "post_masks_shape" in record:
        pasted = paste_masks(framed["pred_masks"], framed["pred_boxes"], *image)
        shape = record["post_masks_shape"]
        wanted = np.unpackbits(record["post_instances_pred_masks"], count=int(shape.prod())).reshape(shape)
        assert flipped(pasted, wanted.astype(bool)) <= FLIPPED
    if "post_panoptic_seg" in record:
        check_maps(record, framed, semantic_labels(outputs["sem_seg"], network, image), config)


def flipped(found: Array, wanted: Array) -> float:
    """Return the share of pixels that differ."""
    assert found.shape == wanted.shape
    return float(np.mean(found != wanted)) if found.size else 0.0


def check_maps(record: dict[str, Array], framed: dict[str, Array], labels: Array, config: Config) -> None:
    settings = config.MODEL.PANOPTIC_FPN.COMBINE
    masks = [
        paste_mask(mask[0], box, *labels.shape)
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
    assert flipped(labels, record["post_sem_seg_argmax"]) <= FLIPPED
    assert flipped(panoptic, record["post_panoptic_seg"]) <= FLIPPED
    wanted = json.loads(str(record["post_panoptic_info"]))
    assert [tuple(one)[:3] for one in segments] == [
        (entry["id"], entry["isthing"], entry["category_id"]) for entry in wanted
    ]
