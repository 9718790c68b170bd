"""The command line: parse, call, print. Every import that costs time happens inside the command it serves."""

from __future__ import annotations

import gc
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from zooport import __version__
from zooport.cli_runtime import runtime
from zooport.export_core.failures import Failure
from zooport.jobs import limits, memory
from zooport.jobs.exit_codes import FAILED, USAGE, exit_code
from zooport.jobs.limits import Deadlines
from zooport.jobs.output import ListFormat, OutputFormat
from zooport.jobs.registry.records import ExportFilter
from zooport.jobs.values import Status

if TYPE_CHECKING:
    from zooport.jobs import submission

EXIT_INTERRUPTED = 130


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
        help="Stop a job that takes longer; by stage: load=60,export=300,verify=120,evaluate=900,total=1200.",
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
ImportsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="An extension with modules of your own: a package's name, or its path; may be repeated.",
    ),
]

app = typer.Typer(
    name="zooport",
    help="Export a zoo of detectron2 checkpoints, and know which exports can be trusted.",
    invoke_without_command=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
db = typer.Typer(help="Look after the registry's schema.")
app.add_typer(db, name="db")
zoo = typer.Typer(help="The official detectron2 zoo: what is in it and what converts to what.")
app.add_typer(zoo, name="zoo")
app.add_typer(runtime, name="runtime")


def _deadlines(text: str | None) -> Deadlines:
    try:
        return Deadlines() if text is None else limits.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"--timeout: {error}") from None


def _memory(text: str | None) -> int:
    try:
        return 0 if text is None else memory.parse(text)
    except ValueError as error:
        raise typer.BadParameter(f"--memory {text}: expected {error}") from None


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"zooport {__version__}")
        raise typer.Exit()


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and leave."
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(USAGE)


@app.command()
def demo(
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where artifacts and the registry go.")
    ] = Path("zooport-demo"),
) -> int:
    """Export the embedded demo zoo, verify it, and print the table; a good first command."""
    from zooport.jobs.demo import run_demo

    return run_demo(output)


@app.command("list")
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


@app.command()
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


@app.command()
def runs(
    limit: Annotated[int | None, typer.Option("-n", "--limit", min=1, help="Only the newest N.")] = None,
    output: OutputOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> None:
    """List runs, newest first, with how many exports came to what."""
    from zooport.jobs.queries import print_runs

    print_runs(registry, limit, output)


@app.command()
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

        ray_jobs.print_status(_dashboard(address), run, output, watch=watch)
        return
    print_status(registry, run, output, watch=watch)


@app.command()
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

        ray_jobs.print_log(_dashboard(address), name, follow=follow)
        return
    print_log(registry, name, follow=follow)


@app.command()
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

        return ray_jobs.cancel(_dashboard(address), run, wait=wait)
    return monitor.cancel(registry, run, wait=wait)


def _dashboard(address: str) -> str:
    if not address.startswith(("http://", "https://")):
        raise typer.BadParameter(f"--address {address}: jobs are asked for at a dashboard, http://head:8265")
    return address


@app.command()
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


@app.command("gc")
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


@app.command()
def formats(output: OutputOption = OutputFormat.TABLE) -> None:
    """List the formats that checkpoints can be exported to."""
    from zooport.jobs.queries import print_formats

    print_formats(output)


@app.command()
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
    runtime_env: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="What Ray brings to a cluster's nodes: YAML or JSON, as Ray has it."
        ),
    ] = None,
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
    from zooport.jobs.runner import RunSettings
    from zooport.jobs.runtime_env import read_runtime_env

    environment = {} if runtime_env is None else read_runtime_env(runtime_env)
    if address is not None and ray_jobs.is_dashboard(address) and not dry_run:
        options = tuple(_passed_on(context))
        order = ray_jobs.Order(
            manifest, address, output, registry, tuple(imports or ()), options, environment, wait
        )
        return ray_jobs.submit(order, result)
    if not wait:
        raise typer.BadParameter("--no-wait is for jobs: --address http://head:8265")
    settings = RunSettings(address, workers, fail_fast, runtime_env=environment)
    deadlines = _deadlines(timeout)
    request = submission.Request(
        registry,
        settings,
        deadlines.total,
        dry_run,
        result,
        imports=tuple(imports or ()),
        deadlines=deadlines.stages,
        retries=retries,
        runtime=runtime,
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


@app.command()
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
    result: ResultOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Run again what failed and has not succeeded since, as a new run linked to the old one.

    What is asked for is what the registry recorded; to run an edited manifest, submit it again.
    """
    from zooport.jobs import submission

    if not failed:
        raise typer.BadParameter("say what to run again: --failed")
    request = _request_again(
        registry, address, workers, timeout, retries, dry_run, fail_fast, imports, result
    )
    return submission.rerun(request, run, code, include_unsupported=include_unsupported)


@app.command()
def resume(
    run: Annotated[str, typer.Argument(metavar="RUN", help='A run\'s id or its ending, or "latest".')],
    address: AddressOption = None,
    workers: JobsOption = None,
    timeout: TimeoutOption = None,
    retries: RetriesOption = None,
    dry_run: DryRunOption = False,
    fail_fast: FailFastOption = False,
    imports: ImportsOption = None,
    result: ResultOption = OutputFormat.TABLE,
    registry: RegistryOption = None,
) -> int:
    """Go on with a run that was cancelled or whose driver died: every export that never came to an end.

    It becomes a new run linked to the old one. What is asked for is what was submitted then; to run an edited
    manifest, submit it again: that, too, repeats nothing that is done. What failed by itself has come to its
    end: see rerun --failed.
    """
    from zooport.jobs import submission

    request = _request_again(
        registry, address, workers, timeout, retries, dry_run, fail_fast, imports, result
    )
    return submission.resume(request, run)


def _request_again(
    registry: str | None,
    address: str | None,
    workers: int | None,
    timeout: str | None,
    retries: int | None,
    dry_run: bool,
    fail_fast: bool,
    imports: list[str] | None,
    result: OutputFormat,
) -> submission.Request:
    """Return what rerun and resume ask for alike."""
    from zooport.jobs import submission
    from zooport.jobs.runner import RunSettings

    _refuse_dashboard(address)
    deadlines = _deadlines(timeout)
    return submission.Request(
        registry,
        RunSettings(address, workers, fail_fast),
        deadlines.total,
        dry_run,
        result,
        imports=tuple(imports or ()),
        deadlines=deadlines.stages,
        retries=retries,
    )


def _refuse_dashboard(address: str | None) -> None:
    if address is not None and address.startswith(("http://", "https://")):
        raise typer.BadParameter(
            f"{address} takes zooport submit alone: submit the manifest again, what is done is not repeated"
        )


@app.command(context_settings={"ignore_unknown_options": True})
def export(
    config: Annotated[Path, typer.Option("--config-file", help="A detectron2 config.")],
    weights: Annotated[str, typer.Option(help="Its weights: a file or an address.")],
    export_format: Annotated[str, typer.Option("--format", help="See: zooport formats.")],
    output: Annotated[
        str, typer.Option("--output", metavar="DIR|URL", help="Directory of the artifact, or its address.")
    ],
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

    For those who come from detectron2's export_model.py.
    """
    from zooport.jobs.single import Order, export_one

    deadlines = _deadlines(timeout)
    order = Order(
        config=config,
        weights=weights,
        format=export_format,
        output=output,
        sample_image=sample_image,
        run_eval=run_eval,
        annotations=annotations,
        images=images,
        overrides=tuple(overrides or ()),
        timeout=deadlines.total,
        deadlines=deadlines.stages,
        memory=_memory(memory_limit),
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


@app.command()
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

    deadlines = _deadlines(timeout)
    order = Order(artifact, images, out, score_threshold, limit, deadlines.total, deadlines.stages, registry)
    return run_prediction(order, output)


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


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and leave with 0 (fine), 1 (something failed), 2 (wrong usage) or 130 (Ctrl-C)."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name that a terminal cannot show is no error
    # Imports make many objects and no garbage; looking for some takes a tenth of a short command's time.
    gc.set_threshold(100_000)
    sys.exit(run(arguments))


def run(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; every error becomes one line on standard error."""
    try:
        result = app(args=arguments, prog_name="zooport", standalone_mode=False)
        return result if isinstance(result, int) else 0
    except Failure as failure:
        _complain(f"{failure.code}: {failure.message}", failure.hint)
        return exit_code(failure)
    except typer.TyperException as error:
        context = getattr(error, "ctx", None)
        _complain(error.format_message(), f"see {context.command_path if context else 'zooport'} --help")
        return error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        _complain("interrupted")
        return EXIT_INTERRUPTED
    except Exception as error:  # the boundary: what nobody foresaw still ends as one line
        if os.environ.get("ZOOPORT_DEBUG"):
            traceback.print_exc()
        _complain(f"{type(error).__name__}: {error}", "unforeseen; ZOOPORT_DEBUG=1 prints the stack trace")
        return FAILED


def _complain(message: str, hint: str = "") -> None:
    line = " ".join(message.split())
    typer.echo(f"zooport: {line}" + (f" ({hint})" if hint else ""), err=True)


if __name__ == "__main__":
    main()
