"""The demo: from the installed package, outside of the repository, to a table of verified exports."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from zooport.export_core import demo, formats
from zooport.export_core.config import load_config
from zooport.export_core.failures import Failure
from zooport.jobs.demo import next_steps, run_demo
from zooport.jobs.manifest import load_manifest

pytestmark = pytest.mark.alone

RunZooport = Callable[..., CompletedProcess[str]]
# Those that are quick to make.
FORMATS = ["torchscript-trace", "torchscript-script", "onnx", "caffe2", "tensorflow"]
UNSUPPORTED = {("mask_rcnn_dcn_fpn", "caffe2")}  # Caffe2 has no deformable convolution on the CPU
MODELS = sorted(path.parent.name for path in demo.ZOO.glob("*/config.yaml"))


def test_the_manifest_names_every_model_of_the_zoo_once_per_format() -> None:
    targets = load_manifest(demo.MANIFEST).targets
    names = sorted((target.checkpoint.name, target.format) for target in targets)
    assert names == sorted((model, name) for model in MODELS for name in FORMATS)
    assert len(MODELS) == 8
    assert set(FORMATS) <= set(formats.names())
    assert all(target.dataset is not None for target in targets)
    suffixes = {target.checkpoint.weights.suffix for target in targets}
    assert suffixes == {".pkl", ".pth"}


def test_both_styles_of_config_are_there() -> None:
    lengths = {model: len((demo.ZOO / model / "config.yaml").read_text().splitlines()) for model in MODELS}
    dumps = [model for model in MODELS if "SOLVER" in (demo.ZOO / model / "config.yaml").read_text()]
    assert len(dumps) == len(MODELS)
    assert sum(length > 300 for length in lengths.values()) == 2


@pytest.mark.parametrize("model", MODELS)
def test_configs_of_the_zoo_are_without_remark(model: str) -> None:
    config = load_config(demo.ZOO / model / "config.yaml")
    assert (config.unknown, config.notes) == ((), ())


def test_a_folder_that_cannot_be_made_is_a_disk_failure(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Failure) as caught:
        run_demo(tmp_path / "file" / "demo")
    assert caught.value.code == "resource.disk"
    assert "--output" in caught.value.hint


def test_next_steps_name_the_registry_as_one_would_type_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "zooport list --registry zooport-demo/zooport.db " in next_steps(Path("zooport-demo/zooport.db"))
    elsewhere = next_steps(Path("/else where/zooport.db"))
    assert "zooport list --registry '/else where/zooport.db' " in elsewhere


def test_next_steps_name_a_command_that_this_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", [str(tmp_path / ".venv" / "bin" / "zooport"), "demo"])
    assert next_steps(Path("zooport.db")).startswith(".venv/bin/zooport list ")
    (tmp_path / "zooport").write_text("", encoding="utf-8")
    (tmp_path / "zooport").chmod(0o755)
    assert next_steps(Path("zooport.db")).startswith("zooport list ")


@pytest.fixture(scope="module")
def finished(
    run_zooport: RunZooport, installed: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, CompletedProcess[str]]:
    """The folder in which the installed demo ran, and what it printed."""
    folder = tmp_path_factory.mktemp("demo")
    before = package_files(installed)
    done = run_zooport("demo", "--output", "out", cwd=folder)
    assert package_files(installed) == before, "the demo wrote into the package"
    return folder, done


def package_files(installed: Path) -> set[Path]:
    (package,) = installed.parents[1].glob("lib/python*/site-packages/zooport")
    return {path for path in package.rglob("*") if "__pycache__" not in path.parts}


@pytest.mark.slow
def test_every_model_is_verified_in_every_format(finished: tuple[Path, CompletedProcess[str]]) -> None:
    _, done = finished
    assert done.returncode == 0, done.stdout + done.stderr
    for model in MODELS:
        assert model in done.stdout
    every = len(MODELS) * len(FORMATS)
    expected = every - len(UNSUPPORTED)
    table = done.stdout.partition("\nnotes\n")[0]
    assert table.count(" verified ") == expected
    assert f"{every} exports: {expected} succeeded, {len(UNSUPPORTED)} unsupported" in done.stdout
    assert "MODEL.RESNETS.DEFORM_ON_PER_STAGE" in table
    assert "unsupported, mask_rcnn_dcn_fpn in caffe2: no failure" in done.stdout


@pytest.mark.slow
def test_metrics_are_those_of_detectron2(
    finished: tuple[Path, CompletedProcess[str]],
    run_zooport: RunZooport,
    detectron2_metrics: dict[str, dict[str, float]],
) -> None:
    folder, _ = finished
    listed = run_zooport("list", "--registry", "out/zooport.db", "-o", "json", cwd=folder)
    rows = json.loads(listed.stdout)
    assert len(rows) == len(MODELS) * len(FORMATS)
    assert {(row["model"], row["format"]) for row in rows if row["status"] == "unsupported"} == UNSUPPORTED
    for row in rows:
        if (row["model"], row["format"]) in UNSUPPORTED:
            assert (row["code"], row["metrics"]) == ("unsupported.combination", {})
            continue
        expected = detectron2_metrics[row["model"]]
        measured = row["metrics"]
        compared = [name for name in expected if name in measured and not math.isnan(expected[name])]
        assert {"bbox/AP", "bbox/AP50", "bbox/APs"} <= set(compared)
        assert {name.split("/")[0] for name in compared} == {name.split("/")[0] for name in expected}
        for name in compared:
            # AP points: what detectron2 measured on the same files, and what export may change.
            assert measured[name]["baseline"] == pytest.approx(expected[name], abs=0.02), (row["model"], name)
            assert measured[name]["delta"] == pytest.approx(0, abs=0.01), (row["model"], name)


@pytest.mark.slow
def test_what_the_demo_says_to_type_next_works(
    finished: tuple[Path, CompletedProcess[str]], run_zooport: RunZooport
) -> None:
    folder, done = finished
    steps = [line for line in done.stdout.splitlines() if " --registry " in line]
    assert len(steps) == 3
    for step in steps:
        arguments = shlex.split(step, comments=True)[1:]
        ran = run_zooport(*arguments, cwd=folder)
        assert ran.returncode == 0, step + ran.stderr


@pytest.mark.slow
def test_a_second_demo_finds_everything_done(
    finished: tuple[Path, CompletedProcess[str]], run_zooport: RunZooport
) -> None:
    folder, _ = finished
    again = run_zooport("demo", "--output", "out", cwd=folder)
    assert again.returncode == 0, again.stderr
    assert again.stdout.count("cached") >= len(MODELS) * len(FORMATS) - len(UNSUPPORTED)
