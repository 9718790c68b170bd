"""The real Caffe2 runtime is installed into an environment of its own and runs as a child that may die."""

from __future__ import annotations

import ast
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zooport import cli
from zooport.export_core.caffe2 import interpreters, runtime_child, runtime_environment
from zooport.export_core.caffe2.arguments import make_fill, make_operator
from zooport.export_core.caffe2.executors import choose_executor
from zooport.export_core.caffe2.net_files import Nets, one_operator_net
from zooport.export_core.caffe2.runtime import RealRuntime
from zooport.export_core.caffe2.runtime_environment import Installed, install_runtime, runtime_python
from zooport.export_core.caffe2.schema import NetDef
from zooport.export_core.failures import Failure

PACKAGES = list(runtime_environment.PACKAGES)
ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache directory without a runtime."""
    monkeypatch.setenv("ZOOPORT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def no_interpreters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without CPython 3.8 and 3.9: an empty PATH and home, and the folder on that PATH."""
    (tmp_path / "bin").mkdir()
    for variable in ("PYENV_ROOT", "UV_PYTHON_INSTALL_DIR", "XDG_DATA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    return tmp_path / "bin"


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


def python_that_says(path: Path, version: str, implementation: str = "CPython") -> Path:
    """A script that answers what it is as an interpreter would, and then can make no environment."""
    answer = {
        "executable": str(path),
        "version": version,
        "implementation": implementation,
        "bits": 64,
        "venv": False,
    }
    return script(path, f"echo '{json.dumps(answer)}'")


def run(*arguments: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    code = cli.run(list(arguments))
    said = capsys.readouterr()
    return code, said.out, said.err


# Finding an interpreter


def test_without_an_interpreter_one_line_says_what_to_do(
    cache: Path, no_interpreters: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run("runtime", "install", "caffe2", capsys=capsys)
    assert code == 1
    assert out == ""
    assert err.startswith("zooport: dependency.missing: the Caffe2 runtime needs CPython 3.8 or 3.9")
    assert "pyenv install 3.9" in err
    assert len(err.splitlines()) == 1
    assert not any(path.suffix == ".part" for path in (cache / "runtimes").iterdir())


def test_interpreters_are_found_on_the_path_then_with_pyenv_then_with_uv(
    tmp_path: Path, no_interpreters: Path
) -> None:
    uv = python_that_says(tmp_path / ".local/share/uv/python/cpython-3.9.25-linux/bin/python3.9", "3.9.25")
    assert interpreters.find_interpreter().path == uv
    pyenv = python_that_says(tmp_path / ".pyenv/versions/3.9.18/bin/python3.9", "3.9.18")
    assert interpreters.find_interpreter().path == pyenv
    on_path = python_that_says(no_interpreters / "python3.9", "3.9.1")
    assert interpreters.find_interpreter().path == on_path
    # A version manager's script for a version that it does not have.
    script(on_path, "echo 'pyenv: python3.9: command not found' >&2; exit 127")
    assert interpreters.find_interpreter().path == pyenv
    python_that_says(pyenv, "3.9.18", "PyPy")
    assert interpreters.find_interpreter().path == uv


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (sys.executable, "is Python 3.1"),
        ("/nonexistent/python", "no CPython that runs"),
        ("/bin/false", "no CPython that runs"),
    ],
)
def test_an_interpreter_that_does_not_fit_is_refused(cache: Path, name: str, reason: str) -> None:
    with pytest.raises(Failure, match=reason) as caught:
        install_runtime(Path(name))
    assert caught.value.code == "dependency.missing"
    assert name in caught.value.message


def test_an_interpreter_without_venv_is_said(cache: Path, no_interpreters: Path) -> None:
    python_that_says(no_interpreters / "python3.8", "3.8.10")
    with pytest.raises(Failure, match="can make no environment") as caught:
        install_runtime()
    assert "python3.9-venv" in caught.value.hint


# What is installed


def test_an_absent_runtime_is_listed_and_missed_with_the_command(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run("runtime", "list", "-o", "json", capsys=capsys)
    assert code == 0
    (row,) = json.loads(out)
    assert row["status"] == "absent"
    assert row["place"] == str(cache / "runtimes" / "caffe2")
    assert row["remark"] == "zooport runtime install caffe2"
    with pytest.raises(Failure, match="not installed") as caught:
        RealRuntime()
    assert caught.value.code == "dependency.missing"


def test_a_runtime_whose_interpreter_went_is_broken(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = cache / "runtimes" / "caffe2"
    (place / "bin").mkdir(parents=True)
    (place / "bin" / "python").symlink_to("/nonexistent/python3.9")
    note = {
        "directory": str(place),
        "python": "3.9.1",
        "packages": PACKAGES,
        "made_with": "/nonexistent/python3.9",
    }
    (place / "runtime.json").write_text(json.dumps(note), encoding="utf-8")
    _, out, _ = run("runtime", "list", capsys=capsys)
    assert "broken" in out
    assert "/nonexistent/python3.9 is gone" in out
    with pytest.raises(Failure, match="does not work any more") as caught:
        runtime_python()
    assert caught.value.code == "dependency.missing"
    assert choose_executor().name == "reference"


@pytest.mark.slow
@pytest.mark.alone
def test_the_installed_runtime_is_listed_and_kept(
    caffe2_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = caffe2_python.lstat().st_mtime_ns
    code, out, err = run("runtime", "install", "caffe2", capsys=capsys)
    assert (code, err) == (0, "")
    assert "torch==1.10.2" in out
    assert caffe2_python.lstat().st_mtime_ns == before
    _, out, _ = run("runtime", "list", capsys=capsys)
    assert "installed" in out
    executor = choose_executor()
    assert executor.name == "caffe2"
    executor.close()


@pytest.mark.slow
@pytest.mark.alone
def test_packages_that_do_not_come_leave_nothing_behind(
    caffe2_python: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    code, _, err = run("runtime", "install", "caffe2", capsys=capsys)
    steps = err.splitlines()
    assert code == 1
    assert steps[0].startswith("runtime caffe2: making an environment with Python 3.")
    assert steps[-1].startswith("zooport: dependency.missing: pip could not make the Caffe2 runtime: ERROR:")
    assert "torch==1.10.2" in steps[-1]
    assert [path.name for path in (cache / "runtimes").iterdir()] == ["caffe2.lock"]


# Running nets


@pytest.fixture
def own_runtime(caffe2_python: Path) -> Iterator[RealRuntime]:
    """A process that may die."""
    with RealRuntime(caffe2_python) as runtime:
        yield runtime


def copying() -> Nets:
    return one_operator_net(make_operator("Copy", ["x"], ["y"]))


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int32, np.int64, np.uint8, np.int8, np.bool_])
@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 0, 2), (2, 3, 4)])
def test_arrays_of_every_kind_and_shape_arrive_unchanged(
    kind: type, shape: tuple[int, ...], caffe2_runtime: RealRuntime
) -> None:
    array: Any = np.random.default_rng(3).integers(0, 2, shape).astype(kind)
    nets = caffe2_runtime.load(copying())
    found = nets.run({"x": array})["y"]
    assert found.dtype == array.dtype
    assert found.shape == array.shape
    assert (found == array).all()


@pytest.mark.slow
@pytest.mark.alone
def test_large_arrays_and_arrays_that_are_not_contiguous_arrive_unchanged(
    caffe2_runtime: RealRuntime,
) -> None:
    nets = caffe2_runtime.load(copying())
    large = np.random.default_rng(3).standard_normal((3, 1500, 2000)).astype(np.float32)
    for array in (large, large[:, ::-1, ::3], large.transpose(2, 0, 1)):
        np.testing.assert_array_equal(nets.run({"x": array})["y"], array)


def scaling(factor: float) -> Nets:
    net = NetDef(name="scaling", external_input=["x", "w"], external_output=["y"])
    net.op.append(make_operator("Mul", ["x", "w"], ["y"]))
    return Nets(net, NetDef(name="init", op=[make_fill("w", np.full(1, factor, np.float32))]), ("x",))


@pytest.mark.slow
@pytest.mark.alone
def test_nets_of_one_process_keep_their_blobs_apart(own_runtime: RealRuntime) -> None:
    two, three = own_runtime.load(scaling(2)), own_runtime.load(scaling(3))
    one = {"x": np.ones(2, np.float32)}
    assert two.run(one)["y"].tolist() == [2, 2]
    assert three.run(one)["y"].tolist() == [3, 3]
    two.drop()
    assert three.run(one)["y"].tolist() == [3, 3]


@pytest.mark.slow
@pytest.mark.alone
def test_what_the_runtime_refuses_names_the_operator_and_leaves_it_running(own_runtime: RealRuntime) -> None:
    with pytest.raises(Failure, match="has no operator Bogus") as caught:
        own_runtime.load(one_operator_net(make_operator("Bogus", ["x"], ["y"])))
    assert caught.value.code == "unsupported.operator"
    nets = own_runtime.load(one_operator_net(make_operator("FC", ["x", "w", "b"], ["y"])))
    wrong = {"x": np.ones((5, 6)), "w": np.ones((4, 5)), "b": np.ones(4)}
    with pytest.raises(Failure, match=r"refuses the net: FC: .*Dimension mismatch") as caught:
        nets.run({name: array.astype(np.float32) for name, array in wrong.items()})
    assert caught.value.code == "artifact.unloadable"
    assert "frame #" not in caught.value.message
    with pytest.raises(Failure, match="input 'w' was not given"):
        nets.run({"x": np.ones((5, 6), np.float32)})
    with pytest.raises(Failure, match="nowhere"):
        own_runtime.load(copying()).run({"x": np.ones(1, np.float32)}, fetch=["nowhere"])
    assert "GenerateProposals" in own_runtime.operators()


@pytest.mark.slow
@pytest.mark.alone
def test_a_crash_in_the_middle_of_a_net_is_told_with_the_last_words(own_runtime: RealRuntime) -> None:
    arguments: dict[str, Any] = {
        "aligned": 1,
        "sampling_ratio": 0,
        "pooled_h": 2,
        "pooled_w": 2,
        "spatial_scale": 1.0,
    }
    nets = own_runtime.load(one_operator_net(make_operator("RoIAlign", ["x", "rois"], ["y"], arguments)))
    inverted = np.array([[0, 9, 9, 3, 3]], np.float32)  # Caffe2 throws in a place where nobody catches
    with pytest.raises(Failure, match="ROIs in ROIAlign do not have non-negative size") as caught:
        nets.run({"x": np.zeros((1, 1, 20, 20), np.float32), "rois": inverted})
    assert caught.value.code == "worker.crashed"
    assert caught.value.retryable
    assert caught.value.details["signal"] == "SIGABRT"
    with pytest.raises(Failure, match="ROIs in ROIAlign"):  # and stays so
        own_runtime.operators()


@pytest.mark.slow
@pytest.mark.alone
def test_a_process_that_is_killed_while_a_net_runs_is_told(own_runtime: RealRuntime) -> None:
    size = 1500
    repeated = NetDef(name="long", external_input=["x0"], external_output=["x200"])
    repeated.op.extend(make_operator("MatMul", [f"x{n}", "x0"], [f"x{n + 1}"]) for n in range(200))
    long = Nets(repeated, copying().init, ("x0",))
    nets = own_runtime.load(long)
    threading.Timer(0.3, os.kill, (own_runtime.pid, signal.SIGKILL)).start()
    with pytest.raises(Failure, match="killed by SIGKILL") as caught:
        nets.run({"x0": np.zeros((size, size), np.float32)})
    assert caught.value.code in {"worker.crashed", "resource.memory"}


@pytest.mark.slow
@pytest.mark.alone
def test_a_call_past_its_deadline_ends_the_process(caffe2_python: Path) -> None:
    with RealRuntime(caffe2_python, timeout=1) as runtime:
        os.kill(runtime.pid, signal.SIGSTOP)
        with pytest.raises(Failure, match="no answer in 1 s") as caught:
            runtime.operators()
        assert caught.value.code == "resource.timeout"
        assert not Path(f"/proc/{runtime.pid}").exists()


@pytest.mark.slow
@pytest.mark.alone
def test_an_interpreter_without_the_packages_is_told_with_its_last_words(
    caffe2_python: Path, tmp_path: Path
) -> None:
    bare = Path(os.path.realpath(caffe2_python))
    log = tmp_path / "runtime.log"
    with pytest.raises(Failure, match="ModuleNotFoundError: No module named 'numpy'") as caught:
        RealRuntime(bare, log=log)
    assert caught.value.code == "worker.crashed"
    assert caught.value.hint == f"see {log}"
    assert "ModuleNotFoundError" in log.read_text(encoding="utf-8")


@pytest.mark.slow
@pytest.mark.alone
def test_the_child_ends_with_its_parent_and_shares_nothing_with_it(caffe2_python: Path) -> None:
    program = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from zooport.export_core.caffe2.runtime import RealRuntime\n"
        f"runtime = RealRuntime(Path({str(caffe2_python)!r}))\n"
        "print(runtime.pid, 'torch' in sys.modules, flush=True)\n"
        "os._exit(0)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=environment
    )
    pid, torch_imported = done.stdout.split()
    assert torch_imported == "False"
    deadline = time.monotonic() + 60
    while Path(f"/proc/{pid}/maps").exists() and time.monotonic() < deadline:
        if not _runs(int(pid)):
            break
        time.sleep(0.05)
    assert not _runs(int(pid))


def _runs(pid: int) -> bool:
    """Whether a process does more than wait to be collected."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state not in {"Z", "X"}


def test_the_childs_script_parses_as_python_3_8_and_imports_nothing_of_zooport() -> None:
    tree = ast.parse(Path(runtime_child.__file__).read_text(encoding="utf-8"), feature_version=(3, 8))
    imported = {
        (node.module or "") if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    roots = {name.partition(".")[0] for name in imported}
    assert roots - set(sys.stdlib_module_names) == {"caffe2", "numpy"}


def test_an_environment_tells_its_interpreter() -> None:
    made = Installed("/x", "3.9.1", ("torch==1.10.2",), "/usr/bin/python3.9")
    assert made.interpreter == Path("/x/bin/python")
    assert runtime_environment.defect(made) == "its interpreter /usr/bin/python3.9 is gone"
