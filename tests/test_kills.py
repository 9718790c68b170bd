"""Kill -9 of drivers, workers and raylets at random instants: in the end everything is done, and done once.

ZOOPORT_KILLS says how many (200 take ten minutes and more), ZOOPORT_KILLS_SEED which ones.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import astuple, replace
from pathlib import Path

import psutil
import pytest

from zooport import cli
from zooport.jobs import cluster
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import ExportFilter

pytestmark = pytest.mark.alone

KILLS = int(os.environ.get("ZOOPORT_KILLS", "6"))
SEED = int(os.environ.get("ZOOPORT_KILLS_SEED", "0")) or random.randrange(1, 10**6)
JOBS = 60
PATIENCE = 180.0  # seconds for a driver to end once nothing disturbs it
DRIVER = """
import sys
from pathlib import Path
from zooport.jobs import submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.runner import RunSettings
from zooport.tests.fake_stages import FAKE

request = submission.Request("registry.db", RunSettings(workers=2), hosts=HostSettings("", FAKE, preload=()))
if sys.argv[1] == "submit":
    raise SystemExit(submission.submit(Path("zoo.yaml"), request))
raise SystemExit(submission.resume(request, "latest"))
"""


class Fleet:
    """A zoo of short jobs, the drivers that try to export it, and their murderer."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        self.folder = folder
        self.scratch = scratch
        self.dice = random.Random(SEED)
        self.killed: Counter[str] = Counter()
        self.seen: set[psutil.Process] = set()
        self.driver: subprocess.Popen[bytes] | None = None
        self.command = ""
        self.rounds = 0

    def write(self, jobs: int, *more: str) -> None:
        """Write weights that no round has had before, so that all jobs are to be done."""
        self.rounds += 1
        folder = self.folder
        names = [*(f"sleep-{number}-0.1" for number in range(jobs)), *more]
        lines = [f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}" for name in names]
        for name in names:
            (folder / f"{name}.pth").write_text(f"{name} in round {self.rounds}")
        (folder / "config.yaml").write_text("VERSION: 2")
        (folder / "zoo.yaml").write_text("\n".join(["models:", *lines, "formats: [torchscript-trace]"]))

    def start(self, command: str) -> subprocess.Popen[bytes]:
        self.command = command
        environment = os.environ | {"TMPDIR": str(self.scratch), "XDG_CACHE_HOME": str(self.scratch / "c")}
        with (self.folder / "driver.log").open("ab") as log:
            self.driver = subprocess.Popen(
                [sys.executable, "-c", DRIVER, command],
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return self.driver

    def kill_one(self) -> None:
        """Kill a driver, a worker or a raylet, when it is there."""
        driver = self.driver if self.driver is not None and self.driver.poll() is None else None
        if driver is None:
            if self.is_all_done():
                self.write(JOBS)
            driver = self.start("resume" if self.can_resume() and self.dice.random() < 0.7 else "submit")
        kind = self.dice.choice(["driver", "worker", "worker", "raylet"])
        # A driver may die before its Ray is there; the others are killed some time after they have come.
        if kind != "driver" and self.find(driver, kind) is None:
            return
        time.sleep(self.dice.uniform(0, 4 if kind == "driver" else 1))
        victim = self.find(driver, kind)
        if victim is None:
            return  # the run was over before
        with suppress(psutil.NoSuchProcess):
            victim.kill()
        self.killed[kind] += 1
        if kind != "worker":
            assert self.ends(driver), f"after the death of its {kind} the driver hangs"

    def is_all_done(self) -> bool:
        """Whether the last driver has found nothing left to do."""
        return self.driver is not None and self.command == "submit" and self.driver.returncode == 0

    def find(self, driver: subprocess.Popen[bytes], kind: str) -> psutil.Process | None:
        while driver.poll() is None:
            with suppress(psutil.NoSuchProcess):
                process = psutil.Process(driver.pid)
                below = process.children(recursive=True)
                self.seen.update(below)
                found = {
                    "driver": [process],
                    "worker": [each for each in below if "ray::Host" in " ".join(each.cmdline())],
                    # Directly below: a raylet's child has its name, too, until it becomes what it is for.
                    "raylet": [each for each in process.children() if each.name() == "raylet"],
                }
                if found[kind]:
                    return self.dice.choice(found[kind])
            time.sleep(0.02)
        return None

    def ends(self, driver: subprocess.Popen[bytes]) -> bool:
        with suppress(subprocess.TimeoutExpired):
            driver.wait(PATIENCE)
            return True
        return False

    def finish(self) -> None:
        """Submit until everything is done; nothing disturbs it."""
        if self.driver is not None:
            assert self.ends(self.driver)
        assert self.ends(self.start("submit"))
        assert self.driver is not None
        assert self.driver.returncode == 0, (self.folder / "driver.log").read_text()[-3000:]

    def can_resume(self) -> bool:
        """Whether the newest run has left something to do; a driver may have died before it began one."""
        if not (self.folder / "registry.db").exists():
            return False
        with open_registry(str(self.folder / "registry.db")) as registry:
            return any(registry.unfinished_exports(run.id) for run in registry.runs()[:1])


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    scratch = Path(tempfile.mkdtemp(prefix="zk-", dir="/tmp"))  # short: sockets have their paths below it
    fleet = Fleet(tmp_path, scratch)
    yield fleet
    if fleet.driver is not None:
        fleet.driver.kill()
        fleet.driver.wait()
    shutil.rmtree(scratch, ignore_errors=True)


def test_a_folder_that_cannot_be_removed_at_once_keeps_its_owner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folder = tmp_path / "zp-dead"
    (folder / "session" / "logs").mkdir(parents=True)
    nobody = replace(Driver.current(), process="of an earlier process")
    (folder / "driver.json").write_text(json.dumps(astuple(nobody)))
    with monkeypatch.context() as patch:  # its servers are dying, and write logs
        patch.setattr(os, "rmdir", lambda path, **_: (_ for _ in ()).throw(OSError(errno.ENOTEMPTY, path)))
        cluster._sweep()
    assert [path.name for path in folder.iterdir() if path.is_file()] == ["driver.json"]
    cluster._sweep()
    assert not folder.exists()


def test_what_is_left_without_an_owner_is_removed_once_it_is_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    folders = {name: tmp_path / f"zp-{name}" for name in ("old", "young", "foreign")}
    for folder in folders.values():
        (folder / "session_2026/logs").mkdir(parents=True)
    (folders["foreign"] / "data").mkdir()
    for name in ("old", "foreign"):
        os.utime(folders[name], (time.time() - 3600,) * 2)
    cluster._sweep()
    assert {name for name, folder in folders.items() if folder.exists()} == {"young", "foreign"}


@pytest.mark.slow
def test_a_local_ray_that_died_ends_the_run_and_the_next_goes_on(fleet: Fleet) -> None:
    fleet.write(6, "gate-1")  # which keeps the driver from coming to its end
    log = fleet.folder / "driver.log"
    for is_at_work in (False, True):
        before = len(log.read_bytes()) if log.exists() else 0
        driver = fleet.start("submit")
        while is_at_work and not list((fleet.folder / "artifacts").glob("*/torchscript-trace")):
            assert driver.poll() is None, log.read_text()[-3000:]
            time.sleep(0.05)
        victim = fleet.find(driver, "raylet")
        assert victim is not None, log.read_text()[-3000:]
        victim.kill()
        assert fleet.ends(driver)
        assert driver.returncode != 0
        said = log.read_bytes()[before:].decode(errors="replace")
        # In the instant in which Ray connects to its raylet, Ray ends the process, in words of its own.
        assert "cluster.unavailable: the local Ray has died" in said or "core_worker_process.cc" in said, said
    (fleet.folder / "gate-1.open").touch()
    fleet.finish()


@pytest.mark.slow
def test_whatever_is_killed_everything_is_done_once(
    fleet: Fleet, record_property: Callable[[str, object], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    fleet.write(JOBS)
    while fleet.killed.total() < KILLS:
        fleet.kill_one()
    fleet.finish()
    fleet.write(JOBS)  # a run that has something to do removes the folders of killed drivers' Rays
    fleet.finish()
    record_property("killed", f"{dict(fleet.killed)} in {fleet.rounds} rounds with seed {SEED}")
    with open_registry(str(fleet.folder / "registry.db")) as registry:
        latest = registry.exports()
        everything = registry.exports(ExportFilter(everything=True))
        succeeded = [row for row in everything if row.status == "succeeded" and not row.cached]
        keys = [registry.export(row.id).content_key for row in succeeded]
        runs = registry.runs()
    assert [row.status for row in latest] == ["succeeded"] * JOBS, f"seed {SEED}"
    assert len(set(keys)) == len(keys) == JOBS * fleet.rounds, f"seed {SEED}: lost, or done twice"
    assert {run.status for run in runs} <= {"succeeded", "failed", "cancelled"}
    assert not list(fleet.folder.rglob(".*.staging*"))
    assert cli.run(["verify", "--registry", str(fleet.folder / "registry.db")]) == 0, f"seed {SEED}"
    # Ray's agents notice the death of their raylet, and give it half a minute to come back.
    _, alive = psutil.wait_procs(fleet.seen, timeout=90)
    assert alive == []
    # What they wrote last is removed by the first run that comes a minute later.
    monkeypatch.setattr(tempfile, "tempdir", str(fleet.scratch))
    monkeypatch.setattr(cluster, "_REST_AGE", 0.0)
    cluster._sweep()
    assert list(fleet.scratch.glob("zp-*")) == [], "folders of killed drivers' Rays are left"
