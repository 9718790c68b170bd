"""Commands that show what runs came to, and try it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from zooport.commands.options import (
    JobAddressOption,
    OutputOption,
    RegistryOption,
    TimeoutOption,
    dashboard_of,
    deadlines_of,
)
from zooport.jobs.output import ListFormat, OutputFormat
from zooport.jobs.registry.records import ExportFilter
from zooport.jobs.values import Status

commands = typer.Typer()


@commands.command("list")
def list_exports(
    run: Annotated[
        str | None,
        typer.Option(metavar="ID", help='Only this run ("latest" for the newest).'),
    ] = None,
    status: Annotated[
        list[Status] | None, typer.Option(help="Only this status; may be given more than once.")
    ] = None,
    export_format: Annotated[
        str | None, typer.Option("--format", metavar="GLOB", help="Only these formats.")
    ] = None,
    model: Annotated[str | None, typer.Option(metavar="GLOB", help="Only models of these names.")] = None,
    code: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only these failures, e.g. 'checkpoint.*'.")
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every export of every run, not only the latest ones.")
    ] = False,
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="Only the newest N.")] = None,
    output: Annotated[
        ListFormat, typer.Option("-o", "--output", help="How to print the rows; wide adds what they cost.")
    ] = ListFormat.TABLE,
    registry: RegistryOption = None,
) -> None:
    """List exports: what converted, what did not, and why.

    Without --run or --all it is the present state: the latest export of each model and format of a manifest,
    so that a failure is gone from the list once it has been repaired.
    """
    from zooport.jobs.queries import print_exports

    statuses = tuple(str(one) for one in status or ())
    wanted = ExportFilter(run, statuses, export_format, model, code, everything, limit)
    print_exports(registry, wanted, output)


@commands.command()
def show(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="An export's id or its ending, or MODEL/FORMAT, or a model.")
    ],
    output: OutputOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> None:
    """Show one export: its attempts, artifact, metrics, failure and log."""
    from zooport.jobs.queries import print_export

    print_export(registry, name, output)


@commands.command()
def runs(
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="Only the newest N.")] = None,
    output: OutputOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> None:
    """List runs, newest first, with how many exports came to what."""
    from zooport.jobs.queries import print_runs

    print_runs(registry, limit, output)


@commands.command()
def status(
    run: Annotated[
        str, typer.Argument(metavar="[RUN]", help="A run's id or its ending. Default: the newest.")
    ] = "latest",
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again until the run is over.")] = False,
    address: JobAddressOption = None,
    output: OutputOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> None:
    """Show how a run stands: counts, what is running at which stage, how long it may take."""
    from zooport.jobs.monitor import print_status

    if watch and output is not OutputFormat.TABLE:
        raise typer.BadParameter("--watch is for people; ask again for JSON or CSV")
    if address is not None:
        from zooport.jobs import ray_jobs

        ray_jobs.print_status(dashboard_of(address), run, output, watch=watch)
        return
    print_status(registry, run, output, watch=watch)


@commands.command()
def logs(
    name: Annotated[
        str, typer.Argument(metavar="ID", help="An export's id or its ending, or MODEL/FORMAT, or a model.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as the log grows, until the export is done.")
    ] = False,
    address: JobAddressOption = None,
    registry: RegistryOption = None,
) -> None:
    """Print the log of an export's newest attempt, or with --address that of a job's driver."""
    from zooport.jobs.monitor import print_log

    if address is not None:
        from zooport.jobs import ray_jobs

        ray_jobs.print_log(dashboard_of(address), name, follow=follow)
        return
    print_log(registry, name, follow=follow)


@commands.command()
def predict(
    artifact: Annotated[
        str, typer.Argument(metavar="ARTIFACT", help="Its directory, or an export as show takes it.")
    ],
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Files, folders and patterns.")],
    out: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw each image with what was found, as a PNG there.")
    ] = None,
    score_threshold: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            metavar="SCORE",
            help="Only what has this score. Default: 0.5 in tables and pictures, everything in JSON and CSV.",
            show_default=False,
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("-n", "--limit", min=1, help="Only the best N of each image.")
    ] = None,
    timeout: TimeoutOption = None,
    output: OutputOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Run an artifact of any format on images: a table, COCO results as JSON, and pictures with --out.

    It is the artifact alone that runs, in its own runtime. An image that cannot be read is named, the others
    are predicted, and the exit code is 1.
    """
    from zooport.jobs.prediction import Order
    from zooport.jobs.prediction import predict as run_prediction

    deadlines = deadlines_of(timeout)
    order = Order(artifact, images, out, score_threshold, limit, deadlines.total, deadlines.stages, registry)
    return run_prediction(order, output)


@commands.command()
def formats(output: OutputOption = OutputFormat.TABLE) -> None:
    """List the formats that checkpoints can be exported to."""
    from zooport.jobs.queries import print_formats

    print_formats(output)
