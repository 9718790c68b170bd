"""resume and submit after a driver died at any instant: nothing done is redone, nothing is lost."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from zooport import cli
from zooport.export_core.artifacts import staging_path
from zooport.export_core.failures import Failure
from zooport.export_core.places import local
from zooport.jobs import submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.output import OutputFormat
from zooport.jobs.plan import Plan
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import ExportFilter, ExportRow, RunRow
from zooport.jobs.registry.writer import Registry
from zooport.jobs.runner import RunSettings
from zooport.jobs.submission import Request
from zooport.jobs.worker import run_export
from zooport.tests.fake_stages import FAKE

REQUEST = Request("registry.db", hosts=HostSettings("", FAKE, preload=()), settings=RunSettings(workers=4))
MODELS = ("good-1", "good-2", "good-3", "raise-1", "unsupported-1")

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("stay_joined")]


class DriverDied(BaseException):
    """Nothing after this happens in the run."""


@dataclass
class Zoo:
    folder: Path

    def write(self, *names: str, extra: str = "") -> None:
        models = []
        for name in names:
            (self.folder / f"{name}.pth").write_text(name)
            models.append(f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}")
        (self.folder / "config.yaml").write_text("VERSION: 2")
        text = "\n".join(["models:", *models, "formats: [torchscript-trace]", extra])
        (self.folder / "zoo.yaml").write_text(text)

    def rows(self, run: str | None = None) -> dict[str, ExportRow]:
        with open_registry("registry.db", create=False) as registry:
            return {row.model: row for row in registry.exports(ExportFilter(run=run))}

    def statuses(self, run: str | None = None) -> dict[str, str]:
        return {model: row.status for model, row in self.rows(run).items()}

    def newest(self) -> RunRow:
        with open_registry("registry.db", create=False) as registry:
            return registry.runs(1)[0]


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A folder with a manifest of three models; the working directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("ZOOPORT_REGISTRY", raising=False)
    (tmp_path / "zoo").mkdir()
    monkeypatch.chdir(tmp_path / "zoo")
    found = Zoo(tmp_path / "zoo")
    found.write(*MODELS)
    return found


@pytest.fixture
def die(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Plan, Registry], object]], None]:
    """Submit the manifest with a driver that does only this, and dies."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    dead = Driver(Driver.current().host, process.pid, "long ago")

    def from_manifest() -> int:
        return submission.submit(Path("zoo.yaml"), REQUEST)

    def submit(act: Callable[[Plan, Registry], object], *, how: str = "submit") -> None:
        def run_plan(plan: Plan, registry: Registry, *_: object) -> None:
            act(plan, registry)
            raise DriverDied

        with monkeypatch.context() as patch:
            patch.setattr("zooport.jobs.registry.beginnings.Driver.current", lambda: dead)
            patch.setattr(submission, "run_plan", run_plan)
            with pytest.raises(DriverDied):
                from_manifest() if how == "submit" else submission.resume(REQUEST, how)

    return submit


def do_first_and_begin_second(plan: Plan, registry: Registry) -> None:
    """One export is done; one was published but not recorded; one is half-written; the rest is pending."""
    first, second, third, *_ = plan.to_run
    registry.start_attempt(first.id, "w")
    registry.finish_attempt(first.id, run_export(first, FAKE))
    registry.start_attempt(second.id, "w")
    run_export(second, FAKE)
    registry.start_attempt(third.id, "w")
    staging = staging_path(third.output, third.id)
    staging.mkdir(parents=True)
    (staging / "model.ts").write_text("half of")


def test_what_was_not_finished_is_done_and_nothing_else(
    zoo: Zoo, die: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    die(do_first_and_begin_second)
    old = zoo.newest()
    assert submission.resume(REQUEST, old.id) == 1  # one of them fails by itself
    new = zoo.newest()
    assert (new.kind, new.parent, new.manifest) == ("resume", old.id, old.manifest)
    assert zoo.statuses(new.id) == {
        "good-2": "succeeded",
        "good-3": "succeeded",
        "raise-1": "failed",
        "unsupported-1": "unsupported",
    }
    assert zoo.statuses(old.id) == {
        "good-1": "succeeded",
        "good-2": "failed",
        "good-3": "failed",
        "raise-1": "cancelled",
        "unsupported-1": "cancelled",
    }
    assert {zoo.rows(old.id)[model].code for model in ("good-2", "good-3")} == {"worker.crashed"}
    assert {model: row.attempt for model, row in zoo.rows().items()} == {
        "good-1": 1,
        "good-2": 2,
        "good-3": 2,
        "raise-1": 1,
        "unsupported-1": 1,
    }
    assert not list(zoo.folder.rglob("*.staging*"))
    assert f"the driver of {old.id} is dead" in capsys.readouterr().err
    assert cli.run(["verify", "--registry", "registry.db"]) == 0


def test_submitting_again_does_the_same(zoo: Zoo, die: Callable[..., None]) -> None:
    die(do_first_and_begin_second)
    assert submission.submit(Path("zoo.yaml"), REQUEST) == 1
    rows = zoo.rows()
    assert rows["good-1"].cached
    assert [rows[model].attempt for model in ("good-2", "good-3")] == [2, 2]
    assert not list(zoo.folder.rglob("*.staging*"))


def test_what_came_to_its_end_is_not_resumed(
    zoo: Zoo, die: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    die(do_first_and_begin_second)
    first = zoo.newest().id
    submission.resume(REQUEST, first)
    count = len(capsys.readouterr().err)
    for run in (first, zoo.newest().id, "latest"):
        assert submission.resume(REQUEST, run) == 0
        assert "has come to an end" in capsys.readouterr().err
    assert count > 0
    assert zoo.newest().parent == first


def test_a_resume_that_died_is_resumed_by_its_own_name_and_by_the_first_ones(
    zoo: Zoo, die: Callable[..., None]
) -> None:
    die(lambda plan, registry: None)
    first = zoo.newest().id
    die(do_first_and_begin_second, how=first)
    second = zoo.newest()
    assert (second.parent, second.total) == (first, len(MODELS))
    assert submission.resume(REQUEST, first) == 1
    assert set(zoo.statuses(zoo.newest().id)) == set(MODELS) - {"good-1"}
    assert submission.resume(REQUEST, second.id) == 0
    assert zoo.rows()["good-2"].attempt == 2


def test_an_edited_manifest_has_no_effect_and_that_is_said(
    zoo: Zoo, die: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    die(lambda plan, registry: None)
    run = zoo.newest()
    with open_registry("registry.db") as registry:
        submitted = registry.manifest(run.id)
    zoo.write("good-1", "good-9", extra="output: elsewhere")
    submission.resume(REQUEST, run.id)
    assert f"zoo.yaml was edited since {run.id} began" in capsys.readouterr().err
    assert set(zoo.statuses(zoo.newest().id)) == set(MODELS)
    assert not (zoo.folder / "elsewhere").exists()
    with open_registry("registry.db") as registry:
        assert registry.manifest(zoo.newest().id) == submitted


def test_without_its_manifest_a_run_is_resumed(
    zoo: Zoo, die: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    die(lambda plan, registry: None)
    (zoo.folder / "zoo.yaml").unlink()
    submission.resume(REQUEST, "latest")
    assert "zoo.yaml cannot be read any more" in capsys.readouterr().err
    assert zoo.statuses()["good-1"] == "succeeded"


def test_an_unedited_manifest_is_not_mentioned(
    zoo: Zoo, die: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    die(lambda plan, registry: None)
    submission.resume(REQUEST, "latest")
    assert "zoo.yaml" not in capsys.readouterr().err.split("exports:")[0]


def test_a_living_drivers_run_is_not_resumed(zoo: Zoo, monkeypatch: pytest.MonkeyPatch) -> None:
    def meddle(plan: Plan, registry: Registry, *_: object) -> None:
        with pytest.raises(Failure) as caught:
            submission.resume(REQUEST, plan.run_id)
        assert caught.value.code == "run.conflict"
        assert plan.run_id in caught.value.message
        raise DriverDied

    monkeypatch.setattr(submission, "run_plan", meddle)
    with pytest.raises(DriverDied):
        submission.submit(Path("zoo.yaml"), REQUEST)


def test_what_was_refused_is_recorded_before_anything_can_die(zoo: Zoo, die: Callable[..., None]) -> None:
    for weights in ("a.pth", "b.pth"):
        (zoo.folder / "scanned" / "unclear").mkdir(parents=True, exist_ok=True)
        (zoo.folder / "scanned" / "unclear" / weights).write_text(weights)
    (zoo.folder / "scanned" / "unclear" / "config.yaml").write_text("VERSION: 2")
    (zoo.folder / "zoo.yaml").write_text("models: {scan: scanned}\nformats: [torchscript-trace]")
    die(lambda plan, registry: None)
    assert zoo.statuses() == {"unclear": "failed"}
    assert zoo.rows()["unclear"].code == "manifest.invalid"
    assert submission.resume(REQUEST, "latest") == 0


def test_a_dry_run_shows_what_would_be_resumed(
    zoo: Zoo, die: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    die(do_first_and_begin_second)
    run = zoo.newest().id
    capsys.readouterr()
    dry = replace(REQUEST, dry_run=True, result=OutputFormat.JSON)
    assert submission.resume(dry, run) == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["model"] for row in printed] == [model for model in MODELS if model != "good-1"]
    assert zoo.newest().id == run


def test_the_command_says_what_is_missing(zoo: Zoo, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["resume", "latest", "--registry", "registry.db"]) == 2
    assert "registry.missing" in capsys.readouterr().err
    with open_registry("registry.db"):
        pass
    assert cli.run(["resume", "r-1", "--registry", "registry.db"]) == 2
    assert "registry.unknown" in capsys.readouterr().err


def test_a_worker_that_outlives_its_driver_publishes_nothing(zoo: Zoo, die: Callable[..., None]) -> None:
    def permit() -> None:
        raise Failure("run.cancelled", "the driver of this run is gone, so nothing is published")

    def outlived(plan: Plan, registry: Registry) -> None:
        job = plan.to_run[0]
        registry.start_attempt(job.id, "w")
        result = run_export(job, FAKE, permit=permit)
        assert result.failure is not None
        assert result.failure.code == "run.cancelled"
        assert not local(job.output).exists()

    die(outlived)
    submission.resume(REQUEST, "latest")
    assert zoo.statuses()["good-1"] == "succeeded"
