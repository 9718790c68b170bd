"""The evaluation of one model in parts: each predicts a slice of the dataset, the last step joins them.

What is evaluated is an artifact that waits in its staging directory, verified and not yet published, or the
eager model of a checkpoint. Any number of processes may predict at once; each leaves one file.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zooport.export_core import extensions, formats
from zooport.export_core.artifacts import VALUES
from zooport.export_core.config import Config, load_config
from zooport.export_core.description import read_description
from zooport.export_core.evaluation.costs import Costs, Stopwatch, joined, size_of
from zooport.export_core.evaluation.prediction_files import read_predictions, write_predictions
from zooport.export_core.failures import Stage
from zooport.export_core.formats.base import RUNTIME, AnyPredictor
from zooport.export_core.pipeline import (
    Report,
    eager_predictor,
    extra_inputs_of,
    load_eager,
    measured,
    predictor_of_images,
    take_over,
)
from zooport.export_core.shards import Shard
from zooport.export_core.sources import CheckpointSource, DatasetSource

Subject = CheckpointSource | Path
"""What is evaluated: a checkpoint's eager model, or the artifact in a staging directory."""


def predict_shard(
    subject: Subject, dataset: DatasetSource, shard: Shard, folder: Path, report: Report
) -> None:
    """Predict one slice of the dataset and leave the predictions in ``folder``.

    Raises:
        Failure: as evaluating the whole: ``artifact.*``, ``checkpoint.*``, ``unsupported.*``,
            ``dataset.invalid``, ``accuracy.nonfinite``, and ``resource.disk``.
    """
    from zooport.export_core.evaluation import load_dataset, open_image_cache, predict_images

    if isinstance(subject, CheckpointSource):
        report(Stage.LOAD)
    with _opened(subject) as (predict, config, stopwatch, load):
        report(Stage.EVALUATE)
        loaded = load_dataset(dataset)
        images = loaded.images[shard.start : shard.stop]
        cache = open_image_cache(loaded, config)
        predictions = predict_images(predict, loaded, config, images, cache=cache)
        costs = Costs.of(stopwatch, load)
    folder.mkdir(exist_ok=True)  # in one that is there: what was discarded meanwhile does not come back
    costs.write(_costs_of(folder, shard))
    write_predictions(folder / shard.file_name, predictions)


def merge_shards(
    subject: Subject, dataset: DatasetSource, shards: tuple[Shard, ...], folder: Path, report: Report
) -> dict[str, float]:
    """Join the predictions of all shards; return "bbox/AP" -> points (0-100), and costs, of the whole.

    What each image adds to the metrics is left in ``folder``, in the file VALUES.

    Raises:
        Failure: ``dataset.invalid``; a dataset that changed meanwhile is ``worker.error``.
    """
    from zooport.export_core.evaluation import load_dataset

    report(Stage.EVALUATE)
    predictions = read_predictions([folder / shard.file_name for shard in shards])
    costs = joined(Costs.read(_costs_of(folder, shard)) for shard in shards)
    if not isinstance(subject, CheckpointSource):
        config = take_over(subject)[0]
        metrics = measured(predictions, load_dataset(dataset), config, folder / VALUES)
        return metrics | costs.to_metrics(size_of(subject))
    with extensions.active(subject.imports):
        config = load_config(subject.config, subject.overrides)
        metrics = measured(predictions, load_dataset(dataset), config, folder / VALUES)
        return metrics | costs.to_metrics(subject.weights.stat().st_size)


def _costs_of(folder: Path, shard: Shard) -> Path:
    return folder / shard.costs_name


@contextmanager
def _opened(subject: Subject) -> Iterator[tuple[AnyPredictor, Config, Stopwatch, float]]:
    """Load what is evaluated.

    Yields:
        It as a function of an image alone; its config; what notes the time of each call; seconds to load.
    """
    if isinstance(subject, CheckpointSource):
        with extensions.active(subject.imports):
            config = load_config(subject.config, subject.overrides)
            begun = time.perf_counter()
            model, _ = load_eager(subject, config)
            load = time.perf_counter() - begun
            stopwatch = Stopwatch(eager_predictor(model))
            yield predictor_of_images(stopwatch, extra_inputs_of(model)), config, stopwatch, load
        return
    description = read_description(subject)
    config, fields, samples = take_over(subject)
    exporter = formats.get(description["format"])
    options = dict(description["options"])
    if RUNTIME in description.get("verification", {}):  # all parts are judged on the one that verified it
        options[RUNTIME] = description["verification"][RUNTIME]
    begun = time.perf_counter()
    stopwatch = Stopwatch(exporter.load(subject, fields, options))
    load = time.perf_counter() - begun
    extra_inputs = tuple(name for name in samples[0].inputs if name != "image")
    yield predictor_of_images(stopwatch, extra_inputs), config, stopwatch, load
