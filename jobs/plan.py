"""From targets to jobs: each with a content key, an output directory and a log; and what is already done.

A content key is a hash of everything that decides what an artifact is: weights, merged config, format,
options, dataset, and the versions of the tools that make it. Equal keys make equal artifacts. Where an input
cannot be read, a hash of its raw content or of its absence takes its place: the job fails by itself then, in
the run, and no other job with it.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol

from zooport import __version__
from zooport.export_core import formats
from zooport.export_core.artifacts import is_intact
from zooport.export_core.evaluation.deltas import MetricDelta, judge
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.export_core.places import Place, RemotePath, is_same
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import memory
from zooport.jobs.digests import DigestCache
from zooport.jobs.registry.records import Success
from zooport.jobs.values import BaselineJob, ExportJob, ExportTarget

LOGS = ".logs"
BASELINES = ".baselines"
"""Folder of an output directory: what each image adds to the metrics of eager models."""

_RENAME = "rename one of the two models"
_NOT_DONE = "not done yet, or something changed"
_TOOLS = ("torch", "torchvision")


@dataclass(frozen=True)
class PlannedExport:
    """One export of a plan.

    Attributes:
        job: what a worker is given.
        success: the earlier success that makes running it needless, None when it has to run.
        refusal: why it cannot even be tried.
        reason: one line: why it runs, or does not.
    """

    job: ExportJob
    reason: str
    success: Success | None = None
    refusal: FailureRecord | None = None

    @property
    def action(self) -> str:
        """What a run does with it: "run", "cached" or "refused"."""
        if self.refusal is not None:
            return "refused"
        return "run" if self.success is None else "cached"

    def to_dict(self) -> dict[str, Any]:
        """Return a row of ``--dry-run`` as JSON-ready values."""
        return {
            "model": self.job.checkpoint.name,
            "format": self.job.format,
            "action": self.action,
            "reason": self.reason,
            "output": str(self.job.output),
            "key": self.job.key,
        }


@dataclass(frozen=True)
class Plan:
    """A run before it begins.

    Attributes:
        run_id: the run's future id; the exports' ids are made from it.
        exports: every export of the run, in the order of the manifest.
        baselines: the eager models that have to be measured.
        measured: key -> metrics of the baselines that an earlier run has measured.
    """

    run_id: str
    exports: tuple[PlannedExport, ...]
    baselines: tuple[BaselineJob, ...] = ()
    measured: Mapping[str, Mapping[str, float]] = field(default_factory=dict)

    @property
    def jobs(self) -> list[ExportJob]:
        """All jobs, in order."""
        return [each.job for each in self.exports]

    @property
    def cached(self) -> dict[str, Success]:
        """Job id -> the success that serves it."""
        return {each.job.id: each.success for each in self.exports if each.success is not None}

    @property
    def to_run(self) -> list[ExportJob]:
        """The jobs that workers have to do."""
        return [each.job for each in self.exports if each.action == "run"]


class History(Protocol):
    """What a plan asks the registry."""

    def find_successes(self, keys: Sequence[str]) -> Mapping[str, Sequence[Success]]:
        """Content key -> successes with it, the newest first."""

    def find_baselines(self, keys: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        """Content key -> metrics of an eager model."""


def place(target: ExportTarget, root: Place) -> Place:
    """Return the directory of a target's artifact below the output directory."""
    return root / target.checkpoint.name / target.format


def make_plan(
    wanted: Sequence[tuple[ExportTarget, Place]],
    *,
    run_id: str,
    export_ids: Iterable[str],
    history: History | None,
    digests: DigestCache,
    reasons: Sequence[str] = (),
) -> Plan:
    """Plan a run.

    Args:
        wanted: each target with the directory of its artifact.
        run_id: id of the run.
        export_ids: ids for the exports, one for each target.
        history: earlier results; None when there are none.
        digests: digests of files; what is learned is saved.
        reasons: why each target is to run again, for a run that repeats or continues another one.

    Raises:
        Failure: ``manifest.invalid`` when one artifact's directory lies inside another's.
    """
    _check_places([output for _, output in wanted])
    digests.warm(target.checkpoint.weights for target, _ in wanted)
    keys = _Keys(digests)
    jobs = [
        _job(keys, target, output, run_id, export_id)
        for (target, output), export_id in zip(wanted, export_ids, strict=False)
    ]
    successes = history.find_successes([job.key for job in jobs]) if history is not None else {}
    exports = tuple(
        _decide(job, target.refusal, successes.get(job.key, ()), digests, reason)
        for job, (target, _), reason in zip(
            jobs, wanted, reasons or repeat(_NOT_DONE, len(jobs)), strict=True
        )
    )
    digests.save()
    baselines = _baselines([each.job for each in exports if each.action == "run"], run_id)
    measured = history.find_baselines([each.key for each in baselines]) if history is not None else {}
    return Plan(run_id, exports, tuple(each for each in baselines if each.key not in measured), measured)


def _check_places(outputs: Sequence[Place]) -> None:
    taken = set(outputs)
    if len(taken) < len(outputs):
        twice = next(output for output, count in Counter(outputs).items() if count > 1)
        raise Failure("manifest.invalid", f"two exports would write {twice}", stage=Stage.PLAN, hint=_RENAME)
    for output in outputs:
        for parent in output.parents:
            if parent in taken:
                raise Failure(
                    "manifest.invalid",
                    f"artifact {output} would lie inside artifact {parent}",
                    stage=Stage.PLAN,
                    hint=_RENAME,
                )


class _Keys:
    """Content keys; the parts that jobs share are computed once."""

    def __init__(self, digests: DigestCache) -> None:
        self._digests = digests
        self._tools = {"zooport": __version__} | {name: _version(name) for name in _TOOLS}
        self._checkpoints: dict[str, dict[str, str]] = {}
        self._datasets: dict[DatasetSource, tuple[str, int]] = {}
        self._codes: dict[tuple[str, ...], dict[str, str]] = {}
        self._of_format: dict[str, Mapping[str, str]] = {}
        self._configs: dict[str, tuple[str, int]] = {}
        self._reservations: dict[str, int] = {}
        self._values: dict[str, Path] = {}

    def export(self, target: ExportTarget) -> str:
        """Return the key of an export."""
        return _hash(
            {
                "checkpoint": self._checkpoint(target.checkpoint),
                "format": target.format,
                "options": dict(target.options),
                "dataset": self._dataset(target.dataset)[0],
                "sample": None if target.sample_image is None else self._raw(target.sample_image),
                "tools": self._tools_of(target.format),
            }
        )

    def _tools_of(self, format_name: str) -> Mapping[str, str]:
        """Return the versions of what makes artifacts of a format; looking one up reads a package's files."""
        if format_name not in self._of_format:
            needed = formats.get(format_name).info.tools
            self._of_format[format_name] = self._tools | {name: _version(name) for name in needed}
        return self._of_format[format_name]

    def baseline(self, checkpoint: CheckpointSource, dataset: DatasetSource) -> str:
        """Return the key of an eager model's evaluation."""
        return _hash(
            {
                "checkpoint": self._checkpoint(checkpoint),
                "dataset": self._dataset(dataset)[0],
                "tools": self._tools,
            }
        )

    def values(self, key: str | None, root: Place) -> Path | None:
        """Return where the baseline of this key keeps values of single images; all its exports find it."""
        if key is None or isinstance(root, RemotePath):
            return None
        return self._values.setdefault(key, root / BASELINES / f"{key}.npz")

    def images(self, dataset: DatasetSource | None) -> int:
        """Return how many images a dataset has; 0 for none, and where it cannot be read."""
        return self._dataset(dataset)[1]

    def reservation(
        self, checkpoint: CheckpointSource, dataset: DatasetSource | None, format_name: str
    ) -> int:
        """Return the bytes that an export of this checkpoint and its evaluation are thought to need."""
        info = formats.get(format_name).info
        held = info.runtime_bytes + int(info.runtime_bytes_per_checkpoint_byte * _size(checkpoint.weights))
        return self._evaluation(checkpoint, dataset) + held

    def _evaluation(self, checkpoint: CheckpointSource, dataset: DatasetSource | None) -> int:
        """Return the bytes that a job of this checkpoint on this dataset is thought to need."""
        identity = repr((checkpoint, dataset))
        if identity not in self._reservations:
            annotations = 0 if dataset is None else _size(dataset.annotations)
            _, features = self._config(checkpoint)
            self._reservations[identity] = memory.estimate(_size(checkpoint.weights), features, annotations)
        return self._reservations[identity]

    def _checkpoint(self, checkpoint: CheckpointSource) -> dict[str, str]:
        # By all of it: a rerun may have models of one name from two manifests.
        identity = repr(checkpoint)
        known = self._checkpoints.get(identity)
        if known is None:
            known = {"weights": self._raw(checkpoint.weights), "config": self._config(checkpoint)[0]}
            known |= self._extensions(checkpoint.imports)
            self._checkpoints[identity] = known
        return known

    def _config(self, checkpoint: CheckpointSource) -> tuple[str, int]:
        """Return the digest of a merged config, and the bytes of an image's features; 0 if it is damaged."""
        identity = repr((checkpoint.config, checkpoint.overrides))
        if identity not in self._configs:
            overrides = dict(checkpoint.overrides)
            name = _hash(
                {
                    "config": str(checkpoint.config),
                    "overrides": overrides,
                    "for": "plan, memory",
                    **self._tools,
                }
            )
            self._configs[identity] = self._recalled(name) or self._read_config(checkpoint, overrides, name)
        return self._configs[identity]

    def _recalled(self, name: str) -> tuple[str, int] | None:
        digest, _, number = (self._digests.recall(name) or "").partition(" ")
        return (digest, int(number)) if number.isdecimal() else None

    def _read_config(
        self, checkpoint: CheckpointSource, overrides: Mapping[str, Any], name: str
    ) -> tuple[str, int]:
        from zooport.export_core.config import load_config
        from zooport.export_core.config.files import read_chain

        try:
            config = load_config(checkpoint.config, overrides)
            found = config.digest(), memory.activations(config)
            files = [each.path for each in read_chain(checkpoint.config)]
            self._digests.remember(name, files, f"{found[0]} {found[1]}")
        except Failure:
            # A damaged file, or keys that an extension will declare where the job runs.
            return _hash({"raw": self._chain(checkpoint.config), "overrides": overrides}), 0
        return found

    def _chain(self, path: Path) -> list[str]:
        """Return the digests of a config and of its bases, as far as they can be read."""
        from zooport.export_core.config.files import read_chain

        try:
            return [self._raw(file.path) for file in read_chain(path)]
        except Failure:
            return [self._raw(path)]

    def _extensions(self, imports: tuple[str, ...]) -> dict[str, str]:
        """Return the digest of the extensions' code; nothing where there is none. None is imported."""
        from zooport.export_core.extensions import identities

        if imports not in self._codes:
            self._codes[imports] = identities(imports)
        found = self._codes[imports]
        return {"extensions": _hash(found)} if found else {}

    def _dataset(self, source: DatasetSource | None) -> tuple[str | None, int]:
        """Return the digest of a dataset, and how many images it has."""
        if source is None:
            return None, 0
        if source not in self._datasets:
            name = _hash({"dataset": asdict(source), "for": "plan", "zooport": __version__})
            self._datasets[source] = self._recalled(name) or self._read_dataset(source, name)
        return self._datasets[source]

    def _read_dataset(self, source: DatasetSource, name: str) -> tuple[str, int]:
        from zooport.export_core.evaluation.datasets import load_dataset

        try:
            dataset = load_dataset(source)
            digest = dataset.digest()
        except Failure as failure:
            return _hash({"annotations": self._raw(source.annotations), "problem": failure.message}), 0
        self._digests.remember(name, dataset.files(), f"{digest} {len(dataset.images)}")
        return digest, len(dataset.images)

    def _raw(self, path: Path) -> str:
        try:
            return self._digests.file(path)
        except OSError as error:
            return f"unreadable: {error.errno}"


def _job(keys: _Keys, target: ExportTarget, output: Place, run_id: str, export_id: str) -> ExportJob:
    checkpoint, dataset = target.checkpoint, target.dataset
    baseline = None if dataset is None else keys.baseline(checkpoint, dataset)
    return ExportJob(
        id=export_id,
        key=keys.export(target),
        checkpoint=checkpoint,
        format=target.format,
        output=output,
        log=_logs(checkpoint, output, run_id) / f"{target.format}.log",
        options=target.options,
        dataset=dataset,
        baseline=baseline,
        tolerance=target.tolerance,
        tolerance_origins=target.tolerance_origins,
        timeout=target.timeout,
        sample_image=target.sample_image,
        deadlines=target.deadlines,
        retries=target.retries,
        memory=target.memory,
        reservation=target.memory or keys.reservation(checkpoint, dataset, target.format),
        images=keys.images(dataset),
        shard_images=target.shard_images,
        baseline_values=keys.values(baseline, _root(checkpoint, output)),
    )


def _logs(checkpoint: CheckpointSource, output: Place, run_id: str) -> Place:
    """Return the model's folder of logs, beside the artifacts: OUTPUT/.logs/RUN/MODEL."""
    return _root(checkpoint, output) / LOGS / run_id / checkpoint.name


def _root(checkpoint: CheckpointSource, output: Place) -> Place:
    return output.parents[len(checkpoint.name.split("/"))]


def _decide(
    job: ExportJob,
    refusal: FailureRecord | None,
    successes: Sequence[Success],
    digests: DigestCache,
    reason: str,
) -> PlannedExport:
    if refusal is not None:
        return PlannedExport(job, refusal.message, refusal=refusal)
    if not successes:
        return PlannedExport(job, reason)
    here = (each for each in successes if is_same(each.artifact.path, job.output))
    success = next(here, successes[0])
    problem = _objection(job, success, digests)
    if problem:
        return PlannedExport(job, problem)
    return PlannedExport(job, f"done as {success.export_id}, and intact", success=success)


def _objection(job: ExportJob, success: Success, digests: DigestCache) -> str:
    """Return why an earlier success does not serve this job, "" if it does."""
    artifact = success.artifact
    if not is_same(artifact.path, job.output):
        return f"done before, but in {artifact.path}"
    if not is_intact(artifact.path, artifact.files, digests.file):
        return f"done before, but files of {artifact.path} are missing or altered"
    deltas = {
        name: MetricDelta(metric.baseline, metric.exported, metric.delta, metric.low, metric.high)
        for name, metric in success.metrics.items()
    }
    verdict = judge(deltas, job.tolerance, job.tolerance_origins) if job.dataset is not None else None
    return f"done before, but outside today's tolerance: {verdict.message}" if verdict is not None else ""


def _baselines(jobs: Sequence[ExportJob], run_id: str) -> list[BaselineJob]:
    found: dict[str, BaselineJob] = {}
    for job in jobs:
        if job.baseline is None or job.dataset is None or job.baseline in found:
            continue
        log = _logs(job.checkpoint, job.output, run_id) / f"baseline-{_file_name(job.dataset.name)}.log"
        found[job.baseline] = BaselineJob(
            key=job.baseline,
            checkpoint=job.checkpoint,
            dataset=job.dataset,
            log=log,
            timeout=job.timeout,
            deadlines=job.deadlines,
            retries=job.retries,
            reservation=job.reservation,
            images=job.images,
            shard_images=job.shard_images,
            values=job.baseline_values,
        )
    return list(found.values())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _file_name(name: str) -> str:
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _hash(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
