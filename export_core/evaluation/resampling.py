"""How sure a difference of metrics is: the paired bootstrap over images (Efron 1979).

Both models are measured on the same resamples of the images: N images drawn with replacement from N,
RESAMPLES times. The middle 95% of the differences is the confidence interval (the percentile method). What
each task needs of an image is kept in a small file when a model is evaluated, so no model runs again and
nothing is matched again. The generator's seed is fixed: the same two files give the same interval.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.failures import Failure, Stage

Array = npt.NDArray[Any]
Tally = Mapping[str, Array]
"""What a task keeps of all images: arrays by name."""

RESAMPLES = 200
SEED = 20190412

_LEVEL = (2.5, 97.5)  # percent
_IMAGES = "images"


def write_tallies(path: Path, dataset: Dataset, tallies: Mapping[str, Tally]) -> None:
    """Write the tallies of a model's tasks, by their keys; the file appears whole or not at all."""
    ids = json.dumps([image.id for image in dataset.images]).encode()
    arrays = {_IMAGES: np.frombuffer(ids, dtype=np.uint8)}
    for task, tally in tallies.items():
        arrays |= {f"{task}/{name}": array for name, array in tally.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}")
    with aside.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]  # its stub takes keywords for an option
    aside.rename(path)


def read_tallies(path: Path) -> tuple[list[Any], dict[str, Tally]]:
    """Return the ids of the images and the tallies of each task, by its key.

    Raises:
        Failure: ``worker.error`` for a file that is gone or damaged.
    """
    tallies: dict[str, dict[str, Array]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            ids = json.loads(arrays[_IMAGES].tobytes())
            for key in arrays.files:
                task, slash, name = key.rpartition("/")
                if slash:
                    tallies.setdefault(task, {})[name] = arrays[key]
    except Exception as error:  # zip, zlib and numpy each have errors of their own
        raise Failure("worker.error", f"{path}: cannot be read: {error}", stage=Stage.EVALUATE) from error
    return ids, dict(tallies)


def compare_values(
    baseline: Path, exported: Path, report: Callable[[Stage], None]
) -> dict[str, tuple[float, float]]:
    """Return the 95% confidence interval of each metric's difference, exported minus eager, in points.

    A metric that is not defined in half of the resamples (AP of a category that few images have) has none;
    so has every metric of a dataset of one image.

    Args:
        baseline: file of :func:`write_tallies` for the eager model.
        exported: the same for the exported one.
        report: told the stage.

    Raises:
        Failure: ``worker.error`` when a file cannot be read, or they are of different images.
    """
    from zooport.export_core.evaluation.predict import known_tasks

    report(Stage.EVALUATE)
    ids, eager = read_tallies(baseline)
    others, changed = read_tallies(exported)
    if ids != others:
        raise Failure("worker.error", f"{baseline} and {exported} are of different images")
    if len(ids) < 2:
        return {}
    intervals = {}
    for key in eager.keys() & changed.keys():
        task: Any = known_tasks().get(key)
        resampled = getattr(task, "resampled", None)
        if resampled is not None:
            found = paired(resampled, eager[key], changed[key], len(ids))
            intervals.update({f"{task.name}/{metric}": ends for metric, ends in found.items()})
    return intervals


def paired(
    resampled: Callable[[Tally, Array], Mapping[str, Array]], eager: Tally, changed: Tally, images: int
) -> dict[str, tuple[float, float]]:
    """Return the interval of each metric's difference for one task.

    Args:
        resampled: (tally, weights (R, N)) -> metric -> values (R,).
        eager: tally of the eager model.
        changed: tally of the exported one.
        images: N.
    """
    if eager.keys() == changed.keys() and all(np.array_equal(eager[key], changed[key]) for key in eager):
        once = resampled(eager, np.ones((1, images), dtype=np.int32))
        return {name: (0.0, 0.0) for name, values in once.items() if np.isfinite(values).all()}
    weights = draw(images)
    one, other = resampled(eager, weights), resampled(changed, weights)
    intervals = {}
    for name in one.keys() & other.keys():
        differences = other[name] - one[name]
        differences = differences[np.isfinite(differences)]
        if 2 * differences.size >= RESAMPLES:
            low, high = np.percentile(differences, _LEVEL).tolist()
            intervals[name] = (low, high)
    return intervals


def draw(images: int) -> Array:
    """Return how often each of N images is in each resample: int32 (RESAMPLES, N), rows sum to N."""
    generator = np.random.default_rng(SEED)
    drawn: Array = generator.multinomial(images, np.full(images, 1.0 / images), size=RESAMPLES)
    return drawn.astype(np.int32)
