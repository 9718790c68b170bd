"""What a run has still to do: jobs in their order, and failed ones that wait for another try.

Jobs stand in one line for each size of worker that they need (:func:`zooport.jobs.memory.size_class`); the
largest come first.
"""

from __future__ import annotations

import heapq
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import count

from zooport.jobs.hosts import Job
from zooport.jobs.plan import Plan
from zooport.jobs.values import ExportJob


@dataclass(frozen=True)
class Task:
    """A job that a worker may be given.

    Attributes:
        size: bytes that its worker sets aside.
        number: which try of the job it is in this run, counted from 1.
        has_more_memory: it was given more than planned, because it ran out of memory before.
    """

    job: Job
    size: int = 0
    number: int = 1
    has_more_memory: bool = False


class Agenda:
    """Tasks that are ready, in one line for each size, and tasks that are not due yet."""

    def __init__(self, tasks: Iterable[Task], clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lines: dict[int, deque[Task]] = {}
        self._later: list[tuple[float, int, Task]] = []
        self._order = count()
        for task in tasks:
            self._line(task.size).append(task)

    def __len__(self) -> int:
        return self.ready() + len(self._later)

    def ready(self, size: int | None = None) -> int:
        """How many tasks may begin: of one size, or in all."""
        if size is not None:
            return len(self._lines.get(size, ()))
        return sum(len(line) for line in self._lines.values())

    def sizes(self) -> list[int]:
        """The sizes of tasks that may begin: of those that were tried before, then large before small."""
        lines = [(size, line) for size, line in self._lines.items() if line]
        return [size for size, line in sorted(lines, key=lambda pair: (pair[1][0].number == 1, -pair[0]))]

    def retried(self) -> list[int]:
        """The sizes at whose head a task stands that was tried before."""
        return [size for size, line in self._lines.items() if line and line[0].number > 1]

    def take(self, size: int) -> Task | None:
        """Remove and return the next task of this size."""
        line = self._lines.get(size)
        return line.popleft() if line else None

    def wait(self, task: Task, seconds: float) -> None:
        """Let a task be ready in so many seconds, before all others of its size."""
        heapq.heappush(self._later, (self._clock() + seconds, next(self._order), task))

    def put_first(self, tasks: Sequence[Task]) -> None:
        """Let tasks be ready now, before all others of their size, in this order."""
        for task in reversed(tasks):
            self._line(task.size).appendleft(task)

    def promote(self) -> None:
        """Make ready what is due."""
        while self._later and self._later[0][0] <= self._clock():
            task = heapq.heappop(self._later)[2]
            self._line(task.size).appendleft(task)

    def waiting(self) -> list[tuple[Task, float]]:
        """Tasks that are not due yet, with the seconds until they are; the next one first."""
        now = self._clock()
        return [(task, max(0.0, due - now)) for due, _, task in sorted(self._later)]

    def clear(self, but: Callable[[Task], bool] = lambda _: False) -> None:
        """Drop everything, but the ready tasks that this is true of."""
        self._later.clear()
        for line in self._lines.values():
            kept = [task for task in line if but(task)]
            line.clear()
            line.extend(kept)

    def _line(self, size: int) -> deque[Task]:
        return self._lines.setdefault(size, deque())


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
    return f"{job.checkpoint.name}  {job.what}"
