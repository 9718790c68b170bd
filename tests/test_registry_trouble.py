"""What goes wrong around a registry while it is in use: clocks, locks, lost files, names that meet."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path

import pytest

from zooport import cli
from zooport.export_core.failures import Failure
from zooport.jobs import submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.progress import Display, Running
from zooport.jobs.registry import open_registry, records
from zooport.jobs.registry.records import ExportFilter, LiveJob, new_run_id, now, seconds_between
from zooport.jobs.registry.writer import Registry
from zooport.jobs.runner import RunSettings
from zooport.tests.fake_stages import FAKE
from zooport.tests.registry_support import begin, fail, run_of, succeed

pytestmark = pytest.mark.alone


class Clock:
    """A clock that a test sets; every look takes a millisecond."""

    def __init__(self) -> None:
        self.moment = datetime(2026, 6, 1, 12, tzinfo=UTC)

    def now(self, _: tzinfo | None = None) -> datetime:
        self.moment += timedelta(milliseconds=1)
        return self.moment

    def fromisoformat(self, text: str) -> datetime:
        return datetime.fromisoformat(text)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(records, "datetime", made)
    return made


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    with open_registry(registry_url) as opened:
        yield opened


class TestClockSetBack:
    """Time goes back by an hour in the middle; nothing becomes negative, old or double."""

    def test_durations_are_never_negative(self, registry: Registry, clock: Clock) -> None:
        done, crashed, pending = begin(registry, ["a", "b", "c"])
        registry.start_attempt(done.id)
        registry.start_attempt(crashed.id)
        registry.pulse(run_of(done), [LiveJob(crashed.id, "b", crashed.format, "export", now())])
        clock.moment -= timedelta(hours=1)
        state = registry.state("latest")
        assert state.elapsed == 0.0
        assert all(job["seconds"] == 0.0 for job in state.to_dict()["running"])
        registry.cancel([done.id])
        registry.finish_run(run_of(done))
        assert registry.run("latest").seconds == 0.0
        assert all((row.seconds or 0) >= 0 for row in registry.exports())
        assert registry.export(done.id).attempts[0].seconds == 0.0
        assert registry.state("latest").elapsed == 0.0
        assert registry.export(pending.id).row.status == "cancelled"

    def test_the_newest_run_is_the_one_that_began_last(self, registry: Registry, clock: Clock) -> None:
        (first,) = begin(registry, ["a"])
        fail(registry, first)
        registry.finish_run(run_of(first))
        clock.moment -= timedelta(hours=1)
        (second,) = begin(registry, ["a"])
        succeed(registry, second)
        registry.finish_run(run_of(second))
        assert run_of(second) < run_of(first)
        assert [run.id for run in registry.runs()] == [run_of(second), run_of(first)]
        assert registry.run("latest").id == run_of(second)
        assert [row.id for row in registry.exports()] == [second.id]
        assert registry.exports()[0].attempt == 2
        assert registry.failed_exports() == []

    def test_ids_stay_unique(self, registry: Registry, clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
        (job,) = begin(registry, ["a"])
        succeed(registry, job)
        registry.finish_run(run_of(job))
        wanted = iter([run_of(job), run_of(job), "r-20260601-120000-free"])
        monkeypatch.setattr(submission, "new_run_id", lambda: next(wanted))
        plan = submission._plan(submission._Work(Path("/zoo/zoo.yaml"), "", []), registry)
        assert plan.run_id == "r-20260601-120000-free"

    def test_new_ids_differ_though_the_clock_stands_still(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Still(Clock):
            def now(self, _: tzinfo | None = None) -> datetime:
                return self.moment

        monkeypatch.setattr(records, "datetime", Still())
        assert len({new_run_id() for _ in range(50)}) > 45

    def test_seconds_between(self) -> None:
        assert seconds_between("2026-01-01T00:00:01.000000Z", "2026-01-01T00:00:00.000000Z") == 0.0


class TestLockedForAWhile:
    """Somebody holds the registry's lock in the middle of a run."""

    @pytest.fixture
    def file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        monkeypatch.setenv("ZOOPORT_REGISTRY_TIMEOUT", "0.05")
        return tmp_path / "zooport.db"

    def test_a_driver_waits_longer_than_a_command(self, file: Path) -> None:
        with open_registry(str(file)) as registry:
            (job,) = begin(registry, ["a"])
            holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
            holder.execute("BEGIN IMMEDIATE")
            with pytest.raises(Failure, match="locked"):
                registry.start_attempt(job.id)
            registry.be_patient(60)
            threading.Timer(1.0, lambda: holder.execute("ROLLBACK")).start()
            succeed(registry, job)
            holder.close()

    def test_patience_ends(self, file: Path) -> None:
        with open_registry(str(file)) as registry:
            (job,) = begin(registry, ["a"])
            holder = sqlite3.connect(file, isolation_level=None)
            holder.execute("BEGIN IMMEDIATE")
            registry.be_patient(0.6)
            begun = time.monotonic()
            with pytest.raises(Failure) as caught:
                registry.start_attempt(job.id)
            assert caught.value.code == "registry.locked"
            assert time.monotonic() - begun > 0.6
            holder.close()

    def test_what_is_lost_is_not_waited_for(self, file: Path) -> None:
        with open_registry(str(file)) as registry:
            (job,) = begin(registry, ["a"])
            registry.be_patient(3600)
            file.unlink()
            with pytest.raises(Failure) as caught:
                registry.start_attempt(job.id)
            assert caught.value.code == "registry.missing"


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOOPORT_REGISTRY", str(tmp_path / "zoo" / "zooport.db"))
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def write_manifest(folder: Path, *names: str, file: str = "zoo.yaml") -> Path:
    lines = []
    for name in names:
        (folder / f"{name}.pth").write_text(name)
        lines.append(f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}")
    (folder / "config.yaml").write_text("VERSION: 2")
    (folder / file).write_text("\n".join(["models:", *lines, "formats: [torchscript-trace]"]))
    return folder / file


REQUEST = submission.Request(settings=RunSettings(workers=2), hosts=HostSettings("", FAKE, preload=()))


class Meddler(Display):
    """Deletes the registry once something runs."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def wants_stages(self) -> bool:
        return True

    def running(self, jobs: Sequence[Running]) -> None:
        if any(job.stage == "export" for job in jobs):
            self._file.unlink(missing_ok=True)


@pytest.mark.usefixtures("stay_joined")
def test_a_registry_that_is_deleted_in_the_middle_ends_the_run_by_name(
    zoo: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(zoo, "hang-1", "good-1", "good-2")
    (zoo / "hang-1.pth").write_text("the largest, so that it begins first")
    monkeypatch.setattr(submission, "display", lambda *_: Meddler(zoo / "zooport.db"))
    with pytest.raises(Failure) as caught:
        submission.submit(manifest, REQUEST)
    assert caught.value.code == "registry.missing"
    assert str(zoo / "zooport.db") in caught.value.message
    assert not (zoo / "zooport.db").exists()
    assert not list(zoo.rglob("*.staging*"))
    monkeypatch.undo()
    write_manifest(zoo, "good-1", "good-2")
    monkeypatch.chdir(zoo)
    monkeypatch.setenv("ZOOPORT_REGISTRY", str(zoo / "zooport.db"))
    assert cli.run(["list"]) == 0  # nothing there: a note and an empty list


@pytest.mark.usefixtures("stay_joined")
def test_after_the_registry_was_lost_everything_is_done_anew_and_nothing_is_served(zoo: Path) -> None:
    manifest = write_manifest(zoo, "good-1")
    assert submission.submit(manifest, REQUEST) == 0
    for path in zoo.glob("zooport.db*"):
        path.unlink()
    assert submission.submit(manifest, REQUEST) == 0
    with open_registry() as registry:
        (row,) = registry.exports()
    assert (row.cached, row.attempt) == (False, 1)
    assert cli.run(["verify"]) == 0


class TestTwoModelsOfOneName:
    """In one manifest an error; in two, two models."""

    def test_in_one_manifest(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_manifest(zoo, "good-1", "good-1")
        assert cli.run(["submit", "zoo.yaml"]) == 2
        error = capsys.readouterr().err
        assert "line 3" in error
        assert "'good-1' is already named on line 2" in error
        assert not (zoo / "zooport.db").exists()

    @pytest.mark.usefixtures("stay_joined")
    def test_in_two_manifests_each_keeps_its_own(self, zoo: Path) -> None:
        (zoo / "other").mkdir()
        manifests = [write_manifest(zoo, "good-1"), write_manifest(zoo / "other", "good-1")]
        (zoo / "other" / "good-1.pth").write_text("other weights")
        for manifest in manifests:
            assert submission.submit(manifest, REQUEST) == 0
        with open_registry() as registry:
            rows = registry.exports()
            assert [row.model for row in rows] == ["good-1"] * 2
            assert len({registry.export(row.id).content_key for row in rows}) == 2
            assert len({row.artifact for row in rows}) == 2
            with pytest.raises(Failure, match="more than one export answers"):
                registry.export("good-1")
        assert cli.run(["verify"]) == 0

    @pytest.mark.usefixtures("stay_joined")
    def test_rerun_over_both_tells_them_apart(self, zoo: Path) -> None:
        (zoo / "other").mkdir()
        manifests = [write_manifest(zoo, "raise-1"), write_manifest(zoo / "other", "raise-1")]
        (zoo / "other" / "raise-1.pth").write_text("other weights")
        for manifest in manifests:
            assert submission.submit(manifest, REQUEST) == 1
        with open_registry() as registry:
            before = {registry.export(row.id).content_key for row in registry.exports()}
        assert submission.rerun(REQUEST, None, None, include_unsupported=False) == 1
        with open_registry() as registry:
            rows = registry.exports(ExportFilter(run="latest"))
            assert {registry.export(row.id).content_key for row in rows} == before
            assert [row.attempt for row in rows] == [2, 2]
