"""status, logs and cancel: what another process says of a run, and how it stops it."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from zooport import cli
from zooport.export_core.failures import Failure
from zooport.jobs import monitor, submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import LiveJob, RunState
from zooport.jobs.registry.writer import Registry
from zooport.jobs.runner import RunSettings
from zooport.jobs.status_page import status_page
from zooport.jobs.values import ExportResult
from zooport.tests.fake_stages import FAKE
from zooport.tests.patience import wait_until
from zooport.tests.registry_support import begin, fail, python, run_of, succeed, wait_for_line

pytestmark = pytest.mark.alone

#: A driver that begins a run, does nothing, and waits to be told to go on, or for a signal.
IDLE_DRIVER = """
import sys
from zooport.jobs.registry import open_registry
from zooport.tests.registry_support import begin
registry = open_registry(sys.argv[1])
first, second = begin(registry, ["a", "b"])
registry.start_attempt(first.id)
print(first.id.rpartition(".")[0], flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOOPORT_REGISTRY", str(tmp_path / "zooport.db"))
    monkeypatch.delenv("COLUMNS", raising=False)
    return tmp_path / "zooport.db"


@pytest.fixture
def registry(file: Path) -> Iterator[Registry]:
    with open_registry(str(file)) as opened:
        yield opened


class TestStatus:
    """How a run stands."""

    def ask(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
        capsys.readouterr()
        assert cli.run(["status", *arguments, "-o", "json"]) == 0
        return json.loads(capsys.readouterr().out)

    def test_counts_stages_and_seconds(self, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        done, broken, running, silent, waiting = begin(registry, ["a", "b", "c", "d", "e"])
        succeed(registry, done)
        fail(registry, broken, message="it broke")
        for job in (running, silent):
            registry.start_attempt(job.id)
        started = registry.export(running.id).row.started
        told = [
            LiveJob(running.id, "c", running.format, "verify", started or ""),
            LiveJob(done.id, "a", done.format, "evaluate", started or ""),  # it has ended since
            LiveJob(None, "e", "eager baseline", "evaluate", started or ""),
        ]
        registry.pulse(run_of(done), told)
        found = self.ask(capsys)
        assert found["id"] == run_of(done)
        assert found["counts"]["succeeded"] == found["counts"]["failed"] == found["counts"]["pending"] == 1
        assert found["driver_alive"] is True
        assert found["elapsed"] >= 0
        rows = {(row["model"], row["what"]): row["stage"] for row in found["running"]}
        assert rows == {
            ("c", running.format): "verify",
            ("d", silent.format): "",
            ("e", "eager baseline"): "evaluate",
        }
        assert all(row["seconds"] >= 0 for row in found["running"])
        assert cli.run(["status"]) == 0
        printed = capsys.readouterr().out
        for words in ("1 succeeded", "2 running", "verify", "it broke", "eager baseline", "so far"):
            assert words in printed
        assert waiting.id not in printed

    def test_the_time_to_go_is_what_the_past_says(self, registry: Registry) -> None:
        jobs = begin(registry, [f"m{number}" for number in range(8)])
        assert registry.state(run_of(jobs[0])).remaining is None
        for job in jobs[:4]:
            succeed(registry, job)
        state = registry.state("latest")
        assert state.remaining is not None
        assert 0 <= state.remaining <= state.elapsed  # as many are left as are done

    def test_a_run_that_is_over(self, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        (job,) = begin(registry, ["a"])
        succeed(registry, job)
        registry.finish_run(run_of(job))
        found = self.ask(capsys, run_of(job)[-4:])
        assert (found["status"], found["running"], found["driver_alive"]) == ("succeeded", [], False)
        assert found["remaining"] is None

    def test_a_dead_driver_is_told_with_what_to_do(
        self, registry: Registry, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with python(IDLE_DRIVER, file) as driver:
            run = wait_for_line(driver)
            driver.kill()
        assert self.ask(capsys)["driver_alive"] is False
        assert cli.run(["status"]) == 0
        printed = capsys.readouterr().out
        assert f"(process {driver.pid} on {socket.gethostname()}) is dead" in printed
        assert f"zooport resume {run[-4:]}" in printed

    def test_unknown_and_missing(self, file: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["status"]) == 2
        assert "registry.missing" in capsys.readouterr().err
        open_registry(str(file)).close()
        assert cli.run(["status", "nothing"]) == 2
        assert "registry.unknown" in capsys.readouterr().err

    def test_watching_ends_with_the_run(
        self, registry: Registry, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first, second = begin(registry, ["a", "b"])
        steps = iter([lambda: succeed(registry, first), lambda: succeed(registry, second)])

        def sleep(_: float) -> None:
            step = next(steps, None)
            step() if step is not None else registry.finish_run(run_of(first))

        monkeypatch.setattr(time, "sleep", sleep)
        assert cli.run(["status", "--watch"]) == 0
        printed = capsys.readouterr().out
        assert printed.index("2 pending") < printed.index("1 pending") < printed.index("2 succeeded")
        assert re.search(r"2 succeeded +in \d", printed)

    def test_watching_is_for_people(self, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["status", "--watch", "-o", "json"]) == 2
        assert "--watch" in capsys.readouterr().err

    def test_one_screen_holds_it(self, registry: Registry) -> None:
        from rich.console import Console

        jobs = begin(registry, [f"m{number}" for number in range(100)])
        for job in jobs:
            registry.start_attempt(job.id)
        state: RunState = registry.state("latest")
        console = Console(width=100, height=30, record=True, force_terminal=True)
        with console.capture() as captured:
            console.print(status_page(state, ["x: y"] * 5, 30))
        assert len(captured.get().splitlines()) <= 30
        assert "and 84 more" in captured.get()


def test_a_run_is_a_row_of_csv(registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
    (job,) = begin(registry, ["a"])
    assert cli.run(["status", "-o", "csv"]) == 0
    (row,) = csv.DictReader(capsys.readouterr().out.splitlines())
    assert row["id"] == run_of(job)
    assert row["counts.pending"] == "1"


class TestLogs:
    """The log of an export."""

    @pytest.fixture
    def logged(self, registry: Registry, tmp_path: Path) -> tuple[str, Path]:
        (job,) = begin(registry, ["a"])
        log = tmp_path / "a.log"
        registry.start_attempt(job.id, "w", log)
        return job.id, log

    def test_it_is_printed(self, logged: tuple[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
        name, log = logged
        log.write_bytes(b"one\ntwo \xff \x1b[31m\n")
        assert cli.run(["logs", name]) == 0
        assert capsys.readouterr().out == "one\ntwo \\xff \\x1b[31m\n"
        assert cli.run(["logs", "a"]) == 0
        assert "two" in capsys.readouterr().out

    def test_one_that_is_not_there(
        self, logged: tuple[str, Path], capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.run(["logs", logged[0]]) == 1
        error = capsys.readouterr().err
        assert "log.missing" in error
        assert str(logged[1]) in error

    def test_an_export_without_an_attempt(
        self, registry: Registry, capsys: pytest.CaptureFixture[str]
    ) -> None:
        begin(registry, ["a"])
        assert cli.run(["logs", "a"]) == 1
        assert "has no log: it is pending" in capsys.readouterr().err

    def test_following_prints_what_comes_until_the_end(
        self,
        registry: Registry,
        logged: tuple[str, Path],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name, log = logged
        steps = iter(["one\n", "two\n"])

        def sleep(_: float) -> None:
            line = next(steps, None)
            if line is None:
                with log.open("a") as file:
                    file.write("the end\n")
                registry.cancel([name])
                return
            with log.open("a") as file:
                file.write(line)

        monkeypatch.setattr(time, "sleep", sleep)
        assert cli.run(["logs", name, "--follow"]) == 0
        assert capsys.readouterr().out == "one\ntwo\nthe end\n"

    def test_following_goes_on_with_the_next_attempt(
        self,
        registry: Registry,
        logged: tuple[str, Path],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        name, log = logged
        crash = Failure("worker.crashed", "killed").record()
        again = tmp_path / "a.2.log"

        def first_ends() -> None:
            log.write_text("one\n")
            registry.finish_attempt(name, ExportResult(name, 1.0, failure=crash), again=True)

        def second_begins() -> None:
            registry.start_attempt(name, "w", again)
            again.write_text("t")

        def second_ends() -> None:
            again.write_text("two\n")
            registry.cancel([name])

        steps = iter([first_ends, second_begins, second_ends])
        monkeypatch.setattr(time, "sleep", lambda _: next(steps)())
        assert cli.run(["logs", name, "--follow"]) == 0
        assert capsys.readouterr().out == "one\ntwo\n"

    def test_following_waits_for_the_first_attempt(
        self,
        registry: Registry,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        (job,) = begin(registry, ["a"])

        def begins() -> None:
            (tmp_path / "a.log").write_text("one\n")
            registry.start_attempt(job.id, "w", tmp_path / "a.log")

        steps = iter([begins, lambda: registry.cancel([job.id])])
        monkeypatch.setattr(time, "sleep", lambda _: next(steps)())
        assert cli.run(["logs", "a", "--follow"]) == 0
        assert capsys.readouterr().out == "one\n"

    def test_following_ends_with_a_dead_driver(
        self, registry: Registry, logged: tuple[str, Path], file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        name, log = logged
        log.write_text("one\n")
        with sqlite3.connect(file) as connection:
            connection.execute("UPDATE runs SET process = 'of another time'")
        assert cli.run(["logs", name, "--follow"]) == 0
        printed = capsys.readouterr()
        assert printed.out == "one\n"
        assert "is dead" in printed.err


class TestCancel:
    """Another process's run is stopped."""

    def test_a_run_that_is_over(self, registry: Registry, capsys: pytest.CaptureFixture[str]) -> None:
        (job,) = begin(registry, ["a"])
        succeed(registry, job)
        registry.finish_run(run_of(job))
        assert cli.run(["cancel", "latest"]) == 0
        assert "is over: succeeded" in capsys.readouterr().out
        assert not registry.state().cancel_requested

    def test_a_driver_that_ends_by_the_signal_leaves_a_run_to_be_closed(
        self, registry: Registry, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with python(IDLE_DRIVER, file) as driver:
            run = wait_for_line(driver)
            reaper = threading.Thread(target=driver.wait)
            reaper.start()
            assert cli.run(["cancel", run]) == 0
            reaper.join()
        assert driver.returncode == -signal.SIGTERM
        assert f"{run} is cancelled" in capsys.readouterr().out
        assert {row.status for row in registry.exports()} == {"failed", "cancelled"}

    def test_a_process_that_only_has_the_drivers_number_is_not_killed(
        self, registry: Registry, file: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        begin(registry, ["a"])
        with python("import sys; print('here', flush=True); sys.stdin.readline()") as innocent:
            wait_for_line(innocent)
            with sqlite3.connect(file) as connection:
                connection.execute("UPDATE runs SET pid = ?, process = 'of another time'", (innocent.pid,))
            assert cli.run(["cancel", "latest"]) == 0
            assert innocent.poll() is None
            innocent.communicate("\n")
        assert registry.run("latest").status == "cancelled"

    def test_a_driver_that_goes_on_is_named(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (job,) = begin(registry, ["a"])
        monkeypatch.setattr(monitor, "_STOPPED_WITHIN", 0.1)
        monkeypatch.setattr(os, "kill", lambda *_: None)
        with pytest.raises(Failure) as caught:
            monitor.cancel(None, "latest")
        assert caught.value.code == "run.conflict"
        assert str(os.getpid()) in caught.value.message
        assert registry.is_cancel_requested(run_of(job))

    def test_without_waiting_it_only_asks(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        begin(registry, ["a"])
        monkeypatch.setattr(os, "kill", lambda *_: None)
        assert cli.run(["cancel", "latest", "--no-wait"]) == 0
        assert "was asked to stop" in capsys.readouterr().out
        assert cli.run(["status"]) == 0
        assert "was asked to stop" in capsys.readouterr().out

    @pytest.mark.usefixtures("stay_joined")
    def test_a_driver_heeds_the_request_in_the_registry_alone(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As one on another machine, which no signal reaches."""
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setattr(monitor, "_signal", lambda driver: None)
        file = write_zoo(tmp_path, "hang-1", "hang-2", "good-1")
        request = submission.Request(
            str(file), RunSettings(workers=2), hosts=HostSettings("", FAKE, preload=())
        )
        codes: list[int] = []

        def stop() -> None:
            wait_until(lambda: "running" in statuses(file))
            codes.append(monitor.cancel(str(file), "latest"))

        other = threading.Thread(target=stop)
        other.start()
        codes.append(submission.submit(tmp_path / "zoo.yaml", request))
        other.join()
        assert sorted(codes) == [0, 130]
        assert statuses(file) <= {"cancelled", "succeeded"}
        with open_registry(str(file)) as registry:
            assert registry.run("latest").status == "cancelled"
        assert not list(tmp_path.rglob("*.staging*"))


def write_zoo(folder: Path, *names: str) -> Path:
    lines = []
    for name in names:
        (folder / f"{name}.pth").write_text(name)
        lines.append(f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}")
    (folder / "config.yaml").write_text("VERSION: 2")
    (folder / "zoo.yaml").write_text("\n".join(["models:", *lines, "formats: [torchscript-trace]"]))
    return folder / "zooport.db"


def statuses(file: Path) -> set[str]:
    if not file.exists():
        return set()
    with sqlite3.connect(file, timeout=60) as connection:
        if not connection.execute("SELECT name FROM sqlite_master WHERE name = 'exports'").fetchall():
            return set()
        return {status for (status,) in connection.execute("SELECT status FROM exports")}


DRIVER = """
from pathlib import Path
from zooport.jobs import submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.runner import RunSettings
from zooport.tests.fake_stages import FAKE

request = submission.Request("zooport.db", RunSettings(workers=2), hosts=HostSettings("", FAKE, preload=()))
raise SystemExit(submission.submit(Path("zoo.yaml"), request))
"""


@pytest.mark.slow
def test_a_run_of_another_process_is_watched_and_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write_zoo(tmp_path, "good-1", "hang-1", "hang-2", "good-2")
    environment = os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", DRIVER], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    ) as driver:
        wait_until(lambda: statuses(file) >= {"running", "succeeded"} and running_at(file) == {"export"})
        assert cli.run(["status", "--registry", str(file)]) == 0
        assert "hang-" in capsys.readouterr().out
        assert cli.run(["cancel", "latest", "--registry", str(file)]) == 0
        assert "is cancelled" in capsys.readouterr().out
        assert driver.wait(120) == 130
    assert statuses(file) == {"succeeded", "cancelled"}


def running_at(file: Path) -> set[str]:
    with open_registry(str(file)) as registry:
        return {job.stage for job in registry.state("latest").running}
