"""How the outputs of a batch are laid out: the rows of all images in a row, and whose each of them is."""

from __future__ import annotations

from collections.abc import Sequence

from zooport.export_core.formats.base import Entry
from zooport.export_core.outputs import IMAGE_INDEX, has_rows


def describe_batch(outputs: Sequence[Entry], batch: int | str) -> list[Entry]:
    """Return the outputs of a batch for model.json, from those of one image.

    Args:
        outputs: entries of the fields.
        batch: how many images it has, or the name of that number.
    """
    described: list[Entry] = []
    for entry in outputs:
        if has_rows(entry["name"]):
            described.append({**entry, "container": "the rows of all images, one image after the other"})
        else:
            described.append({**entry, "shape": [batch, *entry.get("shape", [])]})
    if any(has_rows(entry["name"]) for entry in outputs):
        meaning = "which image of the batch each row belongs to"
        described.append({"name": IMAGE_INDEX, "dtype": "int64", "shape": ["N"], "meaning": meaning})
    return described
