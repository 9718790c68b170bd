"""The search: both models on the images, the worst drawn, and on these the first stage that differs."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from zooport.export_core import extensions
from zooport.export_core.config import Config, load_config
from zooport.export_core.diagnosis import disk_failure
from zooport.export_core.drawing import draw, side_by_side
from zooport.export_core.drift.agreement import difference, pair_up
from zooport.export_core.drift.report import HEADS, OUTPUTS, POST_PROCESSING, PROPOSALS, DriftReport
from zooport.export_core.drift.stages import (
    RELATIVE,
    ROWS,
    SAME,
    SAME_IN_FLOAT32,
    Comparison,
    Deviation,
    compare_stages,
    proposal_deviation,
    relative_difference,
)
from zooport.export_core.evaluation import (
    Dataset,
    DatasetImage,
    ImagePrediction,
    compute_metrics,
    load_dataset,
    load_network_input,
    open_image_cache,
    predict_images,
    read_image,
)
from zooport.export_core.evaluation.findings import Finding, find
from zooport.export_core.evaluation.postprocess import scale_boxes
from zooport.export_core.failures import Stage
from zooport.export_core.formats.base import AnyPredictor, Array
from zooport.export_core.pipeline import (
    eager_predictor,
    extra_inputs_of,
    load_checkpoint,
    predictor_of_images,
)
from zooport.export_core.prediction import Artifact, marks_of
from zooport.export_core.samples import made_up_inputs
from zooport.export_core.sources import CheckpointSource, DatasetSource

IMAGES_SEEN = 500  # of a large dataset; categories and worst images show in a part
WORST = 3
CATEGORIES = 5
_MOVED = 0.005  # points that a category has moved by if it is to be named
_APART = 1e-4  # difference of an image that rounding makes
_DRAWN_ABOVE = 0.3
_DRAWN = 12  # findings of an image at most, the best
_NO_BOXES = np.zeros((0, 4), dtype=np.float32)
_PER_CATEGORY = re.compile(r"(?P<task>[^/]+)/(?:AP|IoU)-(?P<category>.+)")


@dataclass(frozen=True)
class _Seen:
    """What both models found in one image."""

    image: DatasetImage
    eager: list[Finding]
    exported: list[Finding]
    difference: float


def locate(
    checkpoint: CheckpointSource,
    directory: Path,
    dataset: DatasetSource,
    folder: Path,
    report: Callable[[Stage], None],
) -> DriftReport:
    """Find out where an artifact drifts; see :func:`zooport.export_core.drift.locate`."""
    report(Stage.LOAD)
    artifact = Artifact.open(directory)
    with extensions.active(checkpoint.imports):
        config = load_config(checkpoint.config, checkpoint.overrides)
        model, _, _ = load_checkpoint(checkpoint, config)
        search = _Search(artifact, config, model, load_dataset(dataset))
        report(Stage.EVALUATE)
        seen, categories = search.run()
        worst = sorted(seen, key=lambda one: -one.difference)[:WORST]
        worst = [one for one in worst if one.difference > _APART] or worst[:1]
        stage, deviation, remark = search.first_stage(worst)
    drawn = [one for one in worst if one.difference > _APART]
    images = [
        (one.image.file_name, str(_draw(one, artifact, folder, place)), one.difference)
        for place, one in enumerate(drawn, start=1)
    ]
    return DriftReport(
        stage,
        deviation.tensor,
        deviation.difference,
        deviation.unit,
        tuple(categories),
        tuple(images),
        len(seen),
        remark,
    )


class _Search:
    """Both models and the images."""

    def __init__(self, artifact: Artifact, config: Config, model: Any, dataset: Dataset) -> None:
        self.artifact = artifact
        self.config = config
        self.model = model
        self.dataset = _part_of(dataset)
        self.cache = open_image_cache(self.dataset, config)
        extra = extra_inputs_of(model)
        self.extra = extra
        self.eager = _Remembering(predictor_of_images(eager_predictor(model), extra))
        self.exported = _Remembering(artifact.load())

    def run(self) -> tuple[list[_Seen], list[tuple[str, float, float]]]:
        """Run both models on every image; return what they found, and the categories that moved most."""
        seen = []
        predictions: dict[_Remembering, list[ImagePrediction]] = {self.eager: [], self.exported: []}
        for image in self.dataset.images:
            found = []
            for predictor, collected in predictions.items():
                collected.extend(self._predict(predictor, image))
                found.append(self._find(predictor, image))
            apart = difference(found[0], found[1], (image.height, image.width))
            seen.append(_Seen(image, found[0], found[1], apart))
        eager, exported = (compute_metrics(one, self.dataset, self.config) for one in predictions.values())
        return seen, moved_categories(eager, exported, self.dataset.class_names)

    def first_stage(self, worst: Sequence[_Seen]) -> tuple[str, Deviation, str]:
        """Return the first stage that differs on these images, how it shows, and what could not be told."""
        comparisons = [self._compare(one.image) for one in worst]
        deviations = [one for comparison in comparisons for one in comparison.deviations]
        inner = _first_beyond(deviations, lambda one: one.limit)
        if inner is not None:
            return inner.stage, inner, ""
        outputs = [_output_deviation(one) for one in worst]
        last = max(outputs, key=lambda one: one.difference)
        tolerance = self.artifact.format.tolerance(self.artifact.options)
        same = all(one.difference <= _APART for one in worst)
        if tolerance.unmatched and not same:
            # With fewer digits every stage is a little off, and within what the format allows.
            inner = _first_beyond(deviations, lambda one: SAME_IN_FLOAT32)
            if inner is not None:
                return inner.stage, inner, "every stage is within the format's tolerance; this is the first"
        if same:
            return OUTPUTS, last, "the results of the images that were looked at are the same"
        return _judged_last(comparisons, last, self.artifact.format.info.name)

    def _predict(self, predictor: _Remembering, image: DatasetImage) -> list[ImagePrediction]:
        return predict_images(predictor, self.dataset, self.config, [image], cache=self.cache)

    def _find(self, predictor: _Remembering, image: DatasetImage) -> list[Finding]:
        size = image.height, image.width
        network_size = size if predictor.in_image_frame else predictor.network_size
        return find(predictor.outputs, image.file_name, network_size, size, self.artifact.vocabulary)

    def _compare(self, image: DatasetImage) -> Comparison:
        planes, network_size = load_network_input(image, self.config, self.cache)
        inputs = {"image": planes, **made_up_inputs(planes, self.extra)}
        given: dict[str, Array] = dict(inputs)
        for predictor in (self.eager, self.exported):
            self._predict(predictor, image)
        boxes = [one.outputs.get("pred_boxes", _NO_BOXES) for one in (self.eager, self.exported)]
        if self.exported.in_image_frame:
            given |= {"height": np.array(image.height), "width": np.array(image.width)}
            boxes[0] = scale_boxes(boxes[0], network_size, (image.height, image.width))
        comparison = compare_stages(self.model, self.artifact, inputs, given, (boxes[0], boxes[1]))
        dense = self._dense()
        known = {one.tensor.replace("sem_seg", "sem_seg_head") for one in dense}
        untold = tuple(part for part in comparison.untold if part not in known)
        return replace(comparison, deviations=comparison.deviations + dense, untold=untold)

    def _dense(self) -> tuple[Deviation, ...]:
        """Return how much outputs differ that are a stage's own: logits of labels, and bare proposals."""
        outputs = self.eager.outputs, self.exported.outputs
        deviations = []
        tolerance = self.artifact.format.tolerance(self.artifact.options)
        logits = [side["sem_seg"] for side in outputs if "sem_seg" in side]
        if len(logits) == 2 and logits[0].shape == logits[1].shape and logits[1].dtype.kind == "f":
            apart = relative_difference(*logits)
            limit = max(SAME, tolerance.relative)
            deviations.append(Deviation(HEADS, "sem_seg", apart, RELATIVE, limit))
        boxes = [side["proposal_boxes"] for side in outputs if "proposal_boxes" in side]
        if len(boxes) == 2 and not self.exported.in_image_frame:
            deviations.append(proposal_deviation("proposal_boxes", boxes[0], boxes[1], tolerance.unmatched))
        return tuple(deviations)


class _Remembering:
    """A predictor that keeps what it returned last, and for which size."""

    def __init__(self, predictor: AnyPredictor) -> None:
        self.predictor = predictor
        self.in_image_frame: bool = getattr(predictor, "in_image_frame", False)
        self.outputs: Mapping[str, Array] = {}
        self.network_size = (0, 0)

    def __call__(self, image: Array, **frame: Array) -> dict[str, Array]:
        self.network_size = image.shape[1], image.shape[2]
        found = self.predictor(image, **frame)
        self.outputs = found
        return found


def moved_categories(
    eager: Mapping[str, float], exported: Mapping[str, float], names: Sequence[str]
) -> list[tuple[str, float, float]]:
    """Return the categories whose metric moved most: "<task>/<category>", eager and exported points.

    A dataset with a single category has no metric of it: the task's AP is that.
    """
    pairs = []
    for name, points in eager.items():
        found = _PER_CATEGORY.fullmatch(name)
        label = None if found is None else f"{found['task']}/{found['category']}"
        if label is None and len(names) == 1 and name.endswith("/AP"):
            label = f"{name.removesuffix('AP')}{names[0]}"
        if label is not None and name in exported and abs(exported[name] - points) > _MOVED:
            pairs.append((label, points, exported[name]))
    return sorted(pairs, key=lambda pair: -abs(pair[2] - pair[1]))[:CATEGORIES]


def _part_of(dataset: Dataset) -> Dataset:
    """Return the dataset, of a large one a part whose images lie at equal distances."""
    count = len(dataset.images)
    if count <= IMAGES_SEEN:
        return dataset
    images = tuple(dataset.images[index * count // IMAGES_SEEN] for index in range(IMAGES_SEEN))
    kept = {image.id for image in images}
    annotations = tuple(one for one in dataset.annotations if one.image_id in kept)
    return replace(dataset, images=images, annotations=annotations)


def _first_beyond(deviations: Sequence[Deviation], limit: Callable[[Deviation], float]) -> Deviation | None:
    """Return the largest deviation of the first stage that has one beyond the limit."""
    beyond = [one for one in deviations if not one.difference <= limit(one)]
    if not beyond:
        return None
    order = [one.stage for one in sorted(beyond, key=lambda one: _ORDER.index(one.stage))]
    # Shares of rows and parts of values do not compare: what is further beyond its limit is larger.
    return max((one for one in beyond if one.stage == order[0]), key=lambda one: one.difference / one.limit)


_ORDER = ("features", PROPOSALS, HEADS, POST_PROCESSING, OUTPUTS)


def _output_deviation(seen: _Seen) -> Deviation:
    """Return how the results of an image differ: what is found, or else how sure, where and what shape."""
    size = seen.image.height, seen.image.width
    instances = [[one for one in side if one.score is not None] for side in (seen.eager, seen.exported)]
    pairs = pair_up(instances[0], instances[1], size)
    most = max(len(side) for side in instances)
    lost = 1 - len(pairs) / most if most else 0.0
    if lost > 0:
        return Deviation(POST_PROCESSING, "detections", lost, ROWS, 0.0)
    scores = max((abs(pair.eager.confidence - pair.exported.confidence) for pair in pairs), default=0.0)
    unlike = max((1 - pair.likeness for pair in pairs), default=0.0)
    if max(scores, unlike) > SAME_IN_FLOAT32:
        if scores >= unlike:
            return Deviation(POST_PROCESSING, "scores", scores, "of score", 0.0)
        return Deviation(POST_PROCESSING, "boxes, masks or keypoints", unlike, "of 1 - overlap", 0.0)
    unit = "of the difference of an image"
    return Deviation(POST_PROCESSING, "results", seen.difference, unit, 0.0)


def _judged_last(comparisons: Sequence[Comparison], last: Deviation, name: str) -> tuple[str, Deviation, str]:
    """Return post-processing as the first stage that differs, if all before it were compared."""
    untold = list(dict.fromkeys(part for one in comparisons for part in one.untold))
    if untold:
        return OUTPUTS, last, f"{name} tells nothing of {', '.join(untold)} inside of this artifact"
    if not all(one.whole_proposals for one in comparisons):
        return POST_PROCESSING, last, f"{name} does not tell which proposals were chosen: that counts as well"
    return POST_PROCESSING, last, ""


def _draw(seen: _Seen, artifact: Artifact, folder: Path, place: int) -> Path:
    """Draw an image, eager and exported, and return the PNG's path."""
    pixels = read_image(seen.image.path, "RGB")
    pictures = []
    for title, found in (("eager", seen.eager), ("exported", seen.exported)):
        shown = [one for one in found if one.confidence >= _DRAWN_ABOVE][:_DRAWN]
        marks = marks_of(shown, artifact.vocabulary)
        pictures.append((f"{title}: {len(shown)} of {len(found)} shown", draw(pixels, marks)))
    path = folder / f"{place}-{Path(seen.image.file_name).stem}.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(side_by_side(pictures)).save(path, format="PNG", compress_level=3)
    except OSError as error:
        raise disk_failure(error, Stage.EVALUATE, path) from None
    return path
