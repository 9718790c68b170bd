"""What a worker does for one job: each stage in a disposable process, then publish. Nothing is raised.

It runs the same with and without Ray, and knows nothing of the registry.
"""

from __future__ import annotations

import math
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zooport.export_core.artifacts import HANDOVER, VALUES, Published, publish, publish_remotely, staged
from zooport.export_core.description import verified_by
from zooport.export_core.diagnosis import diagnose, disk_failure, is_full
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.export_core.isolation import Cancellation, ForkServer, run_isolated
from zooport.export_core.places import Place, RemotePath
from zooport.export_core.remote_artifacts import kept_log
from zooport.export_core.sources import DatasetSource
from zooport.jobs.values import ArtifactRecord, BaselineJob, BaselineResult, ExportJob, ExportResult

OnStage = Callable[[Stage], None]
Permit = Callable[[], None]

_LOOK = 0.2  # seconds between two looks at a call that may hang
_RENAME = 5.0  # seconds that are left to one that was permitted to publish at the last moment

# How a full disk shows itself when a library writes: as an error of its own, or as a crash.
_MAYBE_FULL_DISK = frozenset(
    {"export.failed", "worker.error", "worker.crashed", "artifact.unloadable", "artifact.mismatch"}
)


@dataclass(frozen=True)
class Stages:
    """The functions that do the work, as "package.module:name": only disposable processes import them.

    Attributes:
        export: (checkpoint, format, options, dataset, sample_image, staging, report) -> notes.
        verify: (staging, dataset, report) -> metrics.
        baseline: (checkpoint, dataset, file for values, report) -> metrics.
        shard: (checkpoint or staging, dataset, shard, folder, report): leaves predictions in the folder.
        join: (checkpoint or staging, dataset, shards, folder, report) -> metrics.
        compare: (file of the eager model's values, of the exported one's, report) -> intervals.
        locate: (checkpoint, artifact, dataset, folder for pictures, report) -> a report with stage, tensor,
            difference, categories and images, and with to_dict.
    """

    export: str = "zooport.export_core.pipeline:export_stage"
    verify: str = "zooport.export_core.pipeline:verify_stage"
    baseline: str = "zooport.export_core.pipeline:measure_eager"
    shard: str = "zooport.export_core.sharding:predict_shard"
    join: str = "zooport.export_core.sharding:merge_shards"
    compare: str = "zooport.export_core.evaluation.resampling:compare_values"
    locate: str = "zooport.export_core.drift:locate"


PIPELINE = Stages()


def run_export(
    job: ExportJob,
    stages: Stages = PIPELINE,
    *,
    server: ForkServer | None = None,
    on_stage: OnStage | None = None,
    cancellation: Cancellation | None = None,
    permit: Permit = lambda: None,
) -> ExportResult:
    """Export, verify and evaluate one checkpoint in one format, and publish the artifact.

    Args:
        job: what to do. Its timeout is for all stages together, its deadlines for one each.
        stages: the functions that do it.
        server: where processes are forked.
        on_stage: called as each stage begins.
        cancellation: stops the job when it is set.
        permit: asked right before the artifact is published; raises if it must not be any more.

    Returns:
        The artifact and the metrics of the exported model, or why there are none.
    """
    with kept_log(job.log) as log:
        course = Course(job, log, server, on_stage, cancellation)
        try:
            result = _export(job, stages, course, permit)
        except Exception as error:
            return ExportResult(job.id, course.elapsed, course.seconds(), failure=course.failure(error))
    return replace(result, seconds=course.elapsed, stages=course.seconds())


def run_baseline(
    job: BaselineJob,
    stages: Stages = PIPELINE,
    *,
    server: ForkServer | None = None,
    on_stage: OnStage | None = None,
    cancellation: Cancellation | None = None,
) -> BaselineResult:
    """Evaluate the eager model of one checkpoint on one dataset."""
    with kept_log(job.log) as log:
        course = Course(job, log, server, on_stage, cancellation)
        try:
            course.enter(Stage.LOAD)
            metrics = course.run(stages.baseline, job.checkpoint, job.dataset, job.values)
        except Exception as error:
            return BaselineResult(job.key, course.elapsed, failure=course.failure(error))
    return BaselineResult(job.key, course.elapsed, metrics)


def main_file(format_name: str) -> str:
    """Return the name of the file that a format's consumer loads."""
    from zooport.export_core import formats

    return next(each.main_file for each in formats.describe() if each.name == format_name)


def _export(job: ExportJob, stages: Stages, course: Course, permit: Permit) -> ExportResult:
    course.enter(Stage.LOAD)
    with staged(job.output, job.id) as staging:
        try:
            notes, metrics = build(job, stages, course, staging, job.dataset)
            values = keep_values(staging / HANDOVER / VALUES, values_beside(job.log))
            artifact = publish_built(job, staging, course, permit)
        except Failure as failure:
            raise with_disk(failure, staging, job.output) from None
    return ExportResult(job.id, 0.0, artifact=artifact, metrics=metrics, notes=notes, values=values)


def build(
    job: ExportJob, stages: Stages, course: Course, staging: Path, dataset: DatasetSource | None
) -> tuple[tuple[str, ...], Mapping[str, float]]:
    """Make and verify the artifact in its staging directory; return remarks, and metrics on the dataset."""
    source = (job.checkpoint, job.format, dict(job.options), job.dataset, job.sample_image)
    notes = course.run(stages.export, *source, staging)
    course.enter(Stage.VERIFY)
    metrics = course.run(stages.verify, staging, dataset)
    return tuple(notes), metrics


def keep_values(source: Path, target: Place | None) -> Path | None:
    """Move a file of values to where it is compared; return that place, None where nothing is to be kept.

    Raises:
        Failure: ``resource.disk``.
    """
    if target is None or isinstance(target, RemotePath) or not source.is_file():
        return None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(source, target)
    except OSError as error:
        raise disk_failure(error, Stage.EVALUATE, target.parent) from None
    return target


def values_beside(log: Place) -> Path | None:
    """Return where an export's values wait to be compared; None for a log at an address."""
    return None if isinstance(log, RemotePath) else log.with_name(f".{log.name}.values.npz")


def publish_built(job: ExportJob, staging: Path, course: Course, permit: Permit) -> ArtifactRecord:
    """Publish what is in the staging directory."""
    course.enter(Stage.PUBLISH)
    runtime = verified_by(staging)  # afterwards it lies elsewhere
    published: Published
    output = job.output
    if isinstance(output, RemotePath):
        published = publish_remotely(staging, output, job.id, permit, course.run)
    else:
        published = course.call(lambda still_permitted: publish(staging, output, still_permitted), permit)
    return artifact_of(job, published, runtime)


def artifact_of(job: ExportJob, published: Published, runtime: str) -> ArtifactRecord:
    """Return how the registry names what was published, and what verified it ("" without a choice)."""
    name = main_file(job.format)
    return ArtifactRecord(job.output, name, published.files[name], published.size, published.files, runtime)


def with_disk(failure: Failure, staging: Path, output: Place) -> Failure:
    """Return the failure as a full disk, if that is what an error comes from, and name the place."""
    place = staging.parent
    if str(output.parent) in failure.message:
        return failure
    if failure.code == "resource.disk" and str(place) not in failure.message:
        message = f"{place}: {failure.message}"
    elif failure.code in _MAYBE_FULL_DISK and is_full(staging):
        message = f"{place}: no space left on the device, then {failure.message}"
    else:
        return failure
    hint = "free some space, or write elsewhere (--output)"
    return Failure("resource.disk", message, stage=failure.stage, hint=hint, details=failure.details)


class Course:
    """One job on its way: its limits, the stage it is in, and the seconds that each stage took."""

    def __init__(
        self,
        job: ExportJob | BaselineJob,
        log: Path,
        server: ForkServer | None,
        on_stage: OnStage | None,
        cancellation: Cancellation | None,
    ) -> None:
        self._job = job
        self._log = log
        self._server = server
        self._on_stage = on_stage
        self._cancellation = cancellation
        self._start = time.monotonic()
        self._begun: list[tuple[Stage, float]] = []

    @property
    def elapsed(self) -> float:
        """Seconds since the job began."""
        return time.monotonic() - self._start

    @property
    def stage(self) -> Stage | None:
        """The stage that the job is in."""
        return self._begun[-1][0] if self._begun else None

    def enter(self, stage: Stage) -> None:
        """Note that a stage begins; the stage that the job is already in goes on."""
        if stage is self.stage:
            return
        self._begun.append((stage, time.monotonic()))
        if self._on_stage is not None:
            self._on_stage(stage)

    def run(self, function: str, *args: Any) -> Any:
        """Run one function in a disposable process, within what is left of the job's limits."""
        left = None if self._job.timeout is None else max(0.0, self._job.timeout - self.elapsed)
        return run_isolated(
            function,
            *args,
            timeout=left,
            log=self._log,
            on_stage=self.enter,
            server=self._server,
            cancellation=self._cancellation,
            deadlines=self._job.deadlines,
            stage=self.stage,
            memory=self._job.reservation,
        )

    def call(self, function: Callable[[Permit], Published], permit: Permit) -> Published:
        """Call a function of this process that may hang where a disk does, within what is left.

        Args:
            function: given a permit that ends with its time, so that what was given up publishes nothing.
            permit: asked as well.
        """
        if self._left() == math.inf and self._cancellation is None:
            return function(permit)
        call = _Call(function, permit)
        while not call.ended(_LOOK):
            try:
                self.pause(0.0)
            except Failure:
                if not call.give_up():
                    raise
        return call.result()

    def pause(self, seconds: float) -> None:
        """Wait for something.

        Raises:
            Failure: ``run.cancelled``; ``resource.timeout`` when nothing is left of the job's time.
        """
        if self._cancellation is not None and self._cancellation.is_set:
            message = "the job was stopped because its run was cancelled"
            raise Failure("run.cancelled", message, stage=self.stage)
        if self._left() <= 0:
            deadline = self._job.deadlines.get(str(self.stage))
            if self._job.timeout is not None and self._job.timeout <= self.elapsed:
                deadline = None
            details = {} if deadline is None else {"stage_deadline": deadline}
            message = f"stopped at the deadline of {deadline or 0:g} s for stage {self.stage}"
            hint = f"raise the timeout of {self.stage}, or see whether its disk hangs"
            raise Failure("resource.timeout", message, stage=self.stage, hint=hint, details=details)
        time.sleep(seconds)

    def _left(self) -> float:
        """Return the seconds that are left to the job and to the stage it is in."""
        now = time.monotonic()
        left = math.inf if self._job.timeout is None else self._start + self._job.timeout - now
        deadline = self._job.deadlines.get(str(self.stage))
        return left if deadline is None else min(left, self._begun[-1][1] + deadline - now)

    def seconds(self) -> dict[str, float]:
        """Return the seconds of each stage, the last one until now."""
        ends = [begun for _, begun in self._begun[1:]] + [time.monotonic()]
        total: dict[str, float] = {}
        for (stage, begun), end in zip(self._begun, ends, strict=True):
            total[str(stage)] = total.get(str(stage), 0.0) + end - begun
        return total

    def failure(self, error: Exception) -> FailureRecord:
        """Return what went wrong, with the stage; a deadline for no stage is that of the whole job."""
        failure = diagnose(error, self.stage)
        if failure.code == "resource.timeout" and "stage_deadline" not in failure.details:
            message = f"stopped at the deadline of {self._job.timeout:g} s in stage {failure.stage}"
            failure = Failure(
                failure.code, message, stage=failure.stage, hint=failure.hint, details=failure.details
            )
        return failure.record()


class _Call:
    """A call in a thread of its own, which nobody waits for any more when it is given up."""

    def __init__(self, function: Callable[[Permit], Published], permit: Permit) -> None:
        self._function = function
        self._permit = permit
        self._lock = threading.Lock()
        self._permitted = self._given_up = False
        self._value: Published | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def ended(self, seconds: float) -> bool:
        """Wait so long at most for its end."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def give_up(self) -> bool:
        """Take the permit away; return whether it was used before, and has come to its end since."""
        with self._lock:
            self._given_up = True
        return self._permitted and self.ended(_RENAME)

    def result(self) -> Published:
        """Return what the function returned, or raise what it raised."""
        if self._error is not None:
            raise self._error
        assert self._value is not None  # noqa: S101 - asked when it has ended
        return self._value

    def _run(self) -> None:
        try:
            self._value = self._function(self._ask)
        except BaseException as error:
            self._error = error

    def _ask(self) -> None:
        with self._lock:
            if self._given_up:
                raise Failure("resource.timeout", "it was given up before")
            self._permit()
            self._permitted = True
