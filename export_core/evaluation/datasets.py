"""A dataset to evaluate on: annotations and the image files they name, checked before any work.

Each kind of dataset is read by a module of its own, which has the function ``load``; COCO is read here.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, TypeVar

from zooport.export_core.evaluation.annotations import (
    PATHS_HINT,
    Annotation,
    Category,
    mask_rle,
    parse_coco,
    read_json,
)
from zooport.export_core.evaluation.panoptic_truth import PanopticTruth, load_panoptic
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource

_LOADERS = {
    "lvis": "lvis_dataset",
    "voc": "voc_dataset",
    "cityscapes": "cityscapes_dataset",
    "semantic": "semantic_dataset",
}
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class DatasetImage:
    """One image to evaluate.

    Attributes:
        id: the dataset's own id.
        height: of the image in pixels, after EXIF rotation, as the annotations say; likewise ``width``.
        path: absolute path of the file.
        absent: in LVIS, ids of the categories that are known not to be there.
        not_exhaustive: in LVIS, ids of the categories of which not every object is annotated.
    """

    id: int | str
    file_name: str
    path: Path
    height: int
    width: int
    absent: frozenset[int] = frozenset()
    not_exhaustive: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Dataset:
    """Checked annotations of the images to evaluate.

    Attributes:
        images: in the order of the annotation file, cut to the source's limit or sample.
        categories: sorted by dataset id; position in this tuple is the contiguous class index of detectron2.
        annotations: those of ``images``; none for Cityscapes, whose instances are read image by image.
        annotations_sha256: of the bytes of all annotation files.
        annotation_files: where annotations are not one file but one for each image.
        listed_folders: where no file lists the images: folders in which another one may appear.
    """

    source: DatasetSource
    images: tuple[DatasetImage, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Annotation, ...]
    annotations_sha256: str
    annotation_files: tuple[Path, ...] = ()
    listed_folders: tuple[Path, ...] = ()

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
        if self.source.kind != "coco":  # the same files are counted in another way
            counted = self.source.kind, self.source.year, self.class_names
            total.update(f"\n{counted}".encode())
        with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
            for name, content in zip(names, pool.map(_file_sha256, paths), strict=True):
                # A name need not be UTF-8: Python holds its other bytes as halves of surrogate pairs.
                total.update(f"\n{content} {name}".encode("utf-8", "surrogateescape"))
        return total.hexdigest()

    def files(self) -> list[Path]:
        """Return every file that evaluation reads, and every folder whose files are the list of images."""
        annotations = self.annotation_files or (self.source.annotations,)
        images = [image.path for image in self.images]
        return [*annotations, *images, *self._reference_files(), *self.listed_folders]

    @cached_property
    def _panoptic_maps(self) -> tuple[Path, ...]:
        """The PNG files of the evaluated images, which panoptic annotations name as they like.

        None where those cannot be read: a model that needs them is refused with what is wrong.
        """
        source = self.source
        if source.panoptic is None or source.panoptic_masks is None:
            return ()
        try:
            truth = load_panoptic(source.panoptic, source.panoptic_masks)
        except Failure:
            return ()
        return tuple(truth.images[image.id].path for image in self.images if image.id in truth.images)

    def _reference_files(self) -> list[Path]:
        """Files beside the annotations and images that some tasks compare with, sorted."""
        return sorted(path for path in self._possible_reference_files() if path.is_file())

    def _possible_reference_files(self) -> Iterable[Path]:
        source = self.source
        if source.panoptic is not None:
            yield source.panoptic
        yield from self._panoptic_maps
        if source.semantic_masks is not None:
            masks = source.semantic_masks
            yield from (masks / Path(image.file_name).with_suffix(".png") for image in self.images)


def load_dataset(source: DatasetSource) -> Dataset:
    """Load and check a dataset.

    Args:
        source: annotations, an image folder, and which images to take.

    Raises:
        Failure: ``dataset.invalid`` naming the file and what is wrong: annotations that are missing, not in
            the format of their kind or malformed, unknown or repeated ids, no images, or an evaluated image
            whose file is not there.
    """
    if source.kind == "coco":
        document, content = read_json(source.annotations)
        return from_coco(source, document, content)
    if source.kind not in _LOADERS:
        raise Failure("dataset.invalid", f"dataset {source.name} is of the unknown kind {source.kind!r}")
    loader = import_module(f"{__package__}.{_LOADERS[source.kind]}")
    loaded: Dataset = loader.load(source)
    return loaded


def from_coco(source: DatasetSource, document: Mapping[str, Any], content: bytes) -> Dataset:
    """Return the dataset of a COCO document; ``content`` are the bytes of its file."""
    coco = parse_coco(document, source.annotations)
    images = tuple(
        DatasetImage(entry.id, entry.file_name, source.images / entry.file_name, entry.height, entry.width)
        for entry in choose(source, coco.images, lambda entry: entry.id)
    )
    require_files(source, images)
    kept = {image.id for image in images}
    return Dataset(
        source=source,
        images=images,
        categories=coco.categories,
        annotations=tuple(entry for entry in coco.annotations if entry.image_id in kept),
        annotations_sha256=hashlib.sha256(content).hexdigest(),
    )


def choose(
    source: DatasetSource, entries: Sequence[_Entry], identify: Callable[[_Entry], int | str]
) -> list[_Entry]:
    """Return the entries that the source's limit or sample takes, in the given order.

    A sample takes the images whose digests of seed and id are smallest. So it is the same on every machine
    and for every version of Python, it does not depend on the order of a file, and a larger sample with the
    same seed contains the smaller one.

    Raises:
        Failure: ``dataset.invalid``: a limit or sample below 1, or both.
    """
    limit, sample = source.limit, source.sample
    if limit is not None and sample is not None:
        raise Failure("dataset.invalid", f"dataset {source.name} has a limit and a sample; give one of them")
    for name, count in (("limit", limit), ("sample.n", None if sample is None else sample.n)):
        if count is not None and count < 1:
            raise Failure("dataset.invalid", f"dataset {source.name}: {name} must be at least 1, not {count}")
    if sample is None:
        return list(entries[:limit])
    texts = (f"{sample.seed}:{identify(entry)}" for entry in entries)
    digests = [hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest() for text in texts]
    first = sorted(range(len(entries)), key=digests.__getitem__)[: sample.n]
    return [entries[index] for index in sorted(first)]


def require_files(source: DatasetSource, images: Sequence[DatasetImage]) -> None:
    """Refuse a dataset whose image folder or one of whose images is not there."""
    if not source.images.is_dir():
        raise Failure(
            "dataset.invalid",
            f"image folder {source.images} does not exist or is not a directory",
            hint=PATHS_HINT,
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
