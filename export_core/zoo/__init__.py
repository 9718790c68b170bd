"""The official detectron2 zoo by name: config, address of the weights and published metrics.

``configs/<name>.yaml`` holds what each model changes in detectron2's defaults, usable wherever a config file
is; ``catalog.json`` the rest. Models that detectron2 has only as Python (LazyConfig) are here as plain YAML.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import Any

from zooport.export_core.failures import Failure

_HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class CatalogEntry:
    """One official model.

    Attributes:
        name: detectron2's own, such as ``COCO-Detection/faster_rcnn_R_50_FPN_3x``.
        task: detection, instance-segmentation, keypoints, panoptic-segmentation, semantic-segmentation or
            proposals.
        weights: ``detectron2://`` address; None where detectron2 has released a config only.
        published: metrics that detectron2 reports, "bbox/AP" -> points (0-100).
        lazy: whether detectron2 has it only as a Python LazyConfig.
    """

    name: str
    task: str
    weights: str | None
    published: Mapping[str, float]
    lazy: bool

    @property
    def config(self) -> Path:
        """The config file, inside this package."""
        return _HERE / "configs" / f"{self.name}.yaml"

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "name": self.name,
            "task": self.task,
            "published": dict(self.published),
            "weights": self.weights,
            "config": str(self.config),
            "lazy": self.lazy,
        }


@cache
def catalog() -> Mapping[str, CatalogEntry]:
    """Return every official model by name, sorted."""
    facts: dict[str, dict[str, Any]] = json.loads((_HERE / "catalog.json").read_text("utf-8"))
    return {name: _entry(name, fact) for name, fact in sorted(facts.items())}


def _entry(name: str, fact: Mapping[str, Any]) -> CatalogEntry:
    weights = f"detectron2://{name}/{fact['weights']}" if "weights" in fact else None
    return CatalogEntry(name, fact["task"], weights, fact.get("published", {}), fact.get("lazy", False))


def tasks() -> list[str]:
    """Return the tasks that occur, sorted."""
    return sorted({entry.task for entry in catalog().values()})


def find(name: str) -> CatalogEntry:
    """Return one model; the ``.yaml`` or ``.py`` of detectron2's own names may be there or not.

    Raises:
        Failure: ``config.invalid``, suggesting the nearest name.
    """
    entry = catalog().get(_plain(name))
    if entry is None:
        raise _unknown(name)
    return entry


def expand(pattern: str) -> list[CatalogEntry]:
    """Return the models whose name matches a shell pattern, sorted by name.

    ``*`` also matches the slash. A pattern leaves out models whose weights were never released; a full name
    does not.

    Raises:
        Failure: ``config.invalid`` when no model matches.
    """
    plain = _plain(pattern)
    if plain in catalog():
        return [catalog()[plain]]
    found = [entry for name, entry in catalog().items() if entry.weights and fnmatchcase(name, plain)]
    if not found:
        raise _unknown(pattern)
    return found


def released_as(weights: Path) -> CatalogEntry | None:
    """Return the official model whose released weights are named like this file, None for all other files.

    The names carry digits of the file's MD5 and differ from each other, wherever the file lies.
    """
    return _by_file_name().get(weights.name)


@cache
def _by_file_name() -> Mapping[str, CatalogEntry]:
    return {Path(entry.weights).name: entry for entry in catalog().values() if entry.weights}


def _plain(name: str) -> str:
    return name.removesuffix(".yaml").removesuffix(".py")


def _unknown(name: str) -> Failure:
    near = difflib.get_close_matches(_plain(name), catalog(), n=1)
    hint = f"did you mean {near[0]}?" if near else "zooport zoo list shows all names"
    return Failure("config.invalid", f"no model of the official zoo is named {name}", hint=hint)
