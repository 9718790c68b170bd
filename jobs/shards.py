"""Jobs whose dataset is evaluated in shards: how they are cut into parts, done, and put together again.

An export begins like any other and waits, verified, in its staging directory; its shards may then be
predicted by any workers at once; the last part joins their predictions to metrics and publishes. A baseline
consists of its shards and the joining. A part that is lost with its worker is done again alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from zooport.export_core.artifacts import (
    VALUES,
    Published,
    discard,
    make_staging,
    reveal_uploaded,
    staging_path,
    staging_prefix,
)
from zooport.export_core.description import verified_by
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.export_core.isolation import Cancellation, ForkServer
from zooport.export_core.places import Place, RemotePath
from zooport.export_core.remote_artifacts import kept_log
from zooport.export_core.remote_parts import forget
from zooport.export_core.shards import Shard, split
from zooport.jobs import travelling
from zooport.jobs.followups import follow_up, is_follow_up
from zooport.jobs.values import (
    ArtifactRecord,
    BaselineJob,
    BaselineResult,
    ExportJob,
    ExportResult,
    Part,
    PartKind,
)
from zooport.jobs.worker import (
    Course,
    OnStage,
    Permit,
    Stages,
    artifact_of,
    build,
    keep_values,
    publish_built,
    values_beside,
    with_disk,
)

Job = ExportJob | BaselineJob
Result = ExportResult | BaselineResult

_PREDICTIONS = ".shards"  # hidden: dropped when the artifact is published
PREDICTIONS_OF_BASELINE = f".baseline-*{_PREDICTIONS}"
"""Names of folders with an eager model's predictions, beside its log."""


def cut(jobs: Iterable[Job]) -> Iterator[Job]:
    """Yield the jobs; of those that are evaluated in shards, the first part.

    A dataset of one shard costs nothing more than it did.
    """
    for job in jobs:
        if job.part is not None or job.dataset is None or job.images <= job.shard_images:
            yield job
        else:
            yield replace(job, part=Part(PartKind.BEGIN, split(job.images, job.shard_images)))


def unfold(job: Job) -> list[Job]:
    """Return the shards with which a baseline begins when its turn comes; none for any other job or part."""
    if isinstance(job, BaselineJob) and job.part is not None and job.part.kind is PartKind.BEGIN:
        return _shards(job, job.timeout)
    return []


def opens_attempt(job: Job) -> bool:
    """Whether a try of this job is an attempt at the export: all of it, or its first part."""
    return job.part is None or job.part.kind is PartKind.BEGIN


def run_part(
    job: Job,
    stages: Stages,
    *,
    server: ForkServer | None = None,
    on_stage: OnStage | None = None,
    cancellation: Cancellation | None = None,
    permit: Permit = lambda: None,
) -> Result:
    """Do one part of a job in disposable processes; nothing is raised.

    Returns:
        What this part took and brought: remarks of the first one, metrics and artifact of the last one.
    """
    is_join = job.part is not None and job.part.kind is PartKind.JOIN
    with kept_log(job.log, goes_on=is_join) as log:
        course = Course(job, log, server, on_stage, cancellation)
        result: Result
        failure = None
        try:
            result = _do(job, stages, course, server, permit)
        except Exception as error:
            failure = course.failure(error)
        if failure is not None:
            result = _empty(job, failure)
    if isinstance(result, ExportResult):
        return replace(result, seconds=course.elapsed, stages=course.seconds())
    return replace(result, seconds=course.elapsed)


def _do(job: Job, stages: Stages, course: Course, server: ForkServer | None, permit: Permit) -> Result:
    part, dataset = job.part, job.dataset
    if part is None or dataset is None:
        raise ValueError(f"{job} is no part of a job")
    if isinstance(job, BaselineJob):
        course.enter(Stage.LOAD)
        if part.shard is not None:
            with _to_predict(_folder(job), course, server) as folder:
                course.run(stages.shard, job.checkpoint, dataset, part.shard, folder)
            return BaselineResult(job.key, 0.0)
        with _predicted(_folder(job), part.shards, course, server) as folder:
            metrics = course.run(stages.join, job.checkpoint, dataset, part.shards, folder)
            keep_values(folder / VALUES, job.values)
        _drop(_folder(job), course)
        return BaselineResult(job.key, 0.0, metrics)
    if is_follow_up(job):
        return follow_up(job, stages, course)
    if part.kind is PartKind.BEGIN:
        return ExportResult(job.id, 0.0, notes=_begin(job, stages, course, server))
    try:
        course.enter(Stage.EVALUATE)
        with _waiting(job, course, server) as (staging, published):
            if part.shard is not None:
                with _to_predict(_predictions(job), course, server) as folder:
                    course.run(stages.shard, staging, dataset, part.shard, folder)
                return ExportResult(job.id, 0.0)
            with _predicted(_predictions(job), part.shards, course, server) as folder:
                metrics = course.run(stages.join, staging, dataset, part.shards, folder)
                values = keep_values(folder / VALUES, values_beside(job.log))
            artifact = _publish(job, staging, published, course, permit)
    except Failure as failure:
        raise with_disk(failure, staging_path(job.output, job.id), job.output) from None
    return ExportResult(job.id, 0.0, artifact=artifact, metrics=metrics, values=values)


@contextmanager
def _waiting(
    job: ExportJob, course: Course, server: ForkServer | None
) -> Iterator[tuple[Path, Published | None]]:
    """Yield where the artifact is that waits, and what has been uploaded of it already."""
    if isinstance(job.output, RemotePath):
        with travelling.copy_of(staging_prefix(job.output, job.id), course, server) as (copy, uploaded):
            yield copy, uploaded.published()
    else:
        yield staging_path(job.output, job.id), None


def _publish(
    job: ExportJob, staging: Path, uploaded: Published | None, course: Course, permit: Permit
) -> ArtifactRecord:
    if uploaded is None or not isinstance(job.output, RemotePath):
        return publish_built(job, staging, course, permit)
    course.enter(Stage.PUBLISH)
    reveal_uploaded(job.output, job.id, uploaded, permit, course.run)
    return artifact_of(job, uploaded, verified_by(staging))


@contextmanager
def _to_predict(predictions: Place, course: Course, server: ForkServer | None) -> Iterator[Path]:
    """Yield the folder for a shard's predictions; what is left in it reaches those who join them."""
    if isinstance(predictions, Path):
        yield predictions
        return
    with travelling.folder_for(course, server) as folder:
        yield folder
        travelling.send(folder, predictions, course)


@contextmanager
def _predicted(
    predictions: Place, shards: Sequence[Shard], course: Course, server: ForkServer | None
) -> Iterator[Path]:
    """Yield a folder with the predictions of all shards.

    They are gone where a worker has joined them already that was lost before it could say so.
    """
    if isinstance(predictions, Path):
        if not predictions.is_dir():
            raise _gone(predictions)
        yield predictions
        return
    with travelling.folder_for(course, server) as folder:
        names = [name for shard in shards for name in (shard.file_name, shard.costs_name)]
        missing = travelling.receive(predictions, names, folder, course)
        if missing and not any(folder.iterdir()):
            raise _gone(predictions)
        yield folder


def _gone(predictions: Place) -> Failure:
    return Failure(
        "worker.crashed",
        f"{predictions}: the predictions are gone, a worker was lost after it had joined them",
        hint="run it again with zooport rerun --failed",
    )


def _begin(job: ExportJob, stages: Stages, course: Course, server: ForkServer | None) -> tuple[str, ...]:
    """Export and verify; the artifact waits in its staging directory only if that comes through."""
    course.enter(Stage.LOAD)
    staging = make_staging(job.output, job.id)
    try:
        notes, _ = build(job, stages, course, staging, None)
        if isinstance(job.output, RemotePath):
            travelling.hand_over(staging, staging_prefix(job.output, job.id), course, server)
    except BaseException as error:
        failure = with_disk(error, staging, job.output) if isinstance(error, Failure) else error
        discard(job.output, job.id)
        raise failure from None
    return notes


def _folder(job: BaselineJob) -> Place:
    """Return where the predictions of an eager model are left, beside its log."""
    return job.log.with_name(f".baseline-{job.key[:16]}{_PREDICTIONS}")


def _predictions(job: ExportJob) -> Place:
    """Return where the predictions of an exported model are left, in its staging directory."""
    if isinstance(job.output, RemotePath):
        return staging_prefix(job.output, job.id) / _PREDICTIONS
    return staging_path(job.output, job.id) / _PREDICTIONS


def _drop(predictions: Place, course: Course | None = None) -> None:
    """Remove the predictions of an eager model, in a disposable process where there is a course for it."""
    if isinstance(predictions, Path):
        shutil.rmtree(predictions, ignore_errors=True)
    elif course is not None:
        travelling.forget(predictions, course)
    else:
        with suppress(Failure):
            forget(predictions)


def _empty(job: Job, failure: FailureRecord | None = None) -> Result:
    if isinstance(job, BaselineJob):
        return BaselineResult(job.key, 0.0, failure=failure)
    return ExportResult(job.id, 0.0, failure=failure)


def _shards(job: Job, timeout: float | None) -> list[Job]:
    """Return the parts that predict, each with its own log: several write at once."""
    assert job.part is not None  # noqa: S101 - called for jobs that were cut
    return [
        replace(
            job,
            part=Part(PartKind.SHARD, job.part.shards, shard),
            timeout=timeout,
            log=job.log.with_name(f"{job.log.stem}.shard-{shard.number}{job.log.suffix}"),
        )
        for shard in job.part.shards
    ]


@dataclass
class _Evaluation:
    """An evaluation that goes on: what is done of it, and what it took so far."""

    missing: set[int]
    total: Result
    begun: Job
    timeout: float | None = None
    joining: bool = False


@dataclass
class Evaluations:
    """The evaluations in shards of a run, as the driver follows them."""

    _open: dict[str, _Evaluation] = field(default_factory=dict)
    _over: set[str] = field(default_factory=set)

    def is_wanted(self, job: Job) -> bool:
        """Whether a part is still to be done: not where another part of the job has failed."""
        if job.part is None or job.part.kind is PartKind.BEGIN or is_follow_up(job):
            return True
        return _key(job) not in self._over

    def take(self, job: Job, result: Result) -> tuple[list[Job], Result | None]:
        """Take the final result of a job or part.

        Returns:
            The parts that can begin now; and the result of the whole job, if it came to its end.
        """
        part = job.part
        if part is None or is_follow_up(job):
            return [], result
        if not self.is_wanted(job):
            return [], None
        evaluation = self._open.get(_key(job))
        if evaluation is None:
            evaluation = self._open[_key(job)] = self._opened(job)
        evaluation.total = _sum(evaluation.total, result)
        if result.failure is not None or part.kind is PartKind.JOIN:
            return [], self._close(job, evaluation)
        if part.kind is PartKind.BEGIN:
            left = None if job.timeout is None else max(1.0, job.timeout - result.seconds)
            evaluation.timeout = left
            return _shards(job, left), None
        assert part.shard is not None  # noqa: S101 - a shard's part has one
        evaluation.missing.discard(part.shard.number)
        if evaluation.missing or evaluation.joining:
            return [], None
        evaluation.joining = True
        join = replace(evaluation.begun, part=Part(PartKind.JOIN, part.shards), timeout=evaluation.timeout)
        return [join], None

    def abandon(self) -> list[ExportJob]:
        """Remove the predictions of baselines; return the exports that wait in their staging directories."""
        jobs = [each.begun for each in self._open.values()]
        for job in jobs:
            if isinstance(job, BaselineJob):
                _drop(_folder(job))
        return [job for job in jobs if isinstance(job, ExportJob)]

    def _opened(self, job: Job) -> _Evaluation:
        assert job.part is not None  # noqa: S101 - only parts come here
        begun = job
        if job.part.shard is not None:  # a baseline, which begins with its shards
            stem = job.log.stem.partition(".shard-")[0]
            begun = replace(job, log=job.log.with_name(f"{stem}{job.log.suffix}"))
        return _Evaluation({shard.number for shard in job.part.shards}, _empty(job), begun, job.timeout)

    def _close(self, job: Job, evaluation: _Evaluation) -> Result:
        del self._open[_key(job)]
        if job.part is not None and job.part.kind is not PartKind.BEGIN:
            self._over.add(_key(job))
        if evaluation.total.failure is None:
            return evaluation.total
        if isinstance(job, ExportJob):
            discard(job.output, job.id)  # parts that still run find nothing any more
        else:
            _drop(_folder(job))
        return replace(evaluation.total, failure=_named(evaluation.total.failure, job))


def _named(failure: FailureRecord, job: Job) -> FailureRecord:
    """Return the failure with the shard in which it happened, whose log is not that of the export."""
    shard = None if job.part is None else job.part.shard
    if shard is None or failure.code == "run.cancelled":
        return failure
    where = f"shard {shard.number} of {shard.of}, images {shard.start + 1} to {shard.stop}, log {job.log}"
    return replace(failure, message=f"{failure.message} ({where})")


def _key(job: Job) -> str:
    return job.id if isinstance(job, ExportJob) else job.key


def _sum(total: Result, part: Result) -> Result:
    """Return the result with what another part took and brought."""
    seconds = total.seconds + part.seconds
    if isinstance(total, ExportResult) and isinstance(part, ExportResult):
        stages = dict(total.stages)
        for stage, taken in part.stages.items():
            stages[stage] = stages.get(stage, 0.0) + taken
        notes = (*total.notes, *part.notes)
        return replace(part, seconds=seconds, stages=stages, notes=notes)
    return replace(part, seconds=seconds)
