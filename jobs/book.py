"""What a run writes down while it goes on: attempts, baselines, verdicts, signs of life.

Results are handled in the order in which they arrive; an export is judged when both it and its baseline are
there.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zooport.export_core.failures import Failure
from zooport.jobs.agenda import label
from zooport.jobs.elsewhere import Elsewhere
from zooport.jobs.followups import comparison, is_follow_up, location, not_located, told
from zooport.jobs.hosts import Job, Result
from zooport.jobs.plan import Plan
from zooport.jobs.progress import Display, Finished
from zooport.jobs.registry.database import PASSING
from zooport.jobs.registry.records import LiveJob, Metric, primary_metrics
from zooport.jobs.shards import opens_attempt
from zooport.jobs.tables import movement
from zooport.jobs.values import BaselineResult, ExportJob, ExportResult, PartKind, Status
from zooport.jobs.verdicts import DRIFT, Verdict, decide

if TYPE_CHECKING:
    from zooport.jobs.registry.writer import Registry

_HEARTBEAT = 60.0  # seconds between two signs of life in the registry
_POLL = 1.0  # seconds between two looks at the registry, where others ask for cancellation


class Book:
    """Everything that is written down: attempts, baselines, verdicts.

    Attributes:
        counts: how many exports came to what.
        dirty: jobs of hosts that died, which may have left half an artifact.
        cancel_requested: whether somebody asked the registry for this run to stop.
        elsewhere: the baselines that another run measures.
    """

    def __init__(self, plan: Plan, registry: Registry, display: Display) -> None:
        self.counts: Counter[Status] = Counter()
        self.counts[Status.SUCCEEDED] += len(plan.cached)
        self.dirty: list[ExportJob] = []
        self._plan = plan
        self._registry = registry
        self._display = display
        self._baselines = {key: BaselineResult(key, 0.0, metrics) for key, metrics in plan.measured.items()}
        self._waiting: dict[str, list[tuple[ExportJob, ExportResult]]] = {}
        self._locating: set[str] = set()
        self._comparing: dict[str, tuple[ExportJob, ExportResult]] = {}
        self._beat = self._polled = time.monotonic()
        self._told: Sequence[LiveJob] = ()
        self.cancel_requested = False
        self.elsewhere = Elsewhere(registry, plan.run_id)

    def refuse(self) -> None:
        """Record the exports that cannot be tried."""
        for each in self._plan.exports:
            if each.refusal is not None:
                self._settle(each.job, Verdict(ExportResult(each.job.id, 0.0), failure=each.refusal))

    def started(self, job: Job, worker: str) -> None:
        """Record that a worker has begun."""
        if isinstance(job, ExportJob) and opens_attempt(job):
            self._registry.start_attempt(job.id, worker, job.log)

    def ended(self, job: Job, result: Result) -> list[ExportJob]:
        """Record a result, and judge what can be judged with it; return what is to be done about it."""
        if isinstance(result, BaselineResult):
            self._registry.record_baseline(result, log=job.log)
            self._baselines[result.key] = result
            waiting = self._waiting.pop(result.key, [])
            return [more for each in waiting for more in self._judge(*each)]
        assert isinstance(job, ExportJob)  # noqa: S101 - an export's result answers an export's job
        if is_follow_up(job):
            return self._followed_up(job, result)
        needs_baseline = result.failure is None and job.baseline is not None
        if needs_baseline and job.baseline not in self._baselines:
            self._waiting.setdefault(job.baseline or "", []).append((job, result))
            return []
        return self._judge(job, result)

    def awaits(self, key: str) -> bool:
        """Whether exports are done whose verdicts wait for the baseline of this key."""
        return key in self._waiting

    def failed_for_now(self, job: Job, result: Result) -> None:
        """Record an attempt that failed and is followed by another one; nothing is judged."""
        if not opens_attempt(job):
            return  # a shard of something that goes on
        if isinstance(result, BaselineResult):
            self._registry.record_baseline(result, log=job.log, again=True)
        else:
            self._registry.finish_attempt(result.id, result, again=True)

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
            if failure.code not in PASSING:
                raise  # the others are asked again in a moment

    def _judge(self, job: ExportJob, result: ExportResult) -> list[ExportJob]:
        """Judge an export; where its deltas can be compared image by image, that comes first."""
        baseline = None if job.baseline is None else self._baselines.get(job.baseline)
        if result.failure is not None or baseline is None or baseline.failure is not None:
            return self._decide(job, result, baseline)
        more = comparison(job, result)
        if isinstance(more, str):
            return self._decide(job, result, baseline, lack=more)
        self._comparing[job.id] = job, result
        return [more]

    def _followed_up(self, part: ExportJob, answer: ExportResult) -> list[ExportJob]:
        """Take what a worker found out about an export that was evaluated."""
        if part.part is not None and part.part.kind is PartKind.LOCATE:
            self._locating.discard(part.id)
            said = "" if answer.failure is None else not_located(told(answer.failure))
            self._registry.record_drift(part.id, answer.drift, said)
            return []
        job, result = self._comparing.pop(part.id)
        baseline = self._baselines[job.baseline or ""]
        lack = "" if answer.failure is None else told(answer.failure)
        return self._decide(job, result, baseline, answer.intervals, lack)

    def _decide(
        self,
        job: ExportJob,
        result: ExportResult,
        baseline: BaselineResult | None,
        intervals: Mapping[str, tuple[float, float]] | None = None,
        lack: str = "",
    ) -> list[ExportJob]:
        """Record the verdict; return the search for where a drift begins."""
        if result.values is not None:
            result.values.unlink(missing_ok=True)
        verdict = decide(job, result, baseline, intervals, lack)
        self._settle(job, verdict)
        if verdict.failure is None or verdict.failure.code != DRIFT:
            return []
        more = location(job, result)
        if isinstance(more, str):
            self._registry.record_drift(job.id, None, not_located(more))
            return []
        self._locating.add(job.id)
        return [more]

    def give_up(self) -> None:
        """Remark on the drifts whose beginning nobody looks for any more, because the run stops."""
        for export_id in sorted(self._locating):
            self._registry.record_drift(export_id, None, not_located("the run was stopped before"))
        self._locating.clear()

    def _settle(self, job: ExportJob, verdict: Verdict) -> None:
        result = verdict.result
        status = self._registry.finish_attempt(job.id, result, verdict.deltas, verdict.failure)
        self.counts[status] += 1
        self._display.finished(Finished(label(job), status, _remark(verdict), result.seconds))


def _remark(verdict: Verdict) -> str:
    if verdict.failure is not None:
        return f"{verdict.failure.code}: {verdict.failure.message}"
    metrics = {
        name: Metric(delta.baseline, delta.exported, delta.delta) for name, delta in verdict.deltas.items()
    }
    return ", ".join(f"{name} {movement(metric)}" for name, metric in primary_metrics(metrics).items())
