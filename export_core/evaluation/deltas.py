"""The verdict: metrics of an exported model against those of the eager model it was made from.

A metric drifts when it moved by more than its tolerance, up or down, and when that is not explained by which
images the dataset happens to hold: when the whole confidence interval of the difference
(:mod:`zooport.export_core.evaluation.resampling`) lies on the side of zero on which the difference does. What
is beyond its tolerance with an interval that holds zero passes with a remark: nothing can be said about it.
Where there is no interval the tolerance decides alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.evaluation.metric_names import EVERY, bare
from zooport.export_core.failures import Failure

Interval = tuple[float, float]

# What is judged when a manifest says nothing, in points (0-100): each task's main metric.
DEFAULT_TOLERANCE: Mapping[str, float] = {"AP": 0.1, "AR@100": 0.1, "PQ": 0.1, "mIoU": 0.1}
DEFAULT_ORIGIN = "default: detectron2 publishes metrics to a tenth of a point"

# Differences of decimal fractions, 43.1 - 43.0, exceed 0.1 in the fifteenth digit.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Tolerance:
    """How far a metric may move, in points (0-100), up or down, and where that is said."""

    points: float
    origin: str


@dataclass(frozen=True)
class MetricDelta:
    """One metric of both models in points (0-100), None where a model lacks it; delta is their difference.

    Attributes:
        low, high: ends of the 95% confidence interval of ``delta``, None where there is none.
        tolerance, origin: what it was judged by, and where that is said; None for what is not judged.
    """

    baseline: float | None
    exported: float | None
    delta: float | None
    low: float | None = None
    high: float | None = None
    tolerance: float | None = None
    origin: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; interval and tolerance only where there are some."""
        always = ("baseline", "exported", "delta")
        return {name: value for name, value in asdict(self).items() if value is not None or name in always}

    @property
    def is_beyond(self) -> bool:
        """Whether it moved by more than its tolerance."""
        judged = self.tolerance is not None and self.delta is not None
        # Written so that a tolerance or a delta of NaN is beyond.
        return judged and not abs(self.delta or 0.0) <= (self.tolerance or 0.0) + _ROUNDING

    @property
    def is_explained_by_images(self) -> bool:
        """Whether another choice of images may well have given no difference, or the opposite one."""
        if self.low is None or self.high is None or self.delta is None:
            return False
        return self.low <= 0.0 <= self.high

    @property
    def has_drifted(self) -> bool:
        """Whether it moved by more than its tolerance, and not by chance."""
        return self.is_beyond and not self.is_explained_by_images


def compare(
    baseline: Mapping[str, float],
    exported: Mapping[str, float],
    intervals: Mapping[str, Interval] | None = None,
) -> dict[str, MetricDelta]:
    """Pair metrics by name; a metric that only one of the models has keeps None for the other.

    Args:
        baseline: metrics of the eager model.
        exported: metrics of the exported model.
        intervals: confidence intervals of their differences, for those that have one.
    """
    names = [*baseline, *(name for name in exported if name not in baseline)]
    found = intervals or {}
    return {name: _pair(baseline.get(name), exported.get(name), found.get(name)) for name in names}


def tolerance_of(
    name: str, given: Mapping[str, float], origins: Mapping[str, str] | None = None
) -> Tolerance | None:
    """Return the tolerance of a metric, None for one that is recorded and not judged.

    Args:
        name: "bbox/AP".
        given: what somebody chose; the most exact name counts: "bbox/AP", then "AP" for that of every task,
            then "*" for all that :data:`DEFAULT_TOLERANCE` names.
        origins: where that is said, by the same names.
    """
    is_default = bare(name) in DEFAULT_TOLERANCE
    for key in (name, bare(name), *([EVERY] if is_default else [])):
        if key in given:
            return Tolerance(given[key], (origins or {}).get(key, "given"))
    return Tolerance(DEFAULT_TOLERANCE[bare(name)], DEFAULT_ORIGIN) if is_default else None


def with_tolerances(
    deltas: Mapping[str, MetricDelta], given: Mapping[str, float], origins: Mapping[str, str] | None = None
) -> dict[str, MetricDelta]:
    """Return the deltas with what they are judged by; arguments are those of :func:`tolerance_of`."""
    judged = {}
    for name, delta in deltas.items():
        tolerance = tolerance_of(name, given, origins)
        judged[name] = replace(
            delta,
            tolerance=None if tolerance is None else tolerance.points,
            origin=None if tolerance is None else tolerance.origin,
        )
    return judged


def judge(
    deltas: Mapping[str, MetricDelta],
    tolerance: Mapping[str, float] | None = None,
    origins: Mapping[str, str] | None = None,
) -> Failure | None:
    """Return why the exported model cannot be trusted, None if it can.

    The verdict is two-sided: a gain beyond tolerance is as suspicious as a loss. NaN and infinity never pass,
    in any metric, and neither does a metric that only one of the models has. Costs are not judged.

    Args:
        deltas: from :func:`compare`.
        tolerance: metric name -> largest allowed absolute difference in points, see :func:`tolerance_of`.
            Metrics without are recorded but not judged.
        origins: where the tolerances are said.

    Returns:
        ``accuracy.nonfinite`` or ``accuracy.drift`` naming the worst metric, both values, delta and
        tolerance.
    """
    deltas = with_tolerances(without_costs(deltas), tolerance or {}, origins)
    for name, delta in deltas.items():
        problem = _nonfinite(name, delta) or _one_sided(name, delta)
        if problem is not None:
            return problem
    outside = {
        name: each for name, each in deltas.items() if each.is_beyond and not each.is_explained_by_images
    }
    if not outside:
        return None
    worst = max(outside, key=lambda name: abs(outside[name].delta or 0.0) - (outside[name].tolerance or 0.0))
    return _drift(worst, outside[worst], outside)


def remarks(
    deltas: Mapping[str, MetricDelta],
    tolerance: Mapping[str, float] | None = None,
    origins: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """Return one-line warnings about verdicts that say little.

    Two models that find nothing agree; a metric beyond its tolerance on too few images may be chance; a
    tolerance may be for a metric that was not measured.
    """
    deltas = with_tolerances(without_costs(deltas), tolerance or {}, origins)
    nothing = [
        f"{name} is 0 for the eager and the exported model: the verdict says nothing about accuracy"
        for name, delta in deltas.items()
        if bare(name) in DEFAULT_TOLERANCE and delta.baseline == 0 and delta.exported == 0
    ]
    unclear = [
        f"{name} moved by {delta.delta:+.3f} points, beyond the tolerance of {delta.tolerance:g}, but which"
        f" images were taken explains it ({_interval(delta)} holds 0): inconclusive, evaluate more images"
        for name, delta in deltas.items()
        if delta.is_beyond and delta.is_explained_by_images
    ]
    tasks = {name.partition("/")[0] for name in deltas}
    unused = [
        f"the tolerance of {name} judged nothing: {name} was not measured"
        for name in (tolerance or {})
        if name.partition("/")[0] in tasks and "/" in name and name not in deltas
    ]
    return (*nothing, *unclear, *unused)


def _pair(baseline: float | None, exported: float | None, interval: Interval | None) -> MetricDelta:
    delta = None if baseline is None or exported is None else exported - baseline
    return MetricDelta(baseline, exported, delta, *(interval or (None, None)))


def _nonfinite(name: str, delta: MetricDelta) -> Failure | None:
    for whose, value in (("eager", delta.baseline), ("exported", delta.exported)):
        if value is not None and not math.isfinite(value):
            return Failure(
                "accuracy.nonfinite",
                f"{name} of the {whose} model is {value}",
                details={"metrics": {name: delta.to_dict()}},
            )
    return None


def _one_sided(name: str, delta: MetricDelta) -> Failure | None:
    if delta.delta is not None:
        return None
    whose, other = ("exported", "eager") if delta.exported is None else ("eager", "exported")
    return Failure(
        "accuracy.drift",
        f"the {whose} model has no {name}, which the {other} model has",
        details={"metrics": {name: delta.to_dict()}},
    )


def _drift(name: str, delta: MetricDelta, outside: Mapping[str, MetricDelta]) -> Failure:
    more = f"; {len(outside) - 1} more metrics are outside" if len(outside) > 1 else ""
    chance = f", {_interval(delta)}" if delta.low is not None else ""
    return Failure(
        "accuracy.drift",
        f"{name} moved by {delta.delta:+.3f} points{chance}, from {delta.baseline:.3f} (eager) to"
        f" {delta.exported:.3f} (exported); the tolerance is {delta.tolerance:g} ({delta.origin}){more}",
        hint="inspect the kept artifact, or raise the tolerance if this format is known to differ",
        details={
            "tolerance": delta.tolerance,
            "origin": delta.origin,
            "metrics": {each: outside[each].to_dict() for each in outside},
        },
    )


def _interval(delta: MetricDelta) -> str:
    return f"95% interval {delta.low:+.3f} to {delta.high:+.3f}"
