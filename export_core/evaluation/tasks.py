"""What can be measured: one :class:`Task` per metric family, found by name in a registry.

Adding a task is one file with a class that has these members, and its registration with :func:`register`.
Tasks that measure the same by the rules of different datasets (box AP of COCO, of LVIS, of Pascal VOC) share
a name; of these one applies.
A task works in two steps so that evaluation can be split over images and joined again without changing a
digit: ``collect`` turns one image's outputs into a small plain value, ``score`` turns all values into
metrics.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, reduce
from typing import Any, Protocol

import numpy as np

from zooport.export_core.evaluation.datasets import Dataset, DatasetImage
from zooport.export_core.evaluation.postprocess import Array, PastedMask, paste_each
from zooport.export_core.evaluation.segmentation import LabelMap, semantic_labels
from zooport.export_core.failures import Failure
from zooport.export_core.outputs import FIELDS

_NO_DEFAULT = object()
_ABSENT = object()


def setting(config: Any, key: str, default: Any = _NO_DEFAULT) -> Any:
    """Return ``config.A.B`` for the key ``A.B``; without it the default, or else AttributeError."""
    value = reduce(lambda node, name: getattr(node, name, _ABSENT), key.split("."), config)
    if value is not _ABSENT:
        return value
    if default is _NO_DEFAULT:
        raise AttributeError(f"the config has no {key}")
    return default


@dataclass(frozen=True)
class ImageOutputs:
    """What the model said about one image.

    Attributes:
        image: the dataset's image.
        outputs: instance fields in the original image's frame (see ``postprocess.to_image_frame``); other
            fields as the model gave them.
        network_size: (H, W) of the resized image that the network saw.
    """

    image: DatasetImage
    outputs: Mapping[str, Array]
    network_size: tuple[int, int]

    @cached_property
    def labels(self) -> LabelMap:
        """The semantic label of each pixel of the original image; computed once, whichever tasks ask."""
        size = (self.image.height, self.image.width)
        if self.outputs["sem_seg"].dtype == np.int64:
            given: LabelMap = self.outputs["sem_seg"][0].astype(np.int32)
            return given
        return semantic_labels(self.outputs["sem_seg"], self.network_size, size)

    @cached_property
    def masks(self) -> list[PastedMask]:
        """The instances' masks pasted into the original image; computed once, whichever tasks ask."""
        if self.outputs["pred_masks"].dtype == np.bool_:
            return [PastedMask(mask, 0, 0) for mask in self.outputs["pred_masks"][:, 0]]
        size = self.image.height, self.image.width
        return paste_each(self.outputs["pred_masks"], self.outputs["pred_boxes"], *size)


@dataclass(frozen=True)
class ImagePrediction:
    """The collected values of one image, task name -> plain JSON value."""

    image_id: int | str
    values: Mapping[str, Any] = field(default_factory=dict)


class Task(Protocol):
    """One family of metrics.

    For confidence intervals (:mod:`zooport.export_core.evaluation.resampling`) a task has two more members;
    the differences of one without are judged by their size alone.

    - ``measure(values, dataset, config)``: what ``score`` returns, and arrays by name that suffice to score
      any choice of images;
    - ``resampled(tally, weights)``: the metrics, each (R,), for those arrays and weights (R, N): how often
      each of N images is in each of R resamples. NaN where a resample leaves a metric undefined.
    """

    @property
    def name(self) -> str:
        """Prefix of its metrics: "bbox" for "bbox/AP"."""

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of the model outputs that ``collect`` reads."""

    def applies(self, config: Any, dataset: Dataset) -> bool:
        """Whether the model predicts this and the dataset can judge it."""

    def check(self, config: Any, dataset: Dataset) -> None:
        """Refuse, before any forward pass, a dataset or config with which ``score`` would fail."""

    def collect(self, result: ImageOutputs, dataset: Dataset, config: Any) -> Any:
        """Return one image's prediction as a plain JSON value."""

    def score(self, values: Sequence[Any], dataset: Dataset, config: Any) -> dict[str, float]:
        """Return metrics in points (0-100), without prefix.

        ``values`` are the collected ones in the order of ``dataset.images``. A metric that this dataset
        leaves undefined whatever the model says (APs without small objects) is left out.
        """


TASKS: dict[str, Task] = {}


def register(task: Task, rules: str = "") -> None:
    """Make a task known; registering another one under the same name and rules is an error.

    Args:
        task: what it measures is its name.
        rules: whose rules it measures by, where tasks share a name: "lvis".
    """
    key = f"{task.name} ({rules})" if rules else task.name
    if key in TASKS:
        raise ValueError(f"a task named {key} is already registered")
    TASKS[key] = task


def key_of(task: Task) -> str:
    """Return the name of a registered task with its rules, by which :data:`TASKS` has it."""
    return next(key for key, known in TASKS.items() if known is task)


def measure_of(task: Task) -> Callable[..., tuple[dict[str, float], Mapping[str, Array]]] | None:
    """Return the task's ``measure``; None without one, or where only its ``score`` is its own."""
    for kind in type(task).__mro__:
        if "measure" in vars(kind):
            found: Callable[..., tuple[dict[str, float], Mapping[str, Array]]] = task.measure  # type: ignore[attr-defined]
            return found
        if "score" in vars(kind):
            return None
    return None


def select_tasks(config: Any, dataset: Dataset) -> list[Task]:
    """Return the tasks that apply to this model and dataset, checked.

    Raises:
        Failure: ``dataset.invalid``: no task applies, or the dataset contradicts the config.
    """
    selected = [task for task in TASKS.values() if task.applies(config, dataset)]
    if not selected:
        architecture = setting(config, "MODEL.META_ARCHITECTURE")
        raise dataset.failure(
            f"offers nothing to evaluate a {architecture} with",
            hint="a semantic or panoptic model needs the dataset's panoptic annotations",
        )
    names = [task.name for task in selected]
    if len(set(names)) < len(names):
        raise ValueError(f"tasks of the same name apply to a {dataset.source.kind} dataset: {names}")
    for task in selected:
        task.check(config, dataset)
    return selected


def unmeasured(config: Any, dataset: Dataset, fields: Iterable[str]) -> list[str]:
    """Return which of a model's outputs no metric speaks of on this dataset.

    Fields of extensions are left out, and heatmaps, which are the keypoints in another form.
    """
    read = {name for task in select_tasks(config, dataset) for name in task.outputs}
    return sorted(name for name in (FIELDS.keys() & set(fields)) - read - {"pred_keypoint_heatmaps"})


def unique_labels(dataset: Dataset) -> list[str]:
    """Return the class names, those that occur twice followed by their dataset id."""
    return distinct(dataset.class_names, dataset.category_ids)


def distinct(names: Sequence[str], identifiers: Sequence[int]) -> list[str]:
    """Return the names, those that occur twice followed by their identifier: metrics are told by them."""
    return [
        name if names.count(name) == 1 else f"{name}#{identifier}"
        for name, identifier in zip(names, identifiers, strict=True)
    ]


def require_classes(expected: int, key: str, dataset: Dataset) -> None:
    """Refuse a dataset with another number of categories than the model has classes.

    Raises:
        Failure: ``dataset.invalid`` naming both numbers and the config key.
    """
    found = len(dataset.categories)
    if found != expected:
        raise dataset.failure(
            f"defines {found} categories, but the model has {expected} classes ({key})",
            hint="name the dataset that this model was trained for",
        )


def missing_output(task: Task, name: str) -> Failure:
    """Return the failure of a model that lacks an output which the config promises."""
    return Failure(
        "artifact.mismatch", f"the model has no output {name}, which its config promises for {task.name}"
    )
