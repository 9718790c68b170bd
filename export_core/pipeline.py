"""One checkpoint through all stages, each stage in a process of its own.

:func:`export_stage` builds and converts; :func:`verify_stage` meets the artifact as a stranger, without the
code that made it; :func:`evaluate_eager` measures the original. What the first leaves for the second lies in
a hidden folder of the staging directory, which is dropped when the artifact is published.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from zooport.export_core import artifacts, extensions, formats
from zooport.export_core.artifacts import VALUES, visible_files
from zooport.export_core.config import Config, load_config
from zooport.export_core.description import describe_model, read_description, write_description
from zooport.export_core.evaluation import open_image_cache
from zooport.export_core.evaluation.costs import Costs, Stopwatch, size_of
from zooport.export_core.evaluation.images import require_format
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import RUNTIME, AnyPredictor, Array, as_arrays
from zooport.export_core.samples import Sample, find_samples, made_up_inputs
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.export_core.verification import verify

if TYPE_CHECKING:
    from torch import nn

    from zooport.export_core.evaluation import Dataset, ImagePrediction

Report = Callable[[Stage], None]

HANDOVER = artifacts.HANDOVER


def export_stage(
    checkpoint: CheckpointSource,
    format: str,  # noqa: A002  the word that manifests and the command line use
    options: Mapping[str, Any],
    dataset: DatasetSource | None,
    sample_image: Path | None,
    staging: Path,
    report: Report,
) -> list[str]:
    """Load a checkpoint, convert it, and leave the artifact's files in ``staging``.

    Args:
        checkpoint: what to export.
        format: a name of :func:`zooport.export_core.formats.names`.
        options: of the format.
        dataset: gives class names and sample images.
        sample_image: a file to try the export on, instead of the dataset's images.
        staging: an empty directory.
        report: told each stage as it begins.

    Returns:
        Remarks for the user, one line each.

    Raises:
        Failure: of any kind up to ``export.failed``; ``extension.invalid`` where the code of an extension
            raises.
    """
    report(Stage.LOAD)
    exporter = formats.get(format)
    exporter.check_options(options)
    with extensions.active(checkpoint.imports):
        return _export(checkpoint, exporter, options, dataset, sample_image, staging, report)


def _export(
    checkpoint: CheckpointSource,
    exporter: formats.Format,
    options: Mapping[str, Any],
    dataset: DatasetSource | None,
    sample_image: Path | None,
    staging: Path,
    report: Report,
) -> list[str]:
    config = load_config(checkpoint.config, checkpoint.overrides)
    require_format(config.INPUT.FORMAT)  # a synthetic picture would hide that no image can be read
    exporter.requires(config, options)
    loaded_dataset = _load_dataset(dataset, config)
    model, digest, weights_notes = load_checkpoint(checkpoint, config)
    predictor = eager_predictor(model)
    report(Stage.EXPORT)
    extra_inputs = extra_inputs_of(model)
    cache = None if loaded_dataset is None else open_image_cache(loaded_dataset, config)
    samples, sample_notes = find_samples(predictor, config, loaded_dataset, sample_image, extra_inputs, cache)
    notes = [*config.notes, *weights_notes, *sample_notes]
    if cache is not None and cache.remark:
        notes.append(cache.remark)
    if extra_inputs and dataset is not None:
        notes.append(f"{', '.join(extra_inputs)} were made up: metrics compare the model with itself only")
    fields = sorted(samples[0].outputs)
    notes += _unmeasured(config, loaded_dataset, fields)
    _convert(exporter, model, samples[0], fields, staging, options)
    notes += exporter.remarks
    description = describe_model(
        checkpoint, config, digest, exporter, samples[0], loaded_dataset, options, notes
    )
    exporter.annotate(staging, description)
    description["files"] = visible_files(staging)
    write_description(description, staging)
    _hand_over(staging, config, fields, samples)
    return notes


def verify_stage(staging: Path, dataset: DatasetSource | None, report: Report) -> dict[str, float]:
    """Load the artifact in ``staging``, compare its outputs with the eager model's, and evaluate it.

    The deviations found are entered into model.json.

    Returns:
        Metrics of the artifact, "bbox/AP" -> points (0-100), and its costs
        (:mod:`zooport.export_core.evaluation.costs`); empty without a dataset.

    Raises:
        Failure: ``artifact.unloadable``, ``artifact.mismatch``, ``accuracy.nonfinite``, ``dataset.invalid``.
    """
    report(Stage.VERIFY)
    description = read_description(staging)
    exporter = formats.get(description["format"])
    config, fields, samples = take_over(staging)
    options = description["options"]
    begun = time.perf_counter()
    predictor = Stopwatch(exporter.load(staging, fields, options))
    load = time.perf_counter() - begun
    expected = [Sample(one.name, *exporter.expected(one.inputs, one.outputs, options)) for one in samples]
    try:
        deviations = verify(predictor, expected, exporter.tolerance(options))
    except Failure as failure:
        if exporter.runtime:
            failure.details[RUNTIME] = exporter.runtime
        raise exporter.explain(failure, description["notes"]) from failure
    description["verification"] = ({RUNTIME: exporter.runtime} if exporter.runtime else {}) | {
        "samples": [_describe_sample(sample) for sample in samples],
        "largest_deviation_from_eager": deviations,
    }
    write_description(description, staging)
    if dataset is None:
        return {}
    report(Stage.EVALUATE)
    extra_inputs = tuple(name for name in samples[0].inputs if name != "image")
    predictor.seconds.clear()  # of the samples
    values = staging / HANDOVER / VALUES
    metrics, costs = _evaluate(predictor, load, dataset, config, extra_inputs, values)
    return metrics | costs.to_metrics(size_of(staging))


def evaluate_eager(checkpoint: CheckpointSource, dataset: DatasetSource, report: Report) -> dict[str, float]:
    """Measure the eager model as :func:`measure_eager` does, and keep no values."""
    return measure_eager(checkpoint, dataset, None, report)


def measure_eager(
    checkpoint: CheckpointSource, dataset: DatasetSource, values: Path | None, report: Report
) -> dict[str, float]:
    """Measure the eager model: the baseline that exports are compared with.

    Args:
        checkpoint: the model.
        dataset: what it is measured on.
        values: file for what each image adds to the metrics
            (:mod:`zooport.export_core.evaluation.resampling`); None keeps nothing.
        report: told each stage as it begins.

    Returns:
        "bbox/AP" -> points (0-100), and the costs; the size is that of the weights file.

    Raises:
        Failure: ``config.invalid``, ``checkpoint.*``, ``unsupported.*``, ``dataset.invalid``,
            ``accuracy.nonfinite``.
    """
    report(Stage.LOAD)
    with extensions.active(checkpoint.imports):
        config = load_config(checkpoint.config, checkpoint.overrides)
        begun = time.perf_counter()
        model, _ = load_eager(checkpoint, config)
        load = time.perf_counter() - begun
        report(Stage.EVALUATE)
        predictor = Stopwatch(eager_predictor(model))
        metrics, costs = _evaluate(predictor, load, dataset, config, extra_inputs_of(model), values)
        return metrics | costs.to_metrics(checkpoint.weights.stat().st_size)


def eager_predictor(model: nn.Module) -> AnyPredictor:
    """Return the model as a function from one image (C, H, W) to numpy fields."""
    import torch

    def predict(image: Array, **more: Array) -> dict[str, Array]:
        inputs = {name: torch.from_numpy(value) for name, value in {"image": image, **more}.items()}
        with torch.inference_mode():
            return as_arrays(model([inputs])[0])

    return predict


def predictor_of_images(predictor: AnyPredictor, extra_inputs: tuple[str, ...]) -> AnyPredictor:
    """Return a predictor that takes an image alone; values of the model's further inputs are made up."""

    def predict(image: Array, **frame: Array) -> dict[str, Array]:
        return predictor(image, **made_up_inputs(image, extra_inputs), **frame)

    predict.in_image_frame = getattr(predictor, "in_image_frame", False)  # type: ignore[attr-defined]
    return predict


def extra_inputs_of(model: nn.Module) -> tuple[str, ...]:
    """Return the names of what the model takes besides the image."""
    return tuple(getattr(model, "extra_inputs", ()))


def load_checkpoint(checkpoint: CheckpointSource, config: Config) -> tuple[nn.Module, str, list[str]]:
    """Return the model with its weights, the sha256 of the weights file, and remarks for the user.

    Raises:
        Failure: ``checkpoint.*``, ``unsupported.*``, ``config.invalid``.
    """
    from zooport.export_core.checkpoints import file_digest

    model, notes = load_eager(checkpoint, config)
    return model, file_digest(checkpoint.weights), notes


def load_eager(checkpoint: CheckpointSource, config: Config) -> tuple[nn.Module, list[str]]:
    """Return the model with its weights, and remarks for the user; raises as :func:`load_checkpoint`."""
    from zooport.export_core.checkpoints import read_weights
    from zooport.export_core.modeling.build import build_skeleton, load_model

    skeleton = build_skeleton(config)  # what is not supported is refused before large files are read
    weights = read_weights(checkpoint.weights)
    notes = list(weights.notes)
    return load_model(config, weights, str(checkpoint.weights), notes, skeleton), notes


def _load_dataset(dataset: DatasetSource | None, config: Config) -> Dataset | None:
    from zooport.export_core.evaluation import load_dataset, select_tasks

    if dataset is None:
        return None
    loaded = load_dataset(dataset)
    select_tasks(config, loaded)  # a dataset of other classes is refused before the long work
    return loaded


def _unmeasured(config: Config, dataset: Dataset | None, fields: list[str]) -> list[str]:
    from zooport.export_core.evaluation.tasks import unmeasured

    names = [] if dataset is None else unmeasured(config, dataset, fields)
    listed = ", ".join(names)
    return [f"no metric tells of {listed}: the dataset has nothing to compare with"] if names else []


def _evaluate(
    predictor: Stopwatch,
    load: float,
    dataset: DatasetSource,
    config: Config,
    extra_inputs: tuple[str, ...],
    values: Path | None,
) -> tuple[dict[str, float], Costs]:
    from zooport.export_core.evaluation import load_dataset, predict_images

    loaded = load_dataset(dataset)
    predict = predictor_of_images(predictor, extra_inputs)
    predictions = predict_images(predict, loaded, config, cache=open_image_cache(loaded, config))
    costs = Costs.of(predictor, load)  # before counting, whose memory is not the model's
    return measured(predictions, loaded, config, values), costs


def measured(
    predictions: Iterable[ImagePrediction], dataset: Dataset, config: Config, values: Path | None
) -> dict[str, float]:
    """Return the metrics of predictions, and write what each image adds to them into the file ``values``."""
    from zooport.export_core.evaluation import compute_metrics
    from zooport.export_core.evaluation.resampling import Tally, write_tallies

    tallies: dict[str, Tally] = {}
    metrics = compute_metrics(predictions, dataset, config, None if values is None else tallies)
    if values is not None:
        write_tallies(values, dataset, tallies)
    return metrics


def _convert(
    exporter: formats.Format,
    model: nn.Module,
    sample: Sample,
    fields: list[str],
    staging: Path,
    options: Mapping[str, Any],
) -> None:
    import torch

    inputs = {name: torch.from_numpy(value) for name, value in sample.inputs.items()}
    exporter.export(model, inputs, fields, staging, options)
    if not (staging / exporter.info.main_file).is_file():
        raise Failure(
            "export.failed", f"the converter wrote no {exporter.info.main_file}", stage=Stage.EXPORT
        )


def _describe_sample(sample: Sample) -> dict[str, Any]:
    _, height, width = sample.image.shape
    return {"name": sample.name, "height": height, "width": width, "detections": sample.detections}


def _hand_over(staging: Path, config: Config, fields: list[str], samples: list[Sample]) -> None:
    folder = staging / HANDOVER
    folder.mkdir()
    about = {
        "config": config.to_dict(),
        "fields": fields,
        "inputs": list(samples[0].inputs),
        "samples": [sample.name for sample in samples],
    }
    (folder / "about.json").write_text(json.dumps(about), encoding="utf-8")
    arrays: dict[str, Any] = {}
    for index, sample in enumerate(samples):
        arrays |= {f"{index}/in/{name}": value for name, value in sample.inputs.items()}
        arrays |= {f"{index}/out/{name}": value for name, value in sample.outputs.items()}
    np.savez(folder / "samples.npz", **arrays)


def take_over(staging: Path) -> tuple[Config, list[str], list[Sample]]:
    """Return what the export stage left in a staging directory: config, output fields and samples."""
    folder = staging / HANDOVER
    about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
    fields = about["fields"]
    with np.load(folder / "samples.npz", allow_pickle=False) as arrays:
        samples = [
            Sample(
                name,
                {key: arrays[f"{index}/in/{key}"] for key in about["inputs"]},
                {field: arrays[f"{index}/out/{field}"] for field in fields},
            )
            for index, name in enumerate(about["samples"])
        ]
    return Config(about["config"]), fields, samples
