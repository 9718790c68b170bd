"""Runs a plan on Ray: hands jobs to hosts, records results as they come, and ends well however it ends.

The driver is the only one that writes the registry.
"""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import TYPE_CHECKING, Any

from zooport.export_core.artifacts import discard
from zooport.jobs.audit import sweep
from zooport.jobs.book import Book
from zooport.jobs.cluster import joined
from zooport.jobs.crew import Crew
from zooport.jobs.hosts import HostSettings
from zooport.jobs.nodes import Nodes
from zooport.jobs.plan import Plan
from zooport.jobs.progress import Display
from zooport.jobs.retries import PAUSE
from zooport.jobs.values import Status

if TYPE_CHECKING:
    from zooport.jobs.registry.writer import Registry


@dataclass(frozen=True)
class RunSettings:
    """How to run a plan.

    Attributes:
        address: of a Ray cluster; None starts one on this machine.
        workers: jobs at once; None takes the number of CPUs, also of nodes that join a cluster later.
        fail_fast: start nothing more after the first failure.
        pause: seconds before a second try, see :func:`zooport.jobs.retries.pause`.
        runtime_env: what Ray brings to the nodes of a cluster for this run, as Ray documents it.
    """

    address: str | None = None
    workers: int | None = None
    fail_fast: bool = False
    pause: float = PAUSE
    runtime_env: Mapping[str, Any] = field(default_factory=dict)


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
        Failure: ``cluster.unavailable``, what :meth:`Nodes.check` finds on a cluster, or ``registry.*`` when
            results cannot be recorded any more.
    """
    book = Book(plan, registry, display)
    interrupted = False
    try:
        book.refuse()
        if plan.to_run:
            display.say("starting Ray" if settings.address is None else f"joining Ray at {settings.address}")
            # Most runs need none; the keyword is named only where it is given.
            more = {"runtime_env": dict(settings.runtime_env)} if settings.runtime_env else {}
            with (
                _terminable(),
                joined(settings.address, settings.workers, hosts.server(), **more) as workers,
                _terminable(),  # Ray sets signal handlers of its own when it starts; these come after
            ):
                nodes = None if settings.address is None else Nodes(plan, hosts.preload)
                if nodes is not None:
                    nodes.check()
                with _signals() as count:
                    crew = Crew(
                        plan,
                        book,
                        display,
                        hosts,
                        count,
                        fail_fast=settings.fail_fast,
                        pause=settings.pause,
                        nodes=nodes,
                    )
                    try:
                        interrupted = crew.run(workers, grows=settings.workers is None)
                    except LookupError:  # an export is not open any more
                        registry.is_cancel_requested(plan.run_id)  # raises if the run is not, either
                        raise
    finally:
        for job in book.dirty:
            discard(job.output, job.id)
        registry.finish_run(plan.run_id)
        sweep(registry, [each.job.output for each in plan.exports])
    counts = book.counts
    counts[Status.CANCELLED] = len(plan.exports) - sum(
        number for status, number in counts.items() if status is not Status.CANCELLED
    )
    return RunOutcome(counts, interrupted)


@contextmanager
def _terminable() -> Iterator[None]:
    """Let SIGTERM, or a terminal that is gone, end what begins as Ctrl-C does, so that the run is closed."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    try:
        with _handled(interrupt, *_endings()):
            yield
    except SystemExit as ended:
        if ended.code == signal.SIGTERM:  # what Ray makes of it while it starts or ends
            raise KeyboardInterrupt from None
        raise


@contextmanager
def _signals() -> Iterator[Callable[[], int]]:
    """Count interruptions instead of raising in the middle of anything; yield how to ask for the count."""
    caught: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        caught.append(number)

    with _handled(note, signal.SIGINT, *_endings()):
        yield lambda: len(caught)


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], None], *numbers: signal.Signals) -> Iterator[None]:
    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


def _endings() -> list[signal.Signals]:
    """Return the signals besides Ctrl-C that ask to end; nohup takes away that of a lost terminal."""
    ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return [signal.SIGTERM] if ignored else [signal.SIGTERM, signal.SIGHUP]
