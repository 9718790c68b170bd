"""The verdict: metrics of an exported model against those of the eager model it was made from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.failures import Failure

# What is judged when a manifest says nothing, in points (0-100): each task's main metric.
DEFAULT_TOLERANCE: Mapping[str, float] = {"AP": 0.1, "AR@100": 0.1, "PQ": 0.1, "mIoU": 0.1}

# Differences of decimal fractions, 43.1 - 43.0, exceed 0.1 in the fifteenth digit.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class MetricDelta:
    """One metric of both models in points (0-100), None where a model lacks it; delta is their difference."""

    baseline: float | None
    exported: float | None
    delta: float | None

    def to_dict(self) -> dict[str, float | None]:
        """Return JSON-ready values."""
        return asdict(self)


def compare(baseline: Mapping[str, float], exported: Mapping[str, float]) -> dict[str, MetricDelta]:
    """Pair metrics by name; a metric that only one of the models has keeps None for the other."""
    names = [*baseline, *(name for name in exported if name not in baseline)]
    return {name: _pair(baseline.get(name), exported.get(name)) for name in names}


def judge(deltas: Mapping[str, MetricDelta], tolerance: Mapping[str, float] | None = None) -> Failure | None:
    """Return why the exported model cannot be trusted, None if it can.

    The verdict is two-sided: a gain beyond tolerance is as suspicious as a loss. NaN and infinity never pass,
    in any metric, and neither does a metric that only one of the models has. Costs are not judged.

    Args:
        deltas: from :func:`compare`.
        tolerance: metric name -> largest allowed absolute difference in points. "AP" is for the AP of every
            task; "bbox/AP" is more specific and wins. It adds to and overrides :data:`DEFAULT_TOLERANCE`;
            other metrics are recorded but not judged.

    Returns:
        ``accuracy.nonfinite`` or ``accuracy.drift`` naming the worst metric, both values, delta and
        tolerance.
    """
    deltas = without_costs(deltas)
    for name, delta in deltas.items():
        problem = _nonfinite(name, delta) or _one_sided(name, delta)
        if problem is not None:
            return problem
    allowed = {**DEFAULT_TOLERANCE, **(tolerance or {})}
    outside = []
    for name, delta in deltas.items():
        limit = _limit(name, allowed)
        if limit is not None and delta.delta is not None and not abs(delta.delta) <= limit + _ROUNDING:
            outside.append((abs(delta.delta) - limit, name, delta, limit))
    if not outside:
        return None
    _, name, delta, limit = max(outside, key=lambda entry: entry[0])
    return _drift(name, delta, limit, {entry[1]: entry[2].to_dict() for entry in outside})


def remarks(deltas: Mapping[str, MetricDelta]) -> tuple[str, ...]:
    """Return one-line warnings about verdicts that say little: two models that find nothing agree."""
    return tuple(
        f"{name} is 0 for the eager and the exported model: the verdict says nothing about accuracy"
        for name, delta in deltas.items()
        if _metric(name) in DEFAULT_TOLERANCE and delta.baseline == 0 and delta.exported == 0
    )


def _pair(baseline: float | None, exported: float | None) -> MetricDelta:
    delta = None if baseline is None or exported is None else exported - baseline
    return MetricDelta(baseline, exported, delta)


def _metric(name: str) -> str:
    return name.rpartition("/")[2]


def _limit(name: str, allowed: Mapping[str, float]) -> float | None:
    return allowed.get(name, allowed.get(_metric(name)))


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


def _drift(name: str, delta: MetricDelta, limit: float, outside: Mapping[str, Any]) -> Failure:
    more = f"; {len(outside) - 1} more metrics are outside" if len(outside) > 1 else ""
    return Failure(
        "accuracy.drift",
        f"{name} moved by {delta.delta:+.3f} points, from {delta.baseline:.3f} (eager) to"
        f" {delta.exported:.3f} (exported); the tolerance is {limit:g}{more}",
        hint="inspect the kept artifact, or raise the tolerance if this format is known to differ",
        details={"tolerance": limit, "metrics": dict(outside)},
    )
