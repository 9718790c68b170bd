"""What may pass by itself is tried again, in its own time and with more memory; what is certain is not."""

from __future__ import annotations

import errno
import io
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zooport.export_core.diagnosis import disk_failure
from zooport.export_core.failures import CODES, Failure, FailureRecord
from zooport.export_core.places import Place
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import crew
from zooport.jobs.agenda import Agenda, Task
from zooport.jobs.progress import Finished, Running
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.writer import Registry
from zooport.jobs.retries import log_of_try, next_try, pause
from zooport.jobs.tables import export_page
from zooport.jobs.values import BaselineJob, ExportJob, ExportResult
from zooport.tests.registry_support import begin, run_of
from zooport.tests.run_support import Bench, Notes, leftovers

pytestmark = pytest.mark.alone
GIB = 1 << 30


def task(number: int = 1, **changes: Any) -> Task:
    checkpoint = CheckpointSource("m", Path("/c.yaml"), Path("/w.pth"))
    values = {"retries": 2, "reservation": GIB} | changes
    job = ExportJob("r.1", "k", checkpoint, "torchscript-trace", Path("/out"), Path("/logs/x.log"), **values)
    return Task(job, GIB, number)


def failed(code: str) -> FailureRecord:
    return Failure(code, "so it is").record()


class TestWhatIsTriedAgain:
    """The taxonomy says what may pass."""

    @pytest.mark.parametrize("code", ["worker.crashed", "resource.timeout", "resource.disk", "fetch.failed"])
    def test_what_may_pass(self, code: str) -> None:
        again = next_try(task(), failed(code))
        assert again is not None
        assert (again.number, again.size, again.job.log) == (2, GIB, Path("/logs/x.2.log"))

    @pytest.mark.parametrize("code", [name for name, code in CODES.items() if not code.retryable])
    def test_what_is_certain_to_fail_again(self, code: str) -> None:
        assert next_try(task(), failed(code)) is None

    @pytest.mark.parametrize(
        ("number", "passes"),
        [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EACCES, False), (errno.EROFS, False)],
    )
    def test_a_full_disk_may_get_room_but_a_missing_right_stays(self, number: int, passes: bool) -> None:
        failure = disk_failure(OSError(number, "so it is", "/out/model.ts")).record()
        assert (next_try(task(), failure) is not None) == passes

    def test_neither_a_success_nor_what_somebody_stopped(self) -> None:
        assert next_try(task(), None) is None
        assert next_try(task(), failed("run.cancelled")) is None

    def test_tries_end(self) -> None:
        assert next_try(task(2), failed("worker.crashed")) is not None
        assert next_try(task(3), failed("worker.crashed")) is None
        assert next_try(task(retries=0), failed("worker.crashed")) is None

    def test_a_baseline_is_tried_again_like_an_export(self) -> None:
        checkpoint = CheckpointSource("m", Path("/c.yaml"), Path("/w.pth"))
        dataset = DatasetSource("val", Path("/a.json"), Path("/images"))
        job = BaselineJob("k", checkpoint, dataset, Path("/logs/baseline-val.log"))
        again = next_try(Task(job), failed("worker.crashed"))
        assert again is not None
        assert again.job.log == Path("/logs/baseline-val.2.log")


class TestMemory:
    """Twice as much, once."""

    def test_lack_of_memory_gets_twice_as_much_once(self) -> None:
        again = next_try(task(), failed("resource.memory"))
        assert again is not None
        assert (again.job.reservation, again.size) == (2 * GIB, 2 * GIB)
        assert next_try(again, failed("resource.memory")) is None
        other = next_try(again, failed("worker.crashed"))
        assert other is not None
        assert (other.job.reservation, other.number) == (2 * GIB, 3)
        assert next_try(other, failed("resource.memory")) is None

    def test_no_more_than_there_is(self) -> None:
        again = next_try(task(), failed("resource.memory"), most=int(1.2 * GIB))
        assert again is not None
        assert again.job.reservation == again.size == int(1.2 * GIB)
        assert next_try(task(), failed("resource.memory"), most=GIB) is None


def test_pauses_grow_and_differ() -> None:
    for number, mean in ((2, 2.0), (3, 4.0), (4, 8.0)):
        pauses = [pause(number) for _ in range(200)]
        assert mean / 2 <= min(pauses) < mean < max(pauses) <= mean * 1.5
    assert pause(60) <= 450


@pytest.mark.parametrize("name", ["x.log", "with.dots.log", "baseline-val.2.log"])
def test_each_try_has_a_log_of_its_own(name: str) -> None:
    logs: list[Place] = [Path("/logs") / name]
    for number in (2, 3, 4):
        logs.append(log_of_try(logs[-1], number))
    assert [log.name for log in logs[1:]] == [f"{name[:-4]}.{number}.log" for number in (2, 3, 4)]


class TestAgenda:
    """Large before small; what waits comes first when it is due."""

    def test_a_line_for_each_size(self) -> None:
        first, second, large = Task(task().job, 1), Task(task(2).job, 1), Task(task().job, 4)
        agenda = Agenda([first, large, second])
        assert agenda.sizes() == [4, 1]
        assert [agenda.take(1), agenda.take(1), agenda.take(1)] == [first, second, None]
        assert agenda.sizes() == [4]
        assert len(agenda) == 1

    def test_what_waits_is_ready_in_its_time_and_then_first(self) -> None:
        now = [0.0]
        early, late, other = Task(task().job, 1, 2), Task(task().job, 1, 3), Task(task().job, 4)
        agenda = Agenda([other], clock=lambda: now[0])
        agenda.wait(late, 5)
        agenda.wait(early, 2)
        assert agenda.waiting() == [(early, 2.0), (late, 5.0)]
        assert (agenda.sizes(), agenda.ready(), len(agenda)) == ([4], 1, 3)
        now[0] = 2.5
        agenda.promote()
        assert agenda.waiting() == [(late, 2.5)]
        assert (agenda.sizes(), agenda.retried()) == ([1, 4], [1])
        assert agenda.take(1) == early


class TestInTheRegistry:
    """Every try is a row, whatever comes between two of them."""

    @pytest.fixture
    def registry(self, tmp_path: Path) -> Any:
        with open_registry(str(tmp_path / "zooport.db")) as opened:
            yield opened

    def fail_for_now(self, registry: Registry, job: ExportJob) -> None:
        registry.start_attempt(job.id, "w", job.log)
        result = ExportResult(job.id, 1.0, failure=failed("worker.crashed"))
        registry.finish_attempt(job.id, result, again=True)

    def test_between_two_tries_an_export_is_pending(self, registry: Registry) -> None:
        (job,) = begin(registry, ["a"])
        self.fail_for_now(registry, job)
        detail = registry.export(job.id)
        assert (detail.row.status, detail.row.attempt) == ("pending", 1)
        assert [(each.status, each.code) for each in detail.attempts] == [("failed", "worker.crashed")]
        assert detail.attempts[0].command is not None
        assert registry.failed_exports() == []

    def test_cancelled_between_two_tries_it_keeps_why_it_failed(self, registry: Registry) -> None:
        waiting, untried = begin(registry, ["a", "b"])
        self.fail_for_now(registry, waiting)
        registry.finish_run(run_of(waiting))
        tries = registry.export(waiting.id).attempts
        assert [(each.attempt, each.status, each.code) for each in tries] == [
            (1, "failed", "worker.crashed"),
            (2, "cancelled", "run.cancelled"),
        ]
        assert {row.code for row in registry.exports()} == {"run.cancelled"}
        assert registry.export(untried.id).attempts == ()
        unfinished = registry.unfinished_exports(run_of(waiting))
        assert [each.job.id for each in unfinished] == [waiting.id, untried.id]

    def test_the_next_run_counts_on(self, registry: Registry) -> None:
        (job,) = begin(registry, ["a"])
        self.fail_for_now(registry, job)
        registry.finish_run(run_of(job))
        (again,) = begin(registry, ["a"])
        assert registry.start_attempt(again.id) == 3


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.mark.usefixtures("stay_joined")
class TestInARun:
    """A run tries again, and tells."""

    def test_what_passes_by_itself_succeeds_in_the_end(self, bench: Bench) -> None:
        names = ("flaky-2", "flaky-3", "crash-1", "raise-1", "good-1")
        outcome, rows = bench.run(*(bench.target(name, retries=2) for name in names))
        assert {name: (row.status, row.attempt) for name, row in rows.items()} == {
            "flaky-2": ("succeeded", 3),
            "flaky-3": ("failed", 3),
            "crash-1": ("failed", 3),
            "raise-1": ("failed", 1),
            "good-1": ("succeeded", 1),
        }
        assert outcome.exit_code == 1
        told = [each for each in bench.notes.retried if each[0] == "crash-1"]
        assert told == [("crash-1", "worker.crashed", f"try {number} of 3") for number in (2, 3)]
        assert not [each for each in bench.notes.retried if each[0] in {"raise-1", "good-1"}]
        with open_registry(str(bench.folder / "registry.db")) as registry:
            tries = registry.export("flaky-2").attempts
        assert [each.status for each in tries] == ["failed", "failed", "succeeded"]
        logs = [Path(each.log) for each in tries]
        assert len(set(logs)) == 3
        assert "crash_at_first" in logs[1].read_text()
        assert "crash_at_first" not in logs[2].read_text()
        assert leftovers(bench.folder) == []

    def test_a_baseline_that_crashed_once_fails_nobody(self, bench: Bench) -> None:
        _, rows = bench.run(bench.target("unsure-1", dataset=bench.dataset(), retries=1))
        assert rows["unsure-1"].status == "succeeded"
        assert bench.notes.retried == [("unsure-1", "worker.crashed", "try 2 of 2")]
        with open_registry(str(bench.folder / "registry.db")) as registry:
            detail = registry.export("unsure-1")
        tries = detail.baseline
        assert [(each.attempt, each.status, each.code) for each in tries] == [
            (1, "failed", "worker.crashed"),
            (2, "succeeded", None),
        ]
        assert "crash_at_first" in Path(tries[0].log).read_text()
        assert [Path(each.log).name for each in tries] == ["baseline-shapes.log", "baseline-shapes.2.log"]
        page = io.StringIO()
        Console(file=page, width=300).print(export_page(detail))
        assert f"worker.crashed: {tries[0].message}; log {tries[0].log}" in page.getvalue()

    def test_nobody_waits_for_a_pause(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        now = [0.0]

        class Waiter(Notes):
            def finished(self, job: Finished) -> None:
                super().finished(job)
                now[0] += 100.0 if len(self.ended) == 3 else 0.0  # until then the pause does not end

        bench.notes = Waiter(watch=True)
        monkeypatch.setattr(crew, "Agenda", lambda tasks: Agenda(tasks, clock=lambda: now[0]))
        flaky = bench.target("flaky-1", retries=1)
        flaky.checkpoint.weights.write_text("the largest, so that it begins first")
        others = [bench.target(f"good-{number}") for number in range(3)]
        _, rows = bench.run(flaky, *others, workers=1, pause=2.0)
        assert rows["flaky-1"].status == "succeeded"
        assert [job.label.split()[0] for job in bench.notes.ended][-1] == "flaky-1"
        assert any(stage.startswith("retrying in ") for _, stage in bench.notes.seen)

    def test_an_interruption_ends_the_wait(self, bench: Bench) -> None:
        class Interrupter(Notes):
            def running(self, jobs: Sequence[Running]) -> None:
                if any(job.stage.startswith("retrying") for job in jobs):
                    os.kill(os.getpid(), signal.SIGINT)

        bench.notes = Interrupter(watch=True)
        outcome, rows = bench.run(bench.target("crash-1", retries=1), pause=600.0)
        assert outcome.exit_code == 130
        assert (rows["crash-1"].status, rows["crash-1"].code) == ("cancelled", "run.cancelled")
