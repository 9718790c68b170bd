"""The workers of a run at work: who does what, what is tried again, and how it stops.

Memory is reserved through Ray: a worker (an actor that does one job after another) is created with the memory
of the jobs it is for (:func:`zooport.jobs.memory.size_class`), so that Ray's own scheduler, which knows every
machine and whoever else uses it, starts as many at once as fit. A worker does jobs of its own size only; when
there are none left, a worker of another size takes its place. An actor for each job would do without sizes,
but would cost more than many jobs; counting memory here would not see other users of a cluster.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure
from zooport.jobs.agenda import Agenda, Task, in_order, label
from zooport.jobs.cluster import check_alive
from zooport.jobs.hosts import HostHandle, HostSettings, Job, Result, died, largest_machine
from zooport.jobs.inputs import Courier
from zooport.jobs.memory import size_class
from zooport.jobs.nodes import Nodes
from zooport.jobs.plan import Plan
from zooport.jobs.progress import Display, Running
from zooport.jobs.registry.database import PASSING
from zooport.jobs.retries import next_try, pause
from zooport.jobs.shards import Evaluations, cut, opens_attempt, unfold
from zooport.jobs.values import ExportJob, Status

if TYPE_CHECKING:
    from zooport.jobs.book import Book

_LOOK = 0.25  # seconds between two looks at signals and stages
_PATIENCE = 20.0  # seconds for cancelled jobs to stop before their hosts are killed
_STILLBORN_AT_MOST = 3  # hosts that die before their first job until the run is given up
_STARVED = 10.0  # seconds that a large host waits for memory before smaller ones make room


class Crew:
    """The hosts and what they are doing.

    Args:
        plan: what is to be run.
        book: where it is written down.
        display: who is told.
        settings: of the hosts.
        interruptions: tells how often somebody wanted the run to stop.
        fail_fast: start nothing more after the first failure.
        pause: seconds before a second try.
        nodes: of a cluster, where workers may be; None on this machine alone.
    """

    def __init__(
        self,
        plan: Plan,
        book: Book,
        display: Display,
        settings: HostSettings,
        interruptions: Callable[[], int],
        *,
        fail_fast: bool,
        pause: float,
        nodes: Nodes | None = None,
    ) -> None:
        self._nodes = nodes
        self._courier = None if nodes is None else Courier(nodes.unseen)
        self._book = book
        self._display = display
        self._settings = settings
        self._interruptions = interruptions
        self._fail_fast = fail_fast
        self._pause = pause
        self._most = largest_machine()
        self._elsewhere = book.elsewhere
        self._agenda = Agenda(self._tasks(self._elsewhere.hold_back(in_order(plan))))
        self._evaluations = Evaluations()
        self._hosts: dict[Any, HostHandle] = {}  # reference to an answer -> who will give it
        self._workers = 0
        self._grows = False
        self._cancelled_at: float | None = None
        self._stillborn = 0

    def run(self, workers: int, *, grows: bool = False) -> bool:
        """Do everything; return whether the run was interrupted.

        Args:
            workers: jobs at once.
            grows: there may be more, one for each CPU, when nodes join.
        """
        self._workers = workers
        self._grows = grows
        try:
            if self._elsewhere:
                self._display.say(f"another run measures {len(self._elsewhere)} of the baselines")
            while self._hosts or self._agenda or self._elsewhere:
                self._step()
            self._book.give_up()
        finally:
            for host in self._hosts.values():
                host.kill()
                self._abandon(host)
            if self._nodes is not None:
                self._nodes.close()
            self._book.dirty += self._evaluations.abandon()
        return self._cancelled_at is not None

    def _step(self) -> None:
        self._agenda.promote()
        self._staff()
        ready = self._answers()
        check_alive()  # before its hosts' deaths are taken for failures of their jobs
        for reference in ready:
            self._take(reference)
        self._heed_signals()
        if self._display.wants_stages():
            self._show()
        if self._book.wants_news():
            self._look_elsewhere()
            self._greet()
            self._tell()

    def _tasks(self, jobs: Iterable[Job]) -> list[Task]:
        return [Task(job, size_class(job.reservation, self._most)) for job in cut(jobs)]

    def _look_elsewhere(self) -> None:
        """Take the baselines that other runs have measured, and see to those that they will not."""
        if self._elsewhere and self._is_stopping():
            self._elsewhere.clear()
        if self._elsewhere:
            try:
                done, own = self._elsewhere.look()
            except Failure as failure:
                if failure.code not in PASSING:
                    raise
                return  # asked again in a moment
            for job, result in done:
                self._follow_up(self._book.ended(job, result))
            self._agenda.put_first(self._tasks(own))

    def _greet(self) -> None:
        """Let nodes take jobs that have joined since; who waits for a place may have one there."""
        if self._nodes is None or self._courier is None:
            return
        before = self._nodes.placement()
        for said in self._nodes.newcomers():
            self._display.say(said)
        if self._nodes.placement() == before:
            return
        if self._grows:
            self._workers = max(self._workers, self._nodes.cpus())
        self._courier.send_also(self._nodes.unseen)
        for reference, host in list(self._hosts.items()):
            if host.task is None:
                del self._hosts[reference]
                host.kill()

    def _answers(self) -> list[Any]:
        """Wait a moment for the first answer; return all that are there by then."""
        import ray

        if not self._hosts:  # everything waits for another try
            time.sleep(_LOOK)
            return []
        ready, _ = ray.wait(list(self._hosts), num_returns=1, timeout=_LOOK)
        if ready:
            ready, _ = ray.wait(list(self._hosts), num_returns=len(self._hosts), timeout=0)
        return list(ready)

    def _staff(self) -> None:
        """Hire hosts for what is ready, and dismiss those whom nothing waits for any more."""
        preparing = Counter(host.size for host in self._hosts.values() if host.task is None)
        for reference, host in list(self._hosts.items()):
            if host.task is None and preparing[host.size] > self._agenda.ready(host.size):
                preparing[host.size] -= 1
                del self._hosts[reference]
                host.kill()
        starved = self._starved()
        for size in self._agenda.sizes():
            while (
                len(self._hosts) < self._workers
                and preparing[size] < self._agenda.ready(size)
                and (starved is None or size >= starved)
            ):
                preparing[size] += 1
                placement = {} if self._nodes is None else self._nodes.placement()
                host = HostHandle(self._settings, size, self._courier, placement)
                self._hosts[host.prepare()] = host

    def _starved(self) -> int | None:
        """Return the size of a host that Ray has had no memory for in a while; smaller ones make room."""
        now = time.monotonic()
        return max(
            (
                host.size
                for host in self._hosts.values()
                if host.task is None and host.size and now - host.hired > _STARVED
            ),
            default=None,
        )

    def _take(self, reference: Any) -> None:
        """Handle one answer: a host is ready, a job is done, or a host has died."""
        import ray

        host = self._hosts.pop(reference)
        try:
            answer = ray.get(reference)
        except ray.exceptions.RayError as error:
            self._bury(host, error)
            return
        self._stillborn = 0
        if host.task is None:
            host.name = answer
        else:
            self._end(host.task, answer)
        self._give(host)

    def _end(self, task: Task, result: Result) -> None:
        """Write down what a task came to, and let it be tried again where that may help."""
        again = None if self._is_stopping() else next_try(task, result.failure, self._most)
        if again is None or result.failure is None:
            parts, whole = self._evaluations.take(task.job, result)
            if self._cancelled_at is None:
                self._agenda.put_first([replace(task, job=part, number=1) for part in parts])
            if whole is not None:
                self._follow_up(self._book.ended(task.job, whole))
            return
        seconds = pause(again.number, self._pause)
        self._book.failed_for_now(task.job, result)
        self._agenda.wait(again, seconds)
        tries = f"try {again.number} of {task.job.retries + 1}"
        self._display.retrying(label(task.job), result.failure, tries, seconds)

    def _follow_up(self, jobs: Iterable[Job]) -> None:
        if self._cancelled_at is None:
            self._agenda.put_first(self._tasks(jobs))

    def _is_stopping(self) -> bool:
        return self._cancelled_at is not None or (self._fail_fast and bool(self._book.counts[Status.FAILED]))

    def _give(self, host: HostHandle) -> None:
        host.task = None
        if self._fail_fast and self._book.counts[Status.FAILED]:
            self._agenda.clear(but=self._goes_on)
        task = None if self._has_to_make_room(host) else self._next(host.size)
        if task is None:
            host.kill()
            return
        self._book.started(task.job, host.name)
        self._hosts[host.start(task)] = host

    def _goes_on(self, task: Task) -> bool:
        """Whether a task belongs to what has begun: a shard, a baseline that is waited for, a closer look."""
        job = task.job
        if not opens_attempt(job):
            return True
        if isinstance(job, ExportJob):
            return False
        at_work = (host.task.job for host in self._hosts.values() if host.task is not None)
        return self._book.awaits(job.key) or any(
            isinstance(other, ExportJob) and other.baseline == job.key for other in at_work
        )

    def _next(self, size: int) -> Task | None:
        """Return what is to be done next by a host of this size."""
        while (task := self._agenda.take(size)) is not None:
            if shards := unfold(task.job):
                self._agenda.put_first([replace(task, job=shard) for shard in shards])
            elif self._evaluations.is_wanted(task.job):
                break
        return task

    def _has_to_make_room(self, host: HostHandle) -> bool:
        """Whether a host that is free now gives its place to another one.

        That is to a task which is tried again and which no host is large enough for, or to a host that waits
        for memory; the last one that works goes on, so that the run does.
        """
        others = self._hosts.values()
        if any(size > host.size and not _has(others, size) for size in self._agenda.retried()):
            return True
        starved = self._starved()
        at_work = any(other.task is not None for other in others)
        return starved is not None and starved > host.size and at_work

    def _bury(self, host: HostHandle, error: Exception) -> None:
        host.kill()
        if host.task is None:
            self._stillborn += 1
            at_work = any(other.task is not None for other in self._hosts.values())
            if self._stillborn >= max(_STILLBORN_AT_MOST, self._workers) and not at_work:
                raise Failure("cluster.unavailable", f"no worker can be started: {one_line(error)}")
        else:
            self._end(host.task, died(host.task.job, host, error))
            self._abandon(host)

    def _abandon(self, host: HostHandle) -> None:
        """Note that the job of a host that died may have left half an artifact."""
        if host.task is not None and isinstance(host.task.job, ExportJob):
            self._book.dirty.append(host.task.job)

    def _heed_signals(self) -> None:
        count = self._interruptions()
        if (count or self._book.cancel_requested) and self._cancelled_at is None:
            self._cancelled_at = time.monotonic()
            self._agenda.clear()
            self._display.say("stopping what runs; interrupt again to kill it")
            for host in self._hosts.values():
                host.cancel()
        if self._cancelled_at is None:
            return
        if count > 1 or time.monotonic() - self._cancelled_at > _PATIENCE:
            for host in self._hosts.values():
                host.kill()
                self._abandon(host)
            self._hosts.clear()

    def _tell(self) -> None:
        for host in self._hosts.values():
            if host.task is not None:
                host.refresh()
        self._book.tell([live for host in self._hosts.values() if (live := host.live()) is not None])

    def _show(self) -> None:
        now = time.monotonic()
        running = []
        for host in self._hosts.values():
            if host.task is not None:
                host.refresh()
                running.append(Running(label(host.task.job), host.stage, now - host.since))
        for task, seconds in self._agenda.waiting():
            running.append(Running(label(task.job), f"retrying in {seconds:.0f} s", 0.0))
        self._display.running(running)


def _has(hosts: Any, size: int) -> bool:
    return any(host.size == size for host in hosts)
