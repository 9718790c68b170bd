"""What the registry hands out and takes in: plain values, free of the database."""

from __future__ import annotations

import math
import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, get_args, get_origin, get_type_hints

from zooport.export_core.places import Place, RemotePath, stored_place
from zooport.export_core.sources import CheckpointSource
from zooport.jobs.values import ArtifactRecord, ExportJob, Status

Key = TypeVar("Key", str, int)
CHUNK = 500
#: The statuses of an export that is not over.
LIVE = (str(Status.PENDING), str(Status.RUNNING))


class Delta(Protocol):
    """How a metric moved: AP points (0-100) of the eager model, of the exported one, and their difference.

    None stands for a metric that a model does not have.
    """

    @property
    def baseline(self) -> float | None: ...  # noqa: D102
    @property
    def exported(self) -> float | None: ...  # noqa: D102
    @property
    def delta(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Metric:
    """A stored :class:`Delta`; None stands for a number that is not there or not finite.

    ``low`` and ``high`` are the 95% confidence interval of the delta; ``tolerance`` is what it was judged by,
    ``origin`` where that is said.
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


@dataclass(frozen=True)
class ExportRow:
    """One row of ``zooport list``; ``to_dict`` is its JSON and its order of columns.

    Attributes:
        artifact: directory of the artifact, None when there is none.
        attempt: number of the newest attempt, counted over all runs of the same target; 0 before the first.
        cached: served from an earlier success; attempt, artifact, metrics, seconds and log are that one's.
        created, started, finished: ISO 8601 in UTC.
    """

    id: str
    run: str
    model: str
    format: str
    status: str
    code: str | None
    message: str | None
    hint: str | None
    stage: str | None
    retryable: bool
    cached: bool
    artifact: str | None
    metrics: Mapping[str, Metric]
    attempt: int
    seconds: float | None
    log: str | None
    created: str
    started: str | None
    finished: str | None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        row = {item.name: getattr(self, item.name) for item in fields(self)}
        return row | {"metrics": {name: metric.to_dict() for name, metric in self.metrics.items()}}


@dataclass(frozen=True)
class AttemptRow:
    """One attempt at an export or at one of its predecessors.

    Attributes:
        command: what reproduces it alone, None when it did not fail.
    """

    export: str
    run: str
    attempt: int
    status: str
    code: str | None
    message: str | None
    seconds: float | None
    stages: Mapping[str, float]
    notes: tuple[str, ...]
    worker: str
    log: str
    started: str
    finished: str | None
    command: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        row = {item.name: getattr(self, item.name) for item in fields(self)}
        return row | {"stages": dict(self.stages), "notes": list(self.notes)}


@dataclass(frozen=True)
class BaselineRow:
    """One try at the evaluation of an eager model, or of a part of its images, that came to an end."""

    run: str
    attempt: int
    status: str
    code: str | None
    message: str | None
    seconds: float | None
    log: str
    finished: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True)
class ExportDetail:
    """Everything about one export: ``zooport show``.

    Attributes:
        newest: id of the latest export of the same model, format and manifest.
        source: id of the earlier export that a cached one was served from.
        attempts: of this export and of its predecessors, oldest first.
        baseline: tries at the eager model that this export is compared with, in any run, oldest first.
        drift: where its outputs begin to differ: stage, tensor, difference, categories and images.
        runtime: what verified the artifact, of formats where there is a choice, None of others.
    """

    row: ExportRow
    manifest: str
    content_key: str
    job: ExportJob
    details: Mapping[str, Any]
    artifact: ArtifactRecord | None
    attempts: tuple[AttemptRow, ...]
    newest: str
    source: str | None
    baseline: tuple[BaselineRow, ...] = ()
    drift: Mapping[str, Any] | None = None
    runtime: str | None = None

    @property
    def command(self) -> str | None:
        """What reproduces the newest attempt alone, None when it did not fail or there was none."""
        newest = self.attempts[-1] if self.attempts else None
        return newest.command if newest is not None and newest.export == self.row.id else None

    @property
    def published(self) -> Mapping[str, float]:
        """Metrics that detectron2 reports where these are weights of its own release, else empty."""
        from zooport.export_core.zoo import released_as

        official = released_as(self.job.checkpoint.weights)
        return {} if official is None else official.published

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: those of the row, with more."""
        files: dict[str, Any] = {}
        if self.artifact is not None:
            files = {
                "main_file": self.artifact.main_file,
                "sha256": self.artifact.sha256,
                "bytes": self.artifact.size,
                "files": dict(self.artifact.files),
            }
        return self.row.to_dict() | {
            "manifest": self.manifest,
            "config": str(self.job.checkpoint.config),
            "weights": str(self.job.checkpoint.weights),
            "published": dict(self.published),
            "overrides": dict(self.job.checkpoint.overrides),
            "imports": list(self.job.checkpoint.imports),
            "content_key": self.content_key,
            "details": dict(self.details),
            "command": self.command,
            "artifact_files": files or None,
            "runtime": self.runtime,
            "newest": self.newest,
            "source": self.source,
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "drift": None if self.drift is None else dict(self.drift),
            "baseline_attempts": [attempt.to_dict() for attempt in self.baseline],
        }


@dataclass(frozen=True)
class RunRow:
    """One run: ``counts`` says how many of its exports have each status, ``cached`` how many were served."""

    id: str
    parent: str | None
    kind: str
    status: str
    manifest: str
    counts: Mapping[str, int]
    cached: int
    created: str
    finished: str | None
    seconds: float | None
    host: str
    pid: int

    @property
    def total(self) -> int:
        """Number of exports."""
        return sum(self.counts.values())

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values; every status has a count."""
        row = {item.name: getattr(self, item.name) for item in fields(self)}
        return row | {"counts": {str(status): self.counts.get(status, 0) for status in Status}}


@dataclass(frozen=True)
class LiveJob:
    """A job that a driver says is running: an export, or with ``export`` None a model's eager baseline."""

    export: str | None
    model: str
    what: str
    stage: str
    started: str

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {item.name: getattr(self, item.name) for item in fields(self)}


@dataclass(frozen=True)
class RunState:
    """How a run stands at this moment: ``zooport status``.

    Attributes:
        driver_alive: whether the process that drives it lives; False for a run that is over.
        cancel_requested: when somebody asked for it to be cancelled.
        elapsed: seconds since it began, until now or until it ended.
        remaining: seconds until it is done, as far as can be told.
    """

    run: RunRow
    running: tuple[LiveJob, ...]
    driver_alive: bool
    cancel_requested: str | None
    elapsed: float
    remaining: float | None

    @property
    def is_going(self) -> bool:
        """Whether the run is not over as far as the registry knows."""
        return self.run.status == str(Status.RUNNING)

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values: those of the run, with more."""
        moment = now()
        running = [job.to_dict() | {"seconds": seconds_between(job.started, moment)} for job in self.running]
        return self.run.to_dict() | {
            "driver_alive": self.driver_alive,
            "cancel_requested": self.cancel_requested,
            "elapsed": self.elapsed,
            "remaining": self.remaining,
            "running": running,
        }


@dataclass(frozen=True)
class Success:
    """An earlier success that an equal job may be served from, once its artifact is seen to be intact."""

    export_id: str
    key: str
    attempt: int
    seconds: float
    artifact: ArtifactRecord
    metrics: Mapping[str, Metric]


@dataclass(frozen=True)
class StoredArtifact:
    """An artifact that the registry names; ``is_latest`` unless a newer export has superseded it."""

    export: str
    model: str
    format: str
    is_latest: bool
    record: ArtifactRecord


@dataclass(frozen=True)
class OutputRoot:
    """A directory below which runs write artifacts, and how many levels below it the deepest one lies."""

    path: Place
    depth: int


@dataclass(frozen=True)
class Inventory:
    """What tells a left-over directory from one that somebody needs.

    Attributes:
        roots: where to look.
        formats: names of the directories that artifacts have.
        named: directories of artifacts that a row names.
        busy: directories that a living driver may publish at any moment.
        outputs: directories of the run that was asked for.
        runs: ids of all runs.
        live: ids of the runs whose driver lives.
        values: files of eager models' values of single images that the newest exports name.
    """

    roots: tuple[OutputRoot, ...]
    formats: frozenset[str]
    named: frozenset[Place]
    busy: frozenset[Place]
    outputs: frozenset[Place]
    runs: frozenset[str]
    live: frozenset[str]
    values: frozenset[Place]


@dataclass(frozen=True)
class FailedExport:
    """An export to run again: ``job`` is the one that failed, to be given a new id, output and log."""

    id: str
    run: str
    model: str
    format: str
    status: str
    code: str
    message: str
    attempt: int
    manifest: str
    job: ExportJob


@dataclass(frozen=True)
class UnfinishedExport:
    """An export of a run that never came to an end; ``newest`` is the id of its target's latest export."""

    job: ExportJob
    newest: str


@dataclass(frozen=True)
class ExportFilter:
    """Which exports to list; globs are those of a shell (``*``, ``?``, ``[...]``), and cases differ.

    Attributes:
        run: a run's id; its exports are listed whether or not newer ones followed.
        everything: all exports ever; otherwise (and without ``run``) the latest of each target.
        limit: the newest N.
    """

    run: str | None = None
    statuses: tuple[str, ...] = ()
    format: str | None = None
    model: str | None = None
    code: str | None = None
    everything: bool = False
    limit: int | None = None


def new_run_id() -> str:
    """Return a run's id that sorts by time and can be typed: ``r-20260102-150405-k3fx``."""
    letters = "abcdefghjkmnpqrstuvwxyz23456789"  # none that are easily confused
    ending = "".join(secrets.choice(letters) for _ in range(4))
    return f"r-{datetime.now(UTC):%Y%m%d-%H%M%S}-{ending}"


def export_id(run_id: str, number: int) -> str:
    """Return the id of a run's export number ``number``, counted from 1."""
    return f"{run_id}.{number}"


def chunks(keys: Collection[Key]) -> Iterator[list[Key]]:
    """Yield the different keys in lists that fit into one statement."""
    unique = sorted(set(keys))
    for start in range(0, len(unique), CHUNK):
        yield unique[start : start + CHUNK]


def now() -> str:
    """Return the time as ISO 8601 in UTC, always 27 characters, so that text sorts as time."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def seconds_between(start: str, end: str | None) -> float | None:
    """Return the time between two stored times in seconds, never negative even if the clock went back."""
    if end is None:
        return None
    return max(0.0, (datetime.fromisoformat(end) - datetime.fromisoformat(start)).total_seconds())


def finite(value: float | None) -> float | None:
    """Return the number, or None in place of NaN and infinity, which neither SQLite nor JSON can hold."""
    if value is None or not math.isfinite(value):
        return None
    return float(value)


def plain(value: Any) -> Any:
    """Return the nearest value that is valid JSON and valid UTF-8 text on every database."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return finite(value)
    if isinstance(value, Mapping):
        return {text(str(key)): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return text(str(value))


def text(value: str | Place) -> str:
    """Return the text with what a database refuses (NUL, halves of surrogate pairs) written as escapes."""
    return str(value).replace("\0", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def job_to_dict(job: ExportJob) -> dict[str, Any]:
    """Return the job as JSON-ready values, without its checkpoint, which is a row of its own."""
    values: dict[str, Any] = plain(asdict(job))
    del values["checkpoint"]
    return values


def job_from_dict(values: Mapping[str, Any], checkpoint: CheckpointSource) -> ExportJob:
    """Return the job that :func:`job_to_dict` wrote, perhaps in another version of zooport."""
    job: ExportJob = _rebuild(ExportJob, {**values, "checkpoint": checkpoint})
    return job


def _rebuild(kind: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass from its JSON; fields that are not there keep their defaults."""
    hints = _type_hints(kind)
    known = [item.name for item in fields(kind) if item.name in values]
    return kind(**{name: _restore(hints[name], values[name]) for name in known})


@cache
def _type_hints(kind: Any) -> dict[str, Any]:
    return get_type_hints(kind)


def _restore(hint: Any, value: Any) -> Any:
    """Return what JSON made of a field as the type that the field has."""
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type)]
    if isinstance(value, str) and RemotePath in kinds:
        return stored_place(value)
    if isinstance(value, str) and Path in kinds:
        return Path(value)
    nested = next((kind for kind in kinds if is_dataclass(kind)), None)
    if nested is not None and isinstance(value, Mapping):
        return _rebuild(nested, value)
    return tuple(value) if isinstance(value, list) and get_origin(hint) is tuple else value


def short_id(identifier: str) -> str:
    """Return the ending of an export's id that a person types: ``k3fx.7``; other ids stay whole."""
    known = re.fullmatch(r"r-\d{8}-\d{6}-(\w+\.\d+)", identifier)
    return known.group(1) if known else identifier


def primary_metrics(measured: Mapping[str, Metric]) -> dict[str, Metric]:
    """Return the metric that stands for each task: ``bbox/AP`` as "bbox", ``panoptic/PQ`` as "panoptic"."""
    main = {"AP", "PQ", "mIoU"}
    parts = {name: name.rpartition("/") for name in measured}
    return {task or name: measured[full] for full, (task, _, name) in parts.items() if name in main}
