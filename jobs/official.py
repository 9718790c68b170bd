"""The official zoo on the command line: what is in it, what converts to what, and one model in full."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from zooport.export_core import zoo
from zooport.export_core.failures import Failure
from zooport.jobs.output import OutputFormat, print_rows, print_value

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ["name", "task", "published", "formats", "weights", "config", "lazy"]


def print_catalog(task: str | None, *, check_formats: bool, output: OutputFormat) -> None:
    """Print the official models, with what each converts to.

    Args:
        task: only this task's models.
        check_formats: ask every format; without it the listing is quicker, as PyTorch is not needed.
        output: how.

    Raises:
        Failure: ``config.invalid`` for a task that no model has.
    """
    if task is not None and task not in zoo.tasks():
        raise Failure(
            "config.invalid",
            f"no model of the official zoo has the task {task!r}",
            hint=f"tasks: {', '.join(zoo.tasks())}",
        )
    entries = [entry for entry in zoo.catalog().values() if task in {None, entry.task}]
    rows = [_row(entry, check_formats=check_formats) for entry in entries]
    print_rows(rows, COLUMNS, output, lambda _: _table(rows))


def print_model(name: str, output: OutputFormat) -> None:
    """Print one official model: its facts, what it converts to, and its merged config.

    Raises:
        Failure: ``config.invalid``, suggesting the nearest name.
    """
    from zooport.export_core.checkpoints.fetch import cache_path, is_here
    from zooport.export_core.config import load_config

    entry = zoo.find(name)
    config = load_config(entry.config)
    place = None if entry.weights is None else cache_path(entry.weights)
    value = _row(entry, check_formats=True) | {
        "cached": place is not None and is_here(place),
        "cache": None if place is None else str(place),
        "merged_config": config.to_dict(),
    }
    if output is OutputFormat.CSV:
        row = {column: value[column] for column in COLUMNS}
        print_rows([row], COLUMNS, output, lambda _: _table([row]))
    else:
        print_value(value, output, lambda _: _page(value, config.dump()))


def _row(entry: zoo.CatalogEntry, *, check_formats: bool) -> dict[str, Any]:
    row = entry.to_dict()
    if check_formats:
        from zooport.export_core.zoo.coverage import refusals

        row["formats"] = {
            name: None if failure is None else {"code": failure.code, "message": failure.message}
            for name, failure in refusals(entry).items()
        }
    return row


def _table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    from zooport.jobs.lines import Lines

    lines = Lines(
        "name", "task", "published", "converts to", optional=("task",), above="name", remark="why not"
    )
    for row in rows:
        asked = row.get("formats", {})
        lines.add(
            row["name"],
            row["task"],
            published_text(row["published"]),
            ", ".join(name for name, refusal in asked.items() if refusal is None) or ("-" if asked else ""),
            remark="; ".join(_reasons(asked)),
        )
    return lines


def _reasons(asked: Mapping[str, Mapping[str, str] | None]) -> list[str]:
    """Return each reason once, with the formats that give it unless all do."""
    by_reason: dict[str, list[str]] = {}
    for name, refusal in asked.items():
        if refusal is not None:
            by_reason.setdefault(f"{refusal['code']}: {refusal['message']}", []).append(name)
    return [
        reason if len(names) == len(asked) else f"{', '.join(names)}: {reason}"
        for reason, names in by_reason.items()
    ]


def published_text(metrics: Mapping[str, float]) -> str:
    """Return published metrics as ``bbox/AP 41.0, segm/AP 37.2``."""
    return ", ".join(f"{name} {value:.1f}" for name, value in metrics.items())


def _page(value: Mapping[str, Any], merged: str) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    weights = value["weights"] or "never released"
    facts = {
        "task": value["task"],
        "published": published_text(value["published"]) or "-",
        "weights": weights,
        "in the cache": f"{value['cache']} ({'here' if value['cached'] else 'not here yet'})",
        "config": value["config"],
    }
    if value["cache"] is None:
        del facts["in the cache"]
    for name, refusal in value["formats"].items():
        facts[name] = "converts" if refusal is None else f"{refusal['code']}: {refusal['message']}"
    width = max(map(len, facts))
    lines = [
        Text(value["name"], style="bold"),
        *(Text(f"{key:{width}}  {fact}") for key, fact in facts.items()),
    ]
    return Group(*lines, Text(), Text(merged.rstrip("\n")))
