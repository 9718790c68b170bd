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
class ImageSample:
    """Take ``n`` images of a dataset, the same ones on every machine; another ``seed`` takes others."""

    n: int
    seed: int = 0


@dataclass(frozen=True)
class DatasetSource:
    """What to evaluate on: annotations, an image folder, and which of the images to take.

    ``limit`` takes the first N images, ``sample`` N spread over the whole dataset; not both.

    Panoptic models are compared with ``panoptic``, COCO panoptic annotations of the same images, whose PNG
    files lie in ``panoptic_masks``. Semantic heads are compared with label maps ``<image stem>.png`` (255 is
    ignored) in ``semantic_masks``, or with labels derived from the panoptic annotations.

    Attributes:
        kind: format of the annotations, and with it how detections are counted: one of :data:`KINDS`.
        annotations: a COCO or LVIS file; the folder of Pascal VOC's XML files; the folder of Cityscapes'
            ``<city>/*_gtFine_instanceIds.png``; of a semantic dataset, the folder of its label maps.
        images: the folder of the images; LVIS names them below it by the end of their ``coco_url``,
            ``val2017/000000397133.jpg``.
        image_list: of Pascal VOC: the file with one image name a line.
        year: of Pascal VOC: up to 2009 AP is taken at 11 points of recall, from 2010 on it is an area.
        classes: of Pascal VOC: the names in the order of the model's classes; () for its own twenty.
    """

    name: str
    annotations: Path
    images: Path
    limit: int | None = None
    panoptic: Path | None = None
    panoptic_masks: Path | None = None
    semantic_masks: Path | None = None
    kind: str = "coco"
    sample: ImageSample | None = None
    image_list: Path | None = None
    year: int | None = None
    classes: tuple[str, ...] = ()


KINDS = ("coco", "lvis", "voc", "cityscapes", "semantic")

DATASET_PATHS = ("annotations", "images", "image_list", "panoptic", "panoptic_masks", "semantic_masks")
"""The fields of a dataset that are paths."""
