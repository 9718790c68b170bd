"""Runs in a registry, without any export behind them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from zooport.export_core.failures import Failure
from zooport.export_core.places import local
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.registry.records import Success, export_id, new_run_id
from zooport.jobs.registry.writer import Registry
from zooport.jobs.values import ArtifactRecord, BaselineJob, ExportJob, ExportResult

MANIFEST = Path("/zoo/zoo.yaml")
TRACE = "torchscript-trace"
#: Holds a lock on a registry until it is told to go on.
LOCKER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
if sys.argv[2] == "journal":
    connection.execute("PRAGMA journal_mode = DELETE")
connection.execute("BEGIN IMMEDIATE" if sys.argv[2] == "write" else "BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.readline()
"""


@dataclass(frozen=True)
class Moved:
    baseline: float
    exported: float
    delta: float


def checkpoint(model: str) -> CheckpointSource:
    return CheckpointSource(model, Path(f"/zoo/{model}/config.yaml"), Path(f"/zoo/{model}/model.pth"))


def make_job(run: str, number: int, model: str, export_format: str = TRACE) -> ExportJob:
    return ExportJob(
        id=export_id(run, number),
        key=f"key-{model}-{export_format}",
        checkpoint=checkpoint(model),
        format=export_format,
        output=Path(f"/out/{model}/{export_format}"),
        log=Path(f"/logs/{run}/{number}.log"),
        options={"batch": 1},
        dataset=DatasetSource("val", Path("/zoo/val.json"), Path("/zoo/val"), limit=50),
        baseline=f"baseline-{model}",
        tolerance={"AP": 0.1},
        timeout=60.0,
    )


def baseline_of(job: ExportJob) -> BaselineJob:
    assert job.baseline is not None
    assert job.dataset is not None
    return BaselineJob(job.baseline, job.checkpoint, job.dataset, Path("/logs/baseline.log"))


def begin(
    registry: Registry,
    models: Sequence[str],
    formats: Sequence[str] = (TRACE,),
    *,
    manifest: Path = MANIFEST,
    cached: Callable[[ExportJob], Success | None] = lambda _: None,
    kind: str = "submit",
    parent: str | None = None,
) -> list[ExportJob]:
    """Begin a run of every model in every format and return its jobs."""
    run = new_run_id()
    pairs = [(model, export_format) for model in models for export_format in formats]
    jobs = [make_job(run, number, *pair) for number, pair in enumerate(pairs, 1)]
    if manifest != MANIFEST:
        jobs = [
            replace(job, output=Path("/out", manifest.stem, *local(job.output).parts[2:])) for job in jobs
        ]
    served = {job.id: success for job in jobs if (success := cached(job)) is not None}
    baselines = {job.checkpoint.name: baseline_of(job) for job in jobs}
    text = "models: ..."
    registry.begin_run(
        manifest,
        text,
        jobs,
        list(baselines.values()),
        run_id=run,
        cached=served,
        kind=kind,
        parent=parent,
    )
    return jobs


def succeed(registry: Registry, job: ExportJob, exported: float = 40.0) -> None:
    registry.start_attempt(job.id, "worker-1", job.log)
    artifact = ArtifactRecord(
        job.output, "model.ts", "ab" * 32, 1234, {"model.ts": "ab" * 32, "model.json": "cd"}
    )
    metrics = {"bbox/AP": exported, "bbox/AP50": exported + 20}
    deltas = {"bbox/AP": Moved(40.0, exported, exported - 40.0)}
    result = ExportResult(job.id, 2.5, {"load": 0.5, "export": 2.0}, artifact, metrics, notes=("noted",))
    registry.finish_attempt(job.id, result, deltas)


def fail(registry: Registry, job: ExportJob, code: str = "export.failed", message: str = "it broke") -> None:
    registry.start_attempt(job.id, "worker-1", job.log)
    failure = Failure(code, message, hint="mend it", details={"names": ["a", "b"]}).record()
    registry.finish_attempt(job.id, ExportResult(job.id, 1.0), {}, failure)


def run_of(job: ExportJob) -> str:
    return job.id.rpartition(".")[0]


def python(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs ``program``; it says when it has done what is waited for."""
    command = [sys.executable, "-c", program, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def wait_for_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
