"""How rows leave the program: a table for people, JSON and CSV for programs, the same for every listing."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zooport.jobs.registry.records import plain

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.text import Text

#: Wide enough that a line of a pipe is never wrapped, so that it can be searched.
PIPE_WIDTH = 10_000
STYLES = {
    "succeeded": "green",
    "running": "cyan",
    "pending": "dim",
    "failed": "bold red",
    "unsupported": "yellow",
    "cancelled": "magenta",
}
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\s]+")


class OutputFormat(StrEnum):
    """What ``-o`` takes."""

    TABLE = "table"
    JSON = "json"
    CSV = "csv"


class ListFormat(StrEnum):
    """What ``zooport list -o`` takes: a wide table has more columns."""

    TABLE = "table"
    WIDE = "wide"
    JSON = "json"
    CSV = "csv"


def print_rows(
    rows: Sequence[Mapping[str, Any]],
    columns: Sequence[str],
    output: OutputFormat,
    table: Callable[[ModuleType], RenderableType],
) -> None:
    """Print rows to standard output.

    Args:
        rows: JSON-ready values by column.
        columns: the order of CSV columns, also when there is no row.
        output: how.
        table: makes the table, given :mod:`zooport.jobs.tables`; that is imported only if a table is wanted.
    """
    if output is OutputFormat.JSON:
        print_text(to_json(rows))
    elif output is OutputFormat.CSV:
        print_text(to_csv(rows, columns))
    else:
        _print_table(table)


def print_value(
    value: Mapping[str, Any], output: OutputFormat, page: Callable[[ModuleType], RenderableType]
) -> None:
    """Print one thing to standard output, as JSON, as CSV of one row, or as a page for people."""
    if output is OutputFormat.JSON:
        print_text(to_json(value))
    elif output is OutputFormat.CSV:
        print_text(to_csv([value], tuple(value)))
    else:
        _print_table(page)


def _print_table(table: Callable[[ModuleType], RenderableType]) -> None:
    from zooport.jobs import tables

    console().print(table(tables))


def print_text(text: str) -> None:
    """Write text to standard output, ending in one line break."""
    sys.stdout.write(text.rstrip("\n") + "\n")
    sys.stdout.flush()


def to_json(value: Any) -> str:
    """Return ASCII JSON without NaN; the rows of a list stand on a line each, so that grep finds them."""
    if not isinstance(value, list | tuple):
        return json.dumps(plain(value), indent=2, allow_nan=False)
    lines = [json.dumps(plain(row), allow_nan=False) for row in value]
    return "[\n  " + ",\n  ".join(lines) + "\n]" if lines else "[]"


def to_csv(rows: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    """Return CSV with a header; mappings become dotted columns, lists become JSON, nothing becomes ""."""
    flat = [_flatten(row) for row in rows]
    found = dict.fromkeys(name for row in flat for name in row)
    header = [name for column in columns for name in _columns_of(column, found)]
    text = io.StringIO()
    writer = csv.DictWriter(text, header, restval="", extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def _columns_of(column: str, found: Iterable[str]) -> list[str]:
    nested = sorted(name for name in found if name.startswith(f"{column}."))
    return nested or [column]


def _flatten(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{name}.")
        elif isinstance(value, list | tuple):
            flat[prefix + name] = json.dumps(plain(value), allow_nan=False)
        elif isinstance(value, bool):
            flat[prefix + name] = str(value).lower()
        else:
            flat[prefix + name] = "" if value is None else plain(value)
    return flat


def console(*, stderr: bool = False) -> Console:
    """Return a console of the terminal's width, or so wide that a pipe or file gets unbroken lines."""
    from rich.console import Console

    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal and "COLUMNS" not in os.environ:
        made.width = PIPE_WIDTH
    return made


def cell(value: object, style: str = "") -> Text:
    """Return text for a table, on one line and free of what would move a terminal's cursor or mean markup."""
    from rich.text import Text

    return Text(_CONTROL.sub(" ", str(value)).strip(), style=style)


def printable(text: str) -> str:
    """Return a log's text with line breaks, and without anything that commands the terminal."""
    return _UNPRINTABLE.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


def status_cell(status: str) -> Text:
    """Return a status in its colour."""
    return cell(status, STYLES.get(status, ""))


def duration(seconds: float | None) -> str:
    """Return seconds as people say it: ``0.4 s``, ``42 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if seconds is None:
        return ""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def size(count: int) -> str:
    """Return a number of bytes in the largest unit that keeps it above one."""
    amount = float(count)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{amount:.0f} {unit}" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
