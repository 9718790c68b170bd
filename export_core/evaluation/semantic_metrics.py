"""Semantic segmentation: intersection over union and accuracy per label, from one confusion matrix."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zooport.export_core.evaluation.datasets import Dataset, DatasetImage
from zooport.export_core.evaluation.panoptic_truth import IGNORED
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.evaluation.segmentation import LabelMap
from zooport.export_core.evaluation.semantic_dataset import label_file
from zooport.export_core.evaluation.tasks import ImageOutputs, distinct, setting
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource

# What one image adds: rows of predicted label, true label, number of pixels.
Rows = list[list[int]]

_CLASSES = "MODEL.SEM_SEG_HEAD.NUM_CLASSES"


class SemanticIoU:
    """mIoU, frequency weighted IoU, mean and pixel accuracy, and IoU and accuracy per label."""

    name = "sem_seg"
    outputs = ("sem_seg",)

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Models with a semantic head, on datasets with label maps or panoptic annotations."""
        semantic = setting(config, "MODEL.META_ARCHITECTURE") in ("PanopticFPN", "SemanticSegmentor")
        return semantic and (_has_label_maps(dataset) or dataset.panoptic is not None)

    def check(self, config: Any, dataset: Dataset) -> None:
        """Every image must have its label map, and labels must fit the model's."""
        if not _has_label_maps(dataset):
            _labels_by_category(config, dataset)
            return
        for image in dataset.images:
            path = _label_file(image, dataset.source)
            if not path.is_file():
                raise Failure(
                    "dataset.invalid", f"{path}, the label map of {image.file_name}, does not exist"
                )

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Rows:
        """Count pixels by predicted and true label; those that the dataset ignores are left out.

        What the config ignores (SEM_SEG_HEAD.IGNORE_VALUE) is about training, on whichever dataset that was.
        """
        count = setting(config, _CLASSES)
        given = result.outputs["sem_seg"]
        found = given.shape[0] if given.dtype.kind == "f" else max(count, int(given.max()) + 1)
        if found != count:
            raise Failure("artifact.mismatch", f"output sem_seg has {found} labels, not {count} ({_CLASSES})")
        truth = _true_labels(result.image, dataset, config)
        counted = truth != IGNORED
        wrong = truth[counted & (truth >= count)]
        if wrong.size:
            raise Failure(
                "dataset.invalid",
                f"the label map of {result.image.file_name} holds label {wrong.max()}, the model has {count}",
            )
        pixels = np.bincount(result.labels[counted] * count + truth[counted])
        return [[*divmod(pair, count), int(pixels[pair])] for pair in np.flatnonzero(pixels).tolist()]

    def score(self, values: Sequence[Rows], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return mIoU, fwIoU, mACC, pACC, and IoU-<label> and ACC-<label> of the labels that occur."""
        return self.measure(values, dataset, config)[0]

    def resampled(self, tally: Mapping[str, Array], weights: Array) -> dict[str, Array]:
        """Return the metrics of resampled images."""
        names = tally["labels"].tolist()
        metrics: dict[str, Array] = {}
        for number, row in enumerate(weights):
            hits, true, found = (row @ tally["pixels"]).astype(np.float64).reshape(3, -1)
            for name, value in _from_counts(hits, true, found, names).items():
                metrics.setdefault(name, np.full(len(weights), np.nan))[number] = value
        return metrics

    def measure(
        self, values: Sequence[Rows], dataset: Dataset, config: Any
    ) -> tuple[dict[str, float], dict[str, Array]]:
        """Return the metrics; and by image and label the pixels that are found, true, and both."""
        count = setting(config, _CLASSES)
        pixels = np.zeros((len(values), 3, count), dtype=np.int64)
        for image, rows in enumerate(values):
            for found, true, area in rows:
                pixels[image, 0, found] += area if found == true else 0
                pixels[image, 1, true] += area
                pixels[image, 2, found] += area
        labels = _label_names(config, dataset)
        tally = {
            "pixels": pixels.reshape(len(values), 3 * count),
            "labels": np.array(labels, dtype=np.str_),
        }
        return self._score(values, dataset, config), tally

    def _score(self, values: Sequence[Rows], dataset: Dataset, config: Any) -> dict[str, float]:
        count = setting(config, _CLASSES)
        confusion = np.zeros((count, count), dtype=np.int64)
        for rows in values:
            for found, true, pixels in rows:
                confusion[found, true] += pixels
        return _metrics(confusion, _label_names(config, dataset))


def _metrics(confusion: Array, names: Sequence[str]) -> dict[str, float]:
    """Turn pixel counts (predicted, true) into metrics; labels without a true pixel take no part."""
    hits = confusion.diagonal().astype(np.float64)
    true, found = confusion.sum(axis=0).astype(np.float64), confusion.sum(axis=1).astype(np.float64)
    return _from_counts(hits, true, found, names)


def _from_counts(hits: Array, true: Array, found: Array, names: Sequence[str]) -> dict[str, float]:
    """Turn pixels by label into metrics."""
    present = np.flatnonzero(true > 0)
    if not present.size:
        return {}
    accuracy = hits[present] / true[present]
    iou = hits[present] / (true + found - hits)[present]
    metrics = {
        "mIoU": iou.mean(),
        "fwIoU": (iou * true[present]).sum() / true.sum(),
        "mACC": accuracy.mean(),
        "pACC": hits.sum() / true.sum(),
    }
    for position, label in enumerate(present.tolist()):
        metrics[f"IoU-{names[label]}"] = iou[position]
        metrics[f"ACC-{names[label]}"] = accuracy[position]
    return {name: 100.0 * float(value) for name, value in metrics.items()}


def _true_labels(image: DatasetImage, dataset: Dataset, config: Any) -> LabelMap:
    size = (image.height, image.width)
    if not _has_label_maps(dataset):
        truth = dataset.require_panoptic()
        return truth.label_map(image.id, _labels_by_category(config, dataset), size)
    path = _label_file(image, dataset.source)
    try:
        with Image.open(path) as file:
            labels = np.asarray(file)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError and more
        raise Failure("dataset.invalid", f"cannot read label map {path}: {error}") from error
    if labels.shape != size or not np.issubdtype(labels.dtype, np.integer):
        raise Failure(
            "dataset.invalid",
            f"label map {path} is {labels.dtype} of shape {labels.shape}, not integers of shape {size}",
        )
    return labels.astype(np.int32)


def _has_label_maps(dataset: Dataset) -> bool:
    return dataset.source.kind == "semantic" or dataset.source.semantic_masks is not None


def _label_file(image: DatasetImage, source: DatasetSource) -> Path:
    if source.semantic_masks is None:
        return label_file(source, image.file_name)
    return source.semantic_masks / Path(image.file_name).with_suffix(".png")


def _labels_by_category(config: Any, dataset: Dataset) -> dict[int, int]:
    """Return panoptic category id -> semantic label.

    Panoptic FPN's semantic head knows one label, 0, for all things; other heads have one label per category.
    Which it is shows in the number of the model's labels.
    """
    truth = dataset.require_panoptic()
    count = setting(config, _CLASSES)
    if count == len(truth.stuff) + 1:
        labels = {category.id: 0 for category in truth.things}
        return labels | {category.id: label for label, category in enumerate(truth.stuff, start=1)}
    if count == len(truth.categories):
        return {category.id: label for label, category in enumerate(truth.categories)}
    raise Failure(
        "dataset.invalid",
        f"{truth.path} defines {len(truth.things)} things and {len(truth.stuff)} stuff categories; neither"
        f" gives the model's {count} semantic labels ({_CLASSES})",
        hint="name a folder of label maps as the dataset's semantic_masks",
    )


def label_terms(config: Any, dataset: Dataset) -> list[tuple[str, int | None]]:
    """Return name and category id of each semantic label; None for all things, and where none is known."""
    names = _label_names(config, dataset)
    ids: list[int | None] = [None] * len(names)
    if dataset.panoptic is not None and not all(name.isdecimal() for name in names):
        for category, label in _labels_by_category(config, dataset).items():
            ids[label] = category
        if len(names) == len(dataset.panoptic.stuff) + 1:
            ids[0] = None
    return list(zip(names, ids, strict=True))


def _label_names(config: Any, dataset: Dataset) -> list[str]:
    """Return the name of each label; its number where label maps come without panoptic categories."""
    names = [str(label) for label in range(setting(config, _CLASSES))]
    if dataset.panoptic is None:
        return names
    categories, stuff = dataset.panoptic.categories, dataset.panoptic.stuff
    if len(names) == len(stuff) + 1:
        identifiers = [0, *(category.id for category in stuff)]
        return distinct(["things", *(category.name for category in stuff)], identifiers)
    if len(names) == len(categories):
        identifiers = [category.id for category in categories]
        return distinct([category.name for category in categories], identifiers)
    return names
