"""Every fault of the matrix in docs/reliability.md: what the user sees, what is recorded, how long it takes.

Each test is one row. With ZOOPORT_RELIABILITY=FILE the rows of this very run are written there, as ``make
reliability`` does for the page.
"""

from __future__ import annotations

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import psutil
import pytest

from zooport.export_core.checkpoints import remote
from zooport.export_core.failures import Failure
from zooport.export_core.places import local
from zooport.jobs import fetching, submission
from zooport.jobs.cluster import server_directory
from zooport.jobs.exit_codes import exit_code
from zooport.jobs.hosts import HostSettings
from zooport.jobs.output import OutputFormat
from zooport.jobs.progress import Running
from zooport.jobs.registry import open_registry, records
from zooport.jobs.registry.records import ExportDetail
from zooport.jobs.runner import RunSettings
from zooport.tests.fake_stages import FAKE
from zooport.tests.patience import gone, wait_until
from zooport.tests.run_support import Bench, Notes, leftovers

pytestmark = pytest.mark.alone
MIB = 1 << 20
REQUEST = submission.Request(
    "registry.db", RunSettings(workers=2, pause=0.1), hosts=HostSettings("", FAKE, preload=())
)
DRIVER = """
from zooport import cli
from zooport.jobs import submission
from zooport.tests.test_reliability import REQUEST

submission.Request = lambda *_, **__: REQUEST
raise SystemExit(cli.run(["submit", "zoo.yaml"]))
"""


@dataclass(frozen=True)
class Row:
    """One line of the matrix; ``seconds`` from the event until it is recorded, or until all is well."""

    fault: str
    sees: str
    recorded: str
    seconds: float


Note = Callable[[str, str, str, float], None]


@pytest.fixture(scope="module")
def matrix() -> Iterator[dict[str, Row]]:
    """The rows of this run, by test; those of tests that did not run stay what they were."""
    rows: dict[str, Row] = {}
    yield rows
    if "ZOOPORT_RELIABILITY" not in os.environ:
        return
    file = Path(os.environ["ZOOPORT_RELIABILITY"]).absolute()
    known = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    known |= {test: asdict(row) for test, row in rows.items()}
    tests = re.findall(r"^def (test_\w+)", Path(__file__).read_text(encoding="utf-8"), re.MULTILINE)
    text = json.dumps({test: known[test] for test in tests if test in known}, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")


@pytest.fixture
def note(matrix: dict[str, Row], request: pytest.FixtureRequest, tmp_path: Path) -> Note:
    """Enter this test's row."""

    def enter(fault: str, sees: str, recorded: str, seconds: float) -> None:
        sees = sees.replace(str(tmp_path), "").replace(socket.gethostname(), "HOST")
        sees = re.sub(r"r-\d{8}-\d{6}-\w+", "RUN", re.sub(r"(process |HOST/)\d+", r"\1N", sees))
        matrix[request.node.name] = Row(fault, " ".join(sees.split()), recorded, round(seconds, 2))

    return enter


@pytest.fixture
def bench(tmp_path: Path, stay_joined: None) -> Bench:
    return Bench(tmp_path)


def detail(bench: Bench, model: str) -> ExportDetail:
    with open_registry(str(bench.folder / "registry.db")) as registry:
        return registry.export(model)


def strike(bench: Bench, name: str, **changes: object) -> tuple[str, str, float]:
    """Run a job that comes to harm between two good ones; return what was seen and recorded, and seconds.

    Everything that has to hold for each of them is looked at here: the neighbours are untouched, the log is
    kept, and nothing half-written is left.
    """
    neighbours = [bench.target(f"sleep-{number}-0.3") for number in range(2)]
    _, rows = bench.run(neighbours[0], bench.target(name, **changes), neighbours[1], workers=2)
    for neighbour in neighbours:
        row = rows[neighbour.checkpoint.name]
        assert (row.status, row.attempt) == ("succeeded", 1)
    (remark,) = [job.remark for job in bench.notes.ended if job.label.startswith(name)]
    found = detail(bench, name)
    last = found.attempts[-1]
    assert " export\n" in Path(last.log).read_text()
    assert not local(found.job.output).exists()
    assert leftovers(bench.folder) == []
    recorded = ", ".join(f"try {each.attempt} {each.status} ({each.code})" for each in found.attempts)
    event = (bench.folder / f"{name}.event").stat().st_mtime
    assert last.finished is not None
    return remark, recorded, datetime.fromisoformat(last.finished).timestamp() - event


def test_a_segmentation_fault(bench: Bench, note: Note) -> None:
    seen = strike(bench, "crash-1")
    assert "worker.crashed: the process was killed by SIGSEGV" in seen[0]
    note("a job segfaults", *seen)


def test_an_exit_without_an_answer(bench: Bench, note: Note) -> None:
    seen = strike(bench, "exit-1")
    assert "worker.crashed: the process left with exit code 3" in seen[0]
    note("a job calls `_exit`", *seen)


def test_a_leak(bench: Bench, note: Note) -> None:
    seen = strike(bench, "leak-1", memory=200 * MIB)
    assert "resource.memory: stopped in stage export when it held" in seen[0]
    note("a job leaks memory, 200 MiB/s", *seen)


def test_a_deadlock_in_native_code(bench: Bench, note: Note) -> None:
    remark, recorded, seconds = strike(bench, "deadlock-1", deadlines={"export": 1.0})
    assert "resource.timeout: stopped at the deadline of 1 s for stage export" in remark
    assert "in misbehave" in Path(detail(bench, "deadlock-1").attempts[0].log).read_text()
    note("a job deadlocks in native code that holds the interpreter's lock", remark, recorded, seconds - 1.0)


def test_a_full_disk(bench: Bench, note: Note, small_disk: Path) -> None:
    (bench.folder / "out").mkdir()
    (bench.folder / "out" / "fill-1").symlink_to(small_disk)
    seen = strike(bench, "fill-1")
    assert "resource.disk" in seen[0]
    assert "no space left on the device" in seen[0]
    assert list(small_disk.iterdir()) == []
    note("the disk is full", *seen)


def test_children_left_running(bench: Bench, note: Note) -> None:
    remark, recorded, seconds = strike(bench, "children-1")
    children = [int(each) for each in (bench.folder / "children-1.children").read_text().split()]
    assert len(children) == 2
    assert all(gone(child) for child in children)
    note("a job crashes and leaves processes running", f"{remark}; the processes are gone", recorded, seconds)


class Striker(Notes):
    """Does something once, as soon as a job is at its export."""

    def __init__(self, model: str, act: Callable[[], None]) -> None:
        super().__init__(watch=True)
        self.struck: float | None = None
        self._model = model
        self._act = act

    def running(self, jobs: Sequence[Running]) -> None:
        if self.struck is None and any(
            job.label.startswith(self._model) and job.stage == "export" for job in jobs
        ):
            self.struck = time.time()
            self._act()


def killed_by(bench: Bench, act: Callable[[], None], **settings: object) -> tuple[str, str, float]:
    """Strike while a job runs that is tried again; return what was seen and recorded, and the seconds."""

    def strike_and_open() -> None:
        act()
        (bench.folder / "gate-1.open").touch()

    bench.notes = Striker("gate-1", strike_and_open)
    targets = [bench.target("gate-1", retries=1), bench.target("good-1"), bench.target("good-2")]
    outcome, rows = bench.run(*targets, workers=1, **settings)
    assert outcome.exit_code == 0
    assert {row.status for row in rows.values()} == {"succeeded"}
    assert leftovers(bench.folder) == []
    found = detail(bench, "gate-1")
    recorded = ", ".join(
        f"try {each.attempt} {each.status}" + (f" ({each.code})" if each.code else "")
        for each in found.attempts
    )
    assert isinstance(bench.notes, Striker)
    assert bench.notes.struck is not None
    assert found.row.finished is not None
    seconds = datetime.fromisoformat(found.row.finished).timestamp() - bench.notes.struck
    return found.attempts[0].message or "", recorded, seconds


def processes_of_this_run(words: str) -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if words in " ".join(process.cmdline()):
                found.append(process)
    return found


def test_a_killed_worker(bench: Bench, note: Note) -> None:
    def act() -> None:
        for process in processes_of_this_run("ray::Host"):
            process.kill()

    message, recorded, seconds = killed_by(bench, act)
    assert "the Ray worker" in message
    note("a Ray worker is killed", f"worker.crashed: {message}; retrying", recorded, seconds)


def test_a_killed_job(bench: Bench, note: Note) -> None:
    """The kernel, or somebody, kills the process that does the work."""

    def act() -> None:
        for process in psutil.process_iter():
            with suppress(psutil.NoSuchProcess, psutil.AccessDenied):
                if process.ppid() and str(bench.folder) in str(open_files(process)):
                    process.kill()

    message, recorded, seconds = killed_by(bench, act)
    assert "killed by SIGKILL" in message
    note("a job's process is killed", f"worker.crashed: {message}; retrying", recorded, seconds)


def open_files(process: psutil.Process) -> list[str]:
    return [file.path for file in process.open_files() if file.path.endswith(".log")]


def test_an_interruption(bench: Bench, note: Note) -> None:
    bench.notes = Striker("hang-1", lambda: os.kill(os.getpid(), signal.SIGINT))
    targets = [bench.target("hang-1"), bench.target("good-1")]
    targets[0].checkpoint.weights.write_text("large, so that it begins first")
    outcome, rows = bench.run(*targets, workers=1)
    assert outcome.exit_code == 130
    assert {row.status for row in rows.values()} == {"cancelled"}
    assert leftovers(bench.folder) == []
    assert isinstance(bench.notes, Striker)
    assert bench.notes.struck is not None
    finished = detail(bench, "hang-1").row.finished
    assert finished is not None
    seconds = datetime.fromisoformat(finished).timestamp() - bench.notes.struck
    sees = "stopping what runs; interrupt again to kill it; exit code 130"
    note("Ctrl-C", sees, "what was open is cancelled (run.cancelled); `resume` goes on", seconds)


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with a registry to come."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("ZOOPORT_REGISTRY", "registry.db")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_manifest(folder: Path, *names: str) -> Path:
    lines = []
    for name in names:
        (folder / f"{name}.pth").write_text(name)
        lines.append(f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}")
    (folder / "config.yaml").write_text("VERSION: 2")
    (folder / "zoo.yaml").write_text("\n".join(["models:", *lines, "formats: [torchscript-trace]"]))
    return folder / "zoo.yaml"


def statuses() -> dict[str, str]:
    with open_registry("registry.db") as registry:
        return {row.model: row.status for row in registry.exports()}


class Driver:
    """``zooport submit`` in a process and with a Ray of its own."""

    def __init__(self) -> None:
        with Path("driver.log").open("wb") as log:
            self.process = subprocess.Popen([sys.executable, "-c", DRIVER], stdout=log, stderr=log)

    def until_running(self, model: str) -> None:
        def is_running() -> bool:
            assert self.process.poll() is None, self.said()
            with suppress(Failure):
                return Path("registry.db").exists() and statuses().get(model) == "running"
            return False

        wait_until(is_running)

    def raylet(self) -> psutil.Process:
        # Directly below: a raylet's child has its name, too, until it becomes what it is for.
        for process in psutil.Process(self.process.pid).children():
            with suppress(psutil.NoSuchProcess):
                if process.name() == "raylet":
                    return process
        raise AssertionError(self.said())

    def said(self) -> str:
        return Path("driver.log").read_text()


def test_a_killed_driver(
    zoo: Path, note: Note, stay_joined: None, capsys: pytest.CaptureFixture[str]
) -> None:
    write_manifest(zoo, "gate-1", "good-1", "good-2")
    driver = Driver()
    driver.until_running("gate-1")
    driver.process.kill()
    driver.process.wait()
    with open_registry("registry.db") as registry:
        server = server_directory(registry.run("latest").id)
    wait_until(lambda: not server.exists())  # its jobs end with it, before the gate is open
    (zoo / "gate-1.open").touch()
    begun = time.time()
    assert submission.resume(REQUEST, "latest") == 0
    assert set(statuses().values()) == {"succeeded"}
    assert leftovers(zoo) == []
    with open_registry("registry.db") as registry:
        codes = [each.code for each in registry.export("gate-1").attempts]
    assert codes == ["worker.crashed", None]
    said = next(line for line in capsys.readouterr().err.splitlines() if "is dead" in line)
    recorded = "what was running failed (worker.crashed), what was waiting cancelled; `resume` does both"
    note("the driver is killed with -9", said, recorded, time.time() - begun)


def test_a_dead_local_ray(zoo: Path, note: Note) -> None:
    write_manifest(zoo, "hang-1")
    driver = Driver()
    driver.until_running("hang-1")
    driver.raylet().kill()
    begun = time.time()
    assert driver.process.wait(180) == 1
    said = next(line for line in driver.said().splitlines() if "cluster.unavailable" in line)
    assert statuses() == {"hang-1": "cancelled"}
    recorded = "what was open is cancelled (run.cancelled); `resume` goes on"
    note("the local Ray dies", said, recorded, time.time() - begun)


def test_a_second_driver(zoo: Path, note: Note, stay_joined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = write_manifest(zoo, "gate-1", "good-1")
    refused: list[tuple[str, float]] = []

    def act() -> None:
        begun = time.time()
        with pytest.raises(Failure) as caught:
            submission.submit(manifest, REQUEST)
        refused.append((f"{caught.value.code}: {caught.value.message}", time.time() - begun))
        (zoo / "gate-1.open").touch()

    monkeypatch.setattr(submission, "display", lambda *_: Striker("gate-1", act))
    assert submission.submit(manifest, REQUEST) == 0
    assert set(statuses().values()) == {"succeeded"}
    said, seconds = refused[0]
    assert said.startswith("run.conflict")
    note("the same manifest is submitted while it runs", said, "nothing; the first run goes on", seconds)


def test_a_deleted_registry(
    zoo: Path, note: Note, stay_joined: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = write_manifest(zoo, "hang-1")
    striker = Striker("hang-1", (zoo / "registry.db").unlink)
    monkeypatch.setattr(submission, "display", lambda *_: striker)
    with pytest.raises(Failure) as caught:
        submission.submit(manifest, REQUEST)
    assert caught.value.code == "registry.missing"
    assert exit_code(caught.value) == 1  # 2 would say that it was asked for in a wrong way
    assert leftovers(zoo) == []
    assert striker.struck is not None
    seconds = time.time() - striker.struck
    said = f"{caught.value.code}: {caught.value.message}"
    note("the registry file is deleted during a run", said, "nothing any more; `submit` begins anew", seconds)


def test_a_locked_registry(zoo: Path, note: Note, stay_joined: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody holds its lock for longer than a command would wait."""
    monkeypatch.setenv("ZOOPORT_REGISTRY_TIMEOUT", "0.05")
    manifest = write_manifest(zoo, "gate-1", "good-1")
    timers: list[threading.Timer] = []

    def act() -> None:
        holder = sqlite3.connect("registry.db", isolation_level=None, check_same_thread=False)
        holder.execute("BEGIN IMMEDIATE")
        timers.append(threading.Timer(1.5, holder.close))
        timers[0].start()
        (zoo / "gate-1.open").touch()

    striker = Striker("gate-1", act)
    monkeypatch.setattr(submission, "display", lambda *_: striker)
    assert submission.submit(manifest, REQUEST) == 0
    assert set(statuses().values()) == {"succeeded"}
    assert striker.struck is not None
    with open_registry("registry.db") as registry:
        finished = registry.export("gate-1").row.finished
    assert finished is not None
    timers[0].join()
    seconds = datetime.fromisoformat(finished).timestamp() - striker.struck - 1.5
    note(
        "the registry is locked for a while",
        "nothing: the run waits up to two minutes",
        "everything",
        seconds,
    )


def test_a_clock_that_is_set_back(
    zoo: Path, note: Note, stay_joined: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an hour, while a job runs: it does not end before it began, and the newest run is the newest."""
    shift = [timedelta(0)]

    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Any:
            return datetime.now(tz) + shift[0]

    manifest = write_manifest(zoo, "raise-1")
    submission.submit(manifest, REQUEST)
    write_manifest(zoo, "gate-1", "raise-1")

    def act() -> None:
        shift[0] -= timedelta(hours=1)
        (zoo / "gate-1.open").touch()

    striker = Striker("gate-1", act)
    monkeypatch.setattr(submission, "display", lambda *_: striker)
    monkeypatch.setattr(records, "datetime", Clock)
    assert submission.submit(manifest, REQUEST) == 1
    with open_registry("registry.db") as registry:
        newest, oldest = registry.runs()
        row = registry.export("gate-1").row
        assert registry.run("latest").id == newest.id
    assert (newest.total, oldest.total) == (2, 1)
    assert (newest.seconds, row.status) == (0.0, "succeeded")
    assert (row.seconds or 0) > 0  # told by another clock
    assert striker.struck is not None
    sees = "nothing; the run that began last stays the newest"
    note("the clock is set back by an hour during a run", sees, "everything; no duration is negative", 0.0)


def test_an_edited_manifest(
    zoo: Path,
    note: Note,
    stay_joined: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    manifest = write_manifest(zoo, "gate-1", "good-1")
    with monkeypatch.context() as patch:
        striker = Striker("gate-1", lambda: os.kill(os.getpid(), signal.SIGINT))
        patch.setattr(submission, "display", lambda *_: striker)
        assert submission.submit(manifest, replace(REQUEST, settings=RunSettings(workers=1))) == 130
    write_manifest(zoo, "other-1")
    (zoo / "gate-1.open").touch()
    begun = time.time()
    assert submission.resume(REQUEST, "latest") == 0
    seconds = time.time() - begun
    assert statuses() == {"gate-1": "succeeded", "good-1": "succeeded"}
    said = next(line for line in capsys.readouterr().err.splitlines() if "was edited" in line)
    recorded = "what was submitted then; `submit` takes the edited one"
    note("the manifest is edited before `resume`", said, recorded, seconds)


def test_two_models_of_one_name(zoo: Path, note: Note) -> None:
    manifest = write_manifest(zoo, "good-1", "good-1")
    begun = time.time()
    with pytest.raises(Failure) as caught:
        submission.submit(manifest, REQUEST)
    assert caught.value.code == "manifest.invalid"
    said = f"{caught.value.code}: {caught.value.message}"
    assert "line 3" in said
    assert not Path("registry.db").exists()
    note("two models have one name", said, "nothing: exit code 2", time.time() - begun)


def test_a_server_that_is_away(
    zoo: Path,
    note: Note,
    stay_joined: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    manifest = write_manifest(zoo, "good-1", "away-1")
    text = manifest.read_text().replace("weights: away-1.pth", "weights: 'http://127.0.0.1:9/away.pth'")
    manifest.write_text(text)
    begun = time.time()
    assert submission.submit(manifest, replace(REQUEST, retries=1)) == 1
    seconds = time.time() - begun
    assert statuses() == {"good-1": "succeeded", "away-1": "failed"}
    said = [line for line in capsys.readouterr().err.splitlines() if "retrying" in line]
    assert len(said) == 1
    assert "cannot fetch http://127.0.0.1:9/away.pth" in said[0]
    note("weights lie on a server that is away", said[0], "its own exports failed (fetch.failed)", seconds)


def test_a_cluster_that_does_not_answer(zoo: Path, note: Note) -> None:
    manifest = write_manifest(zoo, "good-1")
    begun = time.time()
    with pytest.raises(Failure) as caught:
        submission.submit(manifest, replace(REQUEST, settings=RunSettings(address="127.0.0.1:9")))
    assert caught.value.code == "cluster.unavailable"
    seconds = time.time() - begun
    assert statuses() == {"good-1": "cancelled"}
    said = f"{caught.value.code}: {caught.value.message}"
    note("nothing answers at the cluster's address", said, "the run is cancelled; `resume` goes on", seconds)


def test_one_broken_model_among_ten_thousand(
    zoo: Path, note: Note, stay_joined: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """All are planned; the one that is broken fails alone, and its plan says nothing wrong of the others."""
    write_manifest(zoo, "good")
    (zoo / "broken.yaml").write_text("MODEL: [")
    number = 7_777
    lines = [f"  - {{name: m{each}, config: config.yaml, weights: good.pth}}" for each in range(10_000)]
    lines[number] = f"  - {{name: m{number}, config: broken.yaml, weights: gone.pth}}"
    (zoo / "zoo.yaml").write_text("\n".join(["models:", *lines, "formats: [torchscript-trace]"]))
    begun = time.time()
    dry = replace(REQUEST, dry_run=True, result=OutputFormat.JSON)
    assert submission.submit(Path("zoo.yaml"), dry) == 0
    seconds = time.time() - begun
    rows = json.loads(capsys.readouterr().out)
    assert len(rows) == 10_000
    assert {row["action"] for row in rows} == {"run"}
    keys = {row["model"]: row["key"] for row in rows}
    assert [model for model, key in keys.items() if key != keys["m0"]] == [f"m{number}"]
    assert not Path("registry.db").exists()
    note(
        "one of 10,000 models is broken (dry run)",
        "10,000 rows; the broken one fails in the run, alone",
        "nothing: a dry run",
        seconds,
    )
