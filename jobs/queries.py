"""The questions of the command line: ask the registry, print the answer."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import TYPE_CHECKING, TypeVar

from zooport.export_core.failures import Failure
from zooport.jobs.output import ListFormat, OutputFormat, print_rows, print_value
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, ExportRow, RunRow

if TYPE_CHECKING:
    from zooport.jobs.registry.reader import Reader

Answer = TypeVar("Answer")
EXPORT_COLUMNS = [item.name for item in fields(ExportRow)]
RUN_COLUMNS = [item.name for item in fields(RunRow)]
FORMAT_COLUMNS = ["name", "main_file", "requires_extra", "options", "summary"]
SCHEMA_COLUMNS = ["registry", "revision", "newest", "state"]


def print_exports(url: str | None, wanted: ExportFilter, output: ListFormat) -> None:
    """Print the exports that pass the filter."""
    wide = output is ListFormat.WIDE
    form = OutputFormat.TABLE if wide else OutputFormat(output.value)
    found = ask_or_nothing(url, lambda registry: registry.exports(wanted))
    rows = [row.to_dict() for row in found]
    print_rows(rows, EXPORT_COLUMNS, form, lambda tables: tables.export_table(found, wide=wide))


def print_export(url: str | None, name: str, output: OutputFormat) -> None:
    """Print everything about one export; CSV has its row alone.

    Raises:
        Failure: ``registry.unknown`` when not exactly one export answers to the name.
    """
    detail = ask(url, lambda registry: registry.export(name))
    if output is OutputFormat.CSV:
        print_rows([detail.row.to_dict()], EXPORT_COLUMNS, output, lambda tables: tables.export_page(detail))
    else:
        print_value(detail.to_dict(), output, lambda tables: tables.export_page(detail))


def print_runs(url: str | None, limit: int | None, output: OutputFormat) -> None:
    """Print the runs, newest first."""
    found = ask_or_nothing(url, lambda registry: registry.runs(limit))
    rows = [row.to_dict() for row in found]
    print_rows(rows, RUN_COLUMNS, output, lambda tables: tables.run_table(found))


def print_formats(output: OutputFormat) -> None:
    """Print the formats that checkpoints can be exported to."""
    from zooport.export_core.formats import describe

    rows = [{name: getattr(info, name) for name in FORMAT_COLUMNS} for info in describe()]
    print_rows(rows, FORMAT_COLUMNS, output, lambda tables: tables.format_table(rows))


def print_schema(url: str | None, output: OutputFormat) -> None:
    """Print which schema a registry has, and whether this zooport reads it."""
    from zooport.jobs.registry.revisions import current

    row = current(url)
    print_rows([row], SCHEMA_COLUMNS, output, lambda tables: tables.plain_table([row], SCHEMA_COLUMNS))


def upgrade_schema(url: str | None) -> None:
    """Bring a registry to the schema that this zooport reads, and say what was done."""
    from zooport.jobs.registry.revisions import upgrade_registry

    place, before, after = upgrade_registry(url)
    if before == after:
        sys.stdout.write(f"{place} is at schema {after} already\n")
    else:
        sys.stdout.write(f"{place}: schema {before or 'none'} -> {after}\n")


def ask(url: str | None, question: Callable[[Reader], Answer]) -> Answer:
    """Return what an existing registry answers."""
    with open_registry(url, create=False) as registry:
        return question(registry)


def ask_or_nothing(url: str | None, question: Callable[[Reader], list[Answer]]) -> list[Answer]:
    """Return what a registry answers; one that is not there yet holds nothing, and a note says so."""
    try:
        return ask(url, question)
    except Failure as failure:
        if failure.code != "registry.missing":
            raise
        sys.stderr.write(f"zooport: {failure.message} ({failure.hint})\n")
        return []
