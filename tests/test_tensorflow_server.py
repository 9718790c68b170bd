"""Jobs share one import of TensorFlow: its processes are forks of a server, and end with their jobs."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from zooport.export_core.failures import Failure
from zooport.export_core.isolation import ForkServer, run_isolated
from zooport.tests import tensorflow_jobs as jobs
from zooport.tests.patience import gone, runs, wait_until

pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    """A server that has imported nothing of what jobs need."""
    server = ForkServer(preload=("numpy",))
    yield server
    server.close()


def test_jobs_get_forks_of_one_server_that_knows_no_torch(server: ForkServer, tmp_path: Path) -> None:
    first, *later = (
        run_isolated(jobs.family, timeout=120, log=tmp_path / f"log-{number}", server=server)
        for number in range(3)
    )
    for each in later:
        assert first["server"] == each["server"] != first["job's server"] == each["job's server"]
    assert not first["has torch"]
    # The import was there already; one of them may have met a busy machine.
    assert min(each["seconds"] for each in later) < first["seconds"] / 2
    assert all(gone(each["pid"]) for each in (first, *later))


def test_its_memory_is_counted_with_the_jobs(server: ForkServer, tmp_path: Path) -> None:
    held = run_isolated(jobs.family, timeout=120, log=tmp_path / "log", server=server)
    assert held["more at peak"] >= held["held"] > 50 << 20
    file = tmp_path / "pid"
    with pytest.raises(Failure, match="its limit is 60 MiB") as caught:
        run_isolated(jobs.hang, str(file), timeout=120, log=tmp_path / "log", server=server, memory=60 << 20)
    assert caught.value.code == "resource.memory"
    # The job may have come to its end before it could say what it had started.
    forks_of = psutil.Process(held["server"]).children
    wait_until(lambda: not any(runs(fork.pid) for fork in forks_of()))


def test_it_ends_with_a_job_that_is_killed(server: ForkServer, tmp_path: Path) -> None:
    file = tmp_path / "pid"
    with pytest.raises(Failure) as caught:
        run_isolated(
            jobs.hang, str(file), timeout=120, deadlines={"export": 0.5}, log=tmp_path / "log", server=server
        )
    assert caught.value.code == "resource.timeout"
    assert gone(int(file.read_text()))


def test_its_death_is_told_with_the_signal(server: ForkServer, tmp_path: Path) -> None:
    said = run_isolated(jobs.crash, timeout=120, log=tmp_path / "log", server=server)
    assert said.startswith("worker.crashed: TensorFlow: the process was killed by SIGKILL")


def test_its_server_ends_with_that_of_the_jobs(tmp_path: Path) -> None:
    server = ForkServer(preload=())
    family = run_isolated(jobs.family, timeout=120, log=tmp_path / "log", server=server)
    directory = server.directory
    assert runs(family["server"])
    server.close()
    assert gone(family["job's server"])
    assert gone(family["server"])
    assert not directory.exists()


def test_where_no_socket_has_room_a_process_is_started_as_without_a_server(tmp_path: Path) -> None:
    short = Path(tempfile.mkdtemp(dir="/tmp"))
    room = 99 - len("/socket") - len(str(short)) - 1  # enough for the jobs' own, not for one below
    server = ForkServer(short / ("d" * room), preload=())
    try:
        family = run_isolated(jobs.family, timeout=120, log=tmp_path / "log", server=server)
    finally:
        server.close()
        shutil.rmtree(short)
    assert family["server"] not in (0, 1, family["job's server"])
    assert gone(family["pid"])
