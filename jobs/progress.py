"""What a person sees while a run goes on: on a terminal a live view, elsewhere a line per finished job."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from zooport.export_core.failures import FailureRecord
from zooport.jobs.output import STYLES, cell, console, duration, status_cell
from zooport.jobs.values import Status

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live

_REFRESH = 0.5  # seconds between two looks at what is running
_SHOWN = 24  # jobs at once; a large cluster runs more than a screen holds


@dataclass(frozen=True)
class Running:
    """A job in progress: what it is, its stage, and the seconds it has taken."""

    label: str
    stage: str
    seconds: float


@dataclass(frozen=True)
class Finished:
    """A job that ended: ``remark`` is the metric's movement or the failure."""

    label: str
    status: Status
    remark: str
    seconds: float


class Display:
    """Where a run tells what happens. This one shows nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop showing."""

    def wants_stages(self) -> bool:
        """Whether it is time to ask what is running."""
        return False

    def running(self, jobs: Sequence[Running]) -> None:
        """Show what is running."""

    def finished(self, job: Finished) -> None:
        """Show that an export has ended."""

    def retrying(self, label: str, failure: FailureRecord, tries: str, seconds: float) -> None:
        """Show that a job failed and is tried again in so many seconds; ``tries`` says which try that is."""

    def say(self, message: str) -> None:
        """Show one line."""


def display(total: int, cached: int, *, quiet: bool = False) -> Display:
    """Return the display that fits standard error.

    Args:
        total: exports of the run.
        cached: how many of them are done already.
        quiet: show nothing.
    """
    if quiet:
        return Display()
    return Steadfast(LiveView(total, cached) if sys.stderr.isatty() else Lines(total, cached))


class Steadfast(Display):
    """Another display, which falls silent when nobody can be told any more: a run goes on without.

    Its pipe may have been closed, its terminal be gone, the disk of its log be full.
    """

    def __init__(self, display: Display) -> None:
        self.display = display

    def __enter__(self) -> Self:
        with self._falling_silent():
            self.display.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._falling_silent():
            self.display.__exit__(kind, error, trace)

    def wants_stages(self) -> bool:
        """Whether the other one wants them."""
        return self.display.wants_stages()

    def running(self, jobs: Sequence[Running]) -> None:
        """Show what is running."""
        with self._falling_silent():
            self.display.running(jobs)

    def finished(self, job: Finished) -> None:
        """Show that an export has ended."""
        with self._falling_silent():
            self.display.finished(job)

    def retrying(self, label: str, failure: FailureRecord, tries: str, seconds: float) -> None:
        """Show that a job is tried again."""
        with self._falling_silent():
            self.display.retrying(label, failure, tries, seconds)

    def say(self, message: str) -> None:
        """Show one line."""
        with self._falling_silent():
            self.display.say(message)

    @contextmanager
    def _falling_silent(self) -> Iterator[None]:
        try:
            yield
        except (OSError, SystemExit):  # rich leaves the process when a pipe is closed
            broken, self.display = self.display, Display()
            with suppress(OSError, SystemExit):  # the view has taken standard output's place, too
                broken.__exit__(None, None, None)


class Lines(Display):
    """A line for each export that ends, in the order in which they end."""

    def __init__(self, total: int, cached: int) -> None:
        self._total = total
        self._done = cached
        self._width = len(str(total))

    def finished(self, job: Finished) -> None:
        """Print what became of it."""
        self._done += 1
        count = f"[{self._done:>{self._width}}/{self._total}]"
        remark = f"  {job.remark}" if job.remark else ""
        self.say(f"{count} {job.label}  {job.status}{remark}  {duration(job.seconds)}")

    def retrying(self, label: str, failure: FailureRecord, tries: str, seconds: float) -> None:
        """Print why, and when."""
        self.say(f"{label}  {failure.code}: {failure.message}; retrying in {duration(seconds)} ({tries})")

    def say(self, message: str) -> None:
        """Print one line to standard error."""
        sys.stderr.write(message + "\n")
        sys.stderr.flush()


class LiveView(Display):
    """Counts, and what is running at which stage; failures scroll by above."""

    def __init__(self, total: int, cached: int) -> None:
        self._total = total
        self._counts: Counter[Status] = Counter({Status.SUCCEEDED: cached} if cached else {})
        self._running: Sequence[Running] = ()
        self._message = ""
        self._start = time.monotonic()
        self._asked = 0.0
        self._live: Live | None = None

    def __enter__(self) -> Self:
        from rich.live import Live

        self._live = Live(console=console(stderr=True), get_renderable=self._render, transient=True)
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def wants_stages(self) -> bool:
        """Whether half a second has passed since the last time."""
        now = time.monotonic()
        if now - self._asked < _REFRESH:
            return False
        self._asked = now
        return True

    def running(self, jobs: Sequence[Running]) -> None:
        """Show these jobs until the next call."""
        self._running = jobs
        self._message = ""

    def finished(self, job: Finished) -> None:
        """Count it, and leave a line above the view."""
        from rich.text import Text

        self._counts[job.status] += 1
        if self._live is not None:
            line = Text.assemble(status_cell(str(job.status)), "  ", cell(job.label), "  ", cell(job.remark))
            self._live.console.print(line, soft_wrap=True)

    def retrying(self, label: str, failure: FailureRecord, tries: str, seconds: float) -> None:
        """Leave a line above the view."""
        from rich.text import Text

        if self._live is not None:
            words = cell(f"{failure.code}: {failure.message}; retrying in {duration(seconds)} ({tries})")
            line = Text.assemble(("retrying", "yellow"), "  ", cell(label), "  ", words)
            self._live.console.print(line, soft_wrap=True)

    def say(self, message: str) -> None:
        """Show a line below the counts until something runs."""
        self._message = message

    def _render(self) -> RenderableType:
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        done = sum(self._counts.values())
        head = Text.assemble((f"{done} of {self._total} exports", "bold"))
        for status, count in self._counts.items():
            head.append(f"  {count} {status}", STYLES[str(status)])
        head.append(f"  {duration(time.monotonic() - self._start)}", "dim")
        table = Table.grid(padding=(0, 2))
        for job in sorted(self._running, key=lambda each: -each.seconds)[:_SHOWN]:
            stage = Text(job.stage or "starting", "cyan")
            table.add_row(Text("  "), cell(job.label), stage, duration(job.seconds))
        more = len(self._running) - _SHOWN
        rest = [Text(f"  and {more} more", "dim")] if more > 0 else []
        note = [Text(self._message, "dim")] if self._message else []
        bar = Table.grid()  # on a line of its own
        bar.add_row(ProgressBar(total=max(1, self._total), completed=done, width=60))
        return Group(bar, head, *note, table, *rest)
