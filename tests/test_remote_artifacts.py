"""Artifacts behind an address: whole or not there, checked, found again, and cleaned up."""

from __future__ import annotations

import importlib.util
import json
import os
import pickle
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport import cli
from zooport.export_core import remote_artifacts as remote
from zooport.export_core.artifacts import file_sha256, is_intact, publish_remotely, staged, staging_prefix
from zooport.export_core.failures import Failure
from zooport.export_core.isolation import ForkServer
from zooport.export_core.places import RemotePath, output_place, stored_place
from zooport.export_core.sources import CheckpointSource
from zooport.jobs.digests import DigestCache
from zooport.jobs.output import OutputFormat
from zooport.jobs.plan import make_plan, place
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import export_id, job_from_dict, job_to_dict, new_run_id
from zooport.jobs.single import Order, export_one
from zooport.jobs.values import ExportJob, ExportTarget
from zooport.jobs.worker import run_export
from zooport.tests import bucket
from zooport.tests.fake_stages import FAKE

FINAL = RemotePath("bucket://zoo/out/mask_rcnn/torchscript-trace")


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "store"
    for name, value in bucket.install(folder).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "path", [*sys.path])
    bucket.register(folder / "plugin")
    return folder


@pytest.fixture
def server(store: Path) -> Iterator[ForkServer]:
    server = ForkServer(preload=())
    yield server
    server.close()


def objects(store: Path) -> list[str]:
    root = store / "objects"
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())


def made(text: str, **more: str) -> Any:
    """Publish an artifact of these files."""
    with staged(FINAL, "r-1.1") as staging:
        for name, content in {
            "model.ts": text,
            "model.json": '{"versions": {"zooport": "1"}}',
            **more,
        }.items():
            (staging / name).write_text(content)
        (staging / ".handover").mkdir()
        return publish_remotely(staging, FINAL, "r-1.1")


class TestAddresses:
    def test_a_path_of_an_address_behaves_as_a_path(self) -> None:
        assert FINAL.name == "torchscript-trace"
        assert str(FINAL.parents[1]) == "bucket://zoo/out"
        assert FINAL.parents[1] / "mask_rcnn/torchscript-trace" == FINAL
        assert stored_place(str(FINAL)) == FINAL
        assert str(FINAL.with_name("x.log")) == "bucket://zoo/out/mask_rcnn/x.log"

    @pytest.mark.parametrize("model", ["exp#2", "what?", "a b%20c", "run;1"])
    def test_a_folder_may_be_called_anything(self, model: str) -> None:
        place = RemotePath("bucket://zoo/out") / model / "onnx"
        assert place.parent.name == model
        assert stored_place(str(place)) == pickle.loads(pickle.dumps(place)) == place

    def test_one_directory_has_one_name(self, tmp_path: Path) -> None:
        assert output_place("../art", tmp_path / "team") == tmp_path / "art"
        assert output_place(f"file://{tmp_path}/team/../art", tmp_path) == tmp_path / "art"

    def test_file_is_a_path(self, tmp_path: Path) -> None:
        assert output_place("file:///a/b%20c", tmp_path) == Path("/a/b c")
        assert output_place("out", tmp_path) == tmp_path / "out"

    @pytest.mark.parametrize(
        ("address", "problem"),
        [
            ("memory://zoo", "gone with the process"),
            ("https://host/zoo", "nothing can be written"),
            ("nosuch://host/zoo", "unknown scheme nosuch://"),
            ("simplecache::bucket://zoo", "chained"),
            ("sftp://me:secret@host/zoo", "a password in the address"),
            ("s3://me:secret@[bad", "s3://...: Invalid IPv6 URL"),
        ],
    )
    def test_what_keeps_nothing_is_refused(self, address: str, problem: str, tmp_path: Path) -> None:
        with pytest.raises(Failure) as caught:
            output_place(address, tmp_path)
        assert caught.value.code in {"output.unwritable", "dependency.missing"}
        assert problem in caught.value.message
        assert "secret" not in str(caught.value)

    def test_a_scheme_without_its_package_names_the_extra(self, tmp_path: Path) -> None:
        if importlib.util.find_spec("s3fs"):
            assert str(output_place("s3://bucket/zoo", tmp_path)) == "s3://bucket/zoo"
            return
        with pytest.raises(Failure) as caught:
            output_place("s3://bucket/zoo", tmp_path)
        assert caught.value.code == "dependency.missing"
        assert "zooport[s3]" in caught.value.hint

    def test_a_job_goes_through_the_registry_unchanged(self, tmp_path: Path) -> None:
        source = CheckpointSource("m", tmp_path / "c.yaml", tmp_path / "w.pth")
        job = ExportJob("r-1.1", "k", source, "torchscript-trace", FINAL, FINAL.with_name("x.log"))
        assert job_from_dict(json.loads(json.dumps(job_to_dict(job))), source) == job


class TestPublishing:
    def test_what_is_published_is_there_with_its_digests(self, store: Path) -> None:
        published = made("first")
        assert objects(store) == [
            "zoo/out/mask_rcnn/torchscript-trace/model.json",
            "zoo/out/mask_rcnn/torchscript-trace/model.ts",
        ]
        assert is_intact(FINAL, published.files)
        assert published.files["model.ts"] == file_sha256(FINAL / "model.ts")

    def test_a_new_artifact_replaces_all_of_the_old_one(self, store: Path) -> None:
        made("first", extra="old")
        published = made("second")
        assert is_intact(FINAL, published.files)
        assert [name for name in objects(store) if "extra" in name] == []

    def test_the_description_goes_first_and_comes_last(
        self, store: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made("first")
        seen: list[bool] = []
        change = bucket.Bucket.pipe_file

        def watched(self: Any, path: str, value: bytes, **more: Any) -> None:
            change(self, path, value, **more)
            description = store / "objects/zoo/out/mask_rcnn/torchscript-trace/model.json"
            model = description.with_name("model.ts")
            # Whoever sees a description sees the model that belongs to it.
            seen.append(description.exists())
            if description.exists():
                assert model.read_text() == description.read_text().split('"')[-2]

        with staged(FINAL, "r-1.2") as staging:
            (staging / "model.ts").write_text("second")
            (staging / "model.json").write_text('{"versions": {"zooport": "second"}}')
            description = store / "objects/zoo/out/mask_rcnn/torchscript-trace/model.json"
            description.write_text('{"versions": {"zooport": "first"}}')
            monkeypatch.setattr(bucket.Bucket, "pipe_file", watched)
            publish_remotely(staging, FINAL, "r-1.2")
        assert True in seen
        assert False in seen

    @pytest.mark.parametrize("after", range(6))
    def test_a_publication_that_breaks_off_leaves_the_old_one_or_none(
        self, store: Path, monkeypatch: pytest.MonkeyPatch, after: int
    ) -> None:
        before = made("first")
        change = bucket.Bucket.pipe_file
        count = iter(range(100))

        def failing(self: Any, path: str, value: bytes, **more: Any) -> None:
            if next(count) >= after:
                raise ConnectionResetError("the line is dead")
            change(self, path, value, **more)

        with monkeypatch.context() as patch:
            patch.setattr(bucket.Bucket, "pipe_file", failing)
            if after < 5:  # two uploads, the mark, two moves
                with pytest.raises(Failure) as caught:
                    made("second!")
                assert caught.value.code == "resource.disk"
                assert "bucket://zoo/out/mask_rcnn" in caught.value.message
            else:
                made("second!")
        described = (store / "objects/zoo/out/mask_rcnn/torchscript-trace/model.json").exists()
        assert described == is_intact(FINAL, before.files) or after == 5
        assert [name for name in objects(store) if "staging" in name] == []
        assert is_intact(FINAL, made("third").files)

    def test_what_does_not_arrive_whole_is_not_published(self, store: Path) -> None:
        before = made("first")
        (store / "cut").touch()
        with pytest.raises(Failure) as caught:
            made("second")
        assert "another content than was sent" in caught.value.message
        assert is_intact(FINAL, before.files)

    def test_without_permit_nothing_is_revealed(self, store: Path) -> None:
        def refuse() -> None:
            raise Failure("run.cancelled", "the driver is gone")

        with staged(FINAL, "r-1.1") as staging:
            (staging / "model.json").write_text("{}")
            with pytest.raises(Failure):
                publish_remotely(staging, FINAL, "r-1.1", refuse)
        assert objects(store) == []

    def test_files_of_somebody_else_are_not_replaced(self, store: Path) -> None:
        remote.store_file(Path(__file__), FINAL / "thesis.txt")
        with pytest.raises(Failure) as caught:
            made("first")
        assert caught.value.code == "output.occupied"
        assert objects(store) == ["zoo/out/mask_rcnn/torchscript-trace/thesis.txt"]

    def test_an_output_without_permission_is_refused_in_one_line(self, store: Path) -> None:
        remote.check_writable(RemotePath("bucket://zoo/out"))
        assert objects(store) == []
        (store / "deny").touch()
        with pytest.raises(Failure) as caught:
            remote.check_writable(RemotePath("bucket://zoo/out"))
        assert caught.value.code == "output.unwritable"
        assert caught.value.message == "cannot write to bucket://zoo/out: permission denied"


class TestJobs:
    def job(self, tmp_path: Path, name: str) -> ExportJob:
        (tmp_path / "config.yaml").write_text("VERSION: 2")
        (tmp_path / "w.pth").write_text(name)
        source = CheckpointSource(name, tmp_path / "config.yaml", tmp_path / "w.pth")
        target = ExportTarget(source, "torchscript-trace", timeout=60.0)
        run_id = new_run_id()
        ids = (export_id(run_id, number) for number in range(1, 9))
        root = RemotePath("bucket://zoo/out")
        plan = make_plan(
            [(target, place(target, root))],
            run_id=run_id,
            export_ids=ids,
            history=None,
            digests=DigestCache(None),
        )
        return plan.jobs[0]

    def test_a_worker_publishes_artifact_and_log(
        self, store: Path, tmp_path: Path, server: ForkServer
    ) -> None:
        job = self.job(tmp_path, "good-1")
        result = run_export(job, FAKE, server=server)
        assert result.failure is None
        assert result.artifact is not None
        assert is_intact(result.artifact.path, result.artifact.files)
        assert str(job.log) in {f"bucket://{name}" for name in objects(store)}

    def test_a_failed_job_leaves_its_log_and_nothing_else(
        self, store: Path, tmp_path: Path, server: ForkServer
    ) -> None:
        job = self.job(tmp_path, "crash-1")
        result = run_export(job, FAKE, server=server)
        assert result.failure is not None
        assert result.failure.code == "worker.crashed"
        assert [f"bucket://{name}" for name in objects(store)] == [str(job.log)]

    def test_a_storage_that_refuses_is_a_typed_failure(
        self, store: Path, tmp_path: Path, server: ForkServer
    ) -> None:
        (store / "deny").touch()
        result = run_export(self.job(tmp_path, "good-1"), FAKE, server=server)
        assert result.failure is not None
        assert (result.failure.code, result.failure.stage) == ("resource.disk", "publish")
        assert "bucket://zoo/out/good-1" in result.failure.message
        assert "permission denied" in result.failure.message

    def test_a_storage_that_hangs_ends_at_the_deadline_for_publishing(
        self, store: Path, tmp_path: Path, server: ForkServer
    ) -> None:
        (store / "hang").touch()
        job = replace(self.job(tmp_path, "good-1"), deadlines={"publish": 0.5})
        result = run_export(job, FAKE, server=server)
        assert result.failure is not None
        assert (result.failure.code, result.failure.stage) == ("resource.timeout", "publish")
        assert "deadline of 0.5 s for stage publish" in result.failure.message
        assert [name for name in objects(store) if not name.endswith(".log")] == []


class TestUpkeep:
    @pytest.fixture
    def registry(self, store: Path, tmp_path: Path, server: ForkServer) -> str:
        """A registry with one export whose artifact lies in the bucket."""
        job = TestJobs().job(tmp_path, "good-1")
        path = str(tmp_path / "r.db")
        with open_registry(path) as registry:
            registry.begin_run(tmp_path / "zoo.yaml", "", [job], [], run_id=job.id.rpartition(".")[0])
            registry.start_attempt(job.id, "w", job.log)
            registry.finish_attempt(job.id, run_export(job, FAKE, server=server))
            registry.finish_run(job.id.rpartition(".")[0])
        return path

    def ask(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[dict[str, Any]]]:
        capsys.readouterr()
        code = cli.run([*arguments, "-o", "json"])
        return code, json.loads(capsys.readouterr().out)

    def test_verify_reads_the_address(
        self, registry: str, store: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert self.ask(capsys, "verify", "--registry", registry) == (0, [])
        artifact = store / "objects/zoo/out/good-1/torchscript-trace"
        (artifact / "model.ts").write_text("other")
        code, rows = self.ask(capsys, "verify", "--registry", registry)
        assert (code, [row["state"] for row in rows]) == (1, ["altered"])
        assert rows[0]["path"] == "bucket://zoo/out/good-1/torchscript-trace"
        (artifact / "model.ts").unlink()
        code, rows = self.ask(capsys, "verify", "--registry", registry)
        assert [row["state"] for row in rows] == ["missing"]

    def test_gc_removes_what_nobody_names(
        self, registry: str, store: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        orphan = RemotePath("bucket://zoo/out/good-2/torchscript-trace")
        half = staging_prefix(FINAL.parents[1] / "good-1/torchscript-trace", "r-20200101-000000-aaaa.1")
        before = objects(store)
        for place_ in (orphan, half):
            remote.store_file(Path(__file__), place_ / "model.ts")
            text = store / "text.json"
            text.write_text('{"versions": {"zooport": "1"}}')
            remote.store_file(text, place_ / "model.json")
        for file in (store / "objects/zoo/out/good-1").rglob("*/*"):
            os.utime(file, (0, 0))
        _, listed = self.ask(capsys, "gc", "--registry", registry)
        assert {row["path"]: row["state"] for row in listed} == {
            str(orphan): "orphaned",
            str(half): "staging",
        }
        code, rows = self.ask(capsys, "gc", "--yes", "--registry", registry)
        assert (code, [row["problem"] for row in rows]) == (0, [row["problem"] for row in listed])
        assert all(row["removed"] for row in rows)
        assert objects(store) == before

    def test_logs_come_from_the_address(self, registry: str, capsys: pytest.CaptureFixture[str]) -> None:
        capsys.readouterr()
        assert cli.run(["logs", "good-1/torchscript-trace", "--registry", registry]) == 0
        assert "export" in capsys.readouterr().out

    def test_digests_are_read_once(self, registry: str, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        model = RemotePath("bucket://zoo/out/good-1/torchscript-trace/model.ts")
        digests = DigestCache(None)
        known = digests.file(model)
        with monkeypatch.context() as patch:
            patch.setattr(remote, "remote_sha256", lambda _: pytest.fail("read again"))
            assert digests.file(model) == known
        (store / "objects/zoo/out/good-1/torchscript-trace/model.ts").write_text("other")
        assert digests.file(model) != known


def test_export_writes_to_an_address_after_a_try(store: Path, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("VERSION: 2")
    (tmp_path / "w.pth").write_text("weights")
    output = "bucket://zoo/single/model"
    order = Order(tmp_path / "config.yaml", str(tmp_path / "w.pth"), "torchscript-trace", output)
    (store / "deny").touch()
    with pytest.raises(Failure) as caught:
        export_one(order, OutputFormat.JSON, FAKE, preload=())
    assert caught.value.message == "cannot write to bucket://zoo/single: permission denied"
    (store / "deny").unlink()
    assert export_one(order, OutputFormat.JSON, FAKE, preload=()) == 0
    assert objects(store) == [
        "zoo/single/model.log",
        "zoo/single/model/model.json",
        "zoo/single/model/model.ts",
    ]
