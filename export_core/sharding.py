"""The evaluation of one model in parts: each predicts a slice of the dataset, the last step joins them.

What is evaluated is an artifact that waits in its staging directory, verified and not yet published, or the
eager model of a checkpoint. Any number of processes may predict at once; each leaves one file.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from zooport.export_core import extensions, formats
from zooport.export_core.config import Config, load_config
from zooport.export_core.description import read_description
from zooport.export_core.evaluation.prediction_files import read_predictions, write_predictions
from zooport.export_core.failures import Stage
from zooport.export_core.formats.base import AnyPredictor
from zooport.export_core.pipeline import (
    Report,
    eager_predictor,
    extra_inputs_of,
    load_checkpoint,
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
    with _opened(subject) as (predict, config):
        report(Stage.EVALUATE)
        loaded = load_dataset(dataset)
        images = loaded.images[shard.start : shard.stop]
        cache = open_image_cache(loaded, config)
        predictions = predict_images(predict, loaded, config, images, cache=cache)
    folder.mkdir(exist_ok=True)  # in one that is there: what was discarded meanwhile does not come back
    write_predictions(folder / shard.file_name, predictions)


def merge_shards(
    subject: Subject, dataset: DatasetSource, shards: tuple[Shard, ...], folder: Path, report: Report
) -> dict[str, float]:
    """Join the predictions of all shards and return the metrics of the whole, "bbox/AP" -> points (0-100).

    Raises:
        Failure: ``dataset.invalid``; a dataset that changed meanwhile is ``worker.error``.
    """
    from zooport.export_core.evaluation import compute_metrics, load_dataset

    report(Stage.EVALUATE)
    predictions = read_predictions([folder / shard.file_name for shard in shards])
    if not isinstance(subject, CheckpointSource):
        return compute_metrics(predictions, load_dataset(dataset), take_over(subject)[0])
    with extensions.active(subject.imports):
        config = load_config(subject.config, subject.overrides)
        return compute_metrics(predictions, load_dataset(dataset), config)


@contextmanager
def _opened(subject: Subject) -> Iterator[tuple[AnyPredictor, Config]]:
    """Load what is evaluated; yield it as a function of an image alone, with its config."""
    predictor: AnyPredictor
    if isinstance(subject, CheckpointSource):
        with extensions.active(subject.imports):
            config = load_config(subject.config, subject.overrides)
            model, _, _ = load_checkpoint(subject, config)
            yield predictor_of_images(eager_predictor(model), extra_inputs_of(model)), config
        return
    description = read_description(subject)
    config, fields, samples = take_over(subject)
    predictor = formats.get(description["format"]).load(subject, fields, description["options"])
    extra_inputs = tuple(name for name in samples[0].inputs if name != "image")
    yield predictor_of_images(predictor, extra_inputs), config
