"""What ``zooport submit``, ``rerun`` and ``resume`` do: targets, a plan, a run, a table."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from zooport.export_core import formats
from zooport.export_core.extensions import locate
from zooport.export_core.failures import Failure
from zooport.export_core.places import Place, output_place, real
from zooport.jobs.digests import DigestCache, default_cache
from zooport.jobs.exit_codes import BROKEN_OFF
from zooport.jobs.fetching import fetch_weights
from zooport.jobs.hosts import HostSettings
from zooport.jobs.manifest import load_manifest
from zooport.jobs.nodes import check_outputs, output_root
from zooport.jobs.output import OutputFormat, print_rows
from zooport.jobs.packing import read_origin
from zooport.jobs.plan import Plan, make_plan, place
from zooport.jobs.progress import display
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import ExportFilter, FailedExport, export_id, new_run_id
from zooport.jobs.registry.records import text as as_stored
from zooport.jobs.runner import RunSettings, run_plan
from zooport.jobs.values import ExportJob, ExportTarget

if TYPE_CHECKING:
    from rich.console import RenderableType

    from zooport.jobs.registry.writer import Registry

_PATIENCE = 120.0  # seconds that a run waits for a registry which is locked or whose server is away
PLAN_COLUMNS = ("model", "format", "action", "reason", "output", "key")


@dataclass(frozen=True)
class Request:
    """What submit, rerun and resume have in common.

    Attributes:
        registry: URL; None takes the default.
        settings: how to run.
        timeout: seconds per job in place of what the manifest says.
        dry_run: print the plan and do nothing.
        result: how the final result, or the plan, is printed.
        hosts: what workers are given, apart from the run's id.
        imports: extensions besides those of the manifest or of the failed jobs, by name or path.
        deadlines: seconds per stage, in place of what the manifest says of the same stages.
        retries: how often what may pass by itself is tried again, in place of what the manifest says.
        runtime: what verifies artifacts of the formats that have it, in place of what the manifest says.
    """

    registry: str | None = None
    settings: RunSettings = RunSettings()  # noqa: RUF009 - frozen
    timeout: float | None = None
    dry_run: bool = False
    result: OutputFormat = OutputFormat.TABLE
    hosts: HostSettings = HostSettings("")  # noqa: RUF009 - frozen
    imports: tuple[str, ...] = ()
    deadlines: Mapping[str, float] = field(default_factory=dict)
    retries: int | None = None
    runtime: str | None = None


@dataclass(frozen=True)
class _Work:
    """What a run is to do and where it comes from."""

    manifest: Path
    text: str
    wanted: Sequence[tuple[ExportTarget, Place]]
    kind: str = "submit"
    parent: str | None = None
    replaces: Sequence[str] = field(default_factory=tuple)
    reasons: Sequence[str] = field(default_factory=tuple)
    run_id: str | None = None


def submit(manifest_path: Path, request: Request, output: Path | str | None = None) -> int:
    """Run a manifest: what is not done yet, and what changed.

    Args:
        manifest_path: the manifest.
        request: how.
        output: where artifacts go, a folder or an address, in place of what the manifest says.

    Returns:
        The exit code: 0, 1 when an export failed, 130 when interrupted.

    Raises:
        Failure: ``manifest.invalid``, ``registry.*``, ``run.conflict``, ``cluster.unavailable``.
    """
    manifest = load_manifest(manifest_path)
    root = manifest.output if output is None else output_place(output, Path.cwd())
    targets: Sequence[ExportTarget] = _as_asked(manifest.targets, request)
    if not request.dry_run:
        targets = fetch_weights(targets, manifest.addresses)
    wanted = [(target, place(target, root)) for target in targets]
    origin = read_origin(manifest.path.parent)
    if origin is not None:  # this is the driver of a job: what was submitted is what counts
        return _carry_out(_Work(origin.manifest, origin.text, wanted, run_id=origin.run_id), request)
    return _carry_out(_Work(manifest.path, manifest.text, wanted), request)


def rerun(request: Request, run: str | None, code: str | None, *, include_unsupported: bool) -> int:
    """Run again what failed, as a new run linked to the old one.

    Args:
        request: how.
        run: only what failed in this run.
        code: only failures whose code matches this glob.
        include_unsupported: also refusals.

    Returns:
        The exit code; 0 when there is nothing to run again.
    """
    with open_registry(request.registry, create=False) as registry:
        _recover(registry)
        failed = registry.failed_exports(run, code, include_unsupported=include_unsupported)
        said = "" if failed else "nothing failed that has not succeeded since"
        failed = _repeatable(failed)
        if not failed:
            if said:
                sys.stderr.write(f"zooport: {said}\n")
            if request.result is not OutputFormat.TABLE:
                print_rows([], PLAN_COLUMNS, request.result, lambda tables: tables.plain_table([], ()))
            return 0
        latest = failed[-1].run
        path, text = registry.manifest(latest)
    targets = _as_asked([_target(each.job) for each in failed], request)
    if not request.dry_run:
        targets = fetch_weights(targets)
    wanted = [(target, each.job.output) for target, each in zip(targets, failed, strict=True)]
    replaces = [each.id for each in failed]
    reasons = [f"{each.status} as {each.id}: {each.code}: {each.message}" for each in failed]
    return _carry_out(_Work(Path(path), text, wanted, "rerun", latest, replaces, reasons), request)


def _repeatable(failed: Sequence[FailedExport]) -> list[FailedExport]:
    """Return what may be run again as it was recorded, and say what may not.

    What the manifest was refused for needs another manifest. Of several exports into one directory, as of a
    manifest that was renamed, the newest is run; the next rerun finds its artifact for the others.
    """
    found = [each for each in failed if not each.code.startswith("manifest.")]
    if len(found) < len(failed):
        sys.stderr.write(
            f"zooport: {len(failed) - len(found)} refused for what the manifest says:"
            " edit it and submit it again\n"
        )
    newest = {real(each.job.output): each for each in found}
    if len(newest) < len(found):
        sys.stderr.write(
            f"zooport: {len(found) - len(newest)} older ones write the same directories as others,"
            " which are run in their place\n"
        )
    return list(newest.values())


def resume(request: Request, run: str) -> int:
    """Go on with a run where it stopped, as a new run linked to it: every export that never came to an end.

    What is asked for is what the registry recorded when the run was submitted; the manifest is not read.

    Args:
        request: how.
        run: the run, as people name it.

    Returns:
        The exit code; 0 when everything has come to an end.

    Raises:
        Failure: ``registry.*``, ``run.conflict`` when a living driver is at it, ``cluster.unavailable``.
    """
    with open_registry(request.registry, create=False) as registry:
        _recover(registry)
        run_id = registry.run(run).id
        unfinished = registry.unfinished_exports(run_id)
        path, text = registry.manifest(run_id)
    _note_changes(run_id, Path(path), text)
    if not unfinished:
        sys.stderr.write(f"zooport: every export of {run_id} has come to an end\n")
        if request.result is not OutputFormat.TABLE:
            print_rows([], PLAN_COLUMNS, request.result, lambda tables: tables.plain_table([], ()))
        return 0
    targets = _as_asked([_target(each.job) for each in unfinished], request)
    if not request.dry_run:
        targets = fetch_weights(targets)
    wanted = [(target, each.job.output) for target, each in zip(targets, unfinished, strict=True)]
    replaces = [each.newest for each in unfinished]
    reasons = [f"{each.newest} never came to an end" for each in unfinished]
    return _carry_out(_Work(Path(path), text, wanted, "resume", run_id, replaces, reasons), request)


def _note_changes(run_id: str, path: Path, submitted: str) -> None:
    """Say so if the manifest is not what it was: an edit has no effect here."""
    try:
        current = as_stored(path.read_text(encoding="utf-8"))
        change = "" if current == submitted else "was edited"
    except (OSError, UnicodeDecodeError):
        change = "cannot be read any more"
    if change:
        sys.stderr.write(
            f"zooport: {path} {change} since {run_id} began; this goes on with what was submitted then"
            " (zooport submit takes the manifest as it is now)\n"
        )


def _recover(registry: Registry) -> None:
    """Close the runs of dead drivers, remove what their jobs left half-written, and say so."""
    for run in registry.recover_stale_runs():
        sys.stderr.write(f"zooport: the driver of {run} is dead; what was running is marked as crashed\n")


def _as_asked(targets: Sequence[ExportTarget], request: Request) -> list[ExportTarget]:
    """Return the targets with what the command line adds to their own: extensions, limits, a runtime."""
    added = [locate(name, Path.cwd()) for name in request.imports]
    asked = [_with_limits(_with_imports(target, added), request) for target in targets]
    return asked if request.runtime is None else _with_runtime(asked, request.runtime)


def _with_runtime(targets: Sequence[ExportTarget], runtime: str) -> list[ExportTarget]:
    """Return the targets, those of a format that has the runtime with it.

    Raises:
        Failure: ``export.option`` when there are none.
    """
    having = {info.name for info in formats.describe() if runtime in info.runtimes}
    if not any(target.format in having for target in targets):
        some = {name: info.name for info in formats.describe() for name in info.runtimes}
        raise Failure(
            "export.option",
            f"--runtime {runtime}: no format of the manifest has it",
            hint=f"there are {', '.join(f'{name} of {form}' for name, form in some.items())}",
        )
    return [
        replace(target, options={**target.options, formats.RUNTIME: runtime})
        if target.format in having
        else target
        for target in targets
    ]


def _with_imports(target: ExportTarget, added: Sequence[str]) -> ExportTarget:
    imports = tuple(dict.fromkeys([*target.checkpoint.imports, *added]))
    return replace(target, checkpoint=replace(target.checkpoint, imports=imports))


def _target(job: ExportJob) -> ExportTarget:
    return ExportTarget(
        checkpoint=job.checkpoint,
        format=job.format,
        options=job.options,
        dataset=job.dataset,
        sample_image=job.sample_image,
        tolerance=job.tolerance,
        tolerance_origins=job.tolerance_origins,
        timeout=job.timeout,
        deadlines=job.deadlines,
        retries=job.retries,
        shard_images=job.shard_images,
        memory=job.memory,
    )


def _carry_out(work: _Work, request: Request) -> int:
    if request.dry_run:
        _print_plan(_plan(work, _history(request.registry)), request.result)
        return 0
    with open_registry(request.registry) as registry:
        _recover(registry)
        plan = _plan(work, registry)
        check_outputs([output_root(job) for job in plan.to_run])
        _begin(registry, work, plan)
        registry.be_patient(_PATIENCE)
        hosts = replace(request.hosts, run_id=plan.run_id, driver=Driver.current())
        with display(len(plan.exports), len(plan.cached)) as shown:
            try:
                outcome = run_plan(plan, registry, shown, request.settings, hosts)
            except Failure as failure:
                if failure.code.startswith("registry."):  # its file or server was there when the run began
                    failure.details[BROKEN_OFF] = plan.run_id
                raise
        _print_result(registry, plan.run_id, request.result)
        return outcome.exit_code


def _with_limits(target: ExportTarget, request: Request) -> ExportTarget:
    return replace(
        target,
        timeout=target.timeout if request.timeout is None else request.timeout,
        deadlines={**target.deadlines, **request.deadlines},
        retries=target.retries if request.retries is None else request.retries,
    )


def _history(url: str | None) -> Registry | None:
    try:
        return open_registry(url, create=False)
    except Failure as failure:
        if failure.code != "registry.missing":
            raise
        return None


def _plan(work: _Work, history: Registry | None) -> Plan:
    run_id = work.run_id or new_run_id()
    while history is not None and history.has_run(run_id):
        run_id = new_run_id()  # chance and a clock that was set back made one that is there already
    return make_plan(
        work.wanted,
        run_id=run_id,
        export_ids=(export_id(run_id, number) for number in range(1, len(work.wanted) + 1)),
        history=history,
        digests=DigestCache(default_cache()),
        reasons=work.reasons,
    )


def _begin(registry: Registry, work: _Work, plan: Plan) -> None:
    replaces = dict(zip((job.id for job in plan.jobs), work.replaces, strict=False))
    registry.begin_run(
        work.manifest,
        work.text,
        plan.jobs,
        plan.baselines,
        kind=work.kind,
        parent=work.parent,
        cached=plan.cached,
        run_id=plan.run_id,
        replaces=replaces,
        refused={each.job.id: each.refusal for each in plan.exports if each.refusal is not None},
    )


def _print_plan(plan: Plan, result: OutputFormat) -> None:
    rows: list[Mapping[str, str]] = [each.to_dict() for each in plan.exports]
    shown = ("model", "format", "action", "reason")
    print_rows(rows, PLAN_COLUMNS, result, lambda tables: tables.plain_table(rows, shown))


def _print_result(registry: Registry, run_id: str, result: OutputFormat) -> None:
    from zooport.jobs.queries import EXPORT_COLUMNS
    from zooport.jobs.report import render_run

    def table(_: object) -> RenderableType:
        return render_run(registry, run_id)

    rows = [row.to_dict() for row in registry.exports(ExportFilter(run=run_id))]
    print_rows(rows, EXPORT_COLUMNS, result, table)
