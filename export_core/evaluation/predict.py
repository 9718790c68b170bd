"""Runs a model over a dataset and measures it: read, resize, predict, post-process, collect, score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, MutableMapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from zooport.export_core.evaluation.cityscapes_metrics import CityscapesMaskAP
from zooport.export_core.evaluation.coco_metrics import BoxAP, MaskAP
from zooport.export_core.evaluation.datasets import Dataset, DatasetImage
from zooport.export_core.evaluation.image_cache import ImageCache
from zooport.export_core.evaluation.images import read_image, require_format, resize_shortest_edge
from zooport.export_core.evaluation.keypoint_metrics import KeypointAP
from zooport.export_core.evaluation.lvis_metrics import LvisBoxAP, LvisMaskAP
from zooport.export_core.evaluation.outputs import check_outputs
from zooport.export_core.evaluation.panoptic_metrics import PanopticQuality
from zooport.export_core.evaluation.postprocess import to_image_frame
from zooport.export_core.evaluation.proposal_metrics import ProposalRecall
from zooport.export_core.evaluation.semantic_metrics import SemanticIoU
from zooport.export_core.evaluation.tasks import (
    TASKS,
    ImageOutputs,
    ImagePrediction,
    Task,
    key_of,
    measure_of,
    missing_output,
    register,
    select_tasks,
    setting,
)
from zooport.export_core.evaluation.voc_metrics import VocBoxAP
from zooport.export_core.failures import Failure

Progress = Callable[[int, int], None]

for _task in (BoxAP(), MaskAP(), KeypointAP(), PanopticQuality(), SemanticIoU(), ProposalRecall()):
    register(_task)
register(LvisBoxAP(), "lvis")
register(LvisMaskAP(), "lvis")
register(VocBoxAP(), "voc")
register(CityscapesMaskAP(), "cityscapes")


def known_tasks() -> Mapping[str, Task]:
    """Return all tasks by name."""
    return TASKS


class Predictor(Protocol):
    """A model ready to run: eager, or an artifact of any format.

    One whose attribute ``in_image_frame`` is true takes also ``height`` and ``width`` of the original image,
    int64 (), and returns all in its frame: pred_masks bool (N, 1, H, W), sem_seg labels, int64 (1, H, W).
    """

    def __call__(self, image: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        """Run one image.

        Args:
            image: float32 (C, H, W), 0-255, in the config's channel order, already resized.

        Returns:
            Numpy arrays by detectron2's field names, in pixels of the given image: pred_boxes (N, 4) xyxy
            float32, scores (N,), pred_classes (N,) contiguous integers, pred_masks (N, 1, M, M)
            probabilities, pred_keypoints (N, K, 3), sem_seg (C, H, W) logits; whichever the model has.
        """


def evaluate(
    predictor: Predictor,
    dataset: Dataset,
    config: Any,
    progress: Progress | None = None,
    cache: ImageCache | None = None,
) -> dict[str, float]:
    """Measure a model on a dataset.

    Args:
        predictor: the model.
        dataset: checked annotations and images.
        config: the model's merged detectron2 config.
        progress: called with (images done, images in all) after each image.
        cache: of resized images, as :func:`open_image_cache` returns it; None decodes every image.

    Returns:
        Metrics by "<task>/<metric>" in points (0-100): {"bbox/AP": 43.9, "bbox/AP-person": ...}. A metric
        that the dataset leaves undefined whatever the model says (APs without small objects) is left out.

    Raises:
        Failure: ``dataset.invalid``: an unreadable image, or a dataset that does not fit the model;
            ``accuracy.nonfinite``: an output holds NaN or infinity; ``artifact.mismatch``: an output is
            missing or has a wrong shape.
    """
    predictions = predict_images(predictor, dataset, config, progress=progress, cache=cache)
    return compute_metrics(predictions, dataset, config)


def predict_images(
    predictor: Predictor,
    dataset: Dataset,
    config: Any,
    images: Sequence[DatasetImage] | None = None,
    progress: Progress | None = None,
    cache: ImageCache | None = None,
) -> list[ImagePrediction]:
    """Run the model over images of a dataset, all or a part, and collect what the metrics need.

    The result is plain values, so parts may be predicted in different processes and joined in any order.

    Raises:
        Failure: as :func:`evaluate`.
    """
    require_format(setting(config, "INPUT.FORMAT"))
    tasks = select_tasks(config, dataset)
    todo = dataset.images if images is None else images
    predictions = []
    for done, image in enumerate(todo, start=1):
        network_input = load_network_input(image, config, cache)
        predictions.append(_predict(predictor, image, network_input, dataset, config, tasks))
        if progress is not None:
            progress(done, len(todo))
    return predictions


def compute_metrics(
    predictions: Iterable[ImagePrediction],
    dataset: Dataset,
    config: Any,
    tallies: MutableMapping[str, Mapping[str, npt.NDArray[Any]]] | None = None,
) -> dict[str, float]:
    """Turn the predictions of all images of a dataset into metrics.

    Args:
        predictions: of every image exactly once, in any order.
        dataset: the dataset that they were made for.
        config: the model's merged detectron2 config.
        tallies: is given what each task keeps of all images, by its key in TASKS, for
            :mod:`zooport.export_core.evaluation.resampling`.

    Raises:
        ValueError: images are missing or come twice.
        Failure: ``dataset.invalid``: the dataset defines no metric at all.
    """
    by_image: dict[int | str, ImagePrediction] = {}
    for prediction in predictions:
        if prediction.image_id in by_image:
            raise ValueError(f"image {prediction.image_id} was predicted twice")
        by_image[prediction.image_id] = prediction
    if by_image.keys() != {image.id for image in dataset.images}:
        raise ValueError(f"predictions of {len(by_image)} images for a dataset of {len(dataset.images)}")
    metrics: dict[str, float] = {}
    for task in select_tasks(config, dataset):
        values = [by_image[image.id].values[task.name] for image in dataset.images]
        measure = measure_of(task)
        if tallies is None or measure is None:
            scored = task.score(values, dataset, config)
        else:
            scored, tallies[key_of(task)] = measure(values, dataset, config)
        for name, points in scored.items():
            metrics[f"{task.name}/{name}"] = points
    if not metrics:
        raise dataset.failure(
            f"has no object to find in the {len(dataset.images)} evaluated images, so no metric is defined"
        )
    return metrics


def load_network_input(
    image: DatasetImage, config: Any, cache: ImageCache | None = None
) -> tuple[npt.NDArray[np.float32], tuple[int, int]]:
    """Read and resize one image as the config says.

    Returns:
        float32 (C, H, W) in 0-255 for the predictor, and its (H, W).

    Raises:
        Failure: ``dataset.invalid`` naming the file: unreadable, or of another size than the annotations say.
    """
    key = None if cache is None else cache.key(image.path, (image.height, image.width))
    planes = None if cache is None or key is None else cache.load(key)
    if planes is None:
        planes = _resized_planes(image, config)
        # A file that was replaced meanwhile would be kept under the name of the one before.
        if cache is not None and key is not None and cache.key(image.path, key.size) == key:
            cache.keep(key, planes)
    return np.ascontiguousarray(planes, dtype=np.float32), (planes.shape[1], planes.shape[2])


def _resized_planes(image: DatasetImage, config: Any) -> npt.NDArray[np.uint8]:
    """Return the image resized, uint8 (C, H, W)."""
    pixels = read_image(image.path, setting(config, "INPUT.FORMAT"))
    if pixels.shape[:2] != (image.height, image.width):
        raise Failure(
            "dataset.invalid",
            f"image {image.path} is {pixels.shape[1]}x{pixels.shape[0]} pixels after EXIF rotation, but the"
            f" annotations say {image.width}x{image.height}",
            hint="annotations and images are not of the same dataset, or the image was changed",
        )
    limits = setting(config, "INPUT.MIN_SIZE_TEST"), setting(config, "INPUT.MAX_SIZE_TEST")
    try:
        resized = resize_shortest_edge(pixels, *limits)
    except Failure as failure:
        raise Failure(failure.code, f"image {image.path}: {failure.message}") from failure
    return resized.transpose(2, 0, 1)


def _predict(
    predictor: Predictor,
    image: DatasetImage,
    network_input: tuple[npt.NDArray[np.float32], tuple[int, int]],
    dataset: Dataset,
    config: Any,
    tasks: Sequence[Task],
) -> ImagePrediction:
    planes, size = network_input
    if getattr(predictor, "in_image_frame", False):
        framed: Any = predictor
        outputs = framed(planes, height=np.array(image.height), width=np.array(image.width))
        size = image.height, image.width
    else:
        outputs = predictor(planes)
    for task in tasks:
        for name in task.outputs:
            if name not in outputs:
                raise missing_output(task, name)
    checked = check_outputs(outputs, image.file_name, classes=len(dataset.categories))
    checked = to_image_frame(checked, size, (image.height, image.width))
    result = ImageOutputs(image, checked, size)
    return ImagePrediction(image.id, {task.name: task.collect(result, dataset, config) for task in tasks})
