"""Shards of an artifact that goes to an address: any machine predicts them, with the metrics of one piece.

Two fork servers with folders of their own stand for two machines; a driver is played by the test.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport import cli
from zooport.export_core.artifacts import is_intact
from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.isolation import PRELOAD, ForkServer
from zooport.export_core.places import Place, RemotePath
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.digests import DigestCache
from zooport.jobs.plan import Plan, make_plan, place
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import export_id, new_run_id
from zooport.jobs.shards import Evaluations, Job, Result, cut, run_part, unfold
from zooport.jobs.values import BaselineJob, ExportJob, ExportResult, ExportTarget, PartKind
from zooport.jobs.worker import PIPELINE, Stages, run_export
from zooport.tests import bucket
from zooport.tests.evaluation_support import demo_source
from zooport.tests.shard_stages import SHARDED

ROOT = RemotePath("bucket://zoo/out")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store"
    for name, value in bucket.install(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path])
    bucket.register(folder / "plugin")
    return folder / "objects"


@pytest.fixture
def machines(store: Path) -> Iterator[list[ForkServer]]:
    preload = ("fsspec", "zooport.export_core.remote_parts", "zooport.tests.shard_stages")
    servers = [ForkServer(preload=preload) for _ in range(2)]
    yield servers
    for server in servers:
        server.close()


@pytest.fixture
def seven(demo_zoo: Path) -> DatasetSource:
    return demo_source(demo_zoo, limit=7)


def planned(folder: Path, name: str, root: Place, dataset: DatasetSource, **more: Any) -> Plan:
    (folder / "config.yaml").write_text("VERSION: 2")
    (folder / f"{name}.pth").write_text(name)
    source = CheckpointSource(name, folder / "config.yaml", folder / f"{name}.pth")
    target = ExportTarget(source, "torchscript-trace", dataset=dataset, timeout=60.0, shard_images=2)
    target = replace(target, **more)
    run_id = new_run_id()
    return make_plan(
        [(target, place(target, root))],
        run_id=run_id,
        export_ids=(export_id(run_id, number) for number in range(1, 9)),
        history=None,
        digests=DigestCache(None),
    )


class Driver:
    """Gives parts to the machines in turn, as a crew does."""

    def __init__(self, machines: list[ForkServer], stages: Stages = SHARDED) -> None:
        self.machines = machines
        self.stages = stages
        self.evaluations = Evaluations()
        self.done: list[Job] = []

    def do(self, job: Job) -> Result:
        """Do a whole job; a part that fails is done once more, by another machine."""
        (first,) = cut([job])
        todo = unfold(first) or [first]
        while todo:
            part = todo.pop(0)
            result = self.part(part)
            if result.failure is not None and part.retries > 0:
                result = self.part(part)
            more, whole = self.evaluations.take(part, result)
            todo += more
            if whole is not None:
                return whole
        raise AssertionError("it came to no end")

    def part(self, job: Job) -> Result:
        self.done.append(job)
        return run_part(job, self.stages, server=self.machines[len(self.done) % len(self.machines)])


def objects(store: Path) -> list[str]:
    return sorted(path.relative_to(store).as_posix() for path in store.rglob("*") if path.is_file())


def shown(store: Path) -> list[str]:
    return [name for name in objects(store) if "/.logs/" not in name]


def test_shards_of_an_export_and_its_baseline_go_to_both_machines(
    store: Path, machines: list[ForkServer], tmp_path: Path, seven: DatasetSource
) -> None:
    plan = planned(tmp_path, "good-1", ROOT, seven)
    driver = Driver(machines)
    result = driver.do(plan.jobs[0])
    assert isinstance(result, ExportResult)
    assert result.failure is None
    assert result.metrics == {"bbox/AP": 40.0, "bbox/images": 7.0}
    assert [job.part.kind for job in driver.done if job.part] == ["begin", *["shard"] * 4, "join"]
    assert result.artifact is not None
    assert result.artifact.path == ROOT / "good-1/torchscript-trace"
    assert is_intact(result.artifact.path, result.artifact.files)
    assert shown(store) == [f"zoo/out/good-1/torchscript-trace/{name}" for name in ("model.json", "model.ts")]
    assert result.artifact.size == sum((store / name).stat().st_size for name in shown(store))
    log = (store / str(plan.jobs[0].log).removeprefix("bucket://")).read_text()
    assert log.index(" export") < log.rindex(" evaluate") < log.rindex(" publish")

    assert driver.do(plan.baselines[0]).failure is None
    assert [name for name in objects(store) if ".shards/" in name] == []


def test_what_is_lost_is_done_again_elsewhere_and_nothing_is_left(
    store: Path, machines: list[ForkServer], tmp_path: Path, seven: DatasetSource
) -> None:
    once = planned(tmp_path, "once-2", ROOT, seven, retries=1).jobs[0]
    assert Driver(machines).do(once).failure is None

    never = planned(tmp_path, "stumble-2", ROOT, seven, retries=0).jobs[0]
    failure = Driver(machines).do(never).failure
    assert failure is not None
    assert "shard 2 of 4" in failure.message
    assert [name for name in shown(store) if "stumble" in name] == []


def test_parts_without_their_artifact_or_predictions_say_so(
    store: Path, machines: list[ForkServer], tmp_path: Path, seven: DatasetSource
) -> None:
    plan = planned(tmp_path, "good-1", ROOT, seven)
    driver = Driver(machines)
    (begin,) = cut([plan.jobs[0]])
    shards, _ = driver.evaluations.take(begin, driver.part(begin))
    assert begin.part is not None
    join = replace(begin, part=replace(begin.part, kind=PartKind.JOIN))
    failure = driver.part(join).failure
    assert failure is not None
    assert "the predictions are gone" in failure.message
    for path in store.rglob(".parts.json"):
        path.unlink()
    failure = driver.part(shards[0]).failure
    assert failure is not None
    assert (failure.code, "the artifact is gone" in failure.message) == ("worker.crashed", True)


def test_a_machine_keeps_few_copies(
    store: Path, machines: list[ForkServer], tmp_path: Path, seven: DatasetSource
) -> None:
    driver = Driver(machines[:1])
    for number in range(6):
        (begin,) = cut(planned(tmp_path, f"good-{number}", ROOT, seven).jobs)
        assert driver.part(begin).failure is None
    copies = [path for path in (machines[0].directory / "artifacts").iterdir() if path.is_dir()]
    assert 1 <= len(copies) <= 4


def test_gc_finds_the_predictions_of_a_baseline_that_was_never_joined(
    store: Path,
    machines: list[ForkServer],
    tmp_path: Path,
    seven: DatasetSource,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plan = planned(tmp_path, "good-1", ROOT, seven)
    registry = str(tmp_path / "r.db")
    with open_registry(registry) as opened:
        opened.begin_run(tmp_path / "zoo.yaml", "", plan.jobs, plan.baselines, run_id=plan.run_id)
        driver = Driver(machines)
        (begin,) = cut([plan.baselines[0]])
        assert isinstance(begin, BaselineJob)
        assert driver.part(unfold(begin)[0]).failure is None
        opened.finish_run(plan.run_id)
    capsys.readouterr()
    assert cli.run(["gc", "--yes", "--registry", registry, "-o", "json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    assert row["removed"]
    assert row["path"].startswith("bucket://zoo/out/.logs/")
    assert [name for name in objects(store) if ".shards/" in name] == []


@pytest.mark.slow
def test_a_real_model_measures_behind_an_address_what_it_measures_in_one_piece(
    store: Path, tmp_path: Path
) -> None:
    from zooport.tests.test_pipeline import source_of

    checkpoint, dataset = source_of("mask_rcnn_fpn", limit=3)
    real = {"checkpoint": checkpoint, "timeout": 300.0}
    (whole,) = planned(tmp_path, "x", tmp_path / "out", dataset, **real).jobs
    (parts,) = planned(tmp_path, "x", ROOT, dataset, **real).jobs
    assert isinstance(parts, ExportJob)
    server = ForkServer(preload=PRELOAD)

    class Forgetful(Driver):
        def part(self, job: Job) -> Result:
            shutil.rmtree(server.directory / "artifacts", ignore_errors=True)
            return super().part(job)

    try:
        in_parts = Forgetful([server], PIPELINE).do(parts)
        in_one_piece = run_export(replace(whole, shard_images=250), PIPELINE, server=server)
    finally:
        server.close()
    assert isinstance(in_parts, ExportResult)
    assert in_parts.failure is None
    assert json.dumps(without_costs(in_parts.metrics)) == json.dumps(without_costs(in_one_piece.metrics))
    assert in_parts.metrics["segm/AP"] > 1
    assert in_parts.metrics.keys() == in_one_piece.metrics.keys()
