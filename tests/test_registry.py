"""A run in the registry, from its beginning to its end."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from zooport.export_core.failures import Failure
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, Metric
from zooport.jobs.registry.writer import Registry
from zooport.jobs.values import BaselineResult, ExportResult, Status
from zooport.tests.registry_support import (
    MANIFEST,
    Moved,
    baseline_of,
    begin,
    checkpoint,
    fail,
    make_job,
    run_of,
    succeed,
)


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    with open_registry(registry_url) as opened:
        yield opened


def test_exports_of_a_new_run_are_pending(registry: Registry) -> None:
    jobs = begin(registry, ["a", "b"])
    rows = registry.exports()
    assert [row.id for row in rows] == [job.id for job in jobs]
    assert {row.status for row in rows} == {"pending"}
    assert all(row.attempt == 0 and row.log is None and row.code is None for row in rows)


def test_success_keeps_artifact_metrics_and_log(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    succeed(registry, job, exported=39.95)
    (row,) = registry.exports()
    assert (row.status, row.attempt, row.seconds, row.log) == ("succeeded", 1, 2.5, str(job.log))
    assert row.artifact == str(job.output)
    assert row.metrics["bbox/AP"].to_dict() == pytest.approx(
        {"baseline": 40.0, "exported": 39.95, "delta": -0.05}
    )
    assert row.metrics["bbox/AP50"] == Metric(None, 59.95, None)
    detail = registry.export(job.id)
    assert detail.artifact is not None
    assert (detail.artifact.main_file, detail.artifact.size) == ("model.ts", 1234)
    assert detail.artifact.files == {"model.ts": "ab" * 32, "model.json": "cd"}
    assert detail.attempts[0].stages == {"load": 0.5, "export": 2.0}
    assert detail.attempts[0].notes == ("noted",)


def test_failure_keeps_what_happened_and_what_to_do(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    fail(registry, job, "resource.timeout", "too long")
    (row,) = registry.exports()
    assert (row.status, row.code, row.message, row.hint) == (
        "failed",
        "resource.timeout",
        "too long",
        "mend it",
    )
    assert row.retryable
    assert registry.export(job.id).details == {"names": ["a", "b"]}


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("unsupported.operator", Status.UNSUPPORTED),
        ("run.cancelled", Status.CANCELLED),
        ("accuracy.drift", Status.FAILED),
    ],
)
def test_code_decides_the_status(registry: Registry, code: str, status: Status) -> None:
    (job,) = begin(registry, ["a"])
    failure = Failure(code, "no").record()
    assert registry.finish_attempt(job.id, ExportResult(job.id, 0.1, failure=failure)) is status
    assert registry.exports()[0].status == status


def test_verdict_of_the_driver_outweighs_the_success_of_the_worker(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    registry.start_attempt(job.id)
    drift = Failure("accuracy.drift", "AP moved by -3").record()
    result = ExportResult(job.id, 1.0, metrics={"bbox/AP": 37.0})
    assert (
        registry.finish_attempt(job.id, result, {"bbox/AP": Moved(40.0, 37.0, -3.0)}, drift) is Status.FAILED
    )
    (row,) = registry.exports()
    assert row.metrics["bbox/AP"].delta == -3.0
    assert row.code == "accuracy.drift"


def test_job_refused_while_planning_has_an_attempt(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    refusal = Failure("unsupported.architecture", "MODEL.META_ARCHITECTURE is FCOS2").record()
    registry.finish_attempt(job.id, ExportResult(job.id, 0.0, failure=refusal))
    (row,) = registry.exports()
    assert (row.status, row.attempt, row.log) == ("unsupported", 1, str(job.log))


def test_retry_in_the_same_run_adds_an_attempt(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    fail(registry, job, "worker.crashed")
    succeed(registry, job)
    (row,) = registry.exports()
    assert (row.status, row.attempt, row.code) == ("succeeded", 2, None)
    assert [attempt.code for attempt in registry.export(job.id).attempts] == ["worker.crashed", None]


def test_only_a_waiting_export_starts(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    registry.start_attempt(job.id)
    with pytest.raises(LookupError, match="running"):
        registry.start_attempt(job.id)
    with pytest.raises(LookupError, match="no export"):
        registry.start_attempt("r-1.1")


def test_attempts_go_on_in_the_next_run(registry: Registry) -> None:
    (first,) = begin(registry, ["a"])
    fail(registry, first)
    registry.finish_run(run_of(first))
    (second,) = begin(registry, ["a"], kind="rerun", parent=run_of(first))
    assert registry.start_attempt(second.id) == 2
    assert [attempt.attempt for attempt in registry.export(second.id).attempts] == [1, 2]
    assert registry.export(first.id).newest == second.id
    assert registry.run("latest").parent == run_of(first)


def test_rerun_under_another_manifest_continues_what_it_replaces(registry: Registry) -> None:
    (first,) = begin(registry, ["a"])
    fail(registry, first)
    registry.finish_run(run_of(first))
    again = make_job("r-2", 1, "a")
    registry.begin_run(
        "/elsewhere.yaml", "", [again], [], run_id="r-2", kind="rerun", replaces={again.id: first.id}
    )
    succeed(registry, again)
    assert [(row.id, row.attempt) for row in registry.exports()] == [(again.id, 2)]


def test_replacing_an_unknown_export_is_an_error(registry: Registry) -> None:
    job = make_job("r-2", 1, "a")
    with pytest.raises(LookupError, match=r"r-0\.1"):
        registry.begin_run(MANIFEST, "", [job], [], run_id="r-2", replaces={job.id: "r-0.1"})
    assert registry.runs() == []


def test_cached_export_points_to_the_earlier_success(registry: Registry) -> None:
    (first,) = begin(registry, ["a"])
    succeed(registry, first)
    registry.finish_run(run_of(first))
    (second,) = begin(registry, ["a"], cached=lambda job: registry.find_success(job.key))
    (row,) = registry.exports()
    assert (row.id, row.status, row.cached, row.attempt) == (second.id, "succeeded", True, 1)
    assert (row.artifact, row.seconds, row.log) == (str(first.output), 2.5, str(first.log))
    assert row.metrics["bbox/AP"].baseline == 40.0
    assert registry.export(second.id).source == first.id
    assert registry.run("latest").cached == 1


def test_cached_export_is_shown_with_the_tolerance_in_force_not_with_that_of_its_source(
    registry: Registry,
) -> None:
    (first,) = begin(registry, ["a"])
    succeed(registry, first)
    registry.finish_run(run_of(first))
    job = replace(
        make_job("r-2", 1, "a"), tolerance={"AP": 0.5}, tolerance_origins={"AP": "zoo.yaml: tolerance"}
    )
    success = registry.find_success(job.key)
    assert success is not None
    registry.begin_run(MANIFEST, "", [job], [], run_id="r-2", cached={job.id: success})

    for row in (*registry.exports(), registry.export(job.id).row):
        assert row.id == job.id
        assert (row.metrics["bbox/AP"].tolerance, row.metrics["bbox/AP"].origin) == (
            0.5,
            "zoo.yaml: tolerance",
        )
        assert row.metrics["bbox/AP50"].tolerance is None
    assert registry.export(first.id).row.metrics["bbox/AP"].tolerance is None  # as it was recorded


def test_cached_export_is_not_itself_a_source(registry: Registry) -> None:
    (first,) = begin(registry, ["a"])
    succeed(registry, first)
    registry.finish_run(run_of(first))
    begin(registry, ["a"], cached=lambda job: registry.find_success(job.key))
    found = registry.find_success(first.key)
    assert found is not None
    assert found.export_id == first.id


def test_failure_is_never_a_source(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    fail(registry, job)
    assert registry.find_success(job.key) is None


def test_newest_of_two_successes_is_found(registry: Registry) -> None:
    for exported in (39.0, 41.0):
        (job,) = begin(registry, ["a"])
        succeed(registry, job, exported)
        registry.finish_run(run_of(job))
    found = registry.find_success(job.key)
    assert found is not None
    assert found.export_id == job.id
    assert found.metrics["bbox/AP"].exported == 41.0
    assert found.artifact.path == job.output


def test_successes_are_found_for_many_keys_at_once(registry: Registry) -> None:
    models = [f"m{number}" for number in range(700)]
    jobs = begin(registry, models)
    for job in jobs[::100]:
        succeed(registry, job)
    found = registry.find_successes([job.key for job in jobs])
    assert sorted(found) == sorted(job.key for job in jobs[::100])


def test_baseline_is_shared_and_a_failed_one_is_not_served(registry: Registry) -> None:
    first, second = begin(registry, ["a", "b"])
    assert first.baseline is not None
    assert second.baseline is not None
    assert registry.baseline(first.baseline) is None
    registry.record_baseline(BaselineResult(first.baseline, 3.0, {"bbox/AP": 40.5, "bbox/APs": math.nan}))
    registry.record_baseline(
        BaselineResult(second.baseline, 3.0, failure=Failure("dataset.invalid", "no images").record())
    )
    metrics = registry.baseline(first.baseline)
    assert metrics is not None
    assert metrics["bbox/AP"] == 40.5
    assert math.isnan(metrics["bbox/APs"])
    assert registry.baseline(second.baseline) is None


def test_newest_baseline_counts(registry: Registry) -> None:
    for value in (40.0, 41.0):
        (job,) = begin(registry, ["a"])
        registry.record_baseline(BaselineResult(baseline_of(job).key, 1.0, {"bbox/AP": value}))
        registry.finish_run(run_of(job))
    assert registry.baseline(baseline_of(job).key) == {"bbox/AP": 41.0}


def test_baseline_is_recorded_once(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    result = BaselineResult(baseline_of(job).key, 1.0, {"bbox/AP": 40.0})
    registry.record_baseline(result)
    with pytest.raises(LookupError, match="baseline"):
        registry.record_baseline(result)
    with pytest.raises(LookupError, match="no baseline"):
        registry.record_baseline(BaselineResult("stranger", 1.0))


def test_cancelled_run_keeps_what_was_done(registry: Registry) -> None:
    done, running, pending = begin(registry, ["a", "b", "c"])
    succeed(registry, done)
    registry.start_attempt(running.id)
    assert registry.cancel(run_of(done)) == 2
    assert registry.finish_run(run_of(done)) is Status.CANCELLED
    rows = {row.id: row for row in registry.exports()}
    assert rows[done.id].status == "succeeded"
    for job in (running, pending):
        assert (rows[job.id].status, rows[job.id].code) == ("cancelled", "run.cancelled")
        assert rows[job.id].finished is not None
    assert rows[running.id].attempt == 1
    assert rows[pending.id].attempt == 0


def test_some_exports_are_cancelled(registry: Registry) -> None:
    jobs = begin(registry, ["a", "b", "c"])
    assert registry.cancel([jobs[0].id, jobs[2].id]) == 2
    assert [row.status for row in registry.exports()] == ["cancelled", "pending", "cancelled"]


def test_result_after_the_cancellation_changes_nothing(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    registry.start_attempt(job.id)
    registry.cancel(run_of(job))
    assert registry.finish_attempt(job.id, ExportResult(job.id, 1.0)) is Status.CANCELLED
    assert registry.exports()[0].status == "cancelled"


def test_finishing_a_run_leaves_nothing_open(registry: Registry) -> None:
    done, left = begin(registry, ["a", "b"])
    succeed(registry, done)
    registry.start_attempt(left.id)
    registry.finish_run(run_of(done))
    assert [row.status for row in registry.exports()] == ["succeeded", "cancelled"]


@pytest.mark.parametrize(
    ("codes", "status"),
    [
        ([None, None], Status.SUCCEEDED),
        ([None, "unsupported.operator"], Status.SUCCEEDED),
        ([None, "export.failed"], Status.FAILED),
        (["export.failed", "run.cancelled"], Status.CANCELLED),
    ],
)
def test_run_ends_as_its_exports_do(registry: Registry, codes: list[str | None], status: Status) -> None:
    jobs = begin(registry, ["a", "b"])
    for job, code in zip(jobs, codes, strict=True):
        if code is None:
            succeed(registry, job)
        else:
            fail(registry, job, code)
    assert registry.finish_run(run_of(jobs[0])) is status
    run = registry.run("latest")
    assert run.status == status
    assert run.seconds is not None
    assert run.total == 2


def test_unknown_run_cannot_be_finished(registry: Registry) -> None:
    with pytest.raises(LookupError, match="no run"):
        registry.finish_run("r-0")


def test_job_comes_back_as_it_was_planned(registry: Registry) -> None:
    job = replace(
        make_job("r-1", 1, "a"),
        checkpoint=replace(checkpoint("a"), overrides={"MODEL.MASK_ON": True, "INPUT.FORMAT": "RGB"}),
    )
    registry.begin_run(MANIFEST, "text", [job], [], run_id="r-1")
    fail(registry, job)
    (failed,) = registry.failed_exports()
    assert failed.job == job
    assert registry.export(job.id).job == job


def test_job_without_dataset_comes_back(registry: Registry) -> None:
    job = replace(make_job("r-1", 1, "a"), dataset=None, baseline=None, timeout=None, tolerance={})
    registry.begin_run(MANIFEST, "text", [job], [], run_id="r-1")
    assert registry.export(job.id).job == job


def test_manifest_is_kept_as_it_was(registry: Registry) -> None:
    registry.begin_run(MANIFEST, "models: []\n", [], [], run_id="r-1")
    assert registry.manifest("r-1") == (str(MANIFEST), "models: []\n")


def test_text_that_databases_refuse_is_escaped(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    fail(registry, job, message="caf\u00e9 \udcff \0 end")
    assert registry.exports()[0].message == "caf\u00e9 \\udcff \\x00 end"


def test_numbers_that_json_refuses_are_none(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    result = ExportResult(job.id, math.inf, metrics={"bbox/AP": math.nan})
    registry.finish_attempt(job.id, result, {"bbox/AP": Moved(40.0, math.nan, math.nan)})
    (row,) = registry.exports()
    assert row.metrics["bbox/AP"] == Metric(40.0, None, None)
    assert row.seconds is None


def test_models_of_two_manifests_are_apart(registry: Registry) -> None:
    begin(registry, ["a"], manifest=Path("/one.yaml"))
    begin(registry, ["a"], manifest=Path("/two.yaml"))
    assert len(registry.exports()) == 2


def test_ten_thousand_jobs_begin_in_one_transaction(registry: Registry) -> None:
    begin(registry, [f"m{number}" for number in range(2000)], ["f1", "f2", "f3", "f4", "f5"])
    assert registry.run("latest").counts == {"pending": 10_000}
    assert len(registry.exports(ExportFilter(format="f3"))) == 2000
