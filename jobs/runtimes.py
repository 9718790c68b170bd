"""Runtimes that artifacts need and zooport cannot import: installing them and listing them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.jobs.output import OutputFormat, print_rows, print_text

if TYPE_CHECKING:
    from rich.console import RenderableType

COLUMNS = ["name", "status", "python", "packages", "place", "remark"]
# What pip says is for people who watch; a log gets the steps.
_STEPS = ("making ", "another process", "Collecting ", "Downloading ", "Installing ", "trying ")


class RuntimeName(StrEnum):
    """What ``zooport runtime install`` takes."""

    CAFFE2 = "caffe2"


def install(name: RuntimeName, python: Path | None, *, force: bool) -> None:
    """Install a runtime and print where it is; the steps go to standard error.

    Raises:
        Failure: ``dependency.missing`` without an interpreter for it, ``fetch.failed``, ``resource.disk``.
    """
    from zooport.export_core.caffe2.runtime_environment import install_runtime

    with _progress(f"runtime {name}") as report:
        made = install_runtime(python, force=force, report=report)
    print_text(f"{name}: Python {made.python}, {made.packages[0]}, in {made.directory}")


def print_runtimes(output: OutputFormat) -> None:
    """Print the runtimes that can be installed, and which are."""
    rows = [_caffe2()]
    print_rows(rows, COLUMNS, output, lambda _: _table(rows))


def _caffe2() -> dict[str, Any]:
    from zooport.export_core.caffe2.runtime_environment import (
        NAME,
        PACKAGES,
        defect,
        installed_runtime,
        runtime_directory,
    )

    found = installed_runtime()
    problem = "" if found is None else defect(found)
    status = "absent" if found is None else "broken" if problem else "installed"
    remark = "" if status == "installed" else f"zooport runtime install {NAME}"
    return {
        "name": NAME,
        "status": status,
        "python": None if found is None else found.python,
        "packages": list(PACKAGES if found is None else found.packages),
        "place": str(runtime_directory()),
        "remark": f"{problem}: {remark}" if problem else remark,
    }


def _table(rows: list[dict[str, Any]]) -> RenderableType:
    from zooport.jobs.lines import Lines

    lines = Lines("name", "status", "python", "package", "place", optional=("package",), remark="remark")
    for row in rows:
        cells = (row["name"], row["status"], row["python"] or "-", row["packages"][0], row["place"])
        lines.add(*cells, remark=row["remark"])
    return lines


@contextmanager
def _progress(label: str) -> Iterator[Callable[[str], None]]:
    """Show what is being done: one line that changes on a terminal, else a line per step."""
    if not sys.stderr.isatty():
        start = time.monotonic()

        def write(line: str) -> None:
            if line.startswith(_STEPS):
                sys.stderr.write(f"{label}: {line} ({time.monotonic() - start:.0f} s)\n")

        yield write
        return
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TimeElapsedColumn(), TextColumn("{task.description}", markup=False))
    with Progress(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(label, total=None)
        yield lambda line: display.update(task, description=f"{label}: {line}")
