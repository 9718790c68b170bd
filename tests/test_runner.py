"""A run on Ray loses nothing, whatever its jobs do, and the registry is true at its end."""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from zooport.export_core.failures import Failure
from zooport.jobs import runner
from zooport.jobs.agenda import in_order
from zooport.jobs.progress import Running
from zooport.jobs.registry import open_registry
from zooport.jobs.values import Status
from zooport.tests.run_support import Bench, Notes, leftovers


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("stay_joined")]


def test_of_forty_jobs_fifteen_fail_typed_and_nothing_is_lost(bench: Bench) -> None:
    names = [f"good-{n}" for n in range(25)]
    bad = [f"{kind}-{n}" for n in range(5) for kind in ("crash", "hang", "raise")]
    targets = [bench.target(name) for name in names]
    for position, name in enumerate(bad):
        targets.insert(position * 2, bench.target(name, timeout=2.0 if name.startswith("hang") else 60.0))
    outcome, rows = bench.run(*targets)
    assert outcome.exit_code == 1
    assert Counter(row.status for row in rows.values()) == {"succeeded": 25, "failed": 15}
    codes = Counter(row.code for row in rows.values() if row.code)
    assert "worker.error" not in codes, [row.message for row in rows.values() if row.code == "worker.error"]
    assert codes == {"worker.crashed": 5, "resource.timeout": 5, "export.failed": 5}
    assert {job.label.split()[0] for job in bench.notes.ended} == {*names, *bad}
    assert len(bench.notes.ended) == 40
    for name, row in rows.items():
        assert row.attempt == 1
        assert (bench.folder / "out" / name / "torchscript-trace" / "model.ts").exists() == (name in names)
        assert Path(row.log or "").exists()
    assert leftovers(bench.folder) == []


def test_results_come_in_the_order_in_which_they_end(bench: Bench) -> None:
    at_gate = ("gate-1  torchscript-trace", "export")

    class Opener(Notes):
        def running(self, jobs: Sequence[Running]) -> None:
            super().running(jobs)
            if len(self.ended) == 2 and at_gate in self.seen:
                (bench.folder / "gate-1.open").touch()

    bench.notes = Opener(watch=True)
    bench.target("gate-1").checkpoint.weights.write_text("the largest, so it begins first")
    bench.run(*(bench.target(name) for name in ("gate-1", "good-1", "good-2")), workers=2)
    assert [job.label.split()[0] for job in bench.notes.ended][-1] == "gate-1"
    assert at_gate in bench.notes.seen


def test_a_run_of_only_good_jobs_is_fine(bench: Bench) -> None:
    outcome, rows = bench.run(bench.target("good-1"))
    assert outcome.exit_code == 0
    assert rows["good-1"].artifact == str(bench.folder / "out" / "good-1" / "torchscript-trace")


def test_what_a_worker_began_after_its_run_was_over_is_removed_by_the_next_run(bench: Bench) -> None:
    _, rows = bench.run(bench.target("good-1"))
    folder = bench.folder / "out" / "good-1"
    late, strange = (
        folder / f".torchscript-trace.{run}.1.staging"
        for run in (rows["good-1"].run, "r-20200101-000000-abcd")
    )
    for each in (late, strange):
        each.mkdir()
        (each / "model.ts").write_text("half")
    bench.run(bench.target("good-1", options={"batch": 2}))
    assert not late.exists()
    assert strange.exists()
    assert (folder / "torchscript-trace" / "model.ts").exists()


def test_unsupported_is_a_fact_and_no_failure_of_the_run(bench: Bench) -> None:
    outcome, rows = bench.run(bench.target("unsupported-1"), bench.target("good-1"))
    assert rows["unsupported-1"].status == "unsupported"
    assert outcome.exit_code == 0


def test_a_refused_target_is_a_row_and_a_failure(bench: Bench) -> None:
    refusal = Failure("manifest.invalid", "two weights files").record()
    outcome, rows = bench.run(bench.target("unclear", refusal=refusal), bench.target("good-1"))
    assert (rows["unclear"].status, rows["unclear"].code) == ("failed", "manifest.invalid")
    assert rows["good-1"].status == "succeeded"
    assert outcome.exit_code == 1


class TestVerdicts:
    """Every export is compared with the one baseline of its checkpoint."""

    def test_metrics_baseline_and_delta_are_kept(self, bench: Bench) -> None:
        _, rows = bench.run(bench.target("good-1", dataset=bench.dataset()))
        metric = rows["good-1"].metrics["bbox/AP"]
        assert (metric.baseline, metric.exported, metric.delta) == (40.0, 40.0, 0.0)

    def test_drift_and_nan_fail_and_keep_the_artifact(self, bench: Bench) -> None:
        targets = [bench.target(name, dataset=bench.dataset()) for name in ("drift-1", "nan-1")]
        outcome, rows = bench.run(*targets)
        assert rows["drift-1"].code == "accuracy.drift"
        assert rows["drift-1"].metrics["bbox/AP"].delta == -5.0
        assert rows["nan-1"].code == "accuracy.nonfinite"
        assert all(Path(row.artifact or "").is_dir() for row in rows.values())
        assert outcome.exit_code == 1

    def test_formats_share_a_baseline(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        dataset = bench.dataset()
        formats = ("torchscript-trace", "torchscript-script")
        targets = [bench.target("good-1", dataset=dataset, format=name) for name in formats]
        with open_registry(str(bench.folder / "registry.db")) as registry:
            plan = bench.plan(registry, *targets)
        assert len(plan.baselines) == 1
        assert in_order(plan)[0] == plan.baselines[0]
        outcome, _ = bench.run(*targets)
        assert outcome.counts[Status.SUCCEEDED] == 2

    def test_a_failed_baseline_fails_only_who_needs_it(self, bench: Bench) -> None:
        outcome, rows = bench.run(
            bench.target("baseline-crash", dataset=bench.dataset()),
            bench.target("baseline-crash-2"),
            bench.target("good-1", dataset=bench.dataset()),
        )
        failed = rows["baseline-crash"]
        assert failed.code == "worker.crashed"
        assert "eager model" in (failed.message or "")
        assert failed.artifact is not None
        assert rows["baseline-crash-2"].status == rows["good-1"].status == "succeeded"
        assert outcome.exit_code == 1


class TestAgain:
    """What is done and intact is not done again."""

    def test_the_second_run_does_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        targets = [bench.target(name, dataset=bench.dataset()) for name in ("good-1", "good-2")]
        bench.run(*targets)
        bench.notes.ended.clear()
        outcome, rows = bench.run(*targets)
        assert outcome.exit_code == 0
        assert all(row.cached for row in rows.values())
        assert bench.notes.ended == []

    def test_only_what_is_broken_or_new_is_run(self, bench: Bench) -> None:
        bench.run(bench.target("good-1"), bench.target("good-2"), bench.target("raise-1"))
        (bench.folder / "out" / "good-2" / "torchscript-trace" / "model.ts").write_text("harmed")
        bench.notes.ended.clear()
        targets = [bench.target(name) for name in ("good-1", "good-2", "raise-1", "good-3")]
        _, rows = bench.run(*targets)
        ran = {job.label.split()[0] for job in bench.notes.ended}
        assert ran == {"good-2", "raise-1", "good-3"}
        assert rows["raise-1"].attempt == 2  # a failure is never served
        assert rows["good-1"].cached


def hosts() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if "ray::Host" in "".join(process.cmdline()):
                found.append(process)
    return found


def test_a_host_that_dies_fails_its_job_alone_and_is_replaced(bench: Bench) -> None:
    names = ["hang-1", *(f"good-{n}" for n in range(8))]
    killed: list[int] = []
    before = [process.pid for process in hosts()]  # of earlier runs, which are ending

    class Killer(Notes):
        def running(self, jobs: Sequence[Running]) -> None:
            if killed or not any(job.label.startswith("hang-1") and job.stage == "export" for job in jobs):
                return
            for process in hosts():
                if process.pid not in before:
                    killed.append(process.pid)
                    process.kill()

    bench.notes = Killer(watch=True)
    outcome, rows = bench.run(*(bench.target(name) for name in names), workers=1)
    assert len(killed) == 1
    assert rows["hang-1"].code == "worker.crashed"
    assert rows["hang-1"].retryable
    assert all(rows[name].status == "succeeded" for name in names[1:])
    assert outcome.exit_code == 1
    assert leftovers(bench.folder) == []


def test_fail_fast_starts_nothing_more(bench: Bench) -> None:
    bench.target("raise-1").checkpoint.weights.write_text("the largest, so it begins first")
    names = ["raise-1", *(f"sleep-{n}-0.3" for n in range(6))]
    outcome, rows = bench.run(*(bench.target(name) for name in names), workers=1, fail_fast=True)
    assert rows["raise-1"].code == "export.failed"
    assert [rows[name].status for name in names[1:]] == ["cancelled"] * 6
    assert outcome.exit_code == 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interruption_stops_everything_and_the_registry_is_true(bench: Bench, number: int) -> None:
    sent: list[int] = []

    class Interrupter(Notes):
        def running(self, jobs: Sequence[Running]) -> None:
            if not sent and len([job for job in jobs if job.stage == "export"]) == 2:
                sent.append(number)
                os.kill(os.getpid(), number)

    bench.notes = Interrupter(watch=True)
    names = ["hang-1", "hang-2", "good-1", "good-2"]
    for name in names[:2]:
        bench.target(name).checkpoint.weights.write_text("large, so that it begins first")
    outcome, rows = bench.run(*(bench.target(name) for name in names), workers=2)
    assert outcome.exit_code == 130
    assert {row.status for row in rows.values()} == {"cancelled"}
    assert {row.code for row in rows.values()} == {"run.cancelled"}
    assert leftovers(bench.folder) == []


def test_what_ray_makes_of_sigterm_is_an_interruption() -> None:
    with pytest.raises(KeyboardInterrupt), runner._terminable():
        sys.exit(signal.SIGTERM)
    with pytest.raises(SystemExit), runner._terminable():
        sys.exit(1)


def test_a_run_that_was_closed_from_elsewhere_ends_typed(bench: Bench) -> None:
    """As by another machine, for which this one has been silent for too long."""

    class Closer(Notes):
        def running(self, jobs: Sequence[Running]) -> None:
            if any(job.stage == "export" for job in jobs):
                with open_registry(str(bench.folder / "registry.db")) as registry:
                    registry.finish_run(registry.runs()[0].id)

    bench.notes = Closer(watch=True)
    with pytest.raises(Failure) as caught:
        bench.run(bench.target("sleep-60-1"), bench.target("good-1"), workers=1)
    assert caught.value.code == "run.cancelled"
    assert "was closed while it was going on" in caught.value.message


def test_a_second_interruption_does_not_wait(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "zooport.jobs.hosts.HostHandle.cancel", lambda self: None
    )  # as one that does not obey

    class Impatient(Notes):
        def running(self, jobs: Sequence[Running]) -> None:
            if any(job.stage == "export" for job in jobs):
                os.kill(os.getpid(), signal.SIGINT)

    bench.notes = Impatient(watch=True)
    outcome, rows = bench.run(bench.target("hang-1"), workers=1)
    assert outcome.exit_code == 130
    assert rows["hang-1"].status == "cancelled"
    assert leftovers(bench.folder) == []


def test_large_checkpoints_begin_first(bench: Bench) -> None:
    for name, size in (("small", 1), ("large", 1000), ("middle", 100)):
        bench.target(name).checkpoint.weights.write_bytes(b"x" * size)
    with open_registry(str(bench.folder / "registry.db")) as registry:
        plan = bench.plan(registry, *(bench.target(name) for name in ("small", "large", "middle")))
    assert [job.checkpoint.name for job in in_order(plan)] == ["large", "middle", "small"]
