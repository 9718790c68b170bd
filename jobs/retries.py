"""Which failure is worth another try, when, and what the next try is given.

What may pass by itself (:attr:`zooport.export_core.failures.Code.retryable`: a crash, a lack of resources, a
transfer) is tried again; what is certain to fail again never is.
"""

from __future__ import annotations

import random
from dataclasses import replace

from zooport.export_core.failures import FailureRecord
from zooport.export_core.places import Place
from zooport.jobs import memory
from zooport.jobs.agenda import Task
from zooport.jobs.hosts import Job

PAUSE = 2.0
"""Seconds before the second try, on average; each further pause is twice as long."""

_LONGEST = 300.0  # seconds
# Somebody wanted it to stop: that does not pass by itself.
_WANTED = frozenset({"run.cancelled"})
# Of what a disk refuses, this may pass: others make room, a network share comes back. A missing right stays.
_PASSING_ON_DISK = frozenset({"ENOSPC", "EDQUOT", "EIO", "ESTALE", "ETIMEDOUT", "ENETDOWN"})


def next_try(task: Task, failure: FailureRecord | None, most: int = 0) -> Task | None:
    """Return the task to try after this failure, or None where the failure stands.

    Args:
        task: what failed.
        failure: how; None is no failure.
        most: bytes that the largest machine can set aside for a job; 0 when that is not known.

    Returns:
        The same job with a log of its own. After ``resource.memory`` it gets twice the memory, and no further
        try if that was not enough either.
    """
    job = task.job
    if failure is None or not _may_pass(failure) or task.number > job.retries:
        return None
    number = task.number + 1
    again: Job = replace(job, log=log_of_try(job.log, number))
    if failure.code != "resource.memory" or not job.reservation:
        return Task(again, task.size, number)
    doubled = min(2 * job.reservation, most or 2 * job.reservation)
    if task.has_more_memory or doubled <= job.reservation:
        return None
    return Task(replace(again, reservation=doubled), memory.size_class(doubled, most), number, True)


def _may_pass(failure: FailureRecord) -> bool:
    if failure.code == "resource.disk":
        return failure.details.get("errno", "ENOSPC") in _PASSING_ON_DISK
    return failure.retryable and failure.code not in _WANTED


def pause(number: int, base: float = PAUSE) -> float:
    """Return the seconds before try ``number`` (2 is the first repetition).

    Exponential, and up to a half longer or shorter by chance: jobs that failed together, on a server that was
    overrun, say, do not come back together.
    """
    return min(_LONGEST, base * 2.0 ** (number - 2)) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret


def log_of_try(log: Place, number: int) -> Place:
    """Return the log of a try: ``x.log``, then ``x.2.log``; the log of any try may be given."""
    stem, dot, suffix = log.name.rpartition(".")
    if number > 2:
        stem = stem.removesuffix(f".{number - 1}")
    return log.with_name(f"{stem}.{number}{dot}{suffix}")
