"""Runs a plan on Ray: hands jobs to hosts, records results as they come, and ends well however it ends.

The driver is the only one that writes the registry. Results are handled in the order in which they arrive;
an export is judged when both it and its baseline are there.
"""

from __future__ import annotations

import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from zooport.export_core.artifacts import discard
from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.jobs.cluster import check_alive, joined
from zooport.jobs.hosts import HostHandle, HostSettings, Job, Result
from zooport.jobs.plan import Plan
from zooport.jobs.progress import Display, Finished, Running
from zooport.jobs.registry.records import LiveJob, Metric, primary_metrics
from zooport.jobs.tables import movement
from zooport.jobs.values import BaselineJob, BaselineResult, ExportJob, ExportResult, Status
from zooport.jobs.verdicts import Verdict, decide

if TYPE_CHECKING:
    from zooport.jobs.registry.writer import Registry

_LOOK = 0.25  # seconds between two looks at signals and stages
_HEARTBEAT = 60.0  # seconds between two signs of life in the registry
_POLL = 1.0  # seconds between two looks at the registry, where others ask for cancellation
_PATIENCE = 20.0  # seconds for cancelled jobs to stop before their hosts are killed
_STILLBORN_AT_MOST = 3  # hosts that die before their first job until the run is given up


@dataclass(frozen=True)
class RunSettings:
    """How to run a plan.

    Attributes:
        address: of a Ray cluster; None starts one on this machine.
        workers: jobs at once; None takes the number of CPUs.
        fail_fast: start nothing more after the first failure.
    """

    address: str | None = None
    workers: int | None = None
    fail_fast: bool = False


@dataclass
class RunOutcome:
    """How many exports came to what, and whether somebody stopped the run."""

    counts: Counter[Status] = field(default_factory=Counter)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """130 when interrupted, 1 when something failed or was cancelled, else 0.

        A refusal of what is unsupported is a fact about the zoo and no failure of the run.
        """
        if self.interrupted:
            return 130
        return 1 if self.counts[Status.FAILED] or self.counts[Status.CANCELLED] else 0


def run_plan(
    plan: Plan, registry: Registry, display: Display, settings: RunSettings, hosts: HostSettings
) -> RunOutcome:
    """Run what a plan wants run; the run has begun in the registry, and is closed there however this ends.

    Raises:
        Failure: ``cluster.unavailable``, or ``registry.*`` when results cannot be recorded any more.
    """
    book = _Book(plan, registry, display)
    interrupted = False
    try:
        book.refuse()
        if plan.to_run:
            display.say("starting Ray" if settings.address is None else f"joining Ray at {settings.address}")
            # Ray sets signal handlers of its own when it starts; these come after.
            with joined(settings.address, settings.workers, hosts.server()) as workers, _signals() as count:
                crew = _Crew(plan, book, display, hosts, count, fail_fast=settings.fail_fast)
                interrupted = crew.run(workers)
    finally:
        for job in book.dirty:
            discard(job.output, job.id)
        registry.finish_run(plan.run_id)
    counts = book.counts
    counts[Status.CANCELLED] = len(plan.exports) - sum(
        number for status, number in counts.items() if status is not Status.CANCELLED
    )
    return RunOutcome(counts, interrupted)


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Count interruptions instead of raising in the middle of anything; yield how to ask for the count."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: len(caught)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class _Book:
    """Everything that is written down: attempts, baselines, verdicts."""

    def __init__(self, plan: Plan, registry: Registry, display: Display) -> None:
        self.counts: Counter[Status] = Counter()
        self.counts[Status.SUCCEEDED] += len(plan.cached)
        self.dirty: list[ExportJob] = []  # jobs of hosts that died: they may have left half an artifact
        self._plan = plan
        self._registry = registry
        self._display = display
        self._baselines = {key: BaselineResult(key, 0.0, metrics) for key, metrics in plan.measured.items()}
        self._waiting: dict[str, list[tuple[ExportJob, ExportResult]]] = {}
        self._beat = self._polled = time.monotonic()
        self._told: Sequence[LiveJob] = ()
        self.cancel_requested = False

    def refuse(self) -> None:
        """Record the exports that cannot be tried."""
        for each in self._plan.exports:
            if each.refusal is not None:
                self._settle(each.job, Verdict(ExportResult(each.job.id, 0.0), failure=each.refusal))

    def started(self, job: Job, worker: str) -> None:
        """Record that a worker has begun."""
        if isinstance(job, ExportJob):
            self._registry.start_attempt(job.id, worker, job.log)

    def ended(self, job: Job, result: Result) -> None:
        """Record a result, and judge what can be judged with it."""
        if isinstance(result, BaselineResult):
            self._registry.record_baseline(result)
            self._baselines[result.key] = result
            for waiting in self._waiting.pop(result.key, []):
                self._judge(*waiting)
            return
        assert isinstance(job, ExportJob)  # noqa: S101 - an export's result answers an export's job
        needs_baseline = result.failure is None and job.baseline is not None
        if needs_baseline and job.baseline not in self._baselines:
            self._waiting.setdefault(job.baseline or "", []).append((job, result))
        else:
            self._judge(job, result)

    def wants_news(self) -> bool:
        """Whether it is time to tell the registry what is running."""
        return time.monotonic() - self._polled > _POLL

    def tell(self, running: Sequence[LiveJob]) -> None:
        """Give a sign of life now and then, say what is running, and learn whether to stop."""
        self._polled = time.monotonic()
        if running != self._told or self._polled - self._beat > _HEARTBEAT:
            self._registry.pulse(self._plan.run_id, running)
            self._told, self._beat = running, self._polled
        try:
            self.cancel_requested = self._registry.is_cancel_requested(self._plan.run_id)
        except Failure as failure:
            if failure.code not in {"registry.locked", "registry.unavailable"}:
                raise  # the others are asked again in a moment

    def _judge(self, job: ExportJob, result: ExportResult) -> None:
        baseline = None if job.baseline is None else self._baselines.get(job.baseline)
        self._settle(job, decide(job, result, baseline))

    def _settle(self, job: ExportJob, verdict: Verdict) -> None:
        result = verdict.result
        status = self._registry.finish_attempt(job.id, result, verdict.deltas, verdict.failure)
        self.counts[status] += 1
        self._display.finished(Finished(label(job), status, _remark(verdict), result.seconds))


class _Crew:
    """The hosts and what they are doing."""

    def __init__(
        self,
        plan: Plan,
        book: _Book,
        display: Display,
        settings: HostSettings,
        interruptions: Callable[[], int],
        *,
        fail_fast: bool,
    ) -> None:
        self._book = book
        self._display = display
        self._settings = settings
        self._interruptions = interruptions
        self._fail_fast = fail_fast
        self._todo = deque(in_order(plan))
        self._busy: dict[Any, HostHandle] = {}  # reference to an answer -> who will give it
        self._cancelled_at: float | None = None
        self._stillborn = 0

    def run(self, workers: int) -> bool:
        """Do everything; return whether the run was interrupted."""
        hosts = [self._hire() for _ in range(min(workers, len(self._todo)))]
        try:
            while self._busy:
                self._step()
        finally:
            for host in [*hosts, *self._busy.values()]:
                host.kill()
            self._book.dirty += [each.job for each in self._busy.values() if isinstance(each.job, ExportJob)]
        return self._cancelled_at is not None

    def _step(self) -> None:
        import ray

        ready, _ = ray.wait(list(self._busy), num_returns=1, timeout=_LOOK)
        check_alive()  # before its hosts' deaths are taken for failures of their jobs
        if ready:  # and whatever else is there by now
            ready, _ = ray.wait(list(self._busy), num_returns=len(self._busy), timeout=0)
        for reference in ready:
            self._take(reference)
        self._heed_signals()
        if self._display.wants_stages():
            self._show()
        if self._book.wants_news():
            self._tell()

    def _hire(self) -> HostHandle:
        host = HostHandle(self._settings)
        self._busy[host.prepare()] = host
        return host

    def _take(self, reference: Any) -> None:
        """Handle one answer: a host is ready, a job is done, or a host has died."""
        import ray

        host = self._busy.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._bury(host, error)
            return
        self._stillborn = 0
        if host.job is None:
            host.name = answer
        else:
            self._book.ended(host.job, answer)
        self._give(host)

    def _give(self, host: HostHandle) -> None:
        host.job = None
        if self._fail_fast and self._book.counts[Status.FAILED]:
            self._todo.clear()
        if not self._todo:
            host.kill()
            return
        job = self._todo.popleft()
        self._book.started(job, host.name)
        self._busy[host.start(job)] = host

    def _bury(self, host: HostHandle, error: Exception) -> None:
        host.kill()
        if host.job is None:
            self._stillborn += 1
            if self._stillborn >= _STILLBORN_AT_MOST and not self._busy:
                raise Failure("cluster.unavailable", f"no worker can be started: {one_line(error)}")
        else:
            self._book.ended(host.job, died(host.job, host, error))
            if isinstance(host.job, ExportJob):
                self._book.dirty.append(host.job)
        if self._todo:
            self._hire()

    def _heed_signals(self) -> None:
        count = self._interruptions()
        if (count or self._book.cancel_requested) and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self._todo.clear()
            self._display.say("stopping what runs; interrupt again to kill it")
            for host in self._busy.values():
                host.cancel()
        if self._cancelled_at is None:
            return
        if count > 1 or time.monotonic() - self._cancelled_at > _PATIENCE:
            for host in self._busy.values():
                host.kill()
                if isinstance(host.job, ExportJob):
                    self._book.dirty.append(host.job)
            self._busy.clear()

    def _tell(self) -> None:
        for host in self._busy.values():
            if host.job is not None:
                host.refresh()
        self._book.tell([live for host in self._busy.values() if (live := host.live()) is not None])

    def _show(self) -> None:
        now = time.monotonic()
        running = []
        for host in self._busy.values():
            if host.job is not None:
                host.refresh()
                running.append(Running(label(host.job), host.stage, now - host.since))
        self._display.running(running)


def in_order(plan: Plan) -> list[Job]:
    """Return the jobs in the order in which they begin.

    Large checkpoints come first, so that none is left over for the end when the others are done; a baseline
    comes right before its exports, whose verdicts wait for it.
    """
    jobs = sorted(plan.to_run, key=_weight, reverse=True)
    baselines = {each.key: each for each in plan.baselines}
    order: list[Job] = []
    for job in jobs:
        baseline = baselines.pop(job.baseline or "", None)
        order += [job] if baseline is None else [baseline, job]
    return order


def _weight(job: ExportJob) -> int:
    try:
        return job.checkpoint.weights.stat().st_size
    except OSError:
        return 0


def label(job: Job) -> str:
    """Return how people call a job."""
    what = "eager baseline" if isinstance(job, BaselineJob) else job.format
    return f"{job.checkpoint.name}  {what}"


def died(job: Job, host: HostHandle, error: Exception) -> Result:
    """Return the result of a job whose host is gone."""
    import ray

    code = "worker.crashed"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        code = "resource.memory"
    elif isinstance(error, ray.exceptions.RayTaskError):
        code = "worker.error"
    failure: FailureRecord = Failure(
        code,
        f"the Ray worker {host.name} ended while it ran this job: {one_line(error)}",
        stage=Stage(host.stage) if host.stage else None,
        hint="run it again with zooport rerun --failed",
    ).record()
    seconds = time.monotonic() - host.since
    if isinstance(job, BaselineJob):
        return BaselineResult(job.key, seconds, failure=failure)
    return ExportResult(job.id, seconds, failure=failure)


def _remark(verdict: Verdict) -> str:
    if verdict.failure is not None:
        return f"{verdict.failure.code}: {verdict.failure.message}"
    metrics = {
        name: Metric(delta.baseline, delta.exported, delta.delta) for name, delta in verdict.deltas.items()
    }
    return ", ".join(f"{name} {movement(metric)}" for name, metric in primary_metrics(metrics).items())
