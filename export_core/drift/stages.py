"""The first stage of a forward pass in which an artifact departs from the eager model, on one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from zooport.export_core.drift.report import PROPOSALS
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.modeling.stages import Call, named_tensors, recording, stage_modules

if TYPE_CHECKING:
    from torch import nn

    from zooport.export_core.prediction import Artifact

RELATIVE = "of the largest value"
ROWS = "have no counterpart"
# Sums in another order differ by millionths; a deep network makes a hundred times that of it.
SAME = 1e-3
SAME_IN_FLOAT32 = 1e-4
_NEAR = 0.05  # pixels within which two proposals are the same
_GENERATOR = "proposal_generator"
_OF_DETECTIONS = ("mask_head", "keypoint_head")
_LOST = 0.02  # part of the proposals that may have no counterpart: ties and thresholds

Order = npt.NDArray[np.intp]  # for each row of the eager model's that of the artifact's, -1 for none


@dataclass(frozen=True)
class Deviation:
    """How much one tensor differs, and how much it may."""

    stage: str
    tensor: str
    difference: float
    unit: str
    limit: float


@dataclass(frozen=True)
class Comparison:
    """What was compared on one image.

    Attributes:
        deviations: in the order of the forward pass.
        untold: parts of the eager model of which the artifact told nothing, or not all.
        whole_proposals: whether the choice of proposals was among what was compared.
    """

    deviations: tuple[Deviation, ...]
    untold: tuple[str, ...]
    whole_proposals: bool


def compare_stages(
    model: nn.Module,
    artifact: Artifact,
    inputs: Mapping[str, Array],
    given: Mapping[str, Array],
    boxes: tuple[Array, Array],
) -> Comparison:
    """Compare what each part of the model returned for one image with what the artifact tells of it.

    Args:
        model: the eager one.
        artifact: the exported one.
        inputs: of the eager model, the image first.
        given: of the artifact: the same, and what its options ask for.
        boxes: of the detections (N, 4) of each, in the same frame; there may be none.
    """
    import torch

    with recording(model) as calls, torch.no_grad():
        model([{name: torch.from_numpy(value) for name, value in inputs.items()}])
    arguments = {name: call.arguments for name, call in calls.items()}
    exporter, options = artifact.format, artifact.options
    inner = exporter.inner_outputs(artifact.directory, given, arguments, options)
    stages = stage_modules(model)
    tolerance = exporter.tolerance(options)
    comparer = _Comparer(inner, max(SAME, tolerance.relative), tolerance.unmatched)
    if not exporter.inner_parts_are_called:
        comparer.align(calls, boxes, max(_NEAR, tolerance.pixels))
    deviations = [one for name, call in calls.items() for one in comparer.compare(name, stages[name], call)]
    chosen = _GENERATOR not in calls or _GENERATOR in inner
    return Comparison(tuple(deviations), _untold(model, inner), chosen)


def _untold(model: nn.Module, inner: Mapping[str, Sequence[Array]]) -> tuple[str, ...]:
    """Return the parts of the model with parameters that no told part has."""
    told = tuple(f"{name}." for name in inner)
    names = [name for name, _ in model.named_parameters() if not name.startswith(told)]
    return tuple(dict.fromkeys(name.partition(".")[0] for name in names))


@dataclass(frozen=True)
class _Rows:
    """How many rows the artifact has, and which of them is which of the eager model's."""

    count: int
    order: Order

    @classmethod
    def of(cls, wanted: Array, found: Array, near: float) -> _Rows:
        return cls(len(found), counterparts(wanted, found, near))


class _Comparer:
    """Compares parts one after the other; rows of the ROI heads are put in the eager model's order."""

    def __init__(self, inner: Mapping[str, Sequence[Array]], limit: float, unmatched: float) -> None:
        self.inner = inner
        self.limit = limit
        self.unmatched = unmatched
        self.proposals: _Rows | None = None
        self.detections: _Rows | None = None

    def align(self, calls: Mapping[str, Call], detections: tuple[Array, Array], near: float) -> None:
        """Find which proposals and detections of the artifact are which of the eager model's."""
        call, found = calls.get(_GENERATOR), self.inner.get(_GENERATOR, ())
        boxes = [value.numpy() for _, value in named_tensors(call.output)] if call is not None else []
        wanted = next((value for value in boxes if _is_boxes(value)), None)
        there = next((value for value in found if _is_boxes(value)), None)
        if wanted is not None and there is not None:
            self.proposals = _Rows.of(wanted, there, _NEAR)
        self.detections = _Rows.of(*detections, near)

    def compare(self, name: str, stage: str, call: Call) -> list[Deviation]:
        """Return how much the tensors of one part differ; none of one that the artifact tells nothing of."""
        found = list(self.inner.get(name, ()))
        rows = self._rows(name)
        deviations = []
        for key, value in named_tensors(call.output):
            wanted = value.detach().cpu().numpy()
            place = next((index for index, one in enumerate(found) if _alike(one, wanted)), None)
            if place is None:
                continue
            other = found.pop(place)
            label = f"{name}: {key}" if key else name
            if stage == PROPOSALS and _is_boxes(wanted):
                deviations.append(proposal_deviation(label, wanted, other, self.unmatched))
                continue
            if rows is not None:
                if (len(wanted), len(other)) != (len(rows.order), rows.count):
                    continue
                kept = rows.order >= 0
                wanted, other = wanted[kept], other[rows.order[kept]]
            if wanted.shape == other.shape:
                apart = relative_difference(wanted, other)
                deviations.append(Deviation(stage, label, apart, RELATIVE, self.limit))
        return deviations

    def _rows(self, name: str) -> _Rows | None:
        """Return what the rows of a part's tensors are; None where they are in the same order anyhow."""
        if not name.startswith("roi_heads."):
            return None
        return self.detections if name.endswith(_OF_DETECTIONS) else self.proposals


def proposal_deviation(label: str, wanted: Array, found: Array, unmatched: float) -> Deviation:
    """Return how many proposals (P, 4) have no counterpart, as a part of the larger side.

    ``unmatched`` is the part that the format may lose.
    """
    most = max(len(wanted), len(found), 1)
    matched = int((counterparts(wanted, found) >= 0).sum())
    return Deviation(PROPOSALS, label, (most - matched) / most, ROWS, _LOST + unmatched)


def relative_difference(wanted: Array, found: Array) -> float:
    """Return the largest difference as a part of the largest value; infinity for what is not finite."""
    if not wanted.size:
        return 0.0
    largest = np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max()
    if not np.isfinite(largest):
        return float("inf")
    return float(largest / max(float(np.abs(wanted).max()), 1e-12))


def counterparts(wanted: Array, found: Array, near: float = _NEAR) -> Order:
    """Return for each box (P, 4) the nearest one that is not taken yet, -1 where none is as near."""
    order = np.full(len(wanted), -1, dtype=np.intp)
    free = np.ones(len(found), dtype=bool)
    for index, box in enumerate(wanted):
        if not free.any():
            break
        distance = np.where(free, np.abs(found - box).max(axis=1), np.inf)
        nearest = int(distance.argmin())
        if distance[nearest] <= near:
            order[index] = nearest
            free[nearest] = False
    return order


def _is_boxes(value: Array) -> bool:
    return value.ndim == 2 and value.shape[1] == 4


def _alike(one: Array, other: Array) -> bool:
    return (
        one.ndim == other.ndim
        and one.shape[1:] == other.shape[1:]
        and (one.ndim > 1 or one.shape == other.shape)
    )
