"""Box and mask average precision, as pycocotools counts it, with detectron2's conventions."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zooport.export_core.evaluation.annotations import Annotation
from zooport.export_core.evaluation.coco_counting import precision_table, tally_matches
from zooport.export_core.evaluation.coco_matching import Matches, Rules, by_category, match
from zooport.export_core.evaluation.coco_resampling import Reading, resampled_precision
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.postprocess import Array, encode_mask
from zooport.export_core.evaluation.tasks import (
    ImageOutputs,
    require_classes,
    setting,
    unique_labels,
)

# Architectures without second-stage heads: MODEL.MASK_ON and MODEL.KEYPOINT_ON mean nothing to them.
ONE_STAGE = ("RetinaNet", "FCOS")
# Architectures that give no classified boxes.
BOXLESS = ("SemanticSegmentor", "ProposalNetwork")

#: Which area, and which of the IoU thresholds 0.5 to 0.95, each metric is read from.
DETECTION_METRICS: Mapping[str, Reading] = {
    "AP": (0, None),
    "AP50": (0, 0),
    "AP75": (0, 5),
    "APs": (1, None),
    "APm": (2, None),
    "APl": (3, None),
}

Results = list[dict[str, Any]]


def detects(config: Any) -> bool:
    """Whether the model gives classified boxes."""
    return setting(config, "MODEL.META_ARCHITECTURE") not in BOXLESS


def has_head(config: Any, switch: str) -> bool:
    """Whether the model has the second-stage head that a config key such as ``MODEL.MASK_ON`` turns on."""
    two_stage = detects(config) and setting(config, "MODEL.META_ARCHITECTURE") not in ONE_STAGE
    return two_stage and bool(setting(config, switch, False))


def require_detection_classes(config: Any, dataset: Dataset) -> None:
    """Refuse a dataset with another number of categories than the detector has classes."""
    architecture = setting(config, "MODEL.META_ARCHITECTURE")
    one_stage = f"MODEL.{architecture.upper()}.NUM_CLASSES" if architecture in ONE_STAGE else None
    key = one_stage if one_stage and setting(config, one_stage, None) else "MODEL.ROI_HEADS.NUM_CLASSES"
    require_classes(setting(config, key), key, dataset)


class BoxAP:
    """COCO box AP."""

    name = "bbox"
    outputs = ("pred_boxes", "scores", "pred_classes")

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Every detector, on COCO annotations."""
        return detects(config) and dataset.source.kind == "coco"

    def check(self, config: Any, dataset: Dataset) -> None:
        """The dataset must have as many categories as the model has classes."""
        require_detection_classes(config, dataset)

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Results:
        """Return COCO results without image ids: category_id, score, and bbox as x, y, width, height."""
        rows = instance_rows(result.outputs, dataset)
        for row, box in zip(rows, xywh(result.outputs["pred_boxes"]), strict=True):
            row["bbox"] = box
        return rows

    def score(self, values: Sequence[Results], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return AP, AP50, AP75, APs, APm, APl and AP per category."""
        return self.measure(values, dataset, config)[0]

    def measure(
        self, values: Sequence[Results], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and the matches of all images."""
        truth = by_image(dataset, [ground_truth(annotation) for annotation in dataset.annotations])
        found = [[{**row, "area": row["bbox"][2] * row["bbox"][3]} for row in rows] for rows in values]
        return detection_metrics("bbox", truth, found, dataset)

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        return resampled_detection(tally, weights)


class MaskAP:
    """COCO mask AP; a detection's area is its mask's, not its box's."""

    name = "segm"
    outputs = ("pred_boxes", "scores", "pred_classes", "pred_masks")

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Models with a mask head, on COCO annotations with masks."""
        coco = dataset.source.kind == "coco"
        return coco and has_head(config, "MODEL.MASK_ON") and dataset.has_masks

    def check(self, config: Any, dataset: Dataset) -> None:
        """Every object must have a mask that pycocotools can read."""
        _ = dataset.mask_rles

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Results:
        """Return COCO results without image ids: category_id, score, and segmentation as run lengths."""
        rows = instance_rows(result.outputs, dataset)
        for row, mask in zip(rows, result.masks, strict=True):
            row["segmentation"] = encode_mask(mask, result.image.height, result.image.width)
        return rows

    def score(self, values: Sequence[Results], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return AP, AP50, AP75, APs, APm, APl and AP per category."""
        return self.measure(values, dataset, config)[0]

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        return resampled_detection(tally, weights)

    def measure(
        self, values: Sequence[Results], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics, and the matches of all images."""
        found = [
            [{**row, "area": float(mask_util.area(row["segmentation"]))} for row in rows] for rows in values
        ]
        truth = by_image(
            dataset,
            [
                {**ground_truth(annotation), "segmentation": rle}
                for annotation, rle in zip(dataset.annotations, dataset.mask_rles, strict=True)
            ],
        )
        return detection_metrics("segm", truth, found, dataset)


def instance_rows(outputs: Mapping[str, Array], dataset: Dataset) -> Results:
    """Start one result per instance with its score and the dataset's category id."""
    return [
        {"category_id": dataset.category_ids[index], "score": score}
        for index, score in zip(outputs["pred_classes"].tolist(), outputs["scores"].tolist(), strict=True)
    ]


def xywh(boxes: Array) -> list[list[float]]:
    """Turn float32 xyxy boxes (N, 4) into COCO's x, y, width, height."""
    converted = boxes.copy()
    converted[:, 2:] -= converted[:, :2]
    rows: list[list[float]] = converted.tolist()
    return rows


def by_image(dataset: Dataset, rows: Sequence[dict[str, Any]]) -> list[Results]:
    """Group rows made from ``dataset.annotations``, one each, in the order of ``dataset.images``."""
    groups: dict[int | str, Results] = {image.id: [] for image in dataset.images}
    for annotation, row in zip(dataset.annotations, rows, strict=True):
        groups[annotation.image_id].append(row)
    return list(groups.values())


def ground_truth(annotation: Annotation) -> dict[str, Any]:
    """Return the fields of an annotation that pycocotools reads in every evaluation."""
    return {
        "category_id": annotation.category_id,
        "bbox": list(annotation.box),
        "area": annotation.area,
        "iscrowd": int(annotation.crowd),
    }


def detection_metrics(
    kind: str, truth: Sequence[Results], found: Sequence[Results], dataset: Dataset
) -> tuple[dict[str, float], dict[str, Array]]:
    """Match ground truth and results, both grouped in the order of ``dataset.images``.

    Args:
        kind: pycocotools' iouType, "bbox" or "segm".
        truth: entries of :func:`ground_truth`, with a segmentation for "segm".
        found: COCO results with an area.
        dataset: gives images and categories.

    Returns:
        The six standard metrics and, with more than one class, AP per category; in points, undefined ones
        left out. And what :func:`resampled_detection` takes.
    """
    precision, tally = coco_precision(kind, truth, found, dataset)
    metrics = read_precision(precision, DETECTION_METRICS)
    labels = unique_labels(dataset) if len(dataset.categories) > 1 else []
    for index, label in enumerate(labels):
        metrics[f"AP-{label}"] = mean_precision(precision[:, :, index, 0])
    return defined(metrics), {**tally, "labels": np.array(labels, dtype=np.str_)}


def resampled_detection(tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
    """Return the metrics of :func:`detection_metrics` for resampled images, from what it returned."""
    return resampled_precision(tally, weights, DETECTION_METRICS, tally["labels"].tolist())


def read_precision(precision: Array, readings: Mapping[str, Reading]) -> dict[str, float | None]:
    """Return metrics from the precision table.

    It is indexed by IoU threshold (0.5 to 0.95), recall, category and area (all, small, medium, large).
    """
    metrics = {}
    for name, (area, threshold) in readings.items():
        chosen = precision if threshold is None else precision[threshold]
        metrics[name] = mean_precision(chosen[..., area])
    return metrics


def coco_precision(
    kind: str,
    truth: Sequence[Results],
    found: Sequence[Results],
    dataset: Dataset,
    category_ids: Sequence[int] | None = None,
    sigmas: Sequence[float] | None = None,
) -> tuple[Array, dict[str, Array]]:
    """Return the table of :func:`precision_table`, and the matches that it was counted from.

    Images and annotations get new ids. The order of the dataset's image ids is kept because it decides
    between equal scores.
    """
    ids = [image.id for image in dataset.images]
    order = sorted(range(len(ids)), key=lambda index: (isinstance(ids[index], str), ids[index]))
    images = [
        {"id": rank, "height": dataset.images[index].height, "width": dataset.images[index].width}
        for rank, index in enumerate(order)
    ]
    categories = [{"id": category.id, "name": category.name} for category in dataset.categories]
    objects, detections = [truth[index] for index in order], [found[index] for index in order]
    with silence():
        overlaps = Overlaps(_coco(images, categories, objects), _coco(images, categories, detections), kind)
        if category_ids is not None:
            overlaps.params.catIds = list(category_ids)
        if sigmas is not None:
            overlaps.params.kpt_oks_sigmas = np.array(sigmas, dtype=np.float64)
        overlaps.evaluate()
    tally = tally_overlaps(overlaps, order, objects, detections)
    return precision_table(tally), tally


class Overlaps(COCOeval):
    """pycocotools' evaluation of which the overlaps are wanted alone: IoU and object keypoint similarity."""

    def evaluateImg(self, *_: Any) -> None:  # noqa: N802  pycocotools' name, called by its evaluate
        """Match nothing."""


def tally_overlaps(
    overlaps: Overlaps, order: Sequence[int], objects: Sequence[Results], found: Sequence[Results]
) -> dict[str, Array]:
    """Return the matches that :func:`tally_matches` takes together.

    Args:
        overlaps: after ``evaluate``.
        order: index in the dataset of each image, in the order of the evaluation.
        objects: of each image in that order.
        found: the same for detections.
    """
    given = overlaps.params
    rules = Rules(given.iouThrs, given.recThrs, np.array(given.areaRng, dtype=np.float64), given.maxDets[-1])
    matches: dict[int, list[tuple[int, Matches]]] = {int(category): [] for category in given.catIds}
    for rank, (index, *rows) in enumerate(zip(order, objects, found, strict=True)):
        for category, part in by_category(*rows).items():
            if category in matches:
                overlap = overlaps.ious[rank, category]
                matches[category].append((index, match(part, overlap, rules)))
    return tally_matches(list(matches.values()), rules)


def defined(metrics: Mapping[str, float | None]) -> dict[str, float]:
    """Scale fractions to points and leave out undefined metrics."""
    return {name: 100.0 * value for name, value in metrics.items() if value is not None}


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Hide what pycocotools prints; its errors are exceptions and pass."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def mean_precision(precision: Array) -> float | None:
    """Return the mean over the entries that ground truth defines, None if there are none."""
    valid = precision[precision > -1]
    return float(np.mean(valid)) if valid.size else None


def _coco(images: Results, categories: Results, grouped: Sequence[Results]) -> Any:
    annotations: Results = []
    for rank, rows in enumerate(grouped):
        for row in rows:
            annotations.append({"iscrowd": 0, **row, "image_id": rank, "id": len(annotations) + 1})
    coco = COCO()
    coco.dataset = {"images": images, "categories": categories, "annotations": annotations}
    coco.createIndex()
    return coco
