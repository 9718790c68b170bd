"""``zooport export``: one checkpoint to one format, through the same stages as a run; no registry, no Ray."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.extensions import locate
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation import PRELOAD, ForkServer
from zooport.export_core.places import Place, RemotePath, expanded, output_place
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.exit_codes import exit_code
from zooport.jobs.fetching import fetch_weights
from zooport.jobs.followups import comparison, location, not_located, told
from zooport.jobs.nodes import check_outputs
from zooport.jobs.output import OutputFormat, cell, console, print_rows, print_value, size
from zooport.jobs.registry.records import Metric
from zooport.jobs.shards import run_part
from zooport.jobs.tolerances import refuse_unknown
from zooport.jobs.values import BaselineJob, BaselineResult, ExportJob, ExportResult, ExportTarget, Status
from zooport.jobs.verdicts import DRIFT, Verdict, decide
from zooport.jobs.worker import PIPELINE, OnStage, Stages, run_baseline, run_export

if TYPE_CHECKING:
    from rich.console import RenderableType


@dataclass(frozen=True)
class Order:
    """What is to be exported, as it stands on the command line.

    Attributes:
        weights: a path, or an address that can be fetched.
        output: directory of the artifact, or its address.
        run_eval: evaluate the eager and the exported model; takes ``annotations`` and ``images``.
        overrides: KEY VALUE KEY VALUE ...
        timeout, deadlines: seconds for the whole export and for its stages, and as many for the eager model's
            evaluation.
        memory: bytes that a process of the export may hold; 0 sets no limit.
        imports: extensions, by name or path.
        name: of the model, as model.json has it; None takes the config's folder.
        options: of the format, NAME=VALUE with a YAML value.
        limit, panoptic, panoptic_masks, semantic_masks: of the dataset, as in a manifest.
        tolerance: NAME=POINTS, as in a manifest.
        dataset: in place of its parts, a name of detectron2's or the keys of a manifest's dataset, in YAML.
        runtime: what verifies the artifact, of formats where there is a choice.
    """

    config: Path
    weights: str
    format: str
    output: Path | str
    sample_image: Path | None = None
    run_eval: bool = False
    annotations: Path | None = None
    images: Path | None = None
    overrides: Sequence[str] = ()
    timeout: float | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0
    imports: Sequence[str] = ()
    name: str | None = None
    options: Sequence[str] = ()
    limit: int | None = None
    panoptic: Path | None = None
    panoptic_masks: Path | None = None
    semantic_masks: Path | None = None
    tolerance: Sequence[str] = ()
    dataset: str | None = None
    runtime: str | None = None


def export_one(
    order: Order, result: OutputFormat, stages: Stages = PIPELINE, preload: tuple[str, ...] = PRELOAD
) -> int:
    """Export one checkpoint, print what came of it, and return the exit code.

    That is 0, 1 when the export failed, and 2 when what the command line names is missing or wrong.

    Raises:
        Failure: ``export.option``, ``config.invalid``, ``dataset.invalid`` or ``extension.invalid`` for what
            the command line lacks.
    """
    target = _target(order)
    refusal = target.refusal
    if refusal is not None:
        raise Failure(refusal.code, refusal.message, hint=refusal.hint)
    job = _job(order, target)
    check_outputs([job.output.parent])
    server = ForkServer(preload=preload)
    server.start()
    try:
        with _status() as on_stage:
            server.wait()
            verdict = _run(job, stages, server, on_stage)
    finally:
        server.close()
    _print(job, verdict, result)
    return 0 if verdict.failure is None else exit_code(verdict.failure)


def _target(order: Order) -> ExportTarget:
    from zooport.export_core import formats
    from zooport.export_core.checkpoints.fetch import cache_path, is_url

    # An unknown name is refused before anything is fetched or started.
    exporter = formats.get(order.format)
    chosen = {}
    if order.runtime is not None:
        exporter.check_runtime(order.runtime)
        chosen[formats.RUNTIME] = order.runtime
    options = {key: _yaml(value) for key, value in _settings("--option", order.options).items()} | chosen
    exporter.check_options(options)
    addresses: dict[Path, str] = {}
    weights = expanded(order.weights).absolute()
    if is_url(order.weights):
        weights = cache_path(order.weights)
        addresses[weights] = order.weights
    config = expanded(order.config).absolute()
    imports = tuple(locate(name, Path.cwd()) for name in order.imports)
    name = order.name or config.parent.name
    checkpoint = CheckpointSource(name, config, weights, _pairs(order.overrides), imports)
    tolerance = _settings("--tolerance", order.tolerance)
    points = {key: _points(key, value) for key, value in tolerance.items()}
    refuse_unknown(points, checkpoint)
    target = ExportTarget(
        checkpoint,
        order.format,
        options=options,
        dataset=_dataset(order),
        sample_image=_absolute(order.sample_image),
        tolerance=points,
        tolerance_origins={key: f"--tolerance {key}" for key in points},
    )
    return fetch_weights([target], addresses)[0]


def _pairs(words: Sequence[str]) -> dict[str, str]:
    """Return KEY VALUE ... as a mapping; values are decoded as detectron2 does when the config is merged."""
    for word in words:
        if word.startswith("--"):  # no value does; the parser lets it through as it lets -1 through
            raise Failure("export.option", f"there is no option {word}", hint="see zooport export --help")
    if len(words) % 2:
        problem = f"expected KEY VALUE pairs at the end, got {' '.join(words)!r}"
        raise Failure("config.invalid", problem, hint="each dotted key is followed by its value")
    return dict(zip(words[::2], words[1::2], strict=True))


def _settings(option: str, words: Sequence[str]) -> dict[str, str]:
    """Return NAME=VALUE ... as a mapping."""
    found = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise Failure("export.option", f"{option} takes NAME=VALUE, got {word!r}")
        found[name] = value
    return found


def _yaml(text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def _points(name: str, text: str) -> float:
    try:
        points = float(text)
    except ValueError:
        points = math.nan
    if not 0 <= points < math.inf:
        raise Failure("export.option", f"--tolerance {name}={text}: expected AP points, 0 or more")
    return points


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else expanded(path).absolute()


def _dataset(order: Order) -> DatasetSource | None:
    more = {
        name: _absolute(getattr(order, name)) for name in ("panoptic", "panoptic_masks", "semantic_masks")
    }
    given = [order.annotations, order.images, order.limit, *more.values()]
    if order.dataset is not None:
        if not order.run_eval or any(each is not None for each in given):
            problem = "--dataset says all about a dataset, and needs --run-eval"
            raise Failure("dataset.invalid", problem, hint="give --run-eval --dataset alone")
        return _described(order.dataset)
    if order.run_eval and order.annotations is not None and order.images is not None:
        annotations, images = (expanded(each).absolute() for each in (order.annotations, order.images))
        masks = more["panoptic"], more["panoptic_masks"], more["semantic_masks"]
        return DatasetSource(annotations.stem, annotations, images, order.limit, *masks)
    if order.run_eval or any(each is not None for each in given):
        problem = "--run-eval, --annotations and --images belong together"
        raise Failure("dataset.invalid", problem, hint="give all three, or --run-eval --dataset, or none")
    return None


def _described(text: str) -> DatasetSource:
    """Return the dataset that a name of detectron2's stands for, or keys of a manifest as YAML."""
    from pydantic import ValidationError

    from zooport.jobs.dataset_spec import read_dataset
    from zooport.jobs.manifest import expectation

    value = _yaml(text)
    try:
        return read_dataset(value if isinstance(value, dict) else {"name": text}, Path.cwd())
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = "".join(f"{part}: " for part in first["loc"][1:])
        raise Failure("dataset.invalid", f"--dataset: {key}{expectation(first, ('datasets', ''))}") from None


def _job(order: Order, target: ExportTarget) -> ExportJob:
    output = output_place(order.output, Path.cwd())
    return ExportJob(
        id="export",
        key="",
        checkpoint=target.checkpoint,
        format=target.format,
        output=output,
        log=output.with_name(f"{output.name}.log"),
        options=target.options,
        tolerance=target.tolerance,
        tolerance_origins=target.tolerance_origins,
        dataset=target.dataset,
        baseline=None if target.dataset is None else "baseline",
        timeout=order.timeout,
        sample_image=target.sample_image,
        deadlines=order.deadlines,
        reservation=order.memory,
        baseline_values=None if target.dataset is None else _baseline_values(output),
    )


def _baseline_values(output: Place) -> Path | None:
    return None if isinstance(output, RemotePath) else output.with_name(f".{output.name}.baseline.npz")


def _run(job: ExportJob, stages: Stages, server: ForkServer, on_stage: OnStage) -> Verdict:
    exported = run_export(job, stages, server=server, on_stage=on_stage)
    baseline = None
    if job.dataset is not None and exported.failure is None:
        eager = BaselineJob(
            key="baseline",
            checkpoint=job.checkpoint,
            dataset=job.dataset,
            log=job.log,
            timeout=job.timeout,
            deadlines=job.deadlines,
            reservation=job.reservation,
            values=job.baseline_values,
        )
        baseline = run_baseline(eager, stages, server=server, on_stage=on_stage)

    def run(part: ExportJob) -> ExportResult:
        answer = run_part(part, stages, server=server, on_stage=on_stage)
        assert isinstance(answer, ExportResult)  # noqa: S101 - it answers a part of an export
        return answer

    verdict = _decide(job, exported, baseline, run)
    for values in (exported.values, job.baseline_values):
        if values is not None:
            values.unlink(missing_ok=True)
    return verdict


def _decide(
    job: ExportJob,
    exported: ExportResult,
    baseline: BaselineResult | None,
    run: Callable[[ExportJob], ExportResult],
) -> Verdict:
    """Judge as a run does: how sure the deltas are comes first, where a drift begins after."""
    intervals: Mapping[str, tuple[float, float]] = {}
    lack = ""
    if exported.failure is None and baseline is not None and baseline.failure is None:
        more = comparison(job, exported)
        answer = run(more) if isinstance(more, ExportJob) else None
        if answer is None:
            lack = str(more)
        else:
            intervals, lack = answer.intervals, told(answer.failure) if answer.failure is not None else ""
    verdict = decide(job, exported, baseline, intervals, lack)
    if verdict.failure is None or verdict.failure.code != DRIFT:
        return verdict
    search = location(job, exported)
    answer = run(search) if isinstance(search, ExportJob) else None
    why = str(search) if answer is None else told(answer.failure) if answer.failure is not None else ""
    remark = (not_located(why),) if why else ()
    result = replace(verdict.result, notes=(*verdict.result.notes, *remark))
    return replace(verdict, result=result if answer is None else replace(result, drift=answer.drift))


@contextmanager
def _status() -> Iterator[OnStage]:
    """Show the stage on a terminal."""
    if not sys.stderr.isatty():
        yield lambda stage: None
        return
    with console(stderr=True).status("starting") as status:

        def show(stage: Stage) -> None:
            status.update(str(stage))

        yield show


def _print(job: ExportJob, verdict: Verdict, result: OutputFormat) -> None:
    row = _row(job, verdict)
    if result is OutputFormat.CSV:
        print_rows([row], list(row), result, lambda _: _page(job, verdict))
    else:
        print_value(row, result, lambda _: _page(job, verdict))


def _row(job: ExportJob, verdict: Verdict) -> dict[str, Any]:
    failure, artifact = verdict.failure, verdict.result.artifact
    return {
        "format": job.format,
        "status": str(_status_of(verdict)),
        "code": None if failure is None else failure.code,
        "message": None if failure is None else failure.message,
        "hint": None if failure is None else failure.hint,
        "stage": None if failure is None else failure.stage,
        "artifact": None if artifact is None else str(artifact.path),
        "main_file": None if artifact is None else artifact.main_file,
        "sha256": None if artifact is None else artifact.sha256,
        "bytes": None if artifact is None else artifact.size,
        "runtime": None if artifact is None else artifact.runtime or None,
        "metrics": {name: delta.to_dict() for name, delta in verdict.deltas.items()},
        "drift": verdict.result.drift,
        "seconds": verdict.result.seconds,
        "stages": dict(verdict.result.stages),
        "notes": list(verdict.result.notes),
        "log": str(job.log),
    }


def _status_of(verdict: Verdict) -> Status:
    if verdict.failure is None:
        return Status.SUCCEEDED
    return Status.UNSUPPORTED if verdict.failure.unsupported else Status.FAILED


def _page(job: ExportJob, verdict: Verdict) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from zooport.export_core.evaluation.costs import without_costs
    from zooport.jobs.drifts import drift_page
    from zooport.jobs.tables import cost_table, metric_table

    failure, artifact = verdict.failure, verdict.result.artifact
    parts: list[RenderableType] = []
    if failure is not None:
        parts.append(Text.assemble(cell(failure.code, "bold red"), ": ", cell(failure.message)))
        parts += [cell(failure.hint, "dim")] if failure.hint else []
        parts.append(Text.assemble("log: ", cell(job.log)))
    else:
        compared = "" if verdict.deltas else ", not evaluated: give --run-eval with a dataset to compare AP"
        runtime = f" on {artifact.runtime}" if artifact is not None and artifact.runtime else ""
        parts.append(Text.assemble(("verified", "green"), runtime, compared))
    parts += [cell(note, "dim") for note in verdict.result.notes]
    if artifact is not None:
        parts.append(
            Text.assemble(cell(artifact.path / artifact.main_file), f" ({size(artifact.size)} in all)")
        )
    if verdict.deltas:
        if verdict.result.drift is not None:
            parts += [Text("where it drifts", style="bold"), drift_page(verdict.result.drift)]
        metrics = _metrics(verdict)
        parts += [metric_table(without_costs(metrics), {}), cost_table(metrics)]
    return Group(*parts)


def _metrics(verdict: Verdict) -> Mapping[str, Metric]:
    return {name: Metric(**asdict(delta)) for name, delta in verdict.deltas.items()}
