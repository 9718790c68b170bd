"""Two drivers at one registry, and drivers that died."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from zooport.export_core.failures import Failure
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.drivers import Driver, birth
from zooport.jobs.registry.writer import Registry
from zooport.tests.registry_support import MANIFEST, begin, fail, python, run_of, succeed, wait_for_line

DRIVER = """
import sys
from zooport.jobs.registry import open_registry
from zooport.tests.registry_support import begin, succeed
registry = open_registry(sys.argv[1])
done, running, pending = begin(registry, ["a", "b", "c"])
succeed(registry, done)
registry.start_attempt(running.id)
print(running.id, flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    with open_registry(registry_url) as opened:
        yield opened


def test_second_driver_of_a_manifest_is_refused_by_name(registry: Registry, registry_url: str) -> None:
    with python(DRIVER, registry_url) as driver:
        run = wait_for_line(driver).rpartition(".")[0]
        with pytest.raises(Failure) as caught:
            begin(registry, ["z"])
        failure = caught.value
        assert failure.code == "run.conflict"
        assert failure.details == {"run": run, "pid": driver.pid, "host": socket.gethostname()}
        for word in (run, str(MANIFEST), str(driver.pid), socket.gethostname()):
            assert word in failure.message
        assert len(registry.runs()) == 1
        assert len(begin(registry, ["a"], manifest=Path("/zoo/other.yaml"))) == 1
        driver.communicate("\n")


def test_run_of_a_killed_driver_is_closed_and_its_manifest_runs_again(
    registry: Registry, registry_url: str
) -> None:
    with python(DRIVER, registry_url) as driver:
        running = wait_for_line(driver)
        driver.send_signal(signal.SIGKILL)
    run = running.rpartition(".")[0]
    assert {row.status for row in registry.exports()} == {"succeeded", "running", "pending"}
    assert registry.recover_stale_runs() == [run]
    done, crashed, pending = registry.exports()
    assert done.status == "succeeded"
    assert (crashed.status, crashed.code, crashed.retryable) == ("failed", "worker.crashed", True)
    assert str(driver.pid) in (crashed.message or "")
    assert (pending.status, pending.code) == ("cancelled", "run.cancelled")
    assert registry.run(run).status == "cancelled"
    assert registry.export(crashed.id).attempts[0].finished is not None
    assert registry.recover_stale_runs() == []
    assert len(begin(registry, ["a", "b", "c"])) == 3


def test_beginning_a_run_takes_over_from_a_dead_driver(registry: Registry, registry_url: str) -> None:
    with python(DRIVER, registry_url) as driver:
        wait_for_line(driver)
        driver.kill()
    begin(registry, ["a"])
    assert [run.status for run in registry.runs()] == ["running", "cancelled"]


def test_manifests_that_write_the_same_directory_do_not_run_at_once(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    again = replace(job, id="r-2.1")
    with pytest.raises(Failure) as caught:
        registry.begin_run("/zoo/other.yaml", "", [again], [], run_id="r-2")
    assert caught.value.code == "run.conflict"
    assert str(job.output) in caught.value.message
    succeed(registry, job)
    assert registry.begin_run("/zoo/other.yaml", "", [again], [], run_id="r-2") == "r-2"


def test_a_directory_with_two_names_is_one(registry: Registry, tmp_path: Path) -> None:
    (tmp_path / "art").mkdir()
    (tmp_path / "link").symlink_to("art")
    (job,) = begin(registry, ["a"])
    through_link = replace(job, id="r-2.1", output=tmp_path / "link/a/onnx")
    registry.begin_run("/zoo/other.yaml", "", [through_link], [], run_id="r-2")
    again = replace(job, id="r-3.1", output=tmp_path / "art/a/onnx")
    with pytest.raises(Failure) as caught:
        registry.begin_run("/zoo/third.yaml", "", [again], [], run_id="r-3")
    assert caught.value.code == "run.conflict"


def test_rerun_of_exports_that_another_run_is_at_is_refused(registry: Registry) -> None:
    (first,) = begin(registry, ["a"])
    fail(registry, first)
    registry.finish_run(run_of(first))
    begin(registry, ["a"])
    again = replace(first, id="r-2.1")
    assert registry.failed_exports(run=run_of(first)) == []  # a successor is on its way
    with pytest.raises(Failure) as caught:
        registry.begin_run("/elsewhere.yaml", "", [again], [], run_id="r-2", replaces={again.id: first.id})
    assert caught.value.code == "run.conflict"


def test_finished_run_is_no_conflict(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    succeed(registry, job)
    registry.finish_run(run_of(job))
    assert len(begin(registry, ["a"])) == 1


def test_this_process_is_alive() -> None:
    assert Driver.current().is_alive(None)


def test_process_that_reuses_a_number_is_another() -> None:
    driver = Driver.current()
    assert not Driver(driver.host, driver.pid, "an earlier birth").is_alive(None)


def test_dead_process_has_no_birth() -> None:
    with python("") as process:
        process.wait()
    assert birth(process.pid) is None


def test_zombie_is_dead() -> None:
    process = python("print('here', flush=True)")
    wait_for_line(process)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert birth(process.pid) is None
    process.communicate()


@pytest.mark.parametrize(("minutes", "alive"), [(1, True), (60, False)])
def test_driver_on_another_machine_lives_as_long_as_it_writes(minutes: int, alive: bool) -> None:
    heartbeat = (datetime.now(UTC) - timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    assert Driver("another-machine", 1, "").is_alive(heartbeat) is alive


def test_heartbeat_keeps_a_run_of_another_machine(
    registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    (job,) = begin(registry, ["a"])
    monkeypatch.setattr(socket, "gethostname", lambda: "another-machine")
    registry.heartbeat(run_of(job))
    assert registry.recover_stale_runs() == []
    later = datetime.now(UTC) + timedelta(hours=1)
    monkeypatch.setattr("zooport.jobs.registry.drivers.utc_now", lambda: later)
    assert registry.recover_stale_runs() == [run_of(job)]
