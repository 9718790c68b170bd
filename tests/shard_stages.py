"""Stages of evaluations in shards, which take no time: "once-2" crashes in shard 2 once, "stumble-2" fails.

They can be imported in disposable processes as zooport.tests.shard_stages, and leave a line for each call in
the file ``trace`` beside the weights.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from zooport.export_core.artifacts import VALUES
from zooport.export_core.failures import Stage
from zooport.export_core.shards import Shard
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.tests import fake_stages

Report = Callable[[Stage], None]
Subject = CheckpointSource | Path

_HERE = "zooport.tests.shard_stages"
SHARDED = replace(
    fake_stages.FAKE,
    export=f"{_HERE}:export",
    verify=f"{_HERE}:verify",
    shard=f"{_HERE}:shard",
    join=f"{_HERE}:join",
)


def note(weights: Path, line: str) -> int:
    """Write a line; return how often it is there now."""
    path = weights.with_name("trace")
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n")
    return path.read_text(encoding="utf-8").splitlines().count(line)


def export(
    checkpoint: CheckpointSource,
    format: str,  # noqa: A002
    options: Mapping[str, Any],
    dataset: DatasetSource | None,
    sample_image: Path | None,
    staging: Path,
    report: Report,
) -> list[str]:
    note(checkpoint.weights, f"{checkpoint.name} export")
    (staging / ".weights").write_text(str(checkpoint.weights), encoding="utf-8")
    return fake_stages.export(checkpoint, format, options, dataset, sample_image, staging, report)


def verify(staging: Path, dataset: DatasetSource | None, report: Report) -> dict[str, float]:
    name, weights = _known(staging)
    note(weights, f"{name} verify{'' if dataset is None else ' and evaluate'}")
    return fake_stages.verify(staging, dataset, report)


def shard(subject: Subject, dataset: DatasetSource, shard: Shard, folder: Path, report: Report) -> None:
    report(Stage.EVALUATE)
    name, weights = _known(subject)
    who = "baseline" if isinstance(subject, CheckpointSource) else "artifact"
    times = note(weights, f"{name} {who} shard {shard.number}")
    if name == f"once-{shard.number}" and times == 1:
        ctypes.string_at(0)
    if name == f"stumble-{shard.number}" and who == "artifact":
        raise ValueError("this image is strange")
    if name.startswith("stall") and shard.number == shard.of:
        time.sleep(600)
    folder.mkdir(exist_ok=True)
    (folder / shard.file_name).write_text(f"{shard.start} {shard.stop}", encoding="utf-8")


def join(
    subject: Subject, dataset: DatasetSource, shards: tuple[Shard, ...], folder: Path, report: Report
) -> dict[str, float]:
    report(Stage.EVALUATE)
    parts = [(folder / each.file_name).read_text(encoding="utf-8").split() for each in shards]
    assert [int(start) for start, _ in parts] == [0, *(int(stop) for _, stop in parts[:-1])]
    (folder / VALUES).write_text("eager" if isinstance(subject, CheckpointSource) else "-1 1")
    return {"bbox/AP": 40.0, "bbox/images": float(parts[-1][1])}


def _known(subject: Subject) -> tuple[str, Path]:
    if isinstance(subject, CheckpointSource):
        return subject.name, subject.weights
    return (subject / ".name").read_text(), Path((subject / ".weights").read_text())
