"""The values that travel through a run: jobs go out to workers, results come back; both are plain data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from zooport.export_core.failures import FailureRecord
from zooport.export_core.places import Place
from zooport.export_core.shards import SHARD_IMAGES, Shard
from zooport.export_core.sources import CheckpointSource, DatasetSource

DEFAULT_RETRIES = 2


class Status(StrEnum):
    """Where an export stands. ``unsupported`` is a refusal before any work; the rest speak for themselves."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    UNSUPPORTED = "unsupported"
    CANCELLED = "cancelled"


@dataclass(frozen=True)
class ExportTarget:
    """What a user asks for: one checkpoint in one format. A plan makes it an :class:`ExportJob`.

    Attributes:
        options: of the format.
        dataset: what to evaluate on; None exports and verifies without evaluation.
        sample_image: an image for tracing and verification; None takes one of the dataset or a synthetic one.
        tolerance: metric name ("AP", "bbox/AP", or "*" for all that are judged by default) -> allowed
            absolute difference in points (0-100).
        tolerance_origins: the same names -> where that is said.
        timeout: seconds that all stages together may take, None for no deadline.
        deadlines: stage -> seconds that it may take.
        retries: how often a failure that may pass by itself is tried again in the same run.
        memory: bytes that one process of the job may hold; None takes an estimate.
        shard_images: how many images are evaluated in one piece.
        refusal: why it cannot even be tried, for example a scanned folder with two weights files.
    """

    checkpoint: CheckpointSource
    format: str
    options: Mapping[str, Any] = field(default_factory=dict)
    dataset: DatasetSource | None = None
    sample_image: Path | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict)
    tolerance_origins: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    retries: int = DEFAULT_RETRIES
    memory: int | None = None
    shard_images: int = SHARD_IMAGES
    refusal: FailureRecord | None = None


class PartKind(StrEnum):
    """What a part does.

    All up to evaluation, the prediction of one shard, or all from the metrics on; and what follows an
    evaluation: how sure the deltas are, and where a drift begins.
    """

    BEGIN = "begin"
    SHARD = "shard"
    JOIN = "join"
    COMPARE = "compare"
    LOCATE = "locate"


@dataclass(frozen=True)
class Part:
    """Which part of a job is meant.

    Attributes:
        shards: of a dataset that is evaluated in shards.
        shard: that of a SHARD.
        values: what each image adds to the exported model's metrics, for COMPARE.
    """

    kind: PartKind
    shards: tuple[Shard, ...]
    shard: Shard | None = None
    values: Path | None = None

    def __str__(self) -> str:
        """Return what stands behind the job's name: ``, 3 of 20``."""
        follow_ups = {PartKind.COMPARE: ", confidence interval", PartKind.LOCATE: ", where it drifts"}
        return f", {self.shard.number} of {self.shard.of}" if self.shard else follow_ups.get(self.kind, "")


@dataclass(frozen=True)
class BaselineJob:
    """Evaluate the eager model once; shared by every format of the same checkpoint and dataset.

    Limits, shards and parts are those of :class:`ExportJob`. ``values`` is the file for what each image adds
    to the metrics; None keeps nothing.
    """

    key: str
    checkpoint: CheckpointSource
    dataset: DatasetSource
    log: Place
    timeout: float | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    retries: int = DEFAULT_RETRIES
    reservation: int = 0
    images: int = 0
    shard_images: int = SHARD_IMAGES
    part: Part | None = None
    values: Path | None = None

    @property
    def what(self) -> str:
        """What is done with the checkpoint, for people."""
        return f"eager baseline{self.part or ''}"


@dataclass(frozen=True)
class ExportJob:
    """Export one checkpoint to one format, verify it and, where a dataset is named, evaluate it.

    Attributes:
        id: identifier of the export row in the registry, unique over all runs.
        key: content key; equal keys make equal artifacts.
        baseline: key of the :class:`BaselineJob` to compare with, None without a dataset.
        output: directory of the finished artifact; it does not exist until the artifact is published.
        timeout: seconds that all stages together may take, None for no deadline.
        deadlines: stage -> seconds that it may take.
        retries: how often a failure that may pass by itself is tried again in the same run.
        memory: bytes that were asked for; None leaves it to an estimate.
        reservation: bytes that are set aside for the job, and at which it is stopped; 0 for no limit.
        tolerance, tolerance_origins: as in :class:`ExportTarget`.
        images: how many the dataset has; 0 when there is none or it cannot be read.
        shard_images: how many are evaluated in one piece.
        part: what of the job is to be done; None is all of it.
        baseline_values: where the eager model's values of single images are, if they were kept.
    """

    id: str
    key: str
    checkpoint: CheckpointSource
    format: str
    output: Place
    log: Place
    options: Mapping[str, Any] = field(default_factory=dict)
    dataset: DatasetSource | None = None
    baseline: str | None = None
    tolerance: Mapping[str, float] = field(default_factory=dict)
    tolerance_origins: Mapping[str, str] = field(default_factory=dict)
    timeout: float | None = None
    sample_image: Path | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    retries: int = DEFAULT_RETRIES
    memory: int | None = None
    reservation: int = 0
    images: int = 0
    shard_images: int = SHARD_IMAGES
    part: Part | None = None
    baseline_values: Path | None = None

    @property
    def what(self) -> str:
        """What is done with the checkpoint, for people."""
        return f"{self.format}{self.part or ''}"


@dataclass(frozen=True)
class ArtifactRecord:
    """A published artifact: its directory, main file, sha256 of every file, and total bytes.

    ``runtime`` is what verified it, of formats where there is a choice, "" of others.
    """

    path: Place
    main_file: str
    sha256: str
    size: int
    files: Mapping[str, str] = field(default_factory=dict)
    runtime: str = ""


@dataclass(frozen=True)
class BaselineResult:
    """Metrics of the eager model ("bbox/AP" -> points, 0-100), or the failure that prevented them."""

    key: str
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: FailureRecord | None = None


@dataclass(frozen=True)
class ExportResult:
    """What became of one attempt at an :class:`ExportJob`.

    ``metrics`` are those of the exported model; the driver joins them with the baseline's and judges.
    An artifact may be there although the export failed (accuracy drift): it is kept for inspection.

    Attributes:
        values: file of what each image adds to the metrics; None where it was not kept.
        intervals: of COMPARE: metric -> ends of the confidence interval of its delta.
        drift: of LOCATE: where the drift begins, as plain values.
    """

    id: str
    seconds: float
    stages: Mapping[str, float] = field(default_factory=dict)
    artifact: ArtifactRecord | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    failure: FailureRecord | None = None
    notes: tuple[str, ...] = ()
    values: Path | None = None
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    drift: Mapping[str, Any] | None = None
