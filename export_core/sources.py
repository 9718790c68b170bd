"""What a user names as input: a checkpoint and a dataset, as absolute paths. Plain data, no files opened."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class CheckpointSource:
    """What to export: a detectron2 config, its weights and dotted overrides; paths are absolute.

    ``imports`` names the extensions that bring the modules and keys that the config uses, as
    :func:`zooport.export_core.extensions.locate` wrote them.
    """

    name: str
    config: Path
    weights: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class DatasetSource:
    """What to evaluate on: COCO annotations and an image folder; ``limit`` takes the first N images.

    Panoptic models are compared with ``panoptic``, COCO panoptic annotations of the same images, whose PNG
    files lie in ``panoptic_masks``. Semantic heads are compared with label maps ``<image stem>.png`` (255 is
    ignored) in ``semantic_masks``, or with labels derived from the panoptic annotations.
    """

    name: str
    annotations: Path
    images: Path
    limit: int | None = None
    panoptic: Path | None = None
    panoptic_masks: Path | None = None
    semantic_masks: Path | None = None
