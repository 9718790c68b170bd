"""A plan gives every job its key, place and log, and knows what needs no work."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core import demo
from zooport.export_core.artifacts import file_sha256, publish, staged
from zooport.export_core.config import load_config
from zooport.export_core.failures import Failure
from zooport.export_core.places import local
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import digests as digest_files
from zooport.jobs import plan as planning
from zooport.jobs.digests import DigestCache
from zooport.jobs.memory import activations, estimate
from zooport.jobs.plan import Plan, make_plan, place
from zooport.jobs.registry.records import Metric, Success
from zooport.jobs.values import ArtifactRecord, ExportJob, ExportTarget

DATA = demo.ZOO / "data"
Baselines = Mapping[str, Mapping[str, float]]


class Past:
    """A registry of what the test says was done."""

    def __init__(self, successes: Sequence[Success] = (), baselines: Baselines | None = None) -> None:
        self._successes: dict[str, list[Success]] = {}
        for each in successes:
            self._successes.setdefault(each.key, []).append(each)
        self._baselines = baselines or {}

    def find_successes(self, keys: Sequence[str]) -> Mapping[str, Sequence[Success]]:
        return {key: self._successes[key] for key in keys if key in self._successes}

    def find_baselines(self, keys: Sequence[str]) -> Mapping[str, Mapping[str, float]]:
        return {key: self._baselines[key] for key in keys if key in self._baselines}


def checkpoint_in(folder: Path, name: str = "one") -> CheckpointSource:
    return CheckpointSource(name, folder / "config.yaml", folder / "model_final.pkl")


@pytest.fixture
def target(tmp_path: Path) -> ExportTarget:
    """A model whose every input can be changed."""
    shutil.copytree(demo.ZOO / "faster_rcnn_fpn", tmp_path / "model")
    (tmp_path / "data").mkdir()
    shutil.copy(DATA / "annotations" / "instances_val.json", tmp_path / "data" / "val.json")
    shutil.copytree(DATA / "val", tmp_path / "data" / "val")
    return ExportTarget(
        checkpoint=checkpoint_in(tmp_path / "model"),
        format="torchscript-trace",
        dataset=DatasetSource("shapes", tmp_path / "data/val.json", tmp_path / "data/val", limit=3),
        tolerance={"AP": 0.1},
        timeout=60.0,
    )


def plan(folder: Path, *targets: ExportTarget, history: Past | None = None) -> Plan:
    wanted = [(each, place(each, folder / "out")) for each in targets]
    ids = (f"r.{number}" for number in range(1, 1000))
    return make_plan(wanted, run_id="r", export_ids=ids, history=history, digests=DigestCache(None))


def key(folder: Path, target: ExportTarget) -> str:
    return plan(folder, target).jobs[0].key


def published(job: ExportJob, drift: float = 0.0) -> Success:
    with staged(job.output, "t") as staging:
        (staging / "model.json").write_text("{}")
        (staging / "model.ts").write_text("weights")
        files = publish(staging, local(job.output)).files
    record = ArtifactRecord(job.output, "model.ts", files["model.ts"], 9, files)
    return Success("r0.1", job.key, 1, 2.5, record, {"bbox/AP": Metric(40.0, 40.0 + drift, drift)})


def test_a_job_carries_everything_that_a_worker_needs(tmp_path: Path, target: ExportTarget) -> None:
    (job,) = plan(tmp_path, target).jobs
    assert job.id == "r.1"
    assert job.checkpoint == target.checkpoint
    assert job.output == tmp_path / "out" / "one" / "torchscript-trace"
    assert job.log == tmp_path / "out" / ".logs" / "r" / "one" / "torchscript-trace.log"
    assert (job.dataset, job.timeout, job.tolerance) == (target.dataset, 60.0, {"AP": 0.1})


def test_logs_of_a_name_with_folders_are_beside_all_artifacts(tmp_path: Path, target: ExportTarget) -> None:
    named = replace(target, checkpoint=replace(target.checkpoint, name="team/one"))
    (job,) = plan(tmp_path, named).jobs
    assert job.log == tmp_path / "out" / ".logs" / "r" / "team" / "one" / "torchscript-trace.log"


def test_formats_of_a_checkpoint_share_one_baseline(tmp_path: Path, target: ExportTarget) -> None:
    other = replace(target, format="torchscript-script")
    made = plan(tmp_path, target, other)
    (baseline,) = made.baselines
    assert [job.baseline for job in made.jobs] == [baseline.key, baseline.key]
    assert made.jobs[0].key != made.jobs[1].key
    assert baseline.log.parent == made.jobs[0].log.parent


def test_memory_is_what_was_asked_for_or_an_estimate(tmp_path: Path, target: ExportTarget) -> None:
    asked = plan(tmp_path, replace(target, memory=12345))
    assert asked.jobs[0].reservation == asked.baselines[0].reservation == 12345
    assert target.dataset is not None
    config = load_config(target.checkpoint.config)
    expected = estimate(
        target.checkpoint.weights.stat().st_size,
        activations(config),
        target.dataset.annotations.stat().st_size,
    )
    assert plan(tmp_path, target).jobs[0].reservation == expected
    larger = replace(target, checkpoint=replace(target.checkpoint, overrides={"INPUT.MIN_SIZE_TEST": 200}))
    assert plan(tmp_path, larger).jobs[0].reservation > expected
    unsized = replace(target, checkpoint=replace(target.checkpoint, overrides={"INPUT.MIN_SIZE_TEST": 0}))
    assert plan(tmp_path, unsized).jobs[0].reservation > plan(tmp_path, larger).jobs[0].reservation


def test_without_a_dataset_there_is_no_baseline(tmp_path: Path, target: ExportTarget) -> None:
    made = plan(tmp_path, replace(target, dataset=None))
    assert made.baselines == ()
    assert made.jobs[0].baseline is None


def touch_weights(target: ExportTarget) -> None:
    with target.checkpoint.weights.open("ab") as file:
        file.write(b"x")


def change_config(target: ExportTarget) -> None:
    path = target.checkpoint.config
    text = path.read_text()
    assert "DETECTIONS_PER_IMAGE: 50" in text
    path.write_text(text.replace("DETECTIONS_PER_IMAGE: 50", "DETECTIONS_PER_IMAGE: 40"))


def replace_image(target: ExportTarget) -> None:
    assert target.dataset is not None
    first = sorted(target.dataset.images.iterdir())[:3]
    shutil.copy(first[1], first[0])


def change_annotations(target: ExportTarget) -> None:
    assert target.dataset is not None
    path = target.dataset.annotations
    changed = json.loads(path.read_text())
    changed["annotations"][0]["area"] += 1
    path.write_text(json.dumps(changed))


@pytest.mark.parametrize("change", [touch_weights, change_config, replace_image, change_annotations])
def test_the_key_follows_the_content(
    tmp_path: Path, target: ExportTarget, change: Callable[[ExportTarget], None]
) -> None:
    before = key(tmp_path, target)
    assert key(tmp_path, target) == before
    change(target)
    assert key(tmp_path, target) != before


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "torchscript-script"},
        {"options": {"batch": 2}},
        {"dataset": None},
        {"sample_image": DATA / "val" / "x.jpg"},
    ],
)
def test_the_key_follows_the_request(tmp_path: Path, target: ExportTarget, changes: dict[str, Any]) -> None:
    assert key(tmp_path, replace(target, **changes)) != key(tmp_path, target)


def test_the_key_follows_overrides_but_not_how_they_are_written(tmp_path: Path, target: ExportTarget) -> None:
    def with_overrides(overrides: dict[str, Any]) -> str:
        return key(tmp_path, replace(target, checkpoint=replace(target.checkpoint, overrides=overrides)))

    name = "MODEL.ROI_HEADS.SCORE_THRESH_TEST"
    assert with_overrides({name: 0.3}) != with_overrides({})
    assert with_overrides({name: 0.3}) == with_overrides({name: "0.3"})


def test_the_key_follows_the_tools(
    tmp_path: Path, target: ExportTarget, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = key(tmp_path, target)
    monkeypatch.setattr(planning, "version", lambda name: "9.9" if name == "torch" else "1")
    assert key(tmp_path, target) != before


def test_the_key_ignores_name_place_deadline_and_tolerance(tmp_path: Path, target: ExportTarget) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(tmp_path / "model", moved)
    same = replace(
        target,
        checkpoint=checkpoint_in(moved, "other"),
        timeout=None,
        tolerance={},
    )
    assert key(tmp_path, same) == key(tmp_path, target)


@pytest.mark.parametrize("missing", ["config", "weights", "annotations", "images"])
def test_what_cannot_be_read_is_planned_and_fails_by_itself(
    tmp_path: Path, target: ExportTarget, missing: str
) -> None:
    before = key(tmp_path, target)
    source: Any = target.checkpoint if missing in {"config", "weights"} else target.dataset
    path: Path = getattr(source, missing)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    made = plan(tmp_path, target)
    assert [each.action for each in made.exports] == ["run"]
    assert made.jobs[0].key != before


def test_a_refused_target_is_not_run(tmp_path: Path, target: ExportTarget) -> None:
    refusal = Failure("manifest.invalid", "two weights files").record()
    made = plan(tmp_path, replace(target, refusal=refusal))
    assert made.exports[0].action == "refused"
    assert made.to_run == []
    assert made.baselines == ()


@pytest.mark.parametrize("names", [("a", "a/torchscript-trace"), ("a/torchscript-trace/b", "a")])
def test_no_artifact_lies_inside_another(
    tmp_path: Path, target: ExportTarget, names: tuple[str, str]
) -> None:
    targets = [replace(target, checkpoint=replace(target.checkpoint, name=name)) for name in names]
    with pytest.raises(Failure) as caught:
        plan(tmp_path, *targets)
    assert caught.value.code == "manifest.invalid"


class TestWhatIsDone:
    """An equal key and an intact artifact in its place: nothing to do."""

    def again(self, folder: Path, target: ExportTarget, success: Success) -> Plan:
        return plan(folder, target, history=Past([success]))

    def test_it_is_served(self, tmp_path: Path, target: ExportTarget) -> None:
        success = published(plan(tmp_path, target).jobs[0])
        made = self.again(tmp_path, target, success)
        assert made.exports[0].action == "cached"
        assert made.cached == {"r.1": success}
        assert made.to_run == []
        assert made.baselines == ()

    @pytest.mark.parametrize("harm", ["altered", "missing"])
    def test_an_artifact_that_is_not_intact_is_made_again(
        self, tmp_path: Path, target: ExportTarget, harm: str
    ) -> None:
        success = published(plan(tmp_path, target).jobs[0])
        file = local(success.artifact.path) / "model.ts"
        file.write_text("Weights") if harm == "altered" else file.unlink()
        made = self.again(tmp_path, target, success)
        assert made.exports[0].action == "run"
        assert "missing or altered" in made.exports[0].reason
        assert len(made.baselines) == 1

    def test_an_artifact_elsewhere_does_not_serve(self, tmp_path: Path, target: ExportTarget) -> None:
        success = published(plan(tmp_path, target).jobs[0])
        shutil.move(tmp_path / "out", tmp_path / "moved")
        moved = replace(success.artifact, path=tmp_path / "moved" / "one" / "torchscript-trace")
        made = self.again(tmp_path, target, replace(success, artifact=moved))
        assert made.exports[0].action == "run"
        assert str(moved.path) in made.exports[0].reason

    def test_an_artifact_of_the_same_place_by_another_name_serves(
        self, tmp_path: Path, target: ExportTarget
    ) -> None:
        success = published(plan(tmp_path, target).jobs[0])
        (tmp_path / "link").symlink_to(tmp_path / "out")
        linked = replace(success.artifact, path=tmp_path / "link" / "one" / "torchscript-trace")
        made = self.again(tmp_path, target, replace(success, artifact=linked))
        assert made.exports[0].action == "cached"

    def test_a_stricter_tolerance_holds_for_old_results(self, tmp_path: Path, target: ExportTarget) -> None:
        success = published(plan(tmp_path, target).jobs[0], drift=0.08)
        assert self.again(tmp_path, target, success).exports[0].action == "cached"
        strict = replace(target, tolerance={"AP": 0.05})
        made = self.again(tmp_path, strict, success)
        assert made.exports[0].action == "run"
        assert "tolerance" in made.exports[0].reason

    def test_a_measured_baseline_is_not_measured_again(self, tmp_path: Path, target: ExportTarget) -> None:
        baseline = plan(tmp_path, target).baselines[0].key
        made = plan(tmp_path, target, history=Past(baselines={baseline: {"bbox/AP": 40.0}}))
        assert made.baselines == ()
        assert made.measured == {baseline: {"bbox/AP": 40.0}}


class TestDigests:
    """A file is read once, and again when it changed."""

    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        path = tmp_path / "file"
        path.write_text("one")
        return path

    @pytest.fixture
    def reads(self, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
        seen: list[Path] = []

        def noted(path: Path) -> str:
            seen.append(path)
            return file_sha256(path)

        monkeypatch.setattr(digest_files, "file_sha256", noted)
        monkeypatch.setattr(digest_files, "_FRESH", -1.0)
        return seen

    def test_the_next_process_does_not_read(self, tmp_path: Path, file: Path, reads: list[Path]) -> None:
        first = DigestCache(tmp_path / "cache" / "d.sqlite")
        digest = first.file(file)
        first.save()
        assert DigestCache(tmp_path / "cache" / "d.sqlite").file(file) == digest
        assert len(reads) == 1

    def test_a_change_is_seen_even_with_size_and_time_kept(
        self, tmp_path: Path, file: Path, reads: list[Path]
    ) -> None:
        cache = DigestCache(tmp_path / "d.sqlite")
        before, status = cache.file(file), file.stat()
        file.write_text("two")
        os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
        assert cache.file(file) != before

    def test_a_file_that_just_changed_is_not_remembered(
        self, file: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(digest_files, "_FRESH", 3600.0)
        cache = DigestCache(None)
        cache.file(file)
        cache.file(file)
        assert len(reads) == 2

    @pytest.mark.parametrize("content", [b"not a database", b""])
    def test_a_broken_cache_only_costs_time(self, tmp_path: Path, file: Path, content: bytes) -> None:
        path = tmp_path / "d.sqlite"
        path.write_bytes(content)
        cache = DigestCache(path)
        assert len(cache.file(file)) == 64
        cache.save()

    def test_a_cache_that_cannot_be_made_only_costs_time(self, tmp_path: Path, file: Path) -> None:
        cache = DigestCache(file / "below" / "d.sqlite")
        assert len(cache.file(file)) == 64
        cache.save()


class TestRemembered:
    """What was derived from files is remembered as long as none of them changes."""

    @pytest.fixture(autouse=True)
    def patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(digest_files, "_FRESH", -1.0)

    def cached_plan(self, folder: Path, target: ExportTarget) -> str:
        wanted = [(target, place(target, folder / "out"))]
        cache = DigestCache(folder / "digests.sqlite")
        made = make_plan(wanted, run_id="r", export_ids=["r.1"], history=None, digests=cache)
        return made.jobs[0].key

    def test_unchanged_configs_and_datasets_are_not_read_again(
        self, tmp_path: Path, target: ExportTarget, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        first = self.cached_plan(tmp_path, target)

        def read(*_: object) -> None:
            raise AssertionError("it was read")

        monkeypatch.setattr("zooport.export_core.config.load_config", read)
        monkeypatch.setattr("zooport.export_core.evaluation.datasets.load_dataset", read)
        assert self.cached_plan(tmp_path, target) == first

    @pytest.mark.parametrize("change", [touch_weights, change_config, replace_image, change_annotations])
    def test_a_change_is_seen_through_the_cache(
        self, tmp_path: Path, target: ExportTarget, change: Callable[[ExportTarget], None]
    ) -> None:
        before = self.cached_plan(tmp_path, target)
        change(target)
        assert self.cached_plan(tmp_path, target) != before

    def test_a_changed_base_of_a_config_is_seen(self, tmp_path: Path, target: ExportTarget) -> None:
        config = target.checkpoint.config
        base = config.with_name("base.yaml")
        config.rename(base)
        config.write_text("_BASE_: base.yaml\n")
        before = self.cached_plan(tmp_path, target)
        change_config(replace(target, checkpoint=replace(target.checkpoint, config=base)))
        assert self.cached_plan(tmp_path, target) != before

    def test_other_overrides_are_another_config(self, tmp_path: Path, target: ExportTarget) -> None:
        before = self.cached_plan(tmp_path, target)
        changed = replace(target.checkpoint, overrides={"TEST.DETECTIONS_PER_IMAGE": 3})
        assert self.cached_plan(tmp_path, replace(target, checkpoint=changed)) != before
