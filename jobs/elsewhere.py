"""Baselines that another driver is about to measure: this run takes its result instead of measuring again.

Of two runs that want the same baseline at the same time, the one that began first measures it. If it ends
without, or its driver dies, the next one does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from zooport.jobs.hosts import Job
from zooport.jobs.values import BaselineJob, BaselineResult

if TYPE_CHECKING:
    from zooport.jobs.registry.reader import Reader


class Elsewhere:
    """The baselines that a run waits for.

    Args:
        registry: where other runs say what they measure.
        run_id: this run.
    """

    def __init__(self, registry: Reader, run_id: str) -> None:
        self._registry = registry
        self._run_id = run_id
        self._awaited: dict[str, BaselineJob] = {}

    def __len__(self) -> int:
        return len(self._awaited)

    def hold_back(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the jobs without the baselines that others measure; the run waits for those."""
        jobs = list(jobs)
        keys = [job.key for job in jobs if isinstance(job, BaselineJob)]
        taken = self._registry.baselines_elsewhere(keys, self._run_id) if keys else {}
        self._awaited = {job.key: job for job in jobs if isinstance(job, BaselineJob) and job.key in taken}
        return [job for job in jobs if not isinstance(job, BaselineJob) or job.key not in taken]

    def look(self) -> tuple[list[tuple[BaselineJob, BaselineResult]], list[BaselineJob]]:
        """Return the baselines that are there by now, and those that this run has to measure after all."""
        # In this order: what is done between the two questions is in the answer to the second.
        taken = self._registry.baselines_elsewhere(list(self._awaited), self._run_id)
        found = self._registry.find_baselines(list(self._awaited))
        done = [(self._awaited.pop(key), BaselineResult(key, 0.0, metrics)) for key, metrics in found.items()]
        own = [self._awaited.pop(key) for key in list(self._awaited) if key not in taken]
        return done, own

    def clear(self) -> None:
        """Wait for nothing any more."""
        self._awaited.clear()
