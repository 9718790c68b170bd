"""A dataset to evaluate on: COCO annotations and the image files they name, checked before any work."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from zooport.export_core.evaluation.annotations import (
    Annotation,
    Category,
    ImageEntry,
    mask_rle,
    parse_coco,
    read_json,
)
from zooport.export_core.evaluation.panoptic_truth import PanopticTruth, load_panoptic
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource


@dataclass(frozen=True)
class DatasetImage:
    """One image to evaluate.

    Attributes:
        id: the dataset's own id.
        height: of the image in pixels, after EXIF rotation, as the annotations say; likewise ``width``.
        path: absolute path of the file.
    """

    id: int | str
    file_name: str
    path: Path
    height: int
    width: int


@dataclass(frozen=True)
class Dataset:
    """Checked annotations of the images to evaluate.

    Attributes:
        images: in the order of the annotation file, cut to the source's limit.
        categories: sorted by dataset id; position in this tuple is the contiguous class index of detectron2.
        annotations: those of ``images``.
        annotations_sha256: of the annotation file's bytes.
    """

    source: DatasetSource
    images: tuple[DatasetImage, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Annotation, ...]
    annotations_sha256: str

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """Contiguous class index -> name."""
        return tuple(category.name for category in self.categories)

    @cached_property
    def category_ids(self) -> tuple[int, ...]:
        """Contiguous class index -> the dataset's own category id."""
        return tuple(category.id for category in self.categories)

    @cached_property
    def annotations_by_image(self) -> dict[int | str, list[Annotation]]:
        """Image id -> its annotations, for every image and in the order of ``images``."""
        groups: dict[int | str, list[Annotation]] = {image.id: [] for image in self.images}
        for annotation in self.annotations:
            groups[annotation.image_id].append(annotation)
        return groups

    @cached_property
    def has_masks(self) -> bool:
        """Whether any object has a mask."""
        return any(annotation.segmentation is not None for annotation in self.annotations)

    @cached_property
    def mask_rles(self) -> tuple[dict[str, Any], ...]:
        """The mask of each annotation as pycocotools' compressed run lengths.

        Raises:
            Failure: ``dataset.invalid`` naming the annotation whose mask is absent or unreadable.
        """
        images = {image.id: image for image in self.images}
        rles = []
        for annotation in self.annotations:
            image = images[annotation.image_id]
            if annotation.segmentation is None:
                raise self.failure(
                    f"annotation {annotation.id} has no segmentation, but others have",
                    hint="evaluate masks on a dataset where every object has one",
                )
            try:
                rles.append(mask_rle(annotation.segmentation, image.height, image.width))
            except ValueError as error:
                raise self.failure(f"annotation {annotation.id}: segmentation: {error}") from error
        return tuple(rles)

    @cached_property
    def has_keypoints(self) -> bool:
        """Whether any object has keypoints."""
        return any(annotation.keypoints is not None for annotation in self.annotations)

    @cached_property
    def panoptic(self) -> PanopticTruth | None:
        """The panoptic annotations of every evaluated image, None when the source names none.

        Raises:
            Failure: ``dataset.invalid`` naming the file or image that is missing or wrong.
        """
        source = self.source
        if source.panoptic is None:
            return None
        if source.panoptic_masks is None:
            raise Failure(
                "dataset.invalid", f"dataset {source.name} names panoptic annotations but no panoptic_masks"
            )
        truth = load_panoptic(source.panoptic, source.panoptic_masks)
        truth.require([image.id for image in self.images])
        return truth

    def require_panoptic(self) -> PanopticTruth:
        """Return the panoptic annotations.

        Raises:
            Failure: ``dataset.invalid``: there are none, or as :attr:`panoptic`.
        """
        if self.panoptic is None:
            raise self.failure("comes without panoptic annotations")
        return self.panoptic

    def failure(self, what: str, hint: str = "") -> Failure:
        """Return a ``dataset.invalid`` that starts with the name of the annotation file."""
        return Failure("dataset.invalid", f"{self.source.annotations} {what}", hint=hint)

    def digest(self) -> str:
        """Return a sha256 over the content of everything that evaluation reads: annotations and images.

        Content, not modification times: a replaced image is always noticed, and a copy of a dataset on
        another machine has the same digest. It reads every evaluated image once, which is small beside one
        evaluation.

        Raises:
            Failure: ``dataset.invalid``: an image cannot be read.
        """
        extra = self._reference_files()
        paths = [image.path for image in self.images] + extra
        names = [image.file_name for image in self.images] + [path.name for path in extra]
        total = hashlib.sha256(self.annotations_sha256.encode())
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for name, content in zip(names, pool.map(_file_sha256, paths), strict=True):
                total.update(f"\n{content} {name}".encode())
        return total.hexdigest()

    def files(self) -> list[Path]:
        """Return every file that evaluation reads."""
        return [self.source.annotations, *(image.path for image in self.images), *self._reference_files()]

    def _reference_files(self) -> list[Path]:
        """Files beside the annotations and images that some tasks compare with, sorted."""
        return sorted(path for path in self._possible_reference_files() if path.is_file())

    def _possible_reference_files(self) -> Iterable[Path]:
        source = self.source
        if source.panoptic is not None:
            yield source.panoptic
        for folder in (source.panoptic_masks, source.semantic_masks):
            if folder is not None:
                yield from (folder / Path(image.file_name).with_suffix(".png") for image in self.images)


def load_dataset(source: DatasetSource) -> Dataset:
    """Load and check a dataset.

    Args:
        source: COCO instances or keypoints annotations, an image folder, and how many images to take.

    Raises:
        Failure: ``dataset.invalid`` naming the file and what is wrong: annotations that are missing, not JSON
            or malformed, unknown or repeated ids, no images, or an evaluated image whose file is not there.
    """
    document, content = read_json(source.annotations)
    coco = parse_coco(document, source.annotations)
    limit = source.limit
    if limit is not None and limit < 1:
        raise Failure("dataset.invalid", f"dataset {source.name}: limit must be at least 1, not {limit}")
    images = tuple(_image(entry, source.images) for entry in coco.images[:limit])
    _require_files(source, images)
    kept = {image.id for image in images}
    return Dataset(
        source=source,
        images=images,
        categories=coco.categories,
        annotations=tuple(entry for entry in coco.annotations if entry.image_id in kept),
        annotations_sha256=hashlib.sha256(content).hexdigest(),
    )


def _image(entry: ImageEntry, folder: Path) -> DatasetImage:
    return DatasetImage(entry.id, entry.file_name, folder / entry.file_name, entry.height, entry.width)


def _require_files(source: DatasetSource, images: Sequence[DatasetImage]) -> None:
    if not source.images.is_dir():
        raise Failure(
            "dataset.invalid",
            f"image folder {source.images} does not exist or is not a directory",
            hint="check the dataset's paths in the manifest",
        )
    missing = [image.file_name for image in images if not image.path.is_file()]
    if missing:
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if len(missing) > 3 else "")
        raise Failure(
            "dataset.invalid",
            f"{source.images} lacks {len(missing)} of the {len(images)} images that {source.annotations}"
            f" lists: {named}",
            hint="check the dataset's image folder, or set a limit",
            details={"missing": missing[:100]},
        )


def _file_sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Failure("dataset.invalid", f"cannot read {path}: {error.strerror or error}") from error
