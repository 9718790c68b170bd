"""The metrics equal detectron2's on detections that it made itself."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core.evaluation import ImagePrediction, compute_metrics, load_dataset
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.failures import Failure
from zooport.tests.evaluation_support import (
    coco_object,
    demo_source,
    make_config,
    recorded_predictions,
    write_dataset,
)


def published(zoo: Path, model: str, tasks: tuple[str, ...]) -> dict[str, float]:
    """What detectron2's own evaluators measured."""
    metrics = json.loads((zoo / model / "metrics.json").read_text())["metrics"]
    return {f"{task}/{name}": points for task in tasks for name, points in metrics[task].items()}


def test_box_and_mask_ap_equal_those_of_detectron2(demo_zoo: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo))
    config = make_config(MODEL__ROI_HEADS__NUM_CLASSES=5, MODEL__MASK_ON=True)
    predictions = recorded_predictions("mask_rcnn_fpn", dataset, {"bbox": "bbox", "segm": "segmentation"})

    metrics = compute_metrics(predictions, dataset, config)

    assert metrics == pytest.approx(published(demo_zoo, "mask_rcnn_fpn", ("bbox", "segm")), abs=1e-6)


def test_retinanet_is_measured_on_boxes_alone(demo_zoo: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo))
    config = make_config(
        MODEL__META_ARCHITECTURE="RetinaNet", MODEL__RETINANET__NUM_CLASSES=5, MODEL__MASK_ON=True
    )
    predictions = recorded_predictions("retinanet_fpn", dataset, {"bbox": "bbox"})

    metrics = compute_metrics(predictions, dataset, config)

    assert metrics == pytest.approx(published(demo_zoo, "retinanet_fpn", ("bbox",)), abs=1e-6)


def test_keypoint_ap_equals_that_of_detectron2(demo_zoo: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo, "keypoints_val.json"))
    predictions = recorded_predictions(
        "keypoint_rcnn_fpn", dataset, {"bbox": "bbox", "keypoints": "bbox keypoints"}
    )

    metrics = compute_metrics(predictions, dataset, keypoint_config())

    assert metrics == pytest.approx(published(demo_zoo, "keypoint_rcnn_fpn", ("bbox", "keypoints")), abs=1e-6)


def keypoint_config(**settings: Any) -> Any:
    return make_config(
        MODEL__KEYPOINT_ON=True,
        MODEL__ROI_HEADS__NUM_CLASSES=1,
        **{
            "MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": 5,
            "TEST__KEYPOINT_OKS_SIGMAS": [0.06] * 5,
            **settings,
        },
    )


def test_sigmas_must_fit_the_keypoints(demo_zoo: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo, "keypoints_val.json", limit=2))

    with pytest.raises(Failure, match=r"TEST\.KEYPOINT_OKS_SIGMAS has 17 values for 5 keypoints") as caught:
        compute_metrics(nothing(dataset), dataset, keypoint_config(TEST__KEYPOINT_OKS_SIGMAS=[]))
    assert caught.value.code == "config.invalid"


def test_keypoints_without_names_are_measured_as_those_with(demo_zoo: Path, tmp_path: Path) -> None:
    named = demo_source(demo_zoo, "keypoints_val.json")
    document = json.loads(named.annotations.read_text())
    for category in document["categories"]:
        del category["keypoints"]
    (tmp_path / "nameless.json").write_text(json.dumps(document))
    dataset = load_dataset(replace(named, annotations=tmp_path / "nameless.json"))
    predictions = recorded_predictions(
        "keypoint_rcnn_fpn", dataset, {"bbox": "bbox", "keypoints": "bbox keypoints"}
    )

    metrics = compute_metrics(predictions, dataset, keypoint_config())

    assert dataset.categories[0].keypoints == ("0", "1", "2", "3", "4")
    assert metrics == pytest.approx(published(demo_zoo, "keypoint_rcnn_fpn", ("bbox", "keypoints")), abs=1e-6)


def test_keypoint_ap_is_kept_per_category(tmp_path: Path) -> None:
    points = [10.0, 10.0, 2.0, 20.0, 12.0, 2.0]

    def change(document: dict[str, Any]) -> None:
        for category in document["categories"]:
            category["keypoints"] = ["nose", "tail"]
        for annotation in document["annotations"]:
            annotation["keypoints"] = points

    dataset = load_dataset(write_dataset(tmp_path, change))
    # Every cat is found where it is, and no dog.
    found = [{"category_id": 4, "score": 0.9, "bbox": [5, 5, 20, 10], "keypoints": points}]
    predictions = [
        ImagePrediction(image.id, {"bbox": [], "keypoints": list(found)}) for image in dataset.images
    ]
    config = make_config(
        MODEL__KEYPOINT_ON=True,
        MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS=2,
        TEST__KEYPOINT_OKS_SIGMAS=[0.1, 0.1],
    )

    metrics = compute_metrics(predictions, dataset, config)

    assert metrics["keypoints/AP-cat"] == pytest.approx(100)
    assert metrics["keypoints/AP-dog"] == 0
    assert metrics["keypoints/AP"] == pytest.approx(50)


def test_models_with_other_keypoints_are_refused(demo_zoo: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo, "keypoints_val.json", limit=2))

    with pytest.raises(Failure, match="5 keypoints for square, but the model has 17") as caught:
        compute_metrics(
            nothing(dataset), dataset, keypoint_config(MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS=17)
        )
    assert caught.value.code == "dataset.invalid"


def nothing(dataset: Dataset) -> list[ImagePrediction]:
    """Predictions of a model that finds nothing."""
    return [ImagePrediction(image.id, {"bbox": [], "segm": [], "keypoints": []}) for image in dataset.images]


def test_a_model_that_finds_nothing_has_ap_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    metrics = compute_metrics(nothing(dataset), dataset, make_config(MODEL__MASK_ON=True))

    assert metrics["bbox/AP"] == metrics["segm/AP"] == 0.0
    assert metrics["bbox/AP-cat"] == metrics["segm/AP-dog"] == 0.0
    assert capsys.readouterr().out == ""


def test_metrics_that_the_dataset_leaves_undefined_are_left_out(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["annotations"] = [item for item in document["annotations"] if item["category_id"] == 4]

    dataset = load_dataset(write_dataset(tmp_path, change))
    metrics = compute_metrics(nothing(dataset), dataset, make_config())

    assert set(metrics) == {"bbox/AP", "bbox/AP50", "bbox/AP75", "bbox/APs", "bbox/AP-cat"}


def test_a_dataset_with_nothing_to_find_is_refused(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["annotations"] = []

    dataset = load_dataset(write_dataset(tmp_path, change))

    with pytest.raises(Failure, match="no object to find in the 2 evaluated images") as caught:
        compute_metrics(nothing(dataset), dataset, make_config())
    assert caught.value.code == "dataset.invalid"


def test_single_class_models_have_no_ap_per_category(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["categories"] = [{"id": 4, "name": "cat"}]
        document["annotations"] = [coco_object(0, 0, 4, [5, 5, 20, 10])]

    dataset = load_dataset(write_dataset(tmp_path, change))
    metrics = compute_metrics(nothing(dataset), dataset, make_config(MODEL__ROI_HEADS__NUM_CLASSES=1))

    assert not [name for name in metrics if "-" in name]


def test_classes_of_the_same_name_are_told_apart(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["categories"][0]["name"] = "cat"

    dataset = load_dataset(write_dataset(tmp_path, change))
    metrics = compute_metrics(nothing(dataset), dataset, make_config())

    assert {"bbox/AP-cat#4", "bbox/AP-cat#9"} <= set(metrics)


def test_crowds_are_neither_missed_nor_matched(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["annotations"] = [
            coco_object(0, 0, 4, [5, 5, 20, 10]),
            coco_object(1, 0, 4, [30, 5, 20, 20]),
        ]
        document["annotations"][1]["iscrowd"] = 1
        document["annotations"][1]["segmentation"] = {"size": [40, 60], "counts": [1300, 50, 1050]}

    dataset = load_dataset(write_dataset(tmp_path, change))
    in_crowd = {"category_id": 4, "score": 0.99, "bbox": [32, 6, 5, 5]}
    found = {"category_id": 4, "score": 0.5, "bbox": [5, 5, 20, 10]}
    predictions = [ImagePrediction(0, {"bbox": [in_crowd, found]}), ImagePrediction(7, {"bbox": []})]

    metrics = compute_metrics(predictions, dataset, make_config())

    assert metrics["bbox/AP"] == pytest.approx(100.0)


def test_masks_that_are_missing_in_part_are_refused(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        del document["annotations"][2]["segmentation"]

    dataset = load_dataset(write_dataset(tmp_path, change))

    with pytest.raises(Failure, match="annotation 2 has no segmentation") as caught:
        compute_metrics(nothing(dataset), dataset, make_config(MODEL__MASK_ON=True))
    assert caught.value.code == "dataset.invalid"


def test_masks_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["annotations"][2]["segmentation"] = [[1, 2]]

    dataset = load_dataset(write_dataset(tmp_path, change))

    with pytest.raises(Failure, match="annotation 2: segmentation") as caught:
        compute_metrics(nothing(dataset), dataset, make_config(MODEL__MASK_ON=True))
    assert caught.value.code == "dataset.invalid"


def test_datasets_without_masks_are_measured_on_boxes(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        for annotation in document["annotations"]:
            annotation["segmentation"] = []

    dataset = load_dataset(write_dataset(tmp_path, change))
    metrics = compute_metrics(nothing(dataset), dataset, make_config(MODEL__MASK_ON=True))

    assert {name.partition("/")[0] for name in metrics} == {"bbox"}


def test_predictions_of_every_image_are_needed_once(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    all_of_them = nothing(dataset)

    with pytest.raises(ValueError, match="predictions of 1 images for a dataset of 2"):
        compute_metrics(all_of_them[:1], dataset, make_config())
    with pytest.raises(ValueError, match="image 0 was predicted twice"):
        compute_metrics([*all_of_them, all_of_them[0]], dataset, make_config())
