"""A worker that does nothing, for the benchmark of what is around the work."""

from __future__ import annotations

from zooport.jobs.hosts import Host, Job, Result
from zooport.jobs.values import BaselineJob, BaselineResult, ExportResult


class IdleHost(Host):
    """Answers at once: no process is forked, nothing is written."""

    def _work(self, job: Job) -> Result:
        if isinstance(job, BaselineJob):
            return BaselineResult(job.key, 0.0)
        return ExportResult(job.id, 0.0)
