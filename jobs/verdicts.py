"""From what two workers measured to what the registry keeps: deltas, and the failure they amount to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from zooport.export_core.evaluation.deltas import MetricDelta, compare, judge, remarks, with_tolerances
from zooport.export_core.failures import FailureRecord, Stage
from zooport.jobs.values import BaselineResult, ExportJob, ExportResult

DRIFT = "accuracy.drift"
"""The failure whose beginning is looked for."""


@dataclass(frozen=True)
class Verdict:
    """What an export came to: its result with remarks, how its metrics moved, and why it failed if it did."""

    result: ExportResult
    deltas: Mapping[str, MetricDelta] = field(default_factory=dict)
    failure: FailureRecord | None = None


def decide(
    job: ExportJob,
    result: ExportResult,
    baseline: BaselineResult | None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    lack: str = "",
) -> Verdict:
    """Judge an export.

    Args:
        job: what was asked for.
        result: what the worker returned; its own failure comes first.
        baseline: the eager model's metrics; None for a job without a dataset.
        intervals: metric -> 95% confidence interval of its delta.
        lack: why there are none.

    Returns:
        The verdict. Without a baseline to compare with, an export cannot be trusted: it fails with the
        baseline's code, and its artifact stays for inspection.
    """
    if result.failure is not None:
        return Verdict(result, failure=result.failure)
    if baseline is None:
        return Verdict(result)
    if baseline.failure is not None:
        return Verdict(result, failure=_without_baseline(baseline.failure))
    chosen = job.tolerance, job.tolerance_origins
    deltas = with_tolerances(compare(baseline.metrics, result.metrics, intervals), *chosen)
    lack = lack or _without_interval(deltas)
    if lack:
        remark = f"no confidence interval of the deltas, the tolerances decided alone: {lack}"
        result = replace(result, notes=(*result.notes, remark))
    failure = judge(deltas, *chosen)
    if failure is not None:
        return Verdict(result, deltas, failure.at(Stage.EVALUATE).record())
    return Verdict(replace(result, notes=(*result.notes, *remarks(deltas, *chosen))), deltas)


def _without_interval(deltas: Mapping[str, MetricDelta]) -> str:
    """Return which judged metrics have no interval although the others may, "" if all have."""
    names = [name for name, each in deltas.items() if each.tolerance is not None and each.low is None]
    return f"{', '.join(names)} cannot be resampled, or few resamples define it" if names else ""


def _without_baseline(failure: FailureRecord) -> FailureRecord:
    message = f"exported, but the eager model could not be evaluated to compare with: {failure.message}"
    return replace(failure, message=message)
