"""Which runtime verifies an artifact can be asked for, reaches the workers, and is recorded with it."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport.cli import run
from zooport.export_core import demo, pipeline, sharding
from zooport.export_core.description import read_description, write_description
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.shards import Shard
from zooport.export_core.sources import DatasetSource
from zooport.jobs import single, submission, worker
from zooport.jobs.manifest import load_manifest
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import job_from_dict, job_to_dict
from zooport.jobs.values import ArtifactRecord, ExportResult
from zooport.jobs.verdicts import Verdict
from zooport.tests.registry_support import begin, fail, make_job, run_of, succeed

MODEL = "retinanet_fpn"
VARIABLE = "ZOOPORT_CAFFE2_RUNTIME"

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")


def ignore(stage: Stage) -> None:
    """Nobody asks which stage begins."""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    model = demo.ZOO / MODEL
    entry = {
        "name": MODEL,
        "config": str(model / "config.yaml"),
        "weights": str(model / "model_final.pth"),
    }
    file = tmp_path / "zoo.yaml"
    file.write_text(json.dumps({"models": [entry], "formats": ["onnx", "caffe2"]}), encoding="utf-8")
    return file


def planned(manifest: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, str]:
    """Content keys by format, of a run that is only planned."""
    assert run(["submit", str(manifest), "--dry-run", "-o", "json", *more]) == 0
    return {row["format"]: row["key"] for row in json.loads(capsys.readouterr().out)}


def test_what_verifies_is_part_of_what_is_asked_for(
    manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifest.parent)
    keys = [
        planned(manifest, capsys),
        planned(manifest, capsys, "--runtime", "reference"),
        planned(manifest, capsys, "--runtime", "caffe2"),
    ]
    assert len({each["caffe2"] for each in keys}) == 3
    assert len({each["onnx"] for each in keys}) == 1, "onnx has no choice"


def test_it_goes_to_the_jobs_that_have_the_choice_and_in_place_of_the_manifests(manifest: Path) -> None:
    targets = [
        replace(target, options={"runtime": "caffe2"}) if target.format == "caffe2" else target
        for target in load_manifest(manifest).targets
    ]
    asked = submission._as_asked(targets, submission.Request(runtime="reference"))
    assert {target.format: target.options for target in asked} == {
        "onnx": {},
        "caffe2": {"runtime": "reference"},
    }


@pytest.mark.parametrize("again", [["rerun", "--failed"], ["resume", "latest"]])
def test_rerun_and_resume_take_it_too(
    again: list[str], manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifest.parent)
    with open_registry(None) as registry:
        jobs = begin(registry, ["a"], formats=["onnx", "caffe2"])
        if again[0] == "rerun":
            for job in jobs:
                fail(registry, job)
        registry.finish_run(run_of(jobs[0]))
    planned: list[Any] = []

    def note(work: Any, _: submission.Request) -> int:
        planned.extend(work.wanted)
        return 0

    monkeypatch.setattr(submission, "_carry_out", note)
    assert run([*again, "--dry-run", "--runtime", "reference"]) == 0
    options = {target.format: target.options for target, _ in planned}
    assert options == {"onnx": {"batch": 1}, "caffe2": {"batch": 1, "runtime": "reference"}}


@pytest.mark.parametrize("name", ["tensorrt", "caffe"])
def test_a_runtime_that_no_format_has_is_refused(
    name: str, manifest: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(manifest.parent)
    assert run(["submit", str(manifest), "--dry-run", "--runtime", name]) == 2
    said = capsys.readouterr().err
    assert f"--runtime {name}" in said
    assert "reference of caffe2" in said
    model = demo.ZOO / MODEL
    words = ["--config-file", str(model / "config.yaml"), "--weights", str(model / "model_final.pth")]
    assert run(["export", *words, "--format", "onnx", "--output", "out", "--runtime", name]) == 2
    assert f"format onnx has no runtime '{name}'" in capsys.readouterr().err


def export(folder: Path, options: dict[str, Any]) -> DatasetSource:
    """Export and verify a demo model; return its dataset."""
    (target,) = (each for each in load_manifest(demo.MANIFEST).targets[:1:-1] if _is_it(each))
    assert target.dataset is not None
    few = replace(target.dataset, limit=3)
    pipeline.export_stage(target.checkpoint, "caffe2", options, few, None, folder, ignore)
    pipeline.verify_stage(folder, None, ignore)
    return few


def _is_it(target: Any) -> bool:
    return bool(target.checkpoint.name == MODEL and target.format == "onnx")


def test_the_description_says_what_verified_and_parts_are_judged_on_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "staging"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, "reference")
    dataset = export(folder, {})
    description = read_description(folder)
    assert description["verification"]["runtime"] == "reference"
    assert "runtime" not in description["options"]
    monkeypatch.setenv(VARIABLE, "of another machine")
    (tmp_path / "predictions").mkdir()
    sharding.predict_shard(folder, dataset, Shard(1, 1, 0, 3), tmp_path / "predictions", ignore)
    with pytest.raises(Failure, match="of another machine"):
        pipeline.verify_stage(folder, None, ignore)


def test_an_option_counts_more_than_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "of another machine")
    export(tmp_path, {"runtime": "reference"})
    assert read_description(tmp_path)["verification"]["runtime"] == "reference"


def test_zooport_export_takes_it_and_prints_it(tmp_path: Path) -> None:
    model = demo.ZOO / MODEL
    order = single.Order(
        model / "config.yaml",
        str(model / "model_final.pth"),
        "caffe2",
        tmp_path / "out",
        runtime="reference",
    )
    job = single._job(order, single._target(order))
    assert job.options == {"runtime": "reference"}
    record = ArtifactRecord(job.output, "model.pb", "ab" * 32, 1, runtime="reference")
    verdict = Verdict(ExportResult(job.id, 1.0, artifact=record))
    assert single._row(job, verdict)["runtime"] == "reference"
    without = Verdict(ExportResult(job.id, 1.0, artifact=replace(record, runtime="")))
    assert single._row(job, without)["runtime"] is None


def test_what_is_published_carries_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "main_file", lambda _: "model.pb")
    for number, verification in enumerate(({"runtime": "caffe2"}, {})):
        staging = tmp_path / f"staging{number}"
        staging.mkdir()
        (staging / "model.pb").write_bytes(b"net")
        write_description({"verification": verification}, staging)
        job = make_job("r-1", number, "one")
        job = replace(job, output=tmp_path / f"out{number}", log=tmp_path / "log")
        course = worker.Course(job, tmp_path / "log", None, None, None)
        artifact = worker.publish_built(job, staging, course, lambda: None)
        assert artifact.runtime == verification.get("runtime", "")


def test_the_registry_keeps_what_verified_and_shows_it(
    registry_url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_registry(registry_url) as registry:
        on_caffe2, without = begin(registry, ["one", "two"])
        registry.start_attempt(on_caffe2.id, "worker", on_caffe2.log)
        record = ArtifactRecord(
            on_caffe2.output, "model.pb", "ab" * 32, 1, {"model.pb": "ab" * 32}, runtime="caffe2"
        )
        registry.finish_attempt(on_caffe2.id, ExportResult(on_caffe2.id, 1.0, artifact=record), {})
        succeed(registry, without)
        registry.finish_run(run_of(without))
        served = begin(registry, ["one"], cached=lambda job: registry.find_success(job.key))[0]
        details = {job.id: registry.export(job.id) for job in (on_caffe2, without, served)}
        (again,) = [each for each in registry.exports() if each.id == served.id]
    assert details[on_caffe2.id].runtime == "caffe2"
    assert details[without.id].runtime is None
    assert again.cached
    assert details[served.id].runtime == "caffe2", "that of the export whose artifact it is"
    assert details[on_caffe2.id].job == on_caffe2, "what was asked for is as it was"
    capsys.readouterr()
    assert run(["show", on_caffe2.id, "-o", "json", "--registry", registry_url]) == 0
    assert json.loads(capsys.readouterr().out)["runtime"] == "caffe2"
    assert run(["show", on_caffe2.id, "--registry", registry_url]) == 0
    assert "verified on caffe2" in capsys.readouterr().out


def test_a_job_is_read_without_what_was_noted_beside_it(tmp_path: Path) -> None:
    with open_registry(str(tmp_path / "zooport.db")) as registry:
        (job,) = begin(registry, ["one"])
    assert job_from_dict({**job_to_dict(job), "verified_by": "caffe2"}, job.checkpoint) == job
