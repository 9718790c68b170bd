"""Files of predictions: what was found on some images of a dataset, to be joined with the rest.

A file holds what the tasks collected of each image as JSON, one image to a line, compressed. JSON keeps every
float to the last bit and the images' order does not matter, so metrics of parts equal those of the whole.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from zooport.export_core.evaluation.tasks import ImagePrediction

_LEVEL = 1  # of compression: files live for minutes


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
