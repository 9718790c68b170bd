"""Rewrite the generated parts of the documentation: what stands between the markers of each page.

Run it with ``make docs`` after a command, an option or a failure code has changed. The fault matrix comes
from a run of the tests: ``make reliability``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from zooport.cli import app
from zooport.export_core import formats
from zooport.export_core.failures import CODES
from zooport.export_core.zoo import CatalogEntry, catalog
from zooport.export_core.zoo.coverage import refusals
from zooport.jobs.official import published_text

DOCS = Path(__file__).resolve().parent


def failure_table() -> str:
    """Return one row per failure code."""
    rows = [
        f"| `{code.name}` | {code.meaning} | {_next_attempt(code.retryable, code.unsupported)} |"
        for code in CODES.values()
    ]
    return "\n".join(["| code | what it means | the same job again |", "| --- | --- | --- |", *rows])


def _next_attempt(retryable: bool, unsupported: bool) -> str:
    if unsupported:
        return "never helps"
    return "may succeed" if retryable else "fails again until something is changed"


def command_reference() -> str:
    """Return usage, description and options of every command."""
    return "\n\n".join(_command_section(name, command) for name, command in commands())


def commands() -> Iterator[tuple[str, Any]]:
    """Yield every command with its full name, ``zooport db upgrade`` for one of a group."""
    yield from _commands_of("zooport", typer.main.get_command(app))


def _commands_of(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    members = getattr(command, "commands", None)
    if members is None:
        yield name, command
        return
    for member, child in members.items():
        yield from _commands_of(f"{name} {member}", child)


def _command_section(name: str, command: Any) -> str:
    context = typer.Context(command, info_name=name)
    usage = " ".join(command.get_usage(context).removeprefix("Usage:").split())
    records = [parameter.get_help_record(context) for parameter in command.params]
    options = [f"- `{names}`: {' '.join(text.split())}" for names, text in filter(None, records)]
    parts = [f"### {name}", f"`{usage}`", command.help or "", "\n".join(options)]
    return "\n\n".join(part.strip() for part in parts if part.strip())


def zoo_table() -> str:
    """Return one row per official model: task, published metrics, and what it converts to."""
    return "\n".join(
        [
            "| model | task | published | converts to |",
            "| --- | --- | --- | --- |",
            *(_zoo_row(entry) for entry in catalog().values()),
        ]
    )


def _zoo_row(entry: CatalogEntry) -> str:
    answers = refusals(entry)
    taken = [f"`{name}`" for name, refusal in answers.items() if refusal is None]
    reasons = sorted({f"{refusal.code}: {refusal.message}" for refusal in answers.values() if refusal})
    converts = ", ".join(taken) + ("; " if taken and reasons else "") + "; ".join(reasons)
    return f"| `{entry.name}` | {entry.task} | {published_text(entry.published)} | {converts} |"


def fault_matrix() -> str:
    """Return one row per fault, as the last ``make reliability`` has seen it."""
    rows = json.loads((DOCS / "reliability.json").read_text(encoding="utf-8")).values()
    return "\n".join(
        [
            "| fault | what the user sees | what is recorded | seconds |",
            "| --- | --- | --- | ---: |",
            *(
                f"| {row['fault']} | {row['sees']} | {row['recorded']} | {row['seconds']:.2f} |"
                for row in rows
            ),
        ]
    )


def latency_table() -> str:
    """Return one row per architecture: seconds of eager PyTorch, and each format's share of them."""
    rows = json.loads((DOCS.parent / "benchmarks" / "latency.json").read_text(encoding="utf-8"))
    names = [name for name in formats.names() if any(name in row["shares"] for row in rows)]
    rows.sort(key=lambda row: (row["architecture"].startswith("demo"), row["architecture"]))
    return "\n".join(
        [
            f"| model | eager | {' | '.join(f'`{name}`' for name in names)} |",
            f"| --- | ---: |{' ---: |' * len(names)}",
            *(f"| {row['architecture']} | {_time(row['eager_s'])} | {_shares(row, names)} |" for row in rows),
        ]
    )


def _time(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds > 1 else f"{1000 * seconds:.1f} ms"


def _shares(row: dict[str, Any], names: list[str]) -> str:
    return " | ".join(f"{row['shares'][name]:.2f}" if name in row["shares"] else "" for name in names)


GENERATED = {
    "onnx.md": latency_table,
    "failures.md": failure_table,
    "cli.md": command_reference,
    "zoo.md": zoo_table,
    "reliability.md": fault_matrix,
}


def rewritten(page: str) -> str:
    """Return the page with its generated part made anew.

    Raises:
        ValueError: the page has lost one of its two markers.
    """
    before, _, rest = (DOCS / page).read_text(encoding="utf-8").partition("<!-- generated -->\n")
    _, marker, after = rest.partition("<!-- end -->")
    if not marker:
        raise ValueError(f"{page} has no part between <!-- generated --> and <!-- end -->")
    return f"{before}<!-- generated -->\n\n{GENERATED[page]()}\n\n{marker}{after}"


def main() -> None:
    """Rewrite every page."""
    for page in GENERATED:
        (DOCS / page).write_text(rewritten(page), encoding="utf-8")
        sys.stdout.write(f"docs/{page}\n")


if __name__ == "__main__":
    main()
