"""What is done about an export after it was evaluated: how sure its deltas are, and where a drift begins.

Both are parts of the export's job that workers do like any other. What they need lies in folders that all
workers share, so there are none for artifacts at an address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from zooport.export_core.diagnosis import disk_failure
from zooport.export_core.failures import FailureRecord, Stage
from zooport.export_core.isolation.child import resolve
from zooport.export_core.places import RemotePath
from zooport.jobs.values import BaselineJob, ExportJob, ExportResult, Part, PartKind
from zooport.jobs.worker import Course, Stages

FOLLOW_UPS = frozenset({PartKind.COMPARE, PartKind.LOCATE})
_LOCATED = f"{__name__}:located"


def is_follow_up(job: ExportJob | BaselineJob) -> bool:
    """Whether this is no part of making or evaluating an export, but what follows."""
    return job.part is not None and job.part.kind in FOLLOW_UPS


def comparison(job: ExportJob, result: ExportResult) -> ExportJob | str:
    """Return the part that finds out how sure the deltas of an export are, or why there is none."""
    if isinstance(job.output, RemotePath):
        return "no values of single images are kept beside artifacts at an address"
    if result.values is None:
        return "the exported model's values of single images were not kept"
    if job.baseline_values is None or not job.baseline_values.is_file():
        return "the eager model's values of single images are not in this output"
    return replace(job, part=Part(PartKind.COMPARE, (), values=result.values))


def location(job: ExportJob, result: ExportResult) -> ExportJob | str:
    """Return the part that finds out where a drift begins, or why there is none."""
    if isinstance(job.output, RemotePath) or isinstance(job.log, RemotePath):
        return "artifacts at an address are not searched"
    if result.artifact is None:
        return "there is no artifact"
    return replace(job, part=Part(PartKind.LOCATE, ()))


def follow_up(job: ExportJob, stages: Stages, course: Course) -> ExportResult:
    """Do one of these parts in a disposable process.

    Returns:
        A result with intervals, or with a drift report.

    Raises:
        Failure: what stopped it.
    """
    part, dataset = job.part, job.dataset
    if part is None or dataset is None or isinstance(job.log, RemotePath):
        raise TypeError(f"{job} is not followed up")
    course.enter(Stage.EVALUATE)
    if part.kind is PartKind.COMPARE:
        found = course.run(stages.compare, job.baseline_values, part.values)
        return ExportResult(job.id, 0.0, intervals=found)
    folder = job.log.with_name(f"{job.log.stem}.drift")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_failure(error, Stage.EVALUATE, folder) from None
    report = course.run(_LOCATED, stages.locate, job.checkpoint, job.output, dataset, folder)
    return ExportResult(job.id, 0.0, drift=report)


def located(function: str, *arguments: Any, report: Callable[[Stage], None]) -> dict[str, Any]:
    """Find where a drift begins, in a disposable process; return the report as plain values.

    A worker that takes the answer must not import what the report is made with.
    """
    found: dict[str, Any] = resolve(function)(*arguments, report=report).to_dict()
    return found | {
        "categories": _named(found["categories"], "name", "eager", "exported"),
        "images": _named(found["images"], "file", "picture", "difference"),
    }


def _named(rows: Iterable[Sequence[Any]], *names: str) -> list[dict[str, Any]]:
    """Return rows as mappings, whose meaning JSON keeps."""
    return [dict(zip(names, row, strict=True)) for row in rows]


def told(failure: FailureRecord) -> str:
    """Return a failure as part of a remark."""
    return f"{failure.code}: {failure.message}"


def not_located(why: str) -> str:
    """Return the remark on a drift whose beginning is not known."""
    return f"where the drift begins was not found: {why}"
