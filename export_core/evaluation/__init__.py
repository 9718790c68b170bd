"""Measures models on COCO datasets and judges exported models by their eager originals.

Free of torch: numpy, PIL and pycocotools. The names below are loaded when they are first used, so that
comparing stored metrics does not import what evaluating needs.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zooport.export_core.evaluation.datasets import Dataset, DatasetImage, load_dataset
    from zooport.export_core.evaluation.deltas import MetricDelta, compare, judge, remarks
    from zooport.export_core.evaluation.image_cache import ImageCache, open_image_cache
    from zooport.export_core.evaluation.images import read_image, resize_shortest_edge
    from zooport.export_core.evaluation.predict import (
        Predictor,
        compute_metrics,
        evaluate,
        load_network_input,
        predict_images,
    )
    from zooport.export_core.evaluation.tasks import TASKS, ImagePrediction, Task, register, select_tasks

_MODULES = {
    "datasets": ("Dataset", "DatasetImage", "load_dataset"),
    "deltas": ("MetricDelta", "compare", "judge", "remarks"),
    "predict": ("Predictor", "compute_metrics", "evaluate", "load_network_input", "predict_images"),
    "image_cache": ("ImageCache", "open_image_cache"),
    "images": ("read_image", "resize_shortest_edge"),
    "tasks": ("TASKS", "ImagePrediction", "Task", "register", "select_tasks"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "TASKS",
    "Dataset",
    "DatasetImage",
    "ImageCache",
    "ImagePrediction",
    "MetricDelta",
    "Predictor",
    "Task",
    "compare",
    "compute_metrics",
    "evaluate",
    "judge",
    "load_dataset",
    "load_network_input",
    "open_image_cache",
    "predict_images",
    "read_image",
    "register",
    "remarks",
    "resize_shortest_edge",
    "select_tasks",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
