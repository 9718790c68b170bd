"""Boxes, masks and keypoints reach the original image exactly as detectron2 brings them there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as mask_util

from zooport.export_core.evaluation import load_dataset
from zooport.export_core.evaluation.postprocess import (
    encode_mask,
    paste_mask,
    paste_masks,
    scale_boxes,
    to_image_frame,
)
from zooport.tests.evaluation_support import DATA, demo_source


def recorded(
    model: str, index: int, demo_zoo: Path
) -> tuple[dict[str, Any], dict[str, Any], tuple[int, int]]:
    """Raw and post-processed outputs of detectron2 for one image, and the image's (H, W)."""
    with np.load(DATA / f"{model}.npz") as reference:
        name = str(reference[f"{index}/file_name"])
        raw, post = (
            {key.split("/")[2]: reference[key] for key in reference if key.startswith(f"{index}/{stage}/")}
            for stage in ("raw", "post")
        )
    image = next(image for image in load_dataset(demo_source(demo_zoo)).images if image.file_name == name)
    return raw, post, (image.height, image.width)


NETWORK_SIZES = ((160, 162), (131, 256), (160, 193))


@pytest.mark.parametrize("index", range(3))
def test_masks_and_boxes_equal_those_of_detectron2(demo_zoo: Path, index: int) -> None:
    raw, post, size = recorded("mask_rcnn_fpn", index, demo_zoo)

    framed = to_image_frame(raw, NETWORK_SIZES[index], size)

    for name in ("pred_boxes", "scores", "pred_classes"):
        np.testing.assert_array_equal(framed[name], post[name], err_msg=name)
    count = len(framed["scores"])
    expected = np.unpackbits(post["pred_masks"], count=count * size[0] * size[1]).reshape(count, *size)
    np.testing.assert_array_equal(paste_masks(framed["pred_masks"], framed["pred_boxes"], *size), expected)


@pytest.mark.parametrize("index", range(3))
def test_keypoints_equal_those_of_detectron2(demo_zoo: Path, index: int) -> None:
    raw, post, size = recorded("keypoint_rcnn_fpn", index, demo_zoo)

    framed = to_image_frame(raw, NETWORK_SIZES[index], size)

    assert len(post["pred_keypoints"])
    np.testing.assert_array_equal(framed["pred_keypoints"], post["pred_keypoints"])


def test_boxes_are_scaled_then_clipped_to_the_image() -> None:
    boxes = np.array([[-5, -5, 50, 20], [10, 10, 20, 20]], dtype=np.float32)

    scaled = scale_boxes(boxes, (40, 40), (80, 60))

    assert scaled.tolist() == [[0, 0, 60, 40], [15, 20, 30, 40]]
    assert scaled.dtype == np.float32


def test_instances_without_area_are_dropped_with_all_their_fields() -> None:
    outputs = {
        "pred_boxes": np.array([[10, 1, 10, 5], [1, 1, 5, 5], [50, 1, 60, 5]], dtype=np.float32),
        "scores": np.array([0.9, 0.8, 0.7], dtype=np.float32),
        "pred_classes": np.array([0, 1, 2]),
        "pred_keypoints": np.zeros((3, 2, 3), dtype=np.float32),
        "sem_seg": np.zeros((4, 8, 8), dtype=np.float32),
    }

    framed = to_image_frame(outputs, (40, 40), (40, 40))

    assert framed["pred_classes"].tolist() == [1]
    assert framed["scores"].tolist() == [np.float32(0.8)]
    assert framed["pred_keypoints"].shape == (1, 2, 3)
    assert framed["sem_seg"].shape == (4, 8, 8)
    assert len(outputs["scores"]) == 3


def test_proposals_are_brought_to_the_image_as_well() -> None:
    outputs = {
        "proposal_boxes": np.array([[0, 0, 10, 10], [5, 5, 5, 9]], dtype=np.float32),
        "objectness_logits": np.array([1.5, 0.5], dtype=np.float32),
    }

    framed = to_image_frame(outputs, (20, 20), (40, 40))

    assert framed["proposal_boxes"].tolist() == [[0, 0, 20, 20]]
    assert framed["objectness_logits"].tolist() == [1.5]


def test_pasting_equals_bilinear_grid_sampling() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(3)
    for _ in range(200):
        height, width = (int(side) for side in generator.integers(1, 120, 2))
        corner = generator.uniform(0, (width - 0.5, height - 0.5))
        box = np.array([*corner, *generator.uniform(corner + 0.1, (width, height))], dtype=np.float32)
        mask = generator.random((28, 28), dtype=np.float32)

        pasted = paste_mask(mask, box, height, width).full(height, width)

        centres = [np.arange(side, dtype=np.float32) + np.float32(0.5) for side in (height, width)]
        rows = (centres[0] - box[1]) / (box[3] - box[1]) * 2 - 1
        columns = (centres[1] - box[0]) / (box[2] - box[0]) * 2 - 1
        grid = np.stack([np.tile(columns, (height, 1)), np.tile(rows[:, None], (1, width))], axis=-1)
        sampled = torch.nn.functional.grid_sample(
            torch.from_numpy(mask)[None, None], torch.from_numpy(grid)[None], align_corners=False
        )[0, 0].numpy()
        certain = np.abs(sampled - 0.5) > 1e-5
        np.testing.assert_array_equal(pasted[certain], (sampled >= 0.5)[certain])


def test_encoded_masks_decode_to_themselves() -> None:
    mask = paste_mask(np.eye(14, dtype=np.float32), np.array([3, 4, 25, 18], dtype=np.float32), 30, 40)

    encoded = encode_mask(mask, 30, 40)

    assert encoded["size"] == [30, 40]
    assert isinstance(encoded["counts"], str)
    np.testing.assert_array_equal(mask_util.decode(encoded).astype(bool), mask.full(30, 40))
    assert mask.full(30, 40).any()
