"""Keypoint average precision by object keypoint similarity (OKS), as pycocotools counts it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zooport.export_core.evaluation.annotations import Annotation
from zooport.export_core.evaluation.coco_metrics import (
    Results,
    by_image,
    coco_precision,
    defined,
    ground_truth,
    has_head,
    instance_rows,
    mean_precision,
    read_precision,
    require_detection_classes,
    xywh,
)
from zooport.export_core.evaluation.coco_resampling import Reading, resampled_precision
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.evaluation.tasks import ImageOutputs, setting, unique_labels
from zooport.export_core.failures import Failure

# How far annotators differ for each of COCO's person keypoints, relative to object size (COCO's definition).
COCO_SIGMAS = (
    *(0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072),
    *(0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089, 0.089),
)

# COCO has no small persons with keypoints: its areas here are all, medium and large.
_METRICS: Mapping[str, Reading] = {
    "AP": (0, None),
    "AP50": (0, 0),
    "AP75": (0, 5),
    "APm": (1, None),
    "APl": (2, None),
}


class KeypointAP:
    """COCO keypoint AP over the categories that define keypoints."""

    name = "keypoints"
    outputs = ("pred_boxes", "scores", "pred_classes", "pred_keypoints")

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Models with a keypoint head, on COCO annotations with keypoints."""
        coco = dataset.source.kind == "coco"
        return coco and has_head(config, "MODEL.KEYPOINT_ON") and dataset.has_keypoints

    def check(self, config: Any, dataset: Dataset) -> None:
        """Model, dataset and OKS sigmas must agree in the number of keypoints."""
        require_detection_classes(config, dataset)
        expected = setting(config, "MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS")
        for category in dataset.categories:
            if category.keypoints and len(category.keypoints) != expected:
                raise dataset.failure(
                    f"defines {len(category.keypoints)} keypoints for {category.name}, but the model has"
                    f" {expected} (MODEL.ROI_KEYPOINT_HEAD.NUM_KEYPOINTS)"
                )
        if len(_sigmas(config)) != expected:
            raise Failure(
                "config.invalid",
                f"TEST.KEYPOINT_OKS_SIGMAS has {len(_sigmas(config))} values for {expected} keypoints",
                hint="give one sigma per keypoint as an override; COCO's own are the default",
            )

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Results:
        """Return COCO results without image ids: category_id, score, bbox, keypoints as x, y, score.

        COCO's coordinates name pixels, the model's are continuous: half a pixel lies between them.
        """
        keypoints = result.outputs["pred_keypoints"].copy()
        keypoints[:, :, :2] -= 0.5
        rows = instance_rows(result.outputs, dataset)
        boxes = xywh(result.outputs["pred_boxes"])
        flat = keypoints.reshape(len(keypoints), math.prod(keypoints.shape[1:])).tolist()
        return [
            {**row, "bbox": box, "keypoints": points}
            for row, box, points in zip(rows, boxes, flat, strict=True)
        ]

    def score(self, values: Sequence[Results], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return AP, AP50, AP75, APm, APl, and AP per category where more than one has keypoints."""
        return self.measure(values, dataset, config)[0]

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        return resampled_precision(tally, weights, _METRICS, tally["labels"].tolist())

    def measure(
        self, values: Sequence[Results], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and the matches of all images."""
        counts = {category.id: len(category.keypoints) for category in dataset.categories}
        truth = by_image(dataset, [_truth(entry, counts[entry.category_id]) for entry in dataset.annotations])
        found = [[{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in rows] for rows in values]
        categories = [category.id for category in dataset.categories if category.keypoints]
        precision, tally = coco_precision(
            "keypoints", truth, found, dataset, category_ids=categories, sigmas=_sigmas(config)
        )
        metrics = read_precision(precision, _METRICS)
        names = dict(zip(dataset.category_ids, unique_labels(dataset), strict=True))
        labels = [names[identifier] for identifier in categories] if len(categories) > 1 else []
        for index, label in enumerate(labels):
            metrics[f"AP-{label}"] = mean_precision(precision[:, :, index, 0])
        return defined(metrics), {**tally, "labels": np.array(labels, dtype=np.str_)}


def _sigmas(config: Any) -> Sequence[float]:
    sigmas: Sequence[float] = setting(config, "TEST.KEYPOINT_OKS_SIGMAS", ())
    return sigmas or COCO_SIGMAS


def _truth(annotation: Annotation, count: int) -> dict[str, Any]:
    keypoints = annotation.keypoints or (0.0,) * (3 * count)
    labelled = sum(visibility > 0 for visibility in keypoints[2::3])
    return {**ground_truth(annotation), "keypoints": list(keypoints), "num_keypoints": labelled}
