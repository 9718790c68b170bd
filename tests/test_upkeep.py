"""verify and gc: what is on the disk is what the registry says, and nothing that is not ours is touched."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport import cli
from zooport.export_core.artifacts import GONE, OLD, publish, staged, staging_path
from zooport.export_core.places import local
from zooport.jobs.audit import find_leftovers
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import new_run_id
from zooport.jobs.registry.writer import Registry
from zooport.jobs.values import ArtifactRecord, ExportJob, ExportResult
from zooport.tests.registry_support import make_job, run_of

OURS = '{"versions": {"zooport": "1"}}'


class Disk:
    """A registry, and artifacts of three exports that agree with it."""

    def __init__(self, folder: Path, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.out = folder / "out"
        self.registry = registry
        self._capsys = capsys
        self.jobs = self.begin("a", "b", "team/c")
        for job in self.jobs:
            self.succeed(job)
        registry.finish_run(run_of(self.jobs[0]))

    def begin(
        self, *models: str, manifest: str = "/zoo/zoo.yaml", out: Path | None = None
    ) -> list[ExportJob]:
        run = new_run_id()
        jobs = []
        for number, model in enumerate(models, 1):
            job = make_job(run, number, model)
            jobs.append(replace(job, output=(out or self.out) / model / job.format))
        self.registry.begin_run(manifest, "", jobs, [], run_id=run)
        return jobs

    def succeed(self, job: ExportJob) -> None:
        self.registry.start_attempt(job.id)
        with staged(job.output, job.id) as staging:
            write(staging, job.id)
            made = publish(staging, local(job.output))
        record = ArtifactRecord(job.output, "model.ts", made.files["model.ts"], made.size, made.files)
        self.registry.finish_attempt(job.id, ExportResult(job.id, 1.0, artifact=record))

    def ask(self, *arguments: str, code: int = 0) -> list[dict[str, Any]]:
        self._capsys.readouterr()
        assert cli.run([*arguments, "-o", "json", "--registry", str(self.folder / "r.db")]) == code
        found: list[dict[str, Any]] = json.loads(self._capsys.readouterr().out)
        return found

    def wrong(self, *arguments: str) -> dict[str, str]:
        """What verify says: path below the output directory -> state."""
        rows = self.ask("verify", *arguments, code=1)
        return {str(Path(row["path"]).relative_to(self.out)): row["state"] for row in rows}


def write(directory: Path, content: str, description: str = OURS) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "model.ts").write_text(content)
    (directory / "model.json").write_text(description)


@pytest.fixture
def disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Iterator[Disk]:
    with open_registry(str(tmp_path / "r.db")) as registry:
        yield Disk(tmp_path, registry, capsys)


def test_what_agrees_is_intact(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    assert disk.ask("verify") == []
    rows = disk.ask("verify", "--all")
    assert [(row["state"], row["model"]) for row in rows] == [
        ("intact", "a"),
        ("intact", "b"),
        ("intact", "team/c"),
    ]
    assert cli.run(["verify", "--registry", str(disk.folder / "r.db")]) == 0
    assert "3 intact" in capsys.readouterr().out
    assert disk.ask("gc") == []


def test_missing_and_altered_ones_are_named(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = (local(job.output) for job in disk.jobs)
    (first / "model.ts").write_text("other")
    shutil.rmtree(second)
    (third / "model.json").unlink()
    rows = disk.ask("verify", code=1)
    assert [(row["state"], row["model"], row["problem"]) for row in rows] == [
        ("altered", "a", "model.ts has another content"),
        ("missing", "b", "the directory is not there"),
        ("missing", "team/c", "model.json is not there"),
    ]
    assert rows[0]["export"] == disk.jobs[0].id
    assert cli.run(["verify", "--registry", str(disk.folder / "r.db")]) == 1
    printed = capsys.readouterr().out
    assert "1 altered" in printed
    assert "2 missing" in printed
    assert disk.ask("gc") == []


@pytest.mark.skipif(os.geteuid() == 0, reason="rights do not stop root")
def test_an_unreadable_one_is_wrong(disk: Disk) -> None:
    (local(disk.jobs[0].output) / "model.ts").chmod(0)
    assert disk.wrong() == {"a/torchscript-trace": "unreadable"}


def test_values_of_eager_models_that_no_newest_export_compares_with_can_go(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = disk.out / ".baselines"
    kept.mkdir()
    files = {name: kept / f"{name}.npz" for name in ("old", "new", "stray")}
    files["stray"].write_text("values")

    def run(name: str) -> str:
        files[name].write_text("values")
        run_id = new_run_id()
        job = make_job(run_id, 1, "a")
        job = replace(job, output=disk.out / "a" / job.format, baseline_values=files[name])
        disk.registry.begin_run("/zoo/zoo.yaml", "", [job], [], run_id=run_id)
        return run_id

    disk.registry.finish_run(run("old"))
    (row,) = disk.ask("gc")
    assert (row["state"], row["path"], row["bytes"]) == ("unused", str(files["stray"]), 6)
    assert disk.ask("verify") == []  # they do no harm
    going = run("new")
    assert {row["path"] for row in disk.ask("gc")} == {str(files["stray"]), str(files["old"])}
    assert [row["removed"] for row in disk.ask("gc", "--yes")] == [True, True]
    assert list(kept.iterdir()) == [files["new"]]
    disk.registry.finish_run(going)

    files["stray"].write_text("values")
    (disk.out / ".logs" / "r-20260101-000000-zzzz").mkdir(parents=True)  # another registry's run
    assert disk.ask("gc", "--yes") == []
    assert files["stray"].exists()
    capsys.readouterr()
    assert cli.run(["gc", "--yes", "--include-foreign", "--registry", str(disk.folder / "r.db")]) == 0
    assert "removed 1 file, 6 bytes" in capsys.readouterr().out


def test_values_that_are_reached_through_a_link_are_in_use(disk: Disk) -> None:
    kept = disk.out / ".baselines" / "one.npz"
    kept.parent.mkdir()
    kept.write_text("values")
    link = disk.folder / "link"
    link.symlink_to(disk.out)
    run_id = new_run_id()
    job = make_job(run_id, 1, "a")
    job = replace(job, output=link / "a" / job.format, baseline_values=link / ".baselines" / "one.npz")
    disk.registry.begin_run("/other/zoo.yaml", "", [job], [], run_id=run_id)
    assert disk.ask("gc", "--yes") == []
    assert kept.exists()


def test_what_a_living_run_writes_is_not_wrong(disk: Disk) -> None:
    (again,) = disk.begin("a")
    model = local(again.output) / "model.ts"
    model.write_text("published, but its verdict waits for a baseline")
    (local(disk.jobs[1].output) / "model.ts").write_text("other")
    assert disk.wrong() == {"b/torchscript-trace": "altered"}
    disk.registry.finish_run(run_of(again))
    assert disk.wrong() == {"a/torchscript-trace": "altered", "b/torchscript-trace": "altered"}


def test_one_run_is_asked_for(disk: Disk) -> None:
    (other,) = disk.begin("d", manifest="/other.yaml")
    disk.succeed(other)
    disk.registry.finish_run(run_of(other))
    (local(other.output) / "model.ts").write_text("other")
    (local(disk.jobs[0].output) / "model.ts").write_text("other")
    assert disk.wrong("--run", "latest") == {"d/torchscript-trace": "altered"}
    assert disk.wrong("--run", run_of(disk.jobs[0])) == {"a/torchscript-trace": "altered"}
    assert len(disk.wrong()) == 2


def test_only_the_newest_row_of_a_directory_counts(disk: Disk) -> None:
    (again,) = disk.begin("a")
    disk.succeed(again)
    disk.registry.finish_run(run_of(again))
    assert disk.ask("verify") == []
    assert disk.ask("verify", "--run", run_of(disk.jobs[0])) == []


def test_what_was_moved_elsewhere_may_be_deleted(disk: Disk) -> None:
    (moved,) = disk.begin("a", out=disk.folder / "elsewhere")
    disk.succeed(moved)
    shutil.rmtree(local(disk.jobs[0].output))
    assert disk.ask("verify") == []
    (disk.folder / "elsewhere/a/torchscript-trace/model.ts").write_text("other")
    assert [row["state"] for row in disk.ask("verify", code=1)] == ["altered"]


def test_orphans_and_stale_staging_are_found_and_removed(
    disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    orphan = disk.out / "b" / "torchscript-trace"
    shutil.copytree(orphan, disk.out / "gone" / "torchscript-trace")
    staging = staging_path(orphan, disk.jobs[1].id)
    write(staging, "half")
    write(staging.with_name(staging.name + OLD), "old")
    write(staging.with_name(staging.name + GONE), "gone")
    expected = {
        "gone/torchscript-trace": "orphaned",
        f"b/{staging.name}": "staging",
        f"b/{staging.name}{OLD}": "staging",
        f"b/{staging.name}{GONE}": "staging",
    }
    assert disk.wrong() == expected
    listed = disk.ask("gc")
    assert {row["removed"] for row in listed} == {False}
    assert sum(row["bytes"] for row in listed) > 4 * len(OURS)
    assert cli.run(["gc", "--registry", str(disk.folder / "r.db")]) == 0
    assert "would remove 4 directories" in capsys.readouterr().out
    assert disk.wrong() == expected
    assert {row["removed"] for row in disk.ask("gc", "--yes")} == {True}
    assert disk.ask("verify") == []
    assert not list(disk.out.rglob(".*"))
    assert len(list(disk.out.rglob("model.ts"))) == 3


def test_nothing_that_zooport_did_not_write_is_touched(disk: Disk) -> None:
    precious = [
        disk.out / "theirs" / "torchscript-trace",  # another program's model.json
        disk.out / "empty" / "torchscript-trace",  # no model.json
        disk.out / "notes",  # no format's name
        disk.out / "b" / ".torchscript-trace.mine.staging",  # no export's id
        disk.out / "b" / ".cache",
        disk.out / "deep" / "er" / "than" / "any" / "torchscript-trace",
    ]
    for directory in precious:
        write(directory, "precious", OURS if directory.name != "torchscript-trace" else '{"a": 1}')
    (disk.out / "empty" / "torchscript-trace" / "model.json").unlink()
    (disk.out / "broken" / "torchscript-trace").mkdir(parents=True)
    (disk.out / "broken" / "torchscript-trace" / "model.json").write_bytes(b"\xff{")
    elsewhere = disk.folder / "linked"
    write(elsewhere, "precious")
    (disk.out / "d").mkdir()
    (disk.out / "d" / "torchscript-trace").symlink_to(elsewhere)
    assert disk.ask("verify") == []
    assert disk.ask("gc", "--yes") == []
    assert all((directory / "model.ts").exists() for directory in [*precious, elsewhere])


def test_an_output_directory_of_another_name_is_the_same(disk: Disk) -> None:
    link = disk.folder / "link"
    link.symlink_to(disk.out)
    (job,) = disk.begin("d", manifest="/other.yaml", out=link)
    disk.succeed(job)
    disk.registry.finish_run(run_of(job))
    assert disk.ask("verify") == []
    assert disk.ask("gc", "--yes") == []
    assert (local(job.output) / "model.ts").exists()


def test_what_a_living_driver_works_on_is_left_alone(disk: Disk) -> None:
    (job,) = disk.begin("d", manifest="/other.yaml")
    disk.registry.start_attempt(job.id)
    write(staging_path(job.output, job.id), "half")
    write(local(job.output), "published, to be recorded in a moment")
    assert disk.ask("verify") == []
    assert disk.ask("gc", "--yes") == []
    assert (local(job.output) / "model.ts").exists()
    disk.registry.finish_run(run_of(job))
    assert set(disk.wrong().values()) == {"orphaned", "staging"}


def test_predictions_that_a_dead_driver_left_are_removed(disk: Disk) -> None:
    job = disk.begin("d", manifest="/zoo/other.yaml")[0]
    busy, over = (
        disk.out / ".logs" / run_of(each) / "d" / ".baseline-0123456789abcdef.shards"
        for each in (job, disk.jobs[0])
    )
    for folder in (busy, over):
        folder.mkdir(parents=True)
        (folder / "1.json").write_text("[]")
        (folder.parent / "baseline.log").write_text("said")
    assert [each.path for each in find_leftovers(disk.registry)] == [over]
    disk.ask("gc", "--yes")
    assert not over.exists()
    assert busy.exists()
    assert (over.parent / "baseline.log").exists()


def test_a_folder_that_a_run_removes_meanwhile_is_passed_over(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    logs = disk.out / ".logs" / run_of(disk.jobs[0])
    vanishing, left = logs / "d" / "gone", logs / "e" / ".baseline-0123456789abcdef.shards"
    for folder in (vanishing, left):
        folder.mkdir(parents=True)
    scandir = os.scandir

    def late(path: Any = ".") -> Any:
        if str(path) == str(vanishing):
            vanishing.rmdir()
        return scandir(path)

    monkeypatch.setattr(os, "scandir", late)
    assert [each.path for each in find_leftovers(disk.registry)] == [left]
    assert not vanishing.exists()


def test_a_dead_drivers_run_is_closed_before_it_is_cleaned_up(
    disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = disk.begin("d", manifest="/other.yaml")
    disk.registry.start_attempt(job.id)
    write(staging_path(job.output, job.id), "half")
    monkeypatch.setattr(Driver, "is_alive", lambda self, heartbeat: False)
    assert disk.wrong() == {f"d/.torchscript-trace.{job.id}.staging": "staging"}
    disk.ask("gc", "--yes")
    assert disk.registry.export(job.id).row.code == "worker.crashed"
    assert disk.ask("verify") == []


def test_unfinished_work_of_unknown_owners_is_left_alone_for_a_day(disk: Disk) -> None:
    staging = disk.out / "b" / ".torchscript-trace.export.staging"
    write(staging, "half")
    assert disk.ask("verify") == []
    long_ago = time.time() - 2 * 24 * 3600
    for path in (*staging.iterdir(), staging):
        os.utime(path, (long_ago, long_ago))
    assert disk.wrong() == {"b/.torchscript-trace.export.staging": "staging"}


def test_artifacts_of_another_registry_are_not_ours(disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    stranger = "r-20260101-000000-abcd"
    write(disk.out / "theirs" / "torchscript-trace", "precious")
    (disk.out / ".logs" / stranger).mkdir(parents=True)
    (disk.out / ".logs" / run_of(disk.jobs[0])).mkdir()
    assert disk.ask("verify") == []
    assert disk.ask("gc", "--yes") == []
    assert cli.run(["gc", "--registry", str(disk.folder / "r.db")]) == 0
    assert "--include-foreign" in capsys.readouterr().out
    assert (disk.out / "theirs" / "torchscript-trace").exists()
    (row,) = disk.ask("gc", "--yes", "--include-foreign")
    assert (row["state"], row["removed"]) == ("foreign", True)
    assert stranger in row["problem"]
    assert not (disk.out / "theirs" / "torchscript-trace").exists()


def test_what_is_named_meanwhile_is_not_removed(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    write(disk.out / "d" / "torchscript-trace", "one")
    find = cli_find_leftovers(monkeypatch, lambda: disk.succeed(disk.begin("d", manifest="/other.yaml")[0]))
    (row,) = disk.ask("gc", "--yes")
    assert find
    assert row["removed"] is False
    assert (disk.out / "d" / "torchscript-trace" / "model.ts").exists()


def cli_find_leftovers(monkeypatch: pytest.MonkeyPatch, then: Any) -> list[str]:
    """Let something happen between looking and removing; return a list that says that it happened."""
    happened: list[str] = []

    def find(*arguments: Any) -> Any:
        found = find_leftovers(*arguments)
        then()
        happened.append("yes")
        return found

    monkeypatch.setattr("zooport.jobs.upkeep.find_leftovers", find)
    return happened


def test_what_cannot_be_removed_is_said(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    write(disk.out / "gone" / "torchscript-trace", "one")

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "rename", refuse)
    (row,) = disk.ask("gc", "--yes", code=1)
    assert row["removed"] is False
    assert "Permission denied" in row["problem"]


@pytest.mark.parametrize("command", ["verify", "gc"])
def test_without_a_registry_there_is_nothing_to_compare(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([command, "--registry", str(tmp_path / "none.db")]) == 2
    assert "registry.missing" in capsys.readouterr().err
