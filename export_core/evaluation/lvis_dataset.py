"""Reads LVIS annotations: COCO's format, and what is known of each image beyond its objects."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from zooport.export_core.evaluation.annotations import read_json
from zooport.export_core.evaluation.datasets import Dataset, Federation, from_coco
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource

FREQUENCIES = ("r", "c", "f")
_HINT = "is it an LVIS file? For COCO leave the dataset's kind out"


def load(source: DatasetSource) -> Dataset:
    """Load and check an LVIS dataset.

    The images lie below the source's folder as the end of each image's ``coco_url`` says
    (``val2017/000000397133.jpg``); where there is none, as ``file_name`` says.

    Raises:
        Failure: ``dataset.invalid`` naming the file and the entry that is missing or wrong.
    """
    document, content = read_json(source.annotations)
    images = [_with_file_name(image) for image in _entries(document, "images")]
    named = {**document, "images": images} if isinstance(document.get("images"), list) else document
    return from_coco(source, named, content, federation=_federation(source, document))


def _entries(document: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list of the document, [] where it is none: the COCO reader says what is wrong with it."""
    entries = document.get(key)
    return entries if isinstance(entries, list) else []


def _with_file_name(image: Any) -> Any:
    url = image.get("coco_url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        return image
    return {**image, "file_name": "/".join(PurePosixPath(url).parts[-2:])}


def _federation(source: DatasetSource, document: Mapping[str, Any]) -> Federation:
    frequency: dict[int, str] = {}
    for entry in _entries(document, "categories"):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            continue  # the COCO reader refuses it
        identifier, given = entry["id"], entry.get("frequency")
        if given not in FREQUENCIES:
            problem = f"category {identifier} has the frequency {given!r}, not r, c or f"
            raise Failure("dataset.invalid", f"{source.annotations} {problem}", hint=_HINT)
        frequency[identifier] = given
    lists: dict[str, dict[Any, frozenset[int]]] = {"neg_category_ids": {}, "not_exhaustive_category_ids": {}}
    for image in _entries(document, "images"):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int | str):
            continue  # the COCO reader refuses it
        for key, found in lists.items():
            ids = image.get(key)
            if not isinstance(ids, list) or not all(isinstance(each, int) for each in ids):
                problem = f"image {image['id']} has no list of ids '{key}'"
                raise Failure("dataset.invalid", f"{source.annotations} {problem}", hint=_HINT)
            found[image["id"]] = frozenset(ids)
    return Federation(lists["neg_category_ids"], lists["not_exhaustive_category_ids"], frequency)
