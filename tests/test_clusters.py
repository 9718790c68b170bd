"""Runs on a cluster: nodes with files and packages of their own, one that dies, and what does not fit."""

from __future__ import annotations

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import IO

import pytest

from zooport import cli
from zooport.export_core.failures import Failure
from zooport.jobs import nodes, ray_jobs
from zooport.jobs.plan import Plan
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, ExportRow
from zooport.tests import bucket
from zooport.tests.ray_cluster import Cluster, can_hide_folders, free_port

pytestmark = pytest.mark.alone

DRIVER = """
import json, sys
from pathlib import Path
from typing import IO
from zooport import cli
from zooport.jobs import submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.runner import RunSettings
from zooport.tests.cluster_stages import SEEING

order = json.loads(sys.argv[1])
request = submission.Request(
    "registry.db",
    RunSettings(order["address"], order["workers"], pause=0.1),
    hosts=HostSettings("", SEEING, preload=tuple(order["preload"])),
)
cli.app.command("fake")(lambda: submission.submit(Path("zoo.yaml"), request, order["output"]))
cli.main(["fake"])
"""

WITHOUT = """
import sys

class Without:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "zooport":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Without())
"""


class Zoo:
    """A manifest in a folder of the driver, and drivers that run it."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        folder.mkdir(exist_ok=True)

    def write(self, *names: str, dataset: bool = False) -> None:
        (self.folder / "base.yaml").write_text("VERSION: 2")
        (self.folder / "config.yaml").write_text("_BASE_: base.yaml")
        more = ""
        lines = []
        if dataset:
            (self.folder / "images/more").mkdir(parents=True)
            (self.folder / "images/1.png").write_bytes(b"1")
            (self.folder / "images/more/2.png").write_bytes(b"2")
            (self.folder / "a.json").write_text("{}")
            lines = ["datasets: {val: {annotations: a.json, images: images}}"]
            more = ", dataset: val"
        lines += ["models:"]
        for name in names:
            (self.folder / f"{name}.pth").write_text(f"weights of {name}")
            lines.append(f"  - {{name: {name}, config: config.yaml, weights: {name}.pth{more}}}")
        (self.folder / "zoo.yaml").write_text("\n".join([*lines, "formats: [torchscript-trace]"]))

    def start(
        self,
        output: str,
        address: str = "",
        preload: Sequence[str] = (),
        workers: int | None = None,
        said: IO[str] | int = subprocess.PIPE,
    ) -> subprocess.Popen[str]:
        order = {
            "address": address or self.cluster.address,
            "output": output,
            "workers": workers,
            "preload": list(preload),
        }
        environment = {**os.environ, **self.cluster.environment, "RAY_AUTH_MODE": "disabled"}
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(order)],
            cwd=self.folder,
            env=environment | {"RAY_ADDRESS": self.cluster.address},
            stdout=said,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, output: str, address: str = "", preload: Sequence[str] = ()) -> tuple[int, str]:
        driver = self.start(output, address, preload)
        said, _ = driver.communicate(timeout=240)
        return driver.returncode, said

    def run_on_both(self, output: str, meanwhile: Callable[[], object]) -> set[str]:
        """Run jobs that wait at the gate, which opens once both nodes are at work and something was done.

        Returns:
            The workers that were at work then.
        """
        gate = Path(self.cluster.environment[bucket.FOLDER], "open")
        gate.unlink(missing_ok=True)
        driver = self.start(output)
        try:
            workers = self.wait_for_workers(2)
            meanwhile()
            gate.touch()
            said, _ = driver.communicate(timeout=240)
        finally:
            driver.kill()
        assert driver.returncode == 0, said
        return workers

    def state(self, registry: str, run: str) -> str:
        """Return a run's status, "" as long as there is none."""
        try:
            with open_registry(registry, create=False) as opened:
                return opened.run(run).status
        except Failure:
            return ""

    def wait_for_workers(self, count: int) -> set[str]:
        """Return the workers of the run once so many are at work."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            time.sleep(0.1)
            with suppress(Failure), open_registry(str(self.folder / "registry.db"), create=False) as registry:
                running = registry.exports(ExportFilter(statuses=("running",)))
                made = [registry.export(row.id).attempts[-1] for row in running]
                if len(made) == count:
                    return {each.worker for each in made}
        raise AssertionError(f"never {count} workers at once")

    def rows(self) -> dict[str, ExportRow]:
        with open_registry(str(self.folder / "registry.db"), create=False) as registry:
            return {row.model: row for row in registry.exports(ExportFilter())}


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    """A folder whose path is short enough for sockets, on this machine's own disk."""
    with tempfile.TemporaryDirectory(prefix="zc-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def private(place: Path) -> Path:
    """A folder that the head and the driver see, and the other node does not."""
    folder = place / "private"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def cluster(place: Path, private: Path) -> Iterator[Cluster]:
    """A head and a further node, with working directories of their own, and a bucket that both reach."""
    if not can_hide_folders():
        pytest.skip("this user may not have mounts of its own (unshare)")
    environment = bucket.install(place / "store")
    environment["PYTHONPATH"] += f"{os.pathsep}{private}"
    cluster = Cluster(place, environment)
    try:
        cluster.head(dashboard=True)
        cluster.add(hidden=[private])
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def zoo(private: Path, cluster: Cluster, request: pytest.FixtureRequest) -> Zoo:
    return Zoo(private / request.node.name.removeprefix("test_")[-40:], cluster)


def test_files_travel_and_artifacts_come_back_through_the_store(zoo: Zoo, place: Path) -> None:
    zoo.write("gate-1-0", "gate-2-0", "gate-3-0", dataset=True)
    zoo.run_on_both("bucket://zoo/travel", lambda: None)
    rows = zoo.rows()
    assert {row.status for row in rows.values()} == {"succeeded"}
    seen = set()
    for name, row in rows.items():
        assert row.artifact == f"bucket://zoo/travel/{name}/torchscript-trace"
        objects = place / "store/objects/zoo/travel"
        found = json.loads((objects / name / "torchscript-trace/model.ts").read_text())
        assert found["weights"] == f"weights of {name}"
        assert found["chain"] == [{"VERSION": 2}, {}]
        assert found["images"] == ["1.png", "more/2.png"]
        seen.add(found["config"].startswith(str(zoo.folder)))
    assert seen == {True, False}  # one node has used its own files, the other those that were sent
    code, said = zoo.run("bucket://zoo/travel", "auto")
    assert code == 0, said
    assert all(row.cached for row in zoo.rows().values())


def test_a_folder_that_not_every_node_sees_is_refused_before_work_begins(zoo: Zoo) -> None:
    zoo.write("read-1-0")
    output = zoo.folder / "out"
    code, said = zoo.run(str(output))
    assert code == 2
    (line,) = [line for line in said.splitlines() if "output.unwritable" in line]
    assert f"the output {output} is not shared: node {socket.gethostname()}" in line
    assert "s3://bucket/zoo" in line
    assert zoo.rows()["read-1-0"].status == "cancelled"
    assert list(output.iterdir()) == []


def test_a_node_without_a_package_is_named_with_it(zoo: Zoo, private: Path) -> None:
    (private / "zoo_extra.py").write_text("")
    zoo.write("read-1-0")
    code, said = zoo.run("bucket://zoo/package", preload=["zoo_extra"])
    assert code == 1
    (line,) = [line for line in said.splitlines() if "dependency.missing" in line]
    assert f"node {socket.gethostname()} (" in line
    assert "lacks the package zoo_extra" in line
    assert zoo.rows()["read-1-0"].attempt == 0


def test_a_bucket_without_permission_is_refused_before_anything_is_recorded(zoo: Zoo, place: Path) -> None:
    zoo.write("read-1-0")
    deny = place / "store/deny"
    deny.touch()
    try:
        code, said = zoo.run("bucket://zoo/denied")
    finally:
        deny.unlink()
    assert code == 2
    assert said.splitlines() == [
        "zooport: output.unwritable: cannot write to bucket://zoo/denied: permission denied"
        " (check the address and the credentials, or name another output)"
    ]
    assert zoo.rows() == {}


def test_a_cluster_of_other_versions_is_refused_with_both(zoo: Zoo) -> None:
    zoo.write("read-1-0")
    with pretended_versions(zoo.cluster.address, ray="2.9.0", python="3.8.1"):
        code, said = zoo.run("bucket://zoo/versions")
    assert code == 1
    (line,) = [line for line in said.splitlines() if "cluster.unavailable" in line]
    ours = f"Ray {version('ray')} with Python {platform.python_version()}"
    assert f"it runs Ray 2.9.0 with Python 3.8.1, and this is {ours}" in line


@pytest.mark.slow
def test_a_node_without_zooport_is_named(zoo: Zoo, place: Path) -> None:
    (place / "without").mkdir()
    (place / "without/sitecustomize.py").write_text(WITHOUT)
    path = f"{place / 'without'}{os.pathsep}{zoo.cluster.environment['PYTHONPATH']}"
    node = zoo.cluster.add(environment={"PYTHONPATH": path})
    try:
        zoo.write("read-1-0")
        code, said = zoo.run("bucket://zoo/none")
    finally:
        node.kill()
    assert code == 1, said
    (line,) = [line for line in said.splitlines() if "dependency.missing" in line]
    assert "lacks the package zooport" in line


@pytest.mark.slow
@pytest.mark.parametrize("workers", [6, None])  # of six, four find no place on two processors
def test_nodes_that_join_later_are_asked_before_they_get_jobs(
    zoo: Zoo, place: Path, private: Path, workers: int | None
) -> None:
    """One lacks a package and gets none; the other does not see the inputs, which are sent to it."""
    (place / "store/open").unlink(missing_ok=True)
    zoo.write(*(f"gate-{number}-0" for number in range(6)))
    (place / "less").mkdir(exist_ok=True)
    (place / "less/sitecustomize.py").write_text(WITHOUT)
    path = f"{place / 'less'}{os.pathsep}{zoo.cluster.environment['PYTHONPATH']}"
    said = zoo.folder / "said"
    with said.open("w") as file:
        driver = zoo.start(f"bucket://zoo/later-{workers}", workers=workers, said=file)
    zoo.wait_for_workers(2)
    # One after the other: of two that start at once, Ray may take one for the other, and gives up.
    nodes = [zoo.cluster.add(2, {"PYTHONPATH": path}), zoo.cluster.add(2, hidden=[private])]
    deadline = time.monotonic() + 180
    while said.read_text().count(" has joined") < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    zoo.wait_for_workers(4)
    (place / "store/open").touch()
    assert driver.wait(240) == 0, said.read_text()
    for node in nodes:
        node.kill()
    assert {(row.status, row.attempt) for row in zoo.rows().values()} == {("succeeded", 1)}
    joined = sorted(
        line.partition(" has joined")[2] for line in said.read_text().splitlines() if " joined" in line
    )
    assert joined[0] == ""
    assert joined[1].startswith(" and gets no jobs: dependency.missing")


@pytest.mark.slow
def test_a_client_joins_from_outside(zoo: Zoo) -> None:
    zoo.write("read-1-0")
    code, said = zoo.run("bucket://zoo/client", f"ray://127.0.0.1:{zoo.cluster.client}")
    assert code == 0, said
    assert zoo.rows()["read-1-0"].status == "succeeded"


@pytest.mark.slow
def test_a_job_is_followed_looked_at_and_stopped(
    zoo: Zoo, place: Path, demo_zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(demo_zoo / "retinanet_fpn", zoo.folder / "retina")
    manifest = zoo.folder / "zoo.yaml"
    model = "{name: first, config: retina/config.yaml, weights: retina/model_final.pth}"
    manifest.write_text(f"models: [{model}]\nformats: [torchscript-trace]")
    there = ["--address", f"http://127.0.0.1:{zoo.cluster.dashboard}"]
    registry, output = str(place / "jobs.db"), str(place / "shared-jobs")
    submit = ["submit", str(manifest), *there, "--registry", registry, "--output", output]

    def ask(*arguments: str, code: int = 0) -> str:
        assert cli.run(arguments) == code, capsys.readouterr()
        return capsys.readouterr().out

    assert "1 export: 1 succeeded" in ask(*submit)  # the driver's log
    with open_registry(registry, create=False) as opened:
        (first,) = opened.runs(None)
        (row,) = opened.exports(ExportFilter())
    assert (first.manifest, row.status) == (str(manifest), "succeeded")
    assert row.artifact == f"{output}/first/torchscript-trace"
    status = json.loads(ask("status", first.id, *there, "-o", "json"))
    assert (status["status"], status["exit_code"]) == ("SUCCEEDED", 0)
    manifest.write_text(manifest.read_text().replace("first", "second"))
    begun = json.loads(ask(*submit, "--no-wait", "-o", "json"))["job"]
    deadline = time.monotonic() + 120
    while zoo.state(registry, begun) != "running" and time.monotonic() < deadline:
        time.sleep(0.2)  # it may be stopped at any moment from here on
    assert ask("cancel", begun, *there) == f"{begun} is stopped\n"
    assert zoo.state(registry, begun) == "cancelled"
    assert "joining Ray at auto" in ask("logs", "latest", *there)
    assert cli.run(["status", "nosuch", *there]) == 2
    assert "no job at http://127.0.0.1" in capsys.readouterr().err


def test_a_node_that_dies_costs_only_its_own_jobs(zoo: Zoo, place: Path) -> None:
    names = [f"gate-{number}-0" for number in range(1, 4)]
    zoo.write(*names)
    workers = zoo.run_on_both(f"file://{place}/shared", zoo.cluster.nodes[1].kill)  # the last that needs it
    rows = zoo.rows()
    assert {row.status for row in rows.values()} == {"succeeded"}
    assert {row.artifact for row in rows.values()} == {
        str(place / "shared" / name / "torchscript-trace") for name in names
    }
    with open_registry(str(zoo.folder / "registry.db"), create=False) as registry:
        attempts = {name: registry.export(f"{name}/torchscript-trace").attempts for name in names}
    tried_twice = [name for name, made in attempts.items() if len(made) == 2]
    assert len(tried_twice) == 1, attempts
    lost, again = attempts[tried_twice[0]]
    assert (lost.status, lost.code, again.status) == ("failed", "worker.crashed", "succeeded")
    assert lost.worker != again.worker
    assert {lost.worker} < workers


class TestNobodyAnswers:
    @pytest.mark.parametrize("address", ["127.0.0.1:{}", "ray://127.0.0.1:{}", "http://127.0.0.1:{}"])
    def test_it_is_said_at_once(
        self, address: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        named = address.format(free_port())
        (tmp_path / "c.yaml").write_text("VERSION: 2")
        manifest = tmp_path / "zoo.yaml"
        manifest.write_text(
            "models: [{name: m, config: c.yaml, weights: w.pth}]\nformats: [torchscript-trace]"
        )
        options = ["--registry", str(tmp_path / "r.db"), "--output", str(tmp_path / "out")]
        assert cli.run(["submit", str(manifest), "--address", named, *options]) == 1
        (line,) = [text for text in capsys.readouterr().err.splitlines() if "cluster.unavailable" in text]
        assert f"cannot join the Ray cluster at {named}: Connection refused" in line

    def test_a_server_that_is_no_dashboard_is_said(self, tmp_path: Path) -> None:
        handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
        with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            with pytest.raises(Failure) as caught:
                ray_jobs.cancel(f"http://127.0.0.1:{server.server_port}", "latest")
            server.shutdown()
        assert caught.value.code == "cluster.unavailable"
        assert caught.value.hint == "is this the address of the Ray dashboard?"


class TestJobsNeedLastingPlaces:
    @pytest.mark.parametrize(
        ("options", "code", "needed"),
        [
            (["--output", "/out"], "registry.missing", "--registry postgresql+psycopg://"),
            (["--output", "/out", "--registry", "zoo.db"], "registry.missing", "zoo.db would lie in the job"),
            (["--output", "/out", "--registry", "sqlite:///zoo.db"], "registry.missing", "would lie"),
            (["--registry", "/r.db"], "output.unwritable", "the output artifacts would lie in the job"),
            (["--registry", "/r.db", "--output", "here"], "output.unwritable", "the output here would lie"),
        ],
    )
    def test_what_would_go_with_the_job_is_refused(
        self, options: list[str], code: str, needed: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manifest = tmp_path / "zoo.yaml"
        manifest.write_text(
            "models: [{name: m, config: c.yaml, weights: w.pth}]\nformats: [torchscript-trace]"
        )
        assert cli.run(["submit", str(manifest), "--address", "http://127.0.0.1:1", *options]) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"zooport: {code}: ")
        assert needed in said

    def test_only_submit_goes_to_a_dashboard(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["resume", "latest", "--address", "http://127.0.0.1:1"]) == 2
        assert "submit the manifest again" in capsys.readouterr().err
        assert cli.run(["status", "--address", "127.0.0.1:1"]) == 2
        assert "jobs are asked for at a dashboard" in capsys.readouterr().err
        assert cli.run(["submit", "zoo.yaml", "--no-wait"]) == 2


@contextmanager
def pretended_versions(address: str, ray: str, python: str) -> Iterator[None]:
    """Let a cluster say that it runs these versions."""
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY as key  # noqa: N811
    from ray._private.ray_constants import KV_NAMESPACE_CLUSTER as where  # noqa: N811
    from ray._raylet import GcsClient  # type: ignore[attr-defined]

    client = GcsClient(address=address)
    before = client.internal_kv_get(key, where)
    pretended = {**json.loads(before), "ray_version": ray, "python_version": python}
    client.internal_kv_put(key, json.dumps(pretended).encode(), True, where)
    try:
        yield
    finally:
        client.internal_kv_put(key, before, True, where)


def test_a_node_that_joins_while_the_output_takes_no_files_is_asked_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    asked: list[str] = []

    def send(found: Sequence[nodes._Node], _: object) -> dict[str, nodes._Node]:
        asked.append(found[0].name)
        return {"reference": found[0]}

    output.write_text("in the way")
    joining = nodes.Nodes(Plan("r", ()), ())
    joining._folders = [output]
    monkeypatch.setattr(nodes, "_LOOK", 0.0)
    monkeypatch.setattr(nodes, "_nodes", lambda: [nodes._Node("n", "node n")])
    monkeypatch.setattr(nodes, "_send", send)
    monkeypatch.setattr(nodes.Nodes, "_hear", lambda *_: "")
    (said,) = joining.newcomers()
    assert "node n has joined and waits: output.unwritable: cannot write to" in said
    assert joining.newcomers() == []  # it was said
    output.unlink()
    assert joining.newcomers() == []
    assert asked == ["node n"]
    joining.close()
