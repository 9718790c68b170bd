"""Datasets of label maps alone: ADE20K's layout and that of Cityscapes, by detectron2's names."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import evaluate, load_dataset, select_tasks
from zooport.export_core.failures import Failure
from zooport.export_core.known_datasets import named_dataset
from zooport.export_core.sources import DatasetSource
from zooport.tests.evaluation_support import make_config

CONFIG = make_config(
    MODEL__META_ARCHITECTURE="SemanticSegmentor",
    MODEL__SEM_SEG_HEAD__NUM_CLASSES=3,
    INPUT__MIN_SIZE_TEST=0,
)
WIDTH, HEIGHT = 40, 20
# Name -> images and label maps below the dataset's two folders.
LAYOUTS = {
    "ade20k_sem_seg_val": [("a.jpg", "a.png"), ("b.jpg", "b.png")],
    "cityscapes_fine_sem_seg_val": [
        (f"ulm/{frame}_leftImg8bit.png", f"ulm/{frame}_gtFine_labelTrainIds.png") for frame in ("a", "b")
    ],
}


def label_map() -> np.ndarray[Any, Any]:
    """Halves of labels 0 and 1, and a corner that is ignored."""
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[:, WIDTH // 2 :] = 1
    labels[:10, :10] = 255
    return labels


def written(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> DatasetSource:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(folder))
    source = named_dataset(name)
    assert source is not None
    for image, truth in LAYOUTS[name]:
        for path in (source.images / image, source.annotations / truth):
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(source.images / image)
        Image.fromarray(label_map()).save(source.annotations / truth)
    return source


def model(image: Any, **_: Any) -> dict[str, Any]:
    """Says 1 for the right three quarters."""
    logits = np.zeros((3, HEIGHT, WIDTH), dtype=np.float32)
    logits[1, :, WIDTH // 4 :] = 9
    logits[0, :, : WIDTH // 4] = 9
    return {"sem_seg": logits}


@pytest.mark.parametrize("name", LAYOUTS)
def test_pixels_are_counted(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = load_dataset(written(name, tmp_path, monkeypatch))

    metrics = evaluate(model, dataset, CONFIG)

    # Of label 0 there are 300 pixels, of which 100 are found; of label 1 400, found with 200 too many.
    assert metrics["sem_seg/IoU-0"] == pytest.approx(100 * 100 / 300)
    assert metrics["sem_seg/IoU-1"] == pytest.approx(100 * 400 / 600)
    assert metrics["sem_seg/pACC"] == pytest.approx(100 * 500 / 700)


def test_the_dataset_says_what_is_ignored_and_not_the_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(written("ade20k_sem_seg_val", tmp_path, monkeypatch))
    config = make_config(
        MODEL__META_ARCHITECTURE="SemanticSegmentor",
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=3,
        MODEL__SEM_SEG_HEAD__IGNORE_VALUE=0,
        INPUT__MIN_SIZE_TEST=0,
    )

    assert evaluate(model, dataset, config) == evaluate(model, dataset, CONFIG)


def test_a_panoptic_model_is_measured_by_its_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such a dataset has no classes, so nothing can be said against those of the instances."""
    dataset = load_dataset(written("ade20k_sem_seg_val", tmp_path, monkeypatch))
    config = make_config(
        MODEL__META_ARCHITECTURE="PanopticFPN",
        MODEL__MASK_ON=True,
        MODEL__SEM_SEG_HEAD__NUM_CLASSES=3,
        INPUT__MIN_SIZE_TEST=0,
    )

    def panoptic(image: Any, first: int = 0) -> dict[str, Any]:
        boxes = np.array([[0, 0, 9, 9], [5, 5, 20, 15]], dtype=np.float32)
        instances = {"pred_boxes": boxes, "scores": boxes[:, 2] / 30, "pred_classes": np.array([first, 4])}
        return {**model(image), **instances, "pred_masks": np.ones((2, 1, 28, 28), dtype=np.float32)}

    assert evaluate(panoptic, dataset, config) == evaluate(model, dataset, CONFIG)
    with pytest.raises(Failure, match="pred_classes holds -1"):
        evaluate(lambda image: panoptic(image, first=-1), dataset, config)


def test_a_missing_label_map_and_a_folder_without_images_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written("ade20k_sem_seg_val", tmp_path, monkeypatch)
    (source.annotations / "b.png").unlink()
    with pytest.raises(Failure, match=r"cannot read label map \S*b.png: No such file"):
        load_dataset(source)
    for image in source.images.iterdir():
        image.unlink()
    with pytest.raises(Failure, match="has no images"):
        load_dataset(source)


def test_label_maps_among_the_images_are_not_taken_for_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = written("ade20k_sem_seg_val", tmp_path, monkeypatch)
    Image.fromarray(label_map()).save(source.images / "b.png")

    with pytest.raises(Failure, match=r"b\.png and b\.jpg are two images with one label map") as caught:
        load_dataset(source)
    assert caught.value.code == "dataset.invalid"
    with pytest.raises(Failure, match=r"a\.png is both an image and its label map"):
        load_dataset(replace(source, images=source.annotations))


def test_a_dataset_of_labels_says_nothing_of_proposals(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = load_dataset(written("ade20k_sem_seg_val", tmp_path, monkeypatch))

    with pytest.raises(Failure, match="offers nothing to evaluate a ProposalNetwork with"):
        select_tasks(make_config(MODEL__META_ARCHITECTURE="ProposalNetwork"), dataset)


def test_the_digest_notices_every_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = written("ade20k_sem_seg_val", tmp_path, monkeypatch)
    before = load_dataset(source).digest()
    labels = label_map()
    labels[0, 30] = 2
    Image.fromarray(labels).save(source.annotations / "a.png")
    assert load_dataset(source).digest() != before
