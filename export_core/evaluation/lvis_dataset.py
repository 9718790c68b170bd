"""Reads LVIS annotations: COCO's format, and what is known of each image beyond its objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

from zooport.export_core.evaluation.annotations import read_json
from zooport.export_core.evaluation.datasets import Dataset, from_coco
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource

FREQUENCIES = ("r", "c", "f")


def load(source: DatasetSource) -> Dataset:
    """Load and check an LVIS dataset.

    The images lie below the source's folder as the end of each image's ``coco_url`` says
    (``val2017/000000397133.jpg``); where there is none, as ``file_name`` says.

    Raises:
        Failure: ``dataset.invalid`` naming the file and the entry that is missing or wrong.
    """
    document, content = read_json(source.annotations)
    known = _Known(source)
    known.read(document)
    images = [_with_file_name(image) for image in _entries(document, "images")]
    named = {**document, "images": images} if isinstance(document.get("images"), list) else document
    dataset = from_coco(source, named, content)
    return replace(
        dataset,
        images=tuple(
            replace(image, absent=known.absent[image.id], not_exhaustive=known.not_exhaustive[image.id])
            for image in dataset.images
        ),
        categories=tuple(
            replace(category, frequency=known.frequency[category.id]) for category in dataset.categories
        ),
    )


class _Known:
    """What an LVIS file says beyond COCO's keys, by ids."""

    def __init__(self, source: DatasetSource) -> None:
        self._path = source.annotations
        self.absent: dict[int | str, frozenset[int]] = {}
        self.not_exhaustive: dict[int | str, frozenset[int]] = {}
        self.frequency: dict[int, str] = {}

    def read(self, document: Mapping[str, Any]) -> None:
        """Read categories and images; what has no id is left for the COCO reader to refuse."""
        for entry in _entries(document, "categories"):
            if isinstance(entry, dict) and isinstance(entry.get("id"), int):
                self.frequency[entry["id"]] = self._frequency(entry)
        for entry in _entries(document, "images"):
            if isinstance(entry, dict) and isinstance(entry.get("id"), int | str):
                self.absent[entry["id"]] = self._ids(entry, "neg_category_ids")
                self.not_exhaustive[entry["id"]] = self._ids(entry, "not_exhaustive_category_ids")

    def _frequency(self, category: Mapping[str, Any]) -> str:
        found: Any = category.get("frequency")
        if found not in FREQUENCIES:
            raise self._failure(f"category {category['id']} has the frequency {found!r}, not r, c or f")
        return str(found)

    def _ids(self, image: Mapping[str, Any], key: str) -> frozenset[int]:
        ids = image.get(key)
        if not isinstance(ids, list) or not all(isinstance(each, int) for each in ids):
            raise self._failure(f"image {image['id']} has no list of ids '{key}'")
        return frozenset(ids)

    def _failure(self, problem: str) -> Failure:
        hint = "is it an LVIS file? For COCO leave the dataset's kind out"
        return Failure("dataset.invalid", f"{self._path} {problem}", hint=hint)


def _entries(document: Mapping[str, Any], key: str) -> list[Any]:
    """Return a list of the document, [] where it is none: the COCO reader says what is wrong with it."""
    entries = document.get(key)
    return entries if isinstance(entries, list) else []


def _with_file_name(image: Any) -> Any:
    url = image.get("coco_url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        return image
    return {**image, "file_name": "/".join(PurePosixPath(url).parts[-2:])}
