"""The datasets that detectron2 knows by name, and where it expects their files below ``DETECTRON2_DATASETS``.

Plain paths: whether the files are there is found out when the dataset is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from zooport.export_core.sources import DatasetSource

VARIABLE = "DETECTRON2_DATASETS"
_DEFAULT_ROOT = "datasets"
_VOC = {2007: ("trainval", "train", "val", "test"), 2012: ("trainval", "train", "val")}


@dataclass(frozen=True)
class _Place:
    """Where the files of a dataset lie below the root; "" for what it does not have."""

    annotations: str
    images: str
    kind: str = "coco"
    panoptic: str = ""
    panoptic_masks: str = ""
    image_list: str = ""
    year: int | None = None


def names() -> list[str]:
    """Return every name that :func:`named_dataset` knows."""
    return list(_places())


def datasets_root() -> Path:
    """Return the folder that ``DETECTRON2_DATASETS`` names, else ``datasets`` in the working directory."""
    return Path(os.environ.get(VARIABLE) or _DEFAULT_ROOT).expanduser().absolute()


def named_dataset(name: str) -> DatasetSource | None:
    """Return one of detectron2's datasets with absolute paths, None for a name that it does not have."""
    place = _places().get(name)
    if place is None:
        return None
    root = datasets_root()
    return DatasetSource(
        name,
        root / place.annotations,
        root / place.images,
        panoptic=root / place.panoptic if place.panoptic else None,
        panoptic_masks=root / place.panoptic_masks if place.panoptic_masks else None,
        kind=place.kind,
        image_list=root / place.image_list if place.image_list else None,
        year=place.year,
    )


@cache
def _places() -> dict[str, _Place]:
    return dict([*_coco(), *_panoptic(), *_lvis(), *_voc(), *_cityscapes(), *_ade20k()])


def _coco() -> Iterator[tuple[str, _Place]]:
    for year, splits in (
        ("2014", ("train", "val", "minival", "valminusminival")),
        ("2017", ("train", "val", "val_100")),
    ):
        for split in splits:
            folder = f"coco/{'train' if split == 'train' else 'val'}{year}"
            stem = f"{split}{year}" if split != "val_100" else f"val{year}_100"
            for prefix, kind in (("", "instances"), ("keypoints_", "person_keypoints")):
                file = f"coco/annotations/{kind}_{stem}.json"
                yield f"{prefix}coco_{year}_{split}", _Place(file, folder)


def _panoptic() -> Iterator[tuple[str, _Place]]:
    """Things from the instances file, stuff and segments from the panoptic one.

    detectron2 registers each of these under three names, which differ in what a model is trained with.
    """
    for split, stem in (("train", "train2017"), ("val", "val2017"), ("val_100", "val2017_100")):
        place = _Place(
            f"coco/annotations/instances_{stem}.json",
            f"coco/{stem.removesuffix('_100')}",
            panoptic=f"coco/annotations/panoptic_{stem}.json",
            panoptic_masks=f"coco/panoptic_{stem}",
        )
        for suffix in ("", "_separated", "_stuffonly"):
            yield f"coco_2017_{split}_panoptic{suffix}", place


def _lvis() -> Iterator[tuple[str, _Place]]:
    for version, splits in (
        ("v1", ("train", "val")),
        ("v0.5", ("train", "val", "val_rand_100", "train_cocofied", "val_cocofied")),
    ):
        for split in splits:
            file = f"lvis/lvis_{version}_{split}.json"
            yield f"lvis_{version}_{split}", _Place(file, "coco", "lvis")


def _voc() -> Iterator[tuple[str, _Place]]:
    for year, splits in _VOC.items():
        folder = f"VOC{year}"
        for split in splits:
            yield (
                f"voc_{year}_{split}",
                _Place(
                    f"{folder}/Annotations",
                    f"{folder}/JPEGImages",
                    "voc",
                    image_list=f"{folder}/ImageSets/Main/{split}.txt",
                    year=year,
                ),
            )


def _cityscapes() -> Iterator[tuple[str, _Place]]:
    for split in ("train", "val"):
        images, truth = f"cityscapes/leftImg8bit/{split}", f"cityscapes/gtFine/{split}"
        yield f"cityscapes_fine_instance_seg_{split}", _Place(truth, images, "cityscapes")
        yield f"cityscapes_fine_sem_seg_{split}", _Place(truth, images, "semantic")


def _ade20k() -> Iterator[tuple[str, _Place]]:
    for split, folder in (("train", "training"), ("val", "validation")):
        root = "ADEChallengeData2016"
        place = _Place(f"{root}/annotations_detectron2/{folder}", f"{root}/images/{folder}", "semantic")
        yield f"ade20k_sem_seg_{split}", place
