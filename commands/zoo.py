"""``zooport zoo``: detectron2's own models."""

from __future__ import annotations

from typing import Annotated

import typer

from zooport.commands.options import (
    OutputOption,
)
from zooport.jobs.output import OutputFormat

zoo = typer.Typer(help="The official detectron2 zoo: what is in it and what converts to what.")


@zoo.command("list")
def list_official_models(
    task: Annotated[str | None, typer.Option(help="Only this task, such as keypoints.")] = None,
    check: Annotated[
        bool,
        typer.Option("--check/--no-check", help="Ask each format what it takes; without it quicker."),
    ] = True,
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """List detectron2's own models: task, published metrics, and the formats that each converts to."""
    from zooport.jobs.official import print_catalog

    print_catalog(task, check_formats=check, output=output)


@zoo.command("show")
def show_official_model(
    name: Annotated[str, typer.Argument(help="Such as COCO-Detection/faster_rcnn_R_50_FPN_3x.")],
    output: OutputOption = OutputFormat.TABLE,
) -> None:
    """Show one official model: where its weights are, what it converts to, and its merged config."""
    from zooport.jobs.official import print_model

    print_model(name, output)
