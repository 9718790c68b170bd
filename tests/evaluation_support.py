"""Configs, datasets and models that the evaluation tests share."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from zooport.export_core.evaluation import compute_metrics, predict
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.resampling import draw
from zooport.export_core.evaluation.tasks import ImagePrediction
from zooport.export_core.sources import DatasetSource

DATA = Path(__file__).parent / "data" / "evaluation"


def make_config(**settings: Any) -> Any:
    """A config with the few keys that evaluation reads; dots in its keys are written as two underscores."""
    values = {
        "MODEL__META_ARCHITECTURE": "GeneralizedRCNN",
        "MODEL__MASK_ON": False,
        "MODEL__KEYPOINT_ON": False,
        "MODEL__ROI_HEADS__NUM_CLASSES": 2,
        "MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS": 17,
        "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 54,
        "MODEL__PANOPTIC_FPN__COMBINE__ENABLED": True,
        "MODEL__PANOPTIC_FPN__COMBINE__OVERLAP_THRESH": 0.5,
        "MODEL__PANOPTIC_FPN__COMBINE__STUFF_AREA_LIMIT": 4096,
        "MODEL__PANOPTIC_FPN__COMBINE__INSTANCES_CONFIDENCE_THRESH": 0.5,
        "INPUT__FORMAT": "BGR",
        "INPUT__MIN_SIZE_TEST": 40,
        "INPUT__MAX_SIZE_TEST": 100,
        "TEST__KEYPOINT_OKS_SIGMAS": [],
        **settings,
    }
    root = SimpleNamespace()
    for key, value in values.items():
        *path, name = key.split("__")
        node = root
        for part in path:
            node.__dict__.setdefault(part, SimpleNamespace())
            node = getattr(node, part)
        setattr(node, name, value)
    return root


def coco_document() -> dict[str, Any]:
    """Two images with four objects of two categories; the first id of everything is 0."""
    return {
        "images": [
            {"id": 0, "file_name": "first.png", "width": 60, "height": 40},
            {"id": 7, "file_name": "second.png", "width": 30, "height": 50},
        ],
        "categories": [{"id": 9, "name": "dog"}, {"id": 4, "name": "cat"}],
        "annotations": [
            coco_object(0, 0, 4, [5, 5, 20, 10]),
            coco_object(1, 0, 9, [30, 10, 12, 24]),
            coco_object(2, 7, 4, [2, 3, 15, 15]),
            coco_object(3, 7, 9, [10, 20, 18, 28]),
        ],
    }


def coco_object(identifier: int, image: int, category: int, box: list[float]) -> dict[str, Any]:
    x, y, width, height = box
    corners = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "id": identifier,
        "image_id": image,
        "category_id": category,
        "bbox": box,
        "area": width * height,
        "iscrowd": 0,
        "segmentation": [corners],
    }


def write_dataset(
    folder: Path, change: Callable[[dict[str, Any]], None] | None = None, limit: int | None = None
) -> DatasetSource:
    """Write the dataset of :func:`coco_document`, changed, with random images."""
    document = coco_document()
    generator = np.random.default_rng(0)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    for entry in document["images"]:
        pixels = generator.integers(0, 256, (entry["height"], entry["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(images / entry["file_name"])
    if change is not None:
        change(document)
    annotations = folder / "annotations.json"
    annotations.write_text(json.dumps(document))
    return DatasetSource("tiny", annotations, images, limit)


def demo_source(zoo: Path, annotations: str = "instances_val.json", **more: Any) -> DatasetSource:
    data = zoo / "data"
    return DatasetSource("shapes", data / "annotations" / annotations, data / "val", **more)


def recorded_predictions(model: str, dataset: Dataset, tasks: Mapping[str, str]) -> list[ImagePrediction]:
    """Detections that detectron2 made with a demo model, as collected values.

    ``tasks`` maps a task to the field that its results have beside category and score.
    """
    with gzip.open(DATA / f"{model}.predictions.json.gz") as file:
        rows = json.load(file)
    by_image: dict[int | str, list[dict[str, Any]]] = {image.id: [] for image in dataset.images}
    for row in rows:
        by_image[row.pop("image_id")].append(row)
    return [
        ImagePrediction(image, {task: _only(found, extra.split()) for task, extra in tasks.items()})
        for image, found in by_image.items()
    ]


def _only(rows: Iterable[dict[str, Any]], fields: Iterable[str]) -> list[dict[str, Any]]:
    return [{name: row[name] for name in ("category_id", "score", *fields)} for row in rows]


class Oracle:
    """A model that finds every annotated object exactly; ``change`` spoils its outputs."""

    def __init__(
        self, dataset: Dataset, change: Callable[[dict[str, Any]], dict[str, Any]] = lambda outputs: outputs
    ) -> None:
        self.dataset = dataset
        self.change = change
        self.inputs: list[Any] = []

    def __call__(self, image: Any) -> dict[str, Any]:
        shown = self.dataset.images[len(self.inputs)]
        self.inputs.append(image)
        objects = self.dataset.annotations_by_image[shown.id]
        corners = np.array([item.box for item in objects], dtype=np.float32).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        corners[:, 0::2] *= image.shape[2] / shown.width
        corners[:, 1::2] *= image.shape[1] / shown.height
        classes = [self.dataset.category_ids.index(item.category_id) for item in objects]
        outputs = {
            "pred_boxes": corners,
            "scores": np.linspace(0.9, 0.8, len(objects), dtype=np.float32),
            "pred_classes": np.array(classes, dtype=np.int64),
            "pred_masks": np.ones((len(objects), 1, 28, 28), dtype=np.float32),
        }
        return self.change(outputs)


def repeated(
    dataset: Dataset, predictions: Iterable[ImagePrediction], weights: Sequence[int]
) -> tuple[Dataset, list[ImagePrediction]]:
    """The dataset in which each image is there as often as it was drawn, its copies one after another."""
    found = {prediction.image_id: prediction for prediction in predictions}
    images: list[Any] = []
    annotations: list[Any] = []
    copies: list[ImagePrediction] = []
    place = {identifier: rank for rank, identifier in enumerate(sorted(found))}
    for image, times in zip(dataset.images, weights, strict=True):
        for copy in range(times):
            identifier = (
                place[image.id] * 1000 + copy
            )  # in the order of the ids, which decides between equals
            images.append(replace(image, id=identifier))
            annotations += [
                replace(each, image_id=identifier) for each in dataset.annotations_by_image[image.id]
            ]
            copies.append(replace(found[image.id], image_id=identifier))
    return replace(dataset, images=tuple(images), annotations=tuple(annotations)), copies


def check_resamples(dataset: Dataset, predictions: Sequence[ImagePrediction], config: Any) -> None:
    """Resamples must count as datasets of their images do, to the last digits.

    Only where no two detections of an image have the same score.
    """
    tallies: dict[str, Mapping[str, npt.NDArray[Any]]] = {}
    metrics = compute_metrics(predictions, dataset, config, tallies)
    assert metrics == compute_metrics(predictions, dataset, config)
    tasks: Mapping[str, Any] = predict.known_tasks()
    weights = np.concatenate(
        [np.ones((1, len(dataset.images)), dtype=np.int32), draw(len(dataset.images))[:3]]
    )
    found: dict[str, npt.NDArray[Any]] = {}
    for key, tally in tallies.items():
        sampled = tasks[key].resampled(tally, weights)
        found |= {f"{tasks[key].name}/{name}": values for name, values in sampled.items()}
    assert len(found) >= len(metrics) > 3
    for number, row in enumerate(weights.tolist()):
        drawn, copies = repeated(dataset, predictions, row)
        defined = {
            name: float(values[number]) for name, values in found.items() if np.isfinite(values[number])
        }
        assert defined == pytest.approx(compute_metrics(copies, drawn, config), abs=1e-9), number
