"""The shards of one checkpoint go to all workers; a loss costs one shard, and nothing half is published."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.sources import DatasetSource
from zooport.jobs.agenda import Task
from zooport.jobs.hosts import HostHandle, HostSettings
from zooport.jobs.manifest import load_manifest
from zooport.jobs.progress import Running
from zooport.jobs.registry import open_registry
from zooport.tests import run_support
from zooport.tests.evaluation_support import demo_source
from zooport.tests.run_support import Bench, Notes, leftovers
from zooport.tests.shard_stages import SHARDED

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("stay_joined")]

FOUR_SHARDS = {"shard_images": 2}  # of seven images


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(run_support, "FAKE", SHARDED)
    return Bench(tmp_path)


@pytest.fixture
def seven(demo_zoo: Path) -> DatasetSource:
    return demo_source(demo_zoo, limit=7)


def trace(bench: Bench) -> Counter[str]:
    return Counter((bench.folder / "trace").read_text(encoding="utf-8").splitlines())


def all_parts(name: str) -> Counter[str]:
    shards = [f"{name} {who} shard {number}" for who in ("artifact", "baseline") for number in (1, 2, 3, 4)]
    return Counter([f"{name} export", f"{name} verify", *shards])


def hidden(bench: Bench) -> list[Path]:
    return [path for path in (bench.folder / "out").rglob(".*") if path.name not in {".logs", ".baselines"}]


def test_an_export_and_its_baseline_are_evaluated_in_shards(bench: Bench, seven: DatasetSource) -> None:
    outcome, rows = bench.run(bench.target("good-1", dataset=seven, **FOUR_SHARDS))
    assert outcome.exit_code == 0
    assert rows["good-1"].attempt == 1
    assert trace(bench) == all_parts("good-1")
    assert hidden(bench) == []
    with open_registry(str(bench.folder / "registry.db")) as registry:
        details = registry.export(rows["good-1"].id)
    compared = rows["good-1"].metrics["bbox/AP"]
    assert (compared.low, compared.high) == (-1.0, 1.0)
    metric = rows["good-1"].metrics["bbox/images"]
    assert (metric.baseline, metric.exported, metric.delta) == (7.0, 7.0, 0.0)
    assert details.attempts[-1].stages.keys() == {"load", "export", "verify", "evaluate", "publish"}
    assert details.attempts[-1].notes == ("a remark on good-1",)
    assert ("good-1  torchscript-trace, 3 of 4", "evaluate") in bench.notes.seen or bench.notes.ended


def test_a_dataset_of_one_shard_is_evaluated_as_ever(bench: Bench, seven: DatasetSource) -> None:
    outcome, _ = bench.run(bench.target("good-1", dataset=seven, shard_images=7))
    assert outcome.exit_code == 0
    assert trace(bench) == Counter(["good-1 export", "good-1 verify and evaluate"])


def test_a_crash_costs_one_shard(bench: Bench, seven: DatasetSource) -> None:
    outcome, rows = bench.run(bench.target("once-2", dataset=seven, retries=1, **FOUR_SHARDS))
    assert outcome.exit_code == 0
    assert rows["once-2"].attempt == 1
    assert trace(bench) == all_parts("once-2") + Counter(
        {"once-2 artifact shard 2": 1, "once-2 baseline shard 2": 1}
    )
    assert sorted(bench.notes.retried) == [("once-2", "worker.crashed", "try 2 of 2")] * 2
    with closing(sqlite3.connect(bench.folder / "registry.db")) as registry:
        tries = registry.execute("SELECT status FROM baseline_attempts").fetchall()
    assert tries == [("succeeded",)]


def test_a_lost_worker_costs_one_shard(
    bench: Bench, seven: DatasetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost: list[str] = []
    start = HostHandle.start

    def start_and_lose(host: HostHandle, task: Task) -> Any:
        reference = start(host, task)
        shard = task.job.part.shard if task.job.part is not None else None
        if shard is not None and shard.number == 3 and task.job.what not in lost:
            lost.append(task.job.what)
            host.kill()
        return reference

    monkeypatch.setattr(HostHandle, "start", start_and_lose)
    outcome, rows = bench.run(bench.target("good-1", dataset=seven, retries=1, **FOUR_SHARDS))
    assert sorted(lost) == ["eager baseline, 3 of 4", "torchscript-trace, 3 of 4"]
    assert outcome.exit_code == 0
    assert rows["good-1"].attempt == 1
    done = trace(bench) - all_parts("good-1")
    assert set(done) <= {"good-1 artifact shard 3", "good-1 baseline shard 3"}


def test_a_shard_that_fails_fails_the_export_and_nothing_is_published(
    bench: Bench, seven: DatasetSource
) -> None:
    outcome, rows = bench.run(
        bench.target("stumble-2", dataset=seven, **FOUR_SHARDS),
        bench.target("good-1", dataset=seven),
        workers=1,
    )
    assert outcome.exit_code == 1
    assert (rows["stumble-2"].status, rows["stumble-2"].code) == ("failed", "worker.error")
    assert "shard 2 of 4, images 2 to 3, log " in (rows["stumble-2"].message or "")
    assert rows["good-1"].status == "succeeded"
    assert not (bench.folder / "out" / "stumble-2" / "torchscript-trace").exists()
    assert hidden(bench) == []
    done = trace(bench)
    assert done["stumble-2 artifact shard 2"] == 1
    assert "stumble-2 artifact shard 3" not in done  # one worker: it was not begun when the second failed


def test_a_cancelled_run_leaves_no_shards(bench: Bench, seven: DatasetSource) -> None:
    there: list[str] = []

    class Interrupter(Notes):
        def running(self, jobs: Sequence[Running]) -> None:
            # All shards come through but the last ones, of the baseline and of the artifact.
            # Folders come and go meanwhile, at which rglob stumbles before Python 3.13.
            files = [name for _, _, names in os.walk(bench.folder) for name in names]
            done = [name for name in files if name == "shard-1-of-4.gz"]
            if not there and len(done) == 2:
                there.extend(done)
                os.kill(os.getpid(), signal.SIGINT)

    bench.notes = Interrupter(watch=True)
    outcome, rows = bench.run(bench.target("stall-1", dataset=seven, **FOUR_SHARDS), workers=2)
    assert outcome.exit_code == 130
    assert rows["stall-1"].status == "cancelled"
    assert len(there) == 2
    assert not list(bench.folder.rglob("shard-1-of-4.gz"))
    assert leftovers(bench.folder) == []
    assert not (bench.folder / "out" / "stall-1" / "torchscript-trace").exists()


def test_shards_are_set_in_the_manifest(tmp_path: Path) -> None:
    text = "models: [{name: a, config: c.yaml, weights: w.pth}]\nformats: [onnx]\nshard_images: 40\n"
    (tmp_path / "zoo.yaml").write_text(text, encoding="utf-8")
    assert [target.shard_images for target in load_manifest(tmp_path / "zoo.yaml").targets] == [40]


@pytest.mark.slow
def test_a_real_model_measures_on_ray_what_it_measures_in_one_piece(
    tmp_path: Path, demo_zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from zooport.export_core.isolation import PRELOAD
    from zooport.jobs.worker import PIPELINE
    from zooport.tests.test_pipeline import source_of

    monkeypatch.setattr(run_support, "FAKE", PIPELINE)
    monkeypatch.setattr(
        run_support, "HostSettings", lambda run, stages, preload: HostSettings(run, stages, PRELOAD)
    )
    measured = []
    for size in (4, 250):
        folder = tmp_path / str(size)
        folder.mkdir()
        bench = Bench(folder)
        checkpoint, dataset = source_of("mask_rcnn_fpn", limit=9)
        target = replace(
            bench.target("x", timeout=300.0), checkpoint=checkpoint, dataset=dataset, shard_images=size
        )
        outcome, rows = bench.run(target, workers=2)
        assert outcome.exit_code == 0
        with open_registry(str(folder / "registry.db")) as registry:
            (row,) = rows.values()
            measured.append(without_costs(registry.export(row.id).row.metrics))
    assert measured[0] == measured[1]
    assert measured[0]["segm/AP"].exported is not None
