"""Commands that export: a zoo, what is left of it, or one checkpoint."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from zooport.commands.options import (
    AddressOption,
    DryRunOption,
    FailFastOption,
    ImportsOption,
    JobAddressOption,
    JobsOption,
    RegistryOption,
    ResultOption,
    RetriesOption,
    RuntimeEnvOption,
    RuntimeOption,
    TimeoutOption,
    dashboard_of,
    deadlines_of,
    memory_of,
)
from zooport.jobs.output import OutputFormat

if TYPE_CHECKING:
    from zooport.jobs import submission

commands = typer.Typer()


@commands.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where artifacts and the registry go.")
    ] = Path("zooport-demo"),
) -> int:
    """Export the embedded demo zoo, verify it, and print the table; a good first command."""
    from zooport.jobs.demo import run_demo

    return run_demo(output)


@commands.command()
def submit(
    context: typer.Context,
    manifest: Annotated[Path, typer.Argument(metavar="MANIFEST", help="What to export, such as zoo.yaml.")],
    address: AddressOption = None,
    workers: JobsOption = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            metavar="DIR|URL",
            help="Where artifacts go: a folder, or s3://bucket/zoo say. Default: as the manifest says.",
        ),
    ] = None,
    dry_run: DryRunOption = False,
    fail_fast: FailFastOption = False,
    imports: ImportsOption = None,
    runtime: RuntimeOption = None,
    runtime_env: RuntimeEnvOption = None,
    wait: Annotated[
        bool,
        typer.Option("--wait/--no-wait", help="Of a job on http://head:8265: follow it, or print its id."),
    ] = True,
    result: ResultOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Export everything that a manifest names and that is not done yet.

    Ctrl-C cancels: what runs is stopped, the registry says what was cancelled, and the exit code is 130. What
    is merely unsupported is no failure: the exit code stays 0.

    With --address http://head:8265 the run is a Ray job: the manifest and its small files are sent there, the
    registry and the output are named as the head node finds them, and Ctrl-C stops following, not the job.
    """
    from zooport.jobs import ray_jobs, submission

    environment = _environment(runtime_env)
    if address is not None and ray_jobs.is_dashboard(address) and not dry_run:
        options = tuple(_passed_on(context))
        order = ray_jobs.Order(
            manifest, address, output, registry, tuple(imports or ()), options, environment, wait
        )
        return ray_jobs.submit(order, result)
    if not wait:
        raise typer.BadParameter("--no-wait is for jobs: --address http://head:8265")
    request = _request(
        registry,
        address,
        workers,
        timeout,
        retries,
        dry_run,
        fail_fast,
        imports,
        runtime,
        result,
        environment,
    )
    return submission.submit(manifest, request, output)


# What the driver of a job is told in another way, or not at all.
_OF_THE_JOB = frozenset(("address", "output", "registry", "imports", "runtime_env", "wait", "result"))


def _passed_on(context: typer.Context) -> Iterator[str]:
    """Yield the options of this command line again, but those that its job is told in another way."""
    for option in context.command.params:
        name, value = option.name or "", context.params.get(option.name or "")
        if option.param_type_name != "option" or name in _OF_THE_JOB or value in (None, option.default):
            continue
        for each in value if isinstance(value, list | tuple) else [value]:
            yield from [option.opts[-1]] if isinstance(each, bool) else [option.opts[-1], str(each)]


@commands.command()
def rerun(
    failed: Annotated[
        bool, typer.Option("--failed", help="What failed or was cancelled; has to be given.")
    ] = False,
    run: Annotated[
        str | None, typer.Option(metavar="ID", help='Only of this run ("latest" for the newest).')
    ] = None,
    code: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only these failures, e.g. 'resource.*'.")
    ] = None,
    include_unsupported: Annotated[
        bool, typer.Option("--include-unsupported", help="Also what was refused as unsupported.")
    ] = False,
    address: AddressOption = None,
    workers: JobsOption = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = None,
    dry_run: DryRunOption = False,
    fail_fast: FailFastOption = False,
    imports: ImportsOption = None,
    runtime: RuntimeOption = None,
    runtime_env: RuntimeEnvOption = None,
    result: ResultOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Run again what failed and has not succeeded since, as a new run linked to the old one.

    What is asked for is what the registry recorded; to run an edited manifest, submit it again.
    """
    from zooport.jobs import submission

    if not failed:
        raise typer.BadParameter("say what to run again: --failed")
    _refuse_dashboard(address)
    request = _request(
        registry,
        address,
        workers,
        timeout,
        retries,
        dry_run,
        fail_fast,
        imports,
        runtime,
        result,
        _environment(runtime_env),
    )
    return submission.rerun(request, run, code, include_unsupported=include_unsupported)


@commands.command()
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help='A run\'s id or its ending, or "latest".')],
    address: AddressOption = None,
    workers: JobsOption = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = None,
    dry_run: DryRunOption = False,
    fail_fast: FailFastOption = False,
    imports: ImportsOption = None,
    runtime: RuntimeOption = None,
    runtime_env: RuntimeEnvOption = None,
    result: ResultOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Go on with a run that was cancelled or whose driver died: every export that never came to an end.

    It becomes a new run linked to the old one. What is asked for is what was submitted then; to run an edited
    manifest, submit it again: that, too, repeats nothing that is done. What failed by itself has come to its
    end: see rerun --failed.
    """
    from zooport.jobs import submission

    _refuse_dashboard(address)
    request = _request(
        registry,
        address,
        workers,
        timeout,
        retries,
        dry_run,
        fail_fast,
        imports,
        runtime,
        result,
        _environment(runtime_env),
    )
    return submission.resume(request, run)


def _request(
    registry: str | None,
    address: str | None,
    workers: int | None,
    timeout: str | None,
    retries: int | None,
    dry_run: bool,
    fail_fast: bool,
    imports: list[str] | None,
    runtime: str | None,
    result: OutputFormat,
    runtime_env: Mapping[str, Any],
) -> submission.Request:
    """Return what submit, rerun and resume ask for alike."""
    from zooport.jobs import submission
    from zooport.jobs.runner import RunSettings

    deadlines = deadlines_of(timeout)
    return submission.Request(
        registry,
        RunSettings(address, workers, fail_fast, runtime_env=runtime_env),
        deadlines.total,
        dry_run,
        result,
        imports=tuple(imports or ()),
        deadlines=deadlines.stages,
        retries=retries,
        runtime=runtime,
    )


def _environment(file: Path | None) -> Mapping[str, Any]:
    from zooport.jobs.runtime_env import read_runtime_env

    return {} if file is None else read_runtime_env(file)


def _refuse_dashboard(address: str | None) -> None:
    if address is not None and address.startswith(("http://", "https://")):
        raise typer.BadParameter(
            f"{address} takes zooport submit alone: submit the manifest again, what is done is not repeated"
        )


@commands.command()
def cancel(
    run: Annotated[str, typer.Argument(metavar="RUN", help='A run\'s id or its ending, or "latest".')],
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Return when the run is over.")] = True,
    address: JobAddressOption = None,
    registry: RegistryOption = None,
) -> int:
    """Stop a run that another process drives, on this machine or another.

    What is done stays done; zooport resume RUN goes on with the rest.
    """
    from zooport.jobs import monitor

    if address is not None:
        from zooport.jobs import ray_jobs

        return ray_jobs.cancel(dashboard_of(address), run, wait=wait)
    return monitor.cancel(registry, run, wait=wait)


@commands.command(context_settings={"ignore_unknown_options": True})
def export(
    config: Annotated[Path, typer.Option("--config-file", help="A detectron2 config.")],
    export_format: Annotated[str, typer.Option("--format", help="See: zooport formats.")],
    output: Annotated[
        str, typer.Option("--output", metavar="DIR|URL", help="Directory of the artifact, or its address.")
    ],
    weights: Annotated[
        str | None,
        typer.Option(
            help="Its weights: a file or an address. Default: what MODEL.WEIGHTS among the overrides says.",
            show_default=False,
        ),
    ] = None,
    export_method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD",
            help="As detectron2 has it, beside --format torchscript: tracing or scripting.",
            show_default=False,
        ),
    ] = None,
    sample_image: Annotated[
        Path | None, typer.Option(help="An image with objects to try the export on.")
    ] = None,
    run_eval: Annotated[
        bool, typer.Option("--run-eval", help="Evaluate the eager and the exported model.")
    ] = False,
    dataset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME|YAML", help="For --run-eval: coco_2017_val and the like, or a manifest's keys."
        ),
    ] = None,
    annotations: Annotated[Path | None, typer.Option(help="COCO annotations, for --run-eval.")] = None,
    images: Annotated[Path | None, typer.Option(help="Folder of their images, for --run-eval.")] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Evaluate the first N images.", show_default=False)
    ] = None,
    panoptic: Annotated[Path | None, typer.Option(help="COCO panoptic annotations, for --run-eval.")] = None,
    panoptic_masks: Annotated[Path | None, typer.Option(help="Folder of their PNG files.")] = None,
    semantic_masks: Annotated[Path | None, typer.Option(help="Folder of label maps, for --run-eval.")] = None,
    tolerance: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=POINTS", help="How far a metric may move, e.g. AP=0.1; may be repeated."),
    ] = None,
    options: Annotated[
        list[str] | None,
        typer.Option("--option", metavar="NAME=VALUE", help="An option of the format; may be repeated."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="The model's name. Default: that of the config's folder.")
    ] = None,
    timeout: TimeoutOption = None,
    memory_limit: Annotated[
        str | None,
        typer.Option("--memory", metavar="SIZE", help="Stop a process that holds more, such as 6GiB."),
    ] = None,
    imports: ImportsOption = None,
    runtime: RuntimeOption = None,
    result: ResultOption = OutputFormat.TABLE,
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="KEY VALUE", help="Config overrides.")
    ] = None,
) -> int:
    """Export one checkpoint, through the same stages as a run, without a registry.

    It takes the arguments of detectron2's export_model.py, too: --format torchscript with --export-method,
    and the weights as MODEL.WEIGHTS.
    """
    from zooport.jobs.detectron2_arguments import format_name, given_weights
    from zooport.jobs.single import Order, export_one

    deadlines = deadlines_of(timeout)
    order = Order(
        config=config,
        format=format_name(export_format, export_method),
        weights=given_weights(weights, overrides or ()),
        output=output,
        sample_image=sample_image,
        run_eval=run_eval,
        annotations=annotations,
        images=images,
        overrides=tuple(overrides or ()),
        timeout=deadlines.total,
        deadlines=deadlines.stages,
        memory=memory_of(memory_limit),
        imports=tuple(imports or ()),
        name=name,
        options=tuple(options or ()),
        limit=limit,
        panoptic=panoptic,
        panoptic_masks=panoptic_masks,
        semantic_masks=semantic_masks,
        tolerance=tuple(tolerance or ()),
        dataset=dataset,
        runtime=runtime,
    )
    return export_one(order, result)
