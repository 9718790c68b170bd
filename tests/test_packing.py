"""What travels to a cluster: a manifest that means the same there, with its small files."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import typer

from zooport import cli
from zooport.commands.runs import _OF_THE_JOB
from zooport.export_core.config import load_config
from zooport.export_core.failures import Failure
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import inputs, packing, ray_jobs
from zooport.jobs.manifest import load_manifest
from zooport.jobs.values import ExportJob

TEXT = """
imports: [./extra.py]
datasets:
  val: {annotations: ../shared/a.json, images: images, limit: 3}
models:
  - {name: one, config: one/config.yaml, weights: one/w.pth, dataset: val}
  - {name: two, config: one/config.yaml, weights: "https://host/two.pth"}
  - {name: three, config: one/config.yaml, weights: /nowhere/three.pth}
  - {scan: scanned, prefix: s/}
formats: [torchscript-trace]
"""


@pytest.fixture
def zoo(tmp_path: Path) -> Path:
    """A manifest with files beside it, above it and nowhere."""
    folder = tmp_path / "home" / "zoo"
    for each in ("one", "images/more", "scanned/m", "../shared"):
        (folder / each).mkdir(parents=True)
    (folder / "../base.yaml").write_text("VERSION: 2\nMODEL: {MASK_ON: true}")
    (folder / "one/config.yaml").write_text("_BASE_: ../../base.yaml")
    (folder / "one/w.pth").write_bytes(b"weights")
    (folder / "scanned/m/config.yaml").write_text("VERSION: 2")
    (folder / "scanned/m/model_final.pth").write_bytes(b"scanned")
    (folder / "images/more/1.png").write_bytes(b"image")
    (folder / "../shared/a.json").write_text("{}")
    (folder / "extra.py").write_text("")
    (folder / "zoo.yaml").write_text(TEXT)
    return folder / "zoo.yaml"


def packed(manifest: Path, folder: Path, *imports: str) -> packing.Package:
    folder.mkdir()
    return packing.pack(manifest, manifest.read_text(), folder, imports)


def test_the_packed_manifest_means_the_same_elsewhere(zoo: Path, tmp_path: Path) -> None:
    before = load_manifest(zoo)
    package = packed(zoo, tmp_path / "package")
    there = tmp_path / "there"
    shutil.move(package.folder, there)
    shutil.move(zoo.parents[1], tmp_path / "gone")
    after = load_manifest(there / packing.MANIFEST)
    assert [each.checkpoint.name for each in after.targets] == ["one", "two", "three", "s/m"]
    assert [each.format for each in after.targets] == [each.format for each in before.targets]
    one, two, three, scanned = after.targets
    assert one.checkpoint.weights.read_bytes() == b"weights"
    assert load_config(one.checkpoint.config).MODEL.MASK_ON is True
    assert one.dataset is not None
    assert (one.dataset.annotations.read_text(), one.dataset.limit) == ("{}", 3)
    assert (one.dataset.images / "more/1.png").read_bytes() == b"image"
    assert two.checkpoint.weights == before.targets[1].checkpoint.weights
    assert three.checkpoint.weights == Path("/nowhere/three.pth")
    assert scanned.checkpoint.weights.read_bytes() == b"scanned"
    assert Path(one.checkpoint.imports[0]).with_suffix(".py").is_relative_to(there)
    assert package.left == {Path("/nowhere/three.pth"): None}


def test_large_files_stay_and_are_named(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_SMALL", 20)
    (zoo.parent / "one/w.pth").write_bytes(b"x" * 21)
    package = packed(zoo, tmp_path / "package")
    assert package.left[zoo.parent / "one/w.pth"] == 21
    after = load_manifest(package.folder / packing.MANIFEST)
    assert after.targets[0].checkpoint.weights == zoo.parent / "one/w.pth"
    lines = list(packing.describe_left(package.left))
    assert f"{zoo.parent / 'one/w.pth'} stays where it is (21 bytes are too much to send)" in " ".join(lines)


def test_the_whole_package_has_a_bound(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "_TOTAL", 60)
    (zoo.parent / "images/more/1.png").write_bytes(b"x" * 50)
    package = packed(zoo, tmp_path / "package")
    assert zoo.parent / "images" in package.left  # small ones first
    assert package.bytes <= 60


def test_an_extension_of_the_command_line_travels(
    zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(zoo.parent)
    (zoo.parent / "heads").mkdir()
    (zoo.parent / "heads/__init__.py").write_text("")
    package = packed(zoo, tmp_path / "package", "./heads", "json")
    named, installed = package.imports
    assert (package.folder / named / "__init__.py").exists()
    assert installed == "json"


def test_a_package_knows_what_it_was_made_of(tmp_path: Path) -> None:
    origin = packing.Origin("r-20260102-150405-k3fx", Path("/home/me/zoo.yaml"), TEXT)
    assert packing.read_origin(tmp_path) is None
    packing.write_origin(origin, tmp_path)
    assert packing.read_origin(tmp_path) == origin


class TestJobs:
    """What the cluster is told."""

    @pytest.fixture
    def told(self, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
        told: dict[str, Any] = {}

        def submit_job(**what: Any) -> None:
            told.update(what)
            told["origin"] = packing.read_origin(Path(what["runtime_env"]["working_dir"]))

        monkeypatch.setattr(ray_jobs, "_client", lambda _: SimpleNamespace(submit_job=submit_job))
        monkeypatch.setattr(ray_jobs, "_print", lambda *_: None)
        return told

    def submit(self, manifest: Path, *options: str) -> int:
        places = ["--registry", "postgresql+psycopg://me@db/zoo", "--output", "/mnt/zoo"]
        address = ["--address", "http://head:8265", "--no-wait"]
        return cli.run(["submit", str(manifest), *address, *places, *options])

    def test_the_driver_gets_the_options_of_the_command_line(self, zoo: Path, told: dict[str, Any]) -> None:
        options = ["--jobs", "7", "--fail-fast", "--retries", "5", "--timeout", "export=60,total=900"]
        assert self.submit(zoo, *options) == 0
        assert told["entrypoint"] == (
            "python -m zooport.cli submit zoo.yaml --address auto --output /mnt/zoo"
            " --jobs 7 --timeout export=60,total=900 --retries 5 --fail-fast"
        )
        assert told["origin"] == packing.Origin(told["submission_id"], zoo, TEXT)
        assert told["metadata"] == {"zooport": str(zoo)}

    def test_the_registry_is_not_on_the_command_line(self, zoo: Path, told: dict[str, Any]) -> None:
        assert self.submit(zoo) == 0
        assert "psycopg" not in told["entrypoint"]
        assert told["runtime_env"]["env_vars"]["ZOOPORT_REGISTRY"] == "postgresql+psycopg://me@db/zoo"

    def test_a_runtime_environment_is_passed_on(self, zoo: Path, told: dict[str, Any]) -> None:
        (zoo.parent / "env.yaml").write_text("pip: [zooport]\nenv_vars: {A: b}")
        assert self.submit(zoo, "--runtime-env", str(zoo.parent / "env.yaml")) == 0
        assert told["runtime_env"]["pip"] == ["zooport"]
        assert told["runtime_env"]["env_vars"]["A"] == "b"

    @pytest.mark.parametrize(
        ("text", "problem"),
        [
            ("working_dir: /here", "working_dir is where zooport puts the manifest"),
            ("- pip", "expected a mapping"),
            ("{", "--runtime-env"),
        ],
    )
    def test_a_wrong_runtime_environment_is_refused(
        self,
        zoo: Path,
        told: dict[str, Any],
        text: str,
        problem: str,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        (zoo.parent / "env.yaml").write_text(text)
        assert self.submit(zoo, "--runtime-env", str(zoo.parent / "env.yaml")) == 2
        assert problem in capsys.readouterr().err
        assert told == {}

    def test_a_log_that_comes_again_is_printed_once(self) -> None:
        printed: list[str] = []
        printer = ray_jobs._Printer(SimpleNamespace(write=printed.append, flush=lambda: None))
        for pieces in (["one ", "two "], ["one two", " three"]):
            printer.begin()
            for piece in pieces:
                printer.take(piece)
        assert "".join(printed) == "one two three"


class TestParcels:
    """Files that a node does not see; no Ray: a reference is its content."""

    @pytest.fixture(autouse=True)
    def no_ray(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import ray

        monkeypatch.setattr(ray, "put", lambda value: value)
        monkeypatch.setattr(ray, "get", lambda value: value)
        monkeypatch.setattr(inputs, "_PIECE", 7)

    def job(self, zoo: Path) -> ExportJob:
        base = zoo.parent
        source = CheckpointSource(
            "m", base / "one/config.yaml", base / "one/w.pth", {}, (str(base / "extra"), "json")
        )
        dataset = DatasetSource("val", base.parent / "shared/a.json", base / "images")
        return ExportJob("r.1", "", source, "torchscript-trace", Path("/out"), Path("/log"), dataset=dataset)

    def sent(self, zoo: Path) -> tuple[ExportJob, tuple[inputs.Unit, ...]]:
        job = self.job(zoo)
        unseen = {str(path) for unit in inputs.units_of(job) for path in unit}
        return job, inputs.Courier(unseen).pack(job)

    def test_they_arrive_whole_and_the_job_names_them(self, zoo: Path, tmp_path: Path) -> None:
        (zoo.parent / "one/w.pth").write_bytes(bytes(range(50)))
        job, units = self.sent(zoo)
        shutil.move(zoo.parents[1], tmp_path / "gone")
        moved = inputs.unpack(job, units, tmp_path / "node")
        assert isinstance(moved, ExportJob)
        assert moved.checkpoint.weights.read_bytes() == bytes(range(50))
        assert load_config(moved.checkpoint.config).MODEL.MASK_ON is True
        assert moved.dataset is not None
        assert (moved.dataset.images / "more/1.png").read_bytes() == b"image"
        assert Path(f"{moved.checkpoint.imports[0]}.py").exists()
        assert moved.checkpoint.imports[1] == "json"
        assert inputs.unpack(job, units, tmp_path / "node") == moved

    def test_a_node_that_sees_them_uses_its_own(self, zoo: Path, tmp_path: Path) -> None:
        job, units = self.sent(zoo)
        assert inputs.unpack(job, units, tmp_path / "node") == job
        assert not (tmp_path / "node").exists()

    def test_a_file_of_another_content_is_replaced(self, zoo: Path, tmp_path: Path) -> None:
        job, units = self.sent(zoo)
        job.checkpoint.weights.write_bytes(b"another node's")
        moved = inputs.unpack(job, units, tmp_path / "node")
        assert moved.checkpoint.weights.read_bytes() == b"weights"

    def test_where_all_is_seen_nothing_travels(self, zoo: Path) -> None:
        assert inputs.Courier().pack(self.job(zoo)) == ()

    def test_a_failure_names_the_file_that_the_user_knows(self, zoo: Path, tmp_path: Path) -> None:
        failure = Failure("checkpoint.corrupt", f"{tmp_path}/node/home/me/w.pth: truncated").record()
        own = inputs.with_own_paths(failure, tmp_path / "node")
        assert own is not None
        assert own.message == "/home/me/w.pth: truncated"

    def test_a_full_disk_is_typed(self, zoo: Path, tmp_path: Path) -> None:
        job, units = self.sent(zoo)
        shutil.move(zoo.parents[1], tmp_path / "gone")
        (tmp_path / "node").write_text("no folder")
        with pytest.raises(Failure) as caught:
            inputs.unpack(job, units, tmp_path / "node")
        assert caught.value.code == "resource.disk"


def test_what_a_job_is_told_in_another_way_are_options() -> None:
    command = typer.main.get_command(cli.app).commands["submit"]  # type: ignore[attr-defined]
    names = {option.name for option in command.params if option.param_type_name == "option"}
    assert names >= _OF_THE_JOB
