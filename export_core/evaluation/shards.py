"""Evaluation in parts: slices of a dataset, and files of predictions that join to the whole's metrics.

A file holds what the tasks collected of each image as JSON, one image to a line, compressed. JSON keeps every
float to the last bit and the images' order does not matter, so metrics of parts equal those of the whole.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from zooport.export_core.evaluation.tasks import ImagePrediction

SHARD_IMAGES = 250
"""Images of one shard when nothing else is asked for."""

_LEVEL = 1  # of compression: files live for minutes


@dataclass(frozen=True)
class Shard:
    """The images ``start`` to ``stop`` - 1 of a dataset, in its order; ``number`` counts from 1 to ``of``."""

    number: int
    of: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """How the file of its predictions is called."""
        return f"shard-{self.number}-of-{self.of}.gz"


def split(images: int, size: int) -> tuple[Shard, ...]:
    """Cut a dataset of so many images into shards of at most ``size``, as equal as can be.

    Raises:
        ValueError: ``size`` is not positive.
    """
    if size < 1:
        raise ValueError(f"a shard has at least one image, not {size}")
    count = -(-images // size)
    edges = [images * number // count for number in range(count + 1)] if count else []
    return tuple(
        Shard(number, count, start, stop) for number, (start, stop) in enumerate(pairwise(edges), start=1)
    )


def write_predictions(path: Path, predictions: Iterable[ImagePrediction]) -> None:
    """Write predictions to a file, which appears whole or not at all."""
    aside = path.with_name(f".{path.name}")
    with gzip.open(aside, "wt", compresslevel=_LEVEL, encoding="utf-8") as file:
        for prediction in predictions:
            file.write(json.dumps([prediction.image_id, prediction.values], separators=(",", ":")))
            file.write("\n")
    aside.rename(path)


def read_predictions(paths: Sequence[Path]) -> Iterator[ImagePrediction]:
    """Yield the predictions of all files; OSError or ValueError when one is not there or damaged."""
    for path in paths:
        with gzip.open(path, "rt", encoding="utf-8") as file:
            for line in file:
                image_id, values = json.loads(line)
                yield ImagePrediction(image_id, values)
