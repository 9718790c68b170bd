"""Commands that look after artifacts and the registry."""

from __future__ import annotations

from typing import Annotated

import typer

from zooport.commands.options import (
    OutputOption,
    RegistryOption,
)
from zooport.jobs.output import OutputFormat

commands = typer.Typer()
db = typer.Typer(help="Look after the registry's schema.")
commands.add_typer(db, name="db")


@commands.command()
def verify(
    run: Annotated[
        str | None, typer.Option(metavar="ID", help='Only artifacts of this run ("latest" for the newest).')
    ] = None,
    everything: Annotated[bool, typer.Option("--all", help="Print also what is as it has to be.")] = False,
    output: OutputOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Read every artifact again and compare it with the registry; find what no export names.

    The exit code is 1 when an artifact is missing or altered, or when something is left over.
    """
    from zooport.jobs import upkeep

    return upkeep.verify(registry, run, output, everything=everything)


@commands.command("gc")
def collect_garbage(
    yes: Annotated[bool, typer.Option("--yes", help="Remove it; without this nothing is changed.")] = False,
    include_foreign: Annotated[
        bool,
        typer.Option(
            "--include-foreign",
            help="Also artifacts that another registry's runs may have made, or those of a lost registry.",
        ),
    ] = False,
    output: OutputOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Remove artifacts that no export names, and unfinished ones that nobody works on.

    Without --yes it prints what would go. Only what zooport itself has written is ever touched.
    """
    from zooport.jobs import upkeep

    return upkeep.collect_garbage(registry, output, yes=yes, include_foreign=include_foreign)


@db.command()
def upgrade(registry: RegistryOption = None) -> None:
    """Bring a registry to the schema of this zooport."""
    from zooport.jobs.queries import upgrade_schema

    upgrade_schema(registry)


@db.command()
def current(output: OutputOption = OutputFormat.TABLE, registry: RegistryOption = None) -> None:
    """Print which schema a registry has and which one this zooport reads."""
    from zooport.jobs.queries import print_schema

    print_schema(registry, output)
