"""Options that several commands take, and how their values are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zooport.jobs import limits, memory
from zooport.jobs.limits import Deadlines
from zooport.jobs.output import OutputFormat

RegistryOption = Annotated[
    str | None,
    typer.Option(
        "--registry",
        envvar="ZOOPORT_REGISTRY",
        metavar="URL",
        help="Where results are kept: a database URL or a file. Default: sqlite:///zooport.db",
        show_default=False,
    ),
]
OutputOption = Annotated[OutputFormat, typer.Option("-o", "--output", help="How to print the rows.")]

ResultOption = Annotated[OutputFormat, typer.Option("-o", help="How to print the result.")]
AddressOption = Annotated[
    str | None,
    typer.Option(
        envvar="RAY_ADDRESS",
        help="A Ray cluster: auto, head:6379, ray://head:10001, or http://head:8265 for a job."
        " Default: a local Ray is started.",
        show_default=False,
    ),
]
JobsOption = Annotated[
    int | None,
    typer.Option("-j", "--jobs", min=1, help="Jobs at once. Default: one per CPU.", show_default=False),
]
TimeoutOption = Annotated[
    str | None,
    typer.Option(
        metavar="SECONDS",
        help="Stop a job that takes longer; by stage:"
        " load=60,export=300,verify=120,evaluate=900,publish=300,total=1800.",
        show_default=False,
    ),
]
RetriesOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        help="How often a crash or a lack of resources is tried again. Default: as the manifest says, 2.",
        show_default=False,
    ),
]
JobAddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="http://HEAD:8265",
        help="A Ray cluster's dashboard: the run is a job there.",
        show_default=False,
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be run, and why.")]
FailFastOption = Annotated[
    bool,
    typer.Option("--fail-fast/--keep-going", help="Start nothing more after the first failure."),
]
RuntimeOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="What verifies artifacts where there is a choice: caffe2 or reference, of caffe2 artifacts.",
        show_default=False,
    ),
]
RuntimeEnvOption = Annotated[
    Path | None,
    typer.Option(
        "--runtime-env",
        metavar="FILE",
        help="What Ray brings to a cluster's nodes: YAML or JSON, as Ray has it.",
        show_default=False,
    ),
]
ImportsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="An extension with modules of your own: a package's name, or its path; may be repeated.",
    ),
]


def deadlines_of(text: str | None) -> Deadlines:
    """Return what ``--timeout`` says."""
    try:
        return Deadlines() if text is None else limits.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"--timeout: {error}") from None


def memory_of(text: str | None) -> int:
    """Return the bytes that ``--memory`` says, 0 for no limit."""
    try:
        return 0 if text is None else memory.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"--memory {text}: expected {error}") from None


def dashboard_of(address: str) -> str:
    """Return the address of a dashboard that ``--address`` says, where no other will do."""
    if not address.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--address {address}: jobs are asked for at a dashboard, http://head:8265")
    return address
