"""One screen of ``zooport status``."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from zooport.jobs.output import cell, duration, status_cell
from zooport.jobs.registry.records import LIVE, RunState, now, seconds_between
from zooport.jobs.tables import counted, short_run

_ROWS = 24  # of running jobs, where the screen's height is not known
_AROUND = 9  # lines of a screen that are not rows of running jobs


def status_page(state: RunState, failures: Sequence[str], height: int | None = None) -> RenderableType:
    """Return how a run stands: counts, what is running at which stage, and the newest failures."""
    run = state.run
    title = Text.assemble(
        (run.id, "bold"), "  ", cell(run.kind), "  ", status_cell(run.status), "  ", cell(run.manifest, "dim")
    )
    parts: list[RenderableType] = [title]
    if state.is_going:
        done = run.total - sum(run.counts.get(status, 0) for status in LIVE)
        parts.append(ProgressBar(total=max(1, run.total), completed=done, width=60))
    parts.append(Text.assemble(counted(run.counts, run.cached), f"  {_times(state)}"))
    parts += _remarks(state)
    if state.running:
        rows = _ROWS if height is None else max(3, height - _AROUND - len(failures))
        parts += [Text(), _running(state, rows)]
        more = len(state.running) - rows
        parts += [Text(f"  and {more} more", "dim")] if more > 0 else []
    if failures:
        parts += [Text(), Text("newest failures", "bold"), *(cell(f"  {line}") for line in failures)]
    return Group(*parts)


def status_line(state: RunState) -> str:
    """Return how a run stands in one line, without what changes from second to second."""
    run = state.run
    return f"{run.id}  {run.status}  {counted(run.counts, run.cached).plain}"


def _times(state: RunState) -> str:
    spent = duration(state.elapsed)
    if not state.is_going:
        return f"in {spent}"
    return f"{spent} so far" + (
        f", about {duration(state.remaining)} to go" if state.remaining is not None else ""
    )


def _remarks(state: RunState) -> list[Text]:
    run = state.run
    if not state.is_going:
        return []
    if not state.driver_alive:
        line = f"the driver (process {run.pid} on {run.host}) is dead: zooport resume {short_run(run.id)}"
        return [Text(line, "bold red")]
    if state.cancel_requested is not None:
        return [Text("was asked to stop", "magenta")]
    return []


def _running(state: RunState, rows: int) -> Table:
    table = Table.grid(padding=(0, 2))
    moment = now()
    for job in state.running[:rows]:
        seconds = duration(seconds_between(job.started, moment))
        stage = Text(job.stage or "starting", "cyan")
        table.add_row(Text("  "), cell(job.model), cell(job.what), stage, seconds)
    return table
