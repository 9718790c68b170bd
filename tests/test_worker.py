"""One job ends as one value, whatever happens in it, and leaves an artifact or nothing."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core import demo
from zooport.export_core.artifacts import Published, is_intact, publish
from zooport.export_core.failures import Stage
from zooport.export_core.isolation import Cancellation, ForkServer
from zooport.export_core.places import local
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import worker
from zooport.jobs.values import BaselineJob, ExportJob, ExportResult
from zooport.jobs.worker import run_baseline, run_export
from zooport.tests.fake_stages import FAKE, METRICS
from zooport.tests.stopped_clock import StoppedClock

pytestmark = pytest.mark.alone

DATASET = DatasetSource("shapes", Path("/data/val.json"), Path("/data/val"))


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer(preload=())
    yield server
    server.close()


@pytest.fixture
def job(tmp_path: Path) -> Callable[..., ExportJob]:
    def make(name: str, **changes: Any) -> ExportJob:
        values: dict[str, Any] = {
            "id": "r.1",
            "key": "k",
            "checkpoint": CheckpointSource(name, Path("/config.yaml"), Path("/weights.pth")),
            "format": "torchscript-trace",
            "output": tmp_path / "out" / name / "torchscript-trace",
            "log": tmp_path / "logs" / "job.log",
            "dataset": DATASET,
            "timeout": 60.0,
        }
        return ExportJob(**(values | changes))

    return make


def left_behind(job: ExportJob) -> list[Path]:
    return list(local(job.output).parent.iterdir())


def test_a_good_job_publishes_and_tells_everything(
    job: Callable[..., ExportJob], server: ForkServer, clock: StoppedClock
) -> None:
    one = job("good")
    seen: list[Stage] = []

    def see(stage: Stage) -> None:
        seen.append(stage)
        clock.skip(len(seen))

    result = run_export(one, FAKE, server=server, on_stage=see)
    assert result.failure is None
    assert result.metrics == METRICS
    assert result.notes == ("a remark on good",)
    assert seen == [Stage.LOAD, Stage.EXPORT, Stage.VERIFY, Stage.EVALUATE, Stage.PUBLISH]
    assert list(result.stages) == [str(stage) for stage in seen]
    assert list(result.stages.values()) == pytest.approx([1, 2, 3, 4, 5])
    assert result.seconds == pytest.approx(15)
    artifact = result.artifact
    assert artifact is not None
    assert (artifact.path, artifact.main_file) == (one.output, "model.ts")
    assert artifact.sha256 == artifact.files["model.ts"]
    assert is_intact(artifact.path, artifact.files)
    assert set(artifact.files) == {"model.ts", "model.json"}  # nothing that only verification needs
    assert left_behind(one) == [one.output]


def test_without_a_dataset_nothing_is_evaluated(job: Callable[..., ExportJob], server: ForkServer) -> None:
    result = run_export(job("good", dataset=None), FAKE, server=server)
    assert result.artifact is not None
    assert result.metrics == {}


@pytest.mark.parametrize(
    ("name", "code", "stage", "said"),
    [
        ("crash-1", "worker.crashed", "export", "SIGSEGV"),
        ("exit-1", "worker.crashed", "export", "exit code 3"),
        ("raise-1", "export.failed", "export", "ValueError: this checkpoint is strange"),
        ("unsupported-1", "unsupported.architecture", "export", "META_ARCHITECTURE"),
        ("verify-crash-1", "worker.crashed", "verify", "SIGSEGV"),
        ("verify-raise-1", "worker.error", "verify", "this checkpoint is strange"),
    ],
)
def test_a_bad_job_is_a_typed_failure_and_leaves_nothing(
    job: Callable[..., ExportJob], server: ForkServer, name: str, code: str, stage: str, said: str
) -> None:
    one = job(name)
    result = run_export(one, FAKE, server=server)
    assert result.artifact is None
    assert result.failure is not None
    assert (result.failure.code, result.failure.stage) == (code, stage)
    assert said in result.failure.message
    assert "\n" not in result.failure.message
    assert left_behind(one) == []
    assert " export\n" in local(one.log).read_text()


@pytest.mark.parametrize(("name", "stage"), [("hang-1", "export"), ("verify-hang-1", "verify")])
def test_a_hang_ends_at_the_jobs_deadline(
    job: Callable[..., ExportJob], server: ForkServer, clock: StoppedClock, name: str, stage: str
) -> None:
    def go(begun: Stage) -> None:
        if begun == stage:
            clock.go()

    result = run_export(job(name, timeout=0.5), FAKE, server=server, on_stage=go)
    assert result.failure is not None
    assert (result.failure.code, result.failure.stage) == ("resource.timeout", stage)
    assert "0.5 s" in result.failure.message
    assert result.failure.retryable


@pytest.mark.parametrize(("seconds", "stage"), [(20, None), (40, "verify"), (60, "export")])
def test_the_deadline_is_for_all_stages_together(
    job: Callable[..., ExportJob], server: ForkServer, clock: StoppedClock, seconds: float, stage: str | None
) -> None:
    def take(begun: Stage) -> None:
        clock.skip(seconds if begun in {Stage.LOAD, Stage.EXPORT, Stage.VERIFY} else 0)

    clock.go()
    name = {None: "good", "export": "hang-1", "verify": "verify-hang-1"}[stage]
    result = run_export(job(name, timeout=100.0), FAKE, server=server, on_stage=take)
    assert (result.failure and result.failure.code) == (stage and "resource.timeout")
    assert (result.failure and result.failure.stage) == stage


@pytest.mark.parametrize(("name", "stage"), [("hang-1", "export"), ("verify-hang-1", "verify")])
def test_a_stage_has_a_deadline_of_its_own(
    job: Callable[..., ExportJob], server: ForkServer, name: str, stage: str
) -> None:
    deadlines = {"load": 50.0, "export": 50.0, "verify": 50.0} | {stage: 0.4}
    result = run_export(job(name, deadlines=deadlines), FAKE, server=server)
    assert result.failure is not None
    assert (result.failure.code, result.failure.stage) == ("resource.timeout", stage)
    assert f"deadline of 0.4 s for stage {stage}" in result.failure.message


@pytest.mark.parametrize(
    ("limits", "said"),
    [
        ({"deadlines": {"publish": 0.3}}, "0.3 s for stage publish"),
        ({"timeout": 0.4}, "0.4 s in stage publish"),
    ],
)
def test_a_publication_that_hangs_ends_at_a_deadline_and_publishes_nothing_later(
    job: Callable[..., ExportJob],
    server: ForkServer,
    clock: StoppedClock,
    monkeypatch: pytest.MonkeyPatch,
    limits: dict[str, Any],
    said: str,
) -> None:
    disk, tried = threading.Event(), threading.Event()

    def hang(staging: Path, final: Path, permit: Callable[[], None]) -> Published:
        clock.go()
        disk.wait(60)
        try:
            return publish(staging, final, permit)
        finally:
            tried.set()

    monkeypatch.setattr(worker, "publish", hang)
    one = job("good", **limits)
    result = run_export(one, FAKE, server=server)
    assert result.failure is not None
    assert (result.failure.code, result.failure.stage) == ("resource.timeout", "publish")
    assert said in result.failure.message
    disk.set()
    assert tried.wait(30)
    assert left_behind(one) == []


def test_a_publication_that_hangs_does_not_keep_a_run_from_being_cancelled(
    job: Callable[..., ExportJob], server: ForkServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancellation, disk = Cancellation(), threading.Event()

    def hang(staging: Path, final: Path, permit: Callable[[], None]) -> Published:
        cancellation.set()
        disk.wait(60)
        permit()
        raise AssertionError

    monkeypatch.setattr(worker, "publish", hang)
    result = run_export(job("good"), FAKE, server=server, cancellation=cancellation)
    disk.set()
    assert result.failure is not None
    assert result.failure.code == "run.cancelled"


def test_what_was_permitted_before_its_deadline_is_published(
    job: Callable[..., ExportJob], server: ForkServer, clock: StoppedClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    given_up = threading.Event()
    give_up = worker._Call.give_up

    def note(call: worker._Call) -> bool:
        given_up.set()
        return give_up(call)

    def slow(staging: Path, final: Path, permit: Callable[[], None]) -> Published:
        def ask() -> None:
            permit()
            clock.skip(1.0)
            assert given_up.wait(60)

        return publish(staging, final, ask)

    monkeypatch.setattr(worker, "publish", slow)
    monkeypatch.setattr(worker, "_RENAME", 60.0)
    monkeypatch.setattr(worker._Call, "give_up", note)
    one = job("good", deadlines={"publish": 0.3})
    result = run_export(one, FAKE, server=server)
    assert result.failure is None
    assert left_behind(one) == [one.output]


def test_a_leak_ends_at_the_jobs_reservation(job: Callable[..., ExportJob], server: ForkServer) -> None:
    one = job("leak-1", reservation=150 << 20)
    result = run_export(one, FAKE, server=server)
    assert result.failure is not None
    assert (result.failure.code, result.failure.stage) == ("resource.memory", "export")
    assert "its limit is 150 MiB" in result.failure.message
    assert left_behind(one) == []


def test_a_failed_job_leaves_the_earlier_artifact(job: Callable[..., ExportJob], server: ForkServer) -> None:
    first = run_export(job("good"), FAKE, server=server)
    assert first.artifact is not None
    crashing = job("verify-crash-1", output=first.artifact.path)
    assert run_export(crashing, FAKE, server=server).failure is not None
    assert is_intact(first.artifact.path, first.artifact.files)


def test_an_output_that_cannot_be_written_is_named(
    job: Callable[..., ExportJob], server: ForkServer, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    result = run_export(job("good", output=tmp_path / "file" / "good" / "x"), FAKE, server=server)
    assert result.failure is not None
    assert result.failure.code == "resource.disk"
    assert str(tmp_path / "file") in result.failure.message


@pytest.mark.parametrize("name", ["fill-1", "swallow-1", "verify-fill-1"])
def test_a_full_disk_is_told_from_other_errors(
    job: Callable[..., ExportJob], server: ForkServer, small_disk: Path, name: str
) -> None:
    one = job(name, output=small_disk / name / "torchscript-trace")
    result = run_export(one, FAKE, server=server)
    assert result.failure is not None
    assert result.failure.code == "resource.disk"
    assert str(small_disk) in result.failure.message
    assert left_behind(one) == []


def test_a_baseline_is_measured_or_fails_typed(server: ForkServer, tmp_path: Path) -> None:
    def baseline(name: str, timeout: float = 60.0) -> BaselineJob:
        checkpoint = CheckpointSource(name, Path("/c.yaml"), Path("/w.pth"))
        return BaselineJob("k", checkpoint, DATASET, tmp_path / "b.log", timeout=timeout)

    assert run_baseline(baseline("good"), FAKE, server=server).metrics == METRICS
    crash, hang = baseline("baseline-crash"), baseline("baseline-hang", timeout=0.7)
    for one, code in ((crash, "worker.crashed"), (hang, "resource.timeout")):
        result = run_baseline(one, FAKE, server=server)
        assert result.failure is not None
        assert result.failure.code == code


def test_a_function_that_is_not_there_is_a_failure_of_the_job(
    job: Callable[..., ExportJob], server: ForkServer
) -> None:
    stages = type(FAKE)(export="zooport.tests.fake_stages:absent")
    result = run_export(job("good"), stages, server=server)
    assert result.failure is not None
    assert result.failure.code in {"worker.error", "export.failed"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["faster_rcnn_fpn"])
def test_a_real_checkpoint_goes_all_the_way(tmp_path: Path, name: str) -> None:
    (weights,) = (demo.ZOO / name).glob("model_final.*")
    annotations = demo.ZOO / "data" / "annotations" / "instances_val.json"
    dataset = DatasetSource("shapes", annotations, demo.ZOO / "data" / "val", limit=4)
    checkpoint = CheckpointSource(name, demo.ZOO / name / "config.yaml", weights)
    log = tmp_path / "log"
    server = ForkServer()
    export = ExportJob("r.1", "k", checkpoint, "torchscript-trace", tmp_path / "a", log, dataset=dataset)
    result: ExportResult = run_export(export, server=server)
    baseline = run_baseline(BaselineJob("k", checkpoint, dataset, log), server=server)
    server.close()
    assert result.failure is None, log.read_text()
    assert result.metrics["bbox/AP"] == pytest.approx(baseline.metrics["bbox/AP"], abs=0.01)
