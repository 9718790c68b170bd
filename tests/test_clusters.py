"""Runs on a cluster: nodes with files and packages of their own, one that dies, and what does not fit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, ExportRow
from zooport.tests import bucket
from zooport.tests.ray_cluster import Cluster, can_hide_folders

pytestmark = pytest.mark.alone

DRIVER = """
import json, sys
from pathlib import Path
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


class Zoo:
    """A manifest in a folder of the driver, and drivers that run it."""

    def __init__(self, folder: Path, cluster: Cluster) -> None:
        self.folder = folder
        self.cluster = cluster
        folder.mkdir(exist_ok=True)

    def write(self, *names: str, dataset: bool = False) -> None:
        (self.folder / "base.yaml").write_text("VERSION: 2")
        (self.folder / "config.yaml").write_text("_BASE_: base.yaml")
        lines = ["models:"]
        for name in names:
            (self.folder / f"{name}.pth").write_text(f"weights of {name}")  # new ones, so nothing is done
            lines.append(f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}")
        (self.folder / "zoo.yaml").write_text("\n".join([*lines, "formats: [torchscript-trace]"]))

    def start(self, output: str, address: str = "", preload: Sequence[str] = ()) -> subprocess.Popen[str]:
        order = {
            "address": address or self.cluster.address,
            "output": output,
            "workers": None,
            "preload": list(preload),
        }
        environment = {**os.environ, **self.cluster.environment, "RAY_AUTH_MODE": "disabled"}
        return subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(order)],
            cwd=self.folder,
            env=environment | {"RAY_ADDRESS": self.cluster.address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def run(self, output: str, address: str = "", preload: Sequence[str] = ()) -> tuple[int, str]:
        driver = self.start(output, address, preload)
        said, _ = driver.communicate(timeout=120)
        return driver.returncode, said

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
    cluster = Cluster(place, bucket.install(place / "store"))
    try:
        cluster.head(dashboard=True)
        cluster.add(hidden=[private])
        yield cluster
    finally:
        cluster.close()


@pytest.fixture
def zoo(private: Path, cluster: Cluster, request: pytest.FixtureRequest) -> Zoo:
    return Zoo(private / request.node.name.removeprefix("test_")[:40], cluster)


def test_files_travel_and_artifacts_come_back_through_the_store(zoo: Zoo, place: Path) -> None:
    zoo.write("read-1-1.0", "read-2-1.0", "read-3-1.0")
    code, said = zoo.run("bucket://zoo/travel")
    assert code == 0, said
    rows = zoo.rows()
    assert {row.status for row in rows.values()} == {"succeeded"}
    seen = set()
    for name, row in rows.items():
        assert row.artifact == f"bucket://zoo/travel/{name}/torchscript-trace"
        found = json.loads(
            (place / f"store/objects/zoo/travel/{name}/torchscript-trace/model.ts").read_text()
        )
        assert found["weights"] == f"weights of {name}"
        assert found["chain"] == [{"VERSION": 2}, {}]
        seen.add(found["config"].startswith(str(zoo.folder)))
    assert seen == {True, False}  # one node has used its own files, the other those that were sent
    assert zoo.run("bucket://zoo/travel")[0] == 0
    assert len(zoo.rows()) == 3
