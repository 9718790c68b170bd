"""The end of a run: model by format with verdict, what it cost in AP, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.text import Text

from zooport.jobs.lines import Lines
from zooport.jobs.notes import note_section
from zooport.jobs.output import STYLES, cell, console, duration, status_cell
from zooport.jobs.registry.records import ExportFilter, ExportRow, RunRow, primary_metrics, short_id
from zooport.jobs.tables import counted, number, reason
from zooport.jobs.values import Status

if TYPE_CHECKING:
    from zooport.jobs.registry.reader import Reader


def print_run(registry: Reader, run_id: str, *, stderr: bool = False) -> None:
    """Print the final table of a run."""
    console(stderr=stderr).print(render_run(registry, run_id))


def render_run(registry: Reader, run_id: str) -> RenderableType:
    """Return the final table of a run, its summary and the next commands, for a rich console."""
    rows = registry.exports(ExportFilter(run=run_id))
    run = registry.run(run_id)
    option = "" if registry.is_default else f" --registry {shlex.quote(registry.url)}"
    parts: list[RenderableType] = [verdict_table(rows), Text()] if rows else []
    notes = note_section(registry.remarks(run_id))
    parts += [notes, Text()] if notes is not None else []
    parts.append(summary(run))
    commands = next_commands(rows, option)
    parts += [Text(), commands] if commands is not None else []
    return Group(*parts)


def verdict_table(rows: Sequence[ExportRow]) -> RenderableType:
    """Return a line per model and format, and for each further task of a model a line of its metrics."""
    numbers = ("eager", "AP", "delta", "time")
    lines = Lines(
        "model",
        "format",
        "verdict",
        "task",
        *numbers,
        right=numbers,
        optional=("eager",),
        above="model",
        remark="why",
    )
    previous = None
    for row in rows:
        model = row.model if row.model != previous else ""
        previous = row.model
        time = "cached" if row.cached else duration(row.seconds)
        first, *more = _movements(row) or [("", "", "", "")]
        remark = reason(row) if row.code else ""
        lines.add(model, row.format, verdict(row.status), *first, time, remark=remark)
        for movement in more:
            lines.add("", "", "", *movement, "")
    return lines


def verdict(status: str) -> Text:
    """Return "verified" for a success, else the status."""
    return cell("verified", STYLES[status]) if status == str(Status.SUCCEEDED) else status_cell(status)


def _movements(row: ExportRow) -> list[tuple[str, str, str, str]]:
    """Task, eager and exported value and their difference."""
    return [
        (task, number(metric.baseline), number(metric.exported), number(metric.delta, signed=True))
        for task, metric in primary_metrics(row.metrics).items()
    ]


def summary(run: RunRow) -> Text:
    """Return how many exports came to what: ``8 exports: 5 succeeded (2 cached), 3 unsupported in 42 s``."""
    plural = "" if run.total == 1 else "s"
    line = Text.assemble((f"{run.total} export{plural}: ", "bold"), counted(run.counts, run.cached))
    return line.append(f" in {duration(run.seconds)}") if run.seconds is not None else line


@dataclass(frozen=True)
class Commands:
    """Commands and what each is for; on a narrow terminal the purpose goes above, and no command breaks."""

    lines: Sequence[tuple[str, str]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        width = max(len(command) for command, _ in self.lines)
        beside = [f"{command:<{width}}  # {purpose}" for command, purpose in self.lines]
        above = [f"# {purpose}\n{command}" for command, purpose in self.lines]
        fits = max(map(len, beside)) <= options.max_width
        yield Text("\n".join(beside if fits else above), style="dim")


def next_commands(rows: Sequence[ExportRow], option: str) -> Commands | None:
    """Return what to type after a run that did not go all well; None after one that did."""
    failed = [row for row in rows if row.status == str(Status.FAILED)]
    cancelled = [row for row in rows if row.status == str(Status.CANCELLED)]
    lines = []
    if failed:
        lines.append((f"zooport show {short_id(failed[0].id)}{option}", "what happened to the first"))
    if failed or cancelled:
        lines.append((f"zooport rerun --failed{option}", "try those again"))
    return Commands(lines) if lines else None
