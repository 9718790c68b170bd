"""What people see when they ask the registry: exports, one export, runs, formats."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from zooport.export_core.evaluation import costs
from zooport.export_core.evaluation.costs import is_cost, without_costs
from zooport.jobs.drifts import drift_page
from zooport.jobs.lines import Lines
from zooport.jobs.notes import notes_page
from zooport.jobs.output import STYLES, cell, duration, size, status_cell
from zooport.jobs.registry.records import (
    AttemptRow,
    BaselineRow,
    ExportDetail,
    ExportRow,
    Metric,
    RunRow,
    plain,
    primary_metrics,
    short_id,
)
from zooport.jobs.values import Status

#: Heading in a table -> the cost that stands below it.
COSTS = {
    "p50 ms": costs.LATENCY_P50,
    "p95 ms": costs.LATENCY_P95,
    "memory MB": costs.PEAK_MEMORY,
    "size MB": costs.SIZE,
    "load s": costs.LOAD,
}


def export_table(rows: Sequence[ExportRow], *, wide: bool = False) -> RenderableType:
    """Return a line per export: what it is, where it stands, and its metrics or its failure.

    A wide table tells also what eager and exported model cost.
    """
    if not rows:
        return Text("no exports")
    numbers = ("try", "time", *(COSTS if wide else ()))
    lines = Lines(
        "id",
        "model",
        "format",
        "status",
        *numbers,
        right=numbers,
        optional=("try",),
        above="model",
        remark="result",
    )
    for row in rows:
        lines.add(
            short_id(row.id),
            row.model,
            row.format,
            status_cell(row.status),
            str(row.attempt or ""),
            "cached" if row.cached else duration(row.seconds),
            *([cost(row.metrics.get(name)) for name in COSTS.values()] if wide else []),
            remark=reason(row) if row.code else movements(row.metrics),
        )
    return lines


def reason(row: ExportRow | AttemptRow) -> Text:
    """Return the failure's code and message."""
    return Text.assemble(cell(row.code or "", code_style(row)), ": ", cell(row.message or ""))


def movements(metrics: Mapping[str, Metric]) -> Text:
    """Return how the main metric of each task moved: ``bbox 43.93 -> 43.92 (-0.01)``."""
    main = primary_metrics(metrics).items()
    return Text(", ").join(Text(f"{task} {movement(metric)}") for task, metric in main)


def cost(metric: Metric | None) -> str:
    """Return what eager and exported model cost: ``35.2 \u2192 28.0``; nothing where nothing was measured."""
    if metric is None or metric.exported is None:
        return ""
    exported = f"{metric.exported:.1f}"
    return exported if metric.baseline is None else f"{metric.baseline:.1f} \u2192 {exported}"


def code_style(row: ExportRow | AttemptRow) -> str:
    """Return the colour of a failure's code: that of what it made of the export."""
    return {str(Status.UNSUPPORTED): "yellow", str(Status.CANCELLED): "magenta"}.get(row.status, "red")


def movement(metric: Metric) -> str:
    """Return eager and exported value with the difference: ``43.93 -> 43.92 (-0.01)``."""
    if metric.baseline is None and metric.delta is None:
        return number(metric.exported)
    return f"{number(metric.baseline)} \u2192 {number(metric.exported)} ({number(metric.delta, signed=True)})"


def number(value: float | None, *, signed: bool = False) -> str:
    """Return AP points with two decimals; "nan" for a number that was none."""
    if value is None:
        return "nan"
    return f"{value:+.2f}" if signed else f"{value:.2f}"


def run_table(rows: Sequence[RunRow]) -> RenderableType:
    """Return one line per run with its counts."""
    if not rows:
        return Text("no runs")
    lines = Lines(
        "run", "kind", "status", "started (UTC)", "time", right=("time",), above="run", remark="exports"
    )
    for row in rows:
        kind = f"{row.kind} of {short_run(row.parent)}" if row.parent else row.kind
        started = row.created[:16].replace("T", " ")
        remark = Text.assemble(counted(row.counts, row.cached), " of ", cell(row.manifest, "dim"))
        lines.add(row.id, kind, status_cell(row.status), started, duration(row.seconds), remark=remark)
    return lines


def counted(counts: Mapping[str, int], cached: int) -> Text:
    """Return how many exports have each status: ``5 succeeded (2 cached), 1 failed``."""
    parts = []
    for status in Status:
        number_of = counts.get(str(status), 0)
        served = f" ({cached} cached)" if cached and status is Status.SUCCEEDED else ""
        parts += [cell(f"{number_of} {status}{served}", STYLES[str(status)])] if number_of else []
    return Text(", ").join(parts) if parts else Text("no exports")


def short_run(run: str) -> str:
    """Return the ending of a run's id, which a command takes for the whole."""
    return run.rpartition("-")[2]


def format_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Return one line per format."""
    lines = Lines("name", "main file", "needs", remark="summary")
    for row in rows:
        needs = f"zooport[{row['requires_extra']}]" if row["requires_extra"] else ""
        lines.add(str(row["name"]), str(row["main_file"]), needs, remark=str(row["summary"]))
    options = [(row["name"], name, text) for row in rows for name, text in row["options"].items()]
    if not options:
        return lines
    table = Lines("format", "option", remark="meaning")
    for of, name, text in options:
        table.add(str(of), str(name), remark=str(text))
    return Group(lines, Text(), table)


def plain_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> RenderableType:
    """Return one line per row, as the values are."""
    lines = Lines(*columns)
    for row in rows:
        lines.add(*(str(row[column]) for column in columns))
    return lines


def export_page(detail: ExportDetail) -> RenderableType:
    """Return everything about one export, for ``zooport show``."""
    row = detail.row
    title = Text.assemble(
        (row.id, "bold"), "  ", cell(row.model), " \u2192 ", cell(row.format), "  ", status_cell(row.status)
    )
    parts: list[RenderableType] = [title, Text(), _facts(detail)]
    if accuracy := without_costs(row.metrics):
        made = metric_table(accuracy, detail.published)
        parts += [Text(), Text("metrics (AP points)", style="bold"), made]
    if len(accuracy) < len(row.metrics):
        parts += [Text(), Text("costs", style="bold"), cost_table(row.metrics)]
    if detail.drift is not None:
        parts += [Text(), Text("where it drifts", style="bold"), drift_page(detail.drift)]
    if detail.attempts and detail.attempts[-1].notes:
        parts += [Text(), notes_page(detail.attempts[-1].notes)]
    if detail.attempts:
        parts += [Text(), Text("attempts", style="bold"), attempt_table(detail.attempts)]
    if detail.baseline:
        parts += [Text(), Text("eager model", style="bold"), baseline_table(detail.baseline)]
    return Group(*parts)


def _facts(detail: ExportDetail) -> Table:
    row = detail.row
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in _inputs(detail):
        grid.add_row(name, value)
    if row.code is not None:
        where = f" while it was at {row.stage}" if row.stage else ""
        again = (
            "the same job may succeed when run again"
            if row.retryable
            else "fails again until something changes"
        )
        grid.add_row("failure", Text.assemble(cell(row.code, code_style(row)), where, f" ({again})"))
        grid.add_row("", cell(row.message or ""))
        grid.add_row("hint", cell(row.hint or ""))
        told = f"{row.message} {row.hint}"
        for name, value in detail.details.items():
            if not isinstance(value, str) or value not in told:
                grid.add_row("", cell(f"{name}: {json.dumps(plain(value), ensure_ascii=False)}"))
    if detail.artifact is not None:
        grid.add_row("artifact", cell(detail.artifact.path))
        grid.add_row("", cell(f"{detail.artifact.main_file}, {size(detail.artifact.size)} in all"))
        for name, digest in sorted(detail.artifact.files.items()):
            grid.add_row("", cell(f"{name}  {digest}"))
    if detail.runtime is not None:
        grid.add_row("runtime", cell(f"verified on {detail.runtime}"))
    own = [attempt for attempt in detail.attempts if attempt.export == row.id]
    for attempt in own[:-1]:
        grid.add_row("log", cell(f"{attempt.log} (try {attempt.attempt})"))
    grid.add_row("log", cell(row.log or ""))
    if detail.command is not None:
        grid.add_row("reproduce", cell(detail.command))
    return grid


def _inputs(detail: ExportDetail) -> Iterable[tuple[str, Text]]:
    row = detail.row
    yield "run", cell(f"{row.run} of {detail.manifest}")
    if detail.newest != row.id:
        yield "newer", cell(f"{detail.newest} exported this again")
    if detail.source is not None:
        yield "cached", cell(f"nothing changed since {detail.source}, whose artifact this is")
    yield "config", cell(detail.job.checkpoint.config)
    yield "weights", cell(detail.job.checkpoint.weights)
    if detail.job.checkpoint.overrides:
        settings = (f"{key}={value}" for key, value in detail.job.checkpoint.overrides.items())
        yield "overrides", cell(", ".join(settings))
    if detail.job.checkpoint.imports:
        yield "imports", cell(", ".join(detail.job.checkpoint.imports))
    if detail.job.options:
        yield "options", cell(", ".join(f"{key}={value}" for key, value in detail.job.options.items()))
    if detail.job.dataset is not None:
        yield "dataset", cell(f"{detail.job.dataset.name}: {detail.job.dataset.annotations}")


def metric_table(metrics: Mapping[str, Metric], published: Mapping[str, float]) -> RenderableType:
    """Return one line per metric: eager, exported, difference, and what detectron2 itself reports.

    With the difference stand its 95% confidence interval, and the tolerance that judged it; below the table,
    where the tolerances are said. Columns without entries are left out.
    """
    has_intervals = any(metric.low is not None for metric in metrics.values())
    is_judged = any(metric.tolerance is not None for metric in metrics.values())
    numbers = ("eager", "exported", "delta", *(["published"] if published else []))
    more = [*(["95% interval"] if has_intervals else []), *(["tolerance"] if is_judged else [])]
    lines = Lines("metric", *numbers, *more, right=(*numbers, *more))
    for name, metric in metrics.items():
        is_compared = metric.baseline is not None or metric.delta is not None
        eager = number(metric.baseline) if is_compared else ""
        delta = number(metric.delta, signed=True) if is_compared else ""
        reported = [number(published[name]) if name in published else ""] if published else []
        interval = [_interval(metric)] if has_intervals else []
        tolerance = ["" if metric.tolerance is None else f"{metric.tolerance:g}"] if is_judged else []
        lines.add(name, eager, number(metric.exported), delta, *reported, *interval, *tolerance)
    origins = dict.fromkeys(
        f"tolerance {metric.tolerance:g}: {metric.origin}"
        for metric in metrics.values()
        if metric.tolerance is not None and metric.origin is not None
    )
    return Group(lines, *(cell(line, "dim") for line in origins)) if origins else lines


def _interval(metric: Metric) -> str:
    if metric.low is None or metric.high is None:
        return ""
    return f"{number(metric.low, signed=True)} to {number(metric.high, signed=True)}"


def cost_table(metrics: Mapping[str, Metric]) -> RenderableType:
    """Return one line per cost: eager, exported, and how many times the eager one the exported one is."""
    numbers = ("eager", "exported", "ratio")
    lines = Lines("cost", *numbers, right=numbers)
    for name in dict.fromkeys([*COSTS.values(), *filter(is_cost, metrics)]):
        metric = metrics.get(name)
        if metric is None:
            continue
        pair = ["" if value is None else f"{value:.2f}" for value in (metric.baseline, metric.exported)]
        ratio = "" if not metric.baseline or metric.exported is None else metric.exported / metric.baseline
        lines.add(name.removeprefix(f"{costs.FAMILY}/"), *pair, f"{ratio:.2f}" if ratio else "")
    return lines


def attempt_table(attempts: Sequence[AttemptRow]) -> RenderableType:
    """Return one line per attempt, oldest first."""
    lines = Lines("try", "export", "status", "started (UTC)", "time", right=("try", "time"), remark="result")
    for attempt in attempts:
        lines.add(
            str(attempt.attempt),
            short_id(attempt.export),
            status_cell(attempt.status),
            attempt.started[:19].replace("T", " "),
            duration(attempt.seconds),
            remark=_attempt_remark(attempt),
        )
    return lines


def baseline_table(attempts: Sequence[BaselineRow]) -> RenderableType:
    """Return one line per try at the eager model, oldest first: its log, and why it failed."""
    lines = Lines("try", "run", "status", "ended (UTC)", "time", right=("try", "time"), remark="result")
    for attempt in attempts:
        failed = f"{attempt.code}: {attempt.message}; " if attempt.code is not None else ""
        lines.add(
            str(attempt.attempt),
            short_run(attempt.run),
            status_cell(attempt.status),
            attempt.finished[:19].replace("T", " "),
            duration(attempt.seconds),
            remark=cell(f"{failed}log {attempt.log}"),
        )
    return lines


def _attempt_remark(attempt: AttemptRow) -> Text:
    if attempt.code is not None:
        return reason(attempt)
    stages = ", ".join(f"{name} {duration(seconds)}" for name, seconds in attempt.stages.items())
    return cell(stages)
