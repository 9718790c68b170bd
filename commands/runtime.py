"""``zooport runtime``: runtimes that live in an environment of their own."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zooport.jobs.output import OutputFormat
from zooport.jobs.runtimes import RuntimeName

runtime = typer.Typer(help="Runtimes of old formats, each in an environment of its own.")


@runtime.command("install")
def install_runtime(
    name: Annotated[RuntimeName, typer.Argument(help="Which: caffe2 (torch 1.10.2, 2 GB).")],
    python: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH",
            help="CPython 3.8 or 3.9 to make it with. Default: one on the PATH, of pyenv or of uv.",
            show_default=False,
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Make it anew if it is there.")] = False,
) -> None:
    """Install a runtime below the cache directory (ZOOPORT_CACHE); nothing else is touched."""
    from zooport.jobs.runtimes import install

    install(name, python, force=force)


@runtime.command("list")
def list_runtimes(
    output: Annotated[
        OutputFormat, typer.Option("-o", "--output", help="How to print the rows.")
    ] = OutputFormat.TABLE,
) -> None:
    """List runtimes: which are installed, and where."""
    from zooport.jobs.runtimes import print_runtimes

    print_runtimes(output)
