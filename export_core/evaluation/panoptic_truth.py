"""Ground truth of dense tasks: COCO panoptic annotations, their PNG files, and label maps made from them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from zooport.export_core.evaluation.annotations import Category, parse_images_and_categories, read_json
from zooport.export_core.evaluation.images import read_image
from zooport.export_core.evaluation.segmentation import LabelMap
from zooport.export_core.failures import Failure

IGNORED = 255
NOTHING = 0  # in a map of segment ids


@dataclass(frozen=True)
class TrueSegment:
    """One segment of the ground truth; ``id`` is its value in the PNG."""

    id: int
    category_id: int
    crowd: bool


@dataclass(frozen=True)
class PanopticImage:
    """The panoptic ground truth of one image."""

    path: Path
    segments: tuple[TrueSegment, ...]

    def read(self, height: int, width: int) -> LabelMap:
        """Return the map of segment ids, int32 (height, width), 0 where nothing is annotated.

        Raises:
            Failure: ``dataset.invalid``: unreadable, of another size, or with an id that the annotations
                lack.
        """
        colours = read_image(self.path, "RGB").astype(np.int32)
        if colours.shape[:2] != (height, width):
            raise Failure(
                "dataset.invalid",
                f"{self.path} is {colours.shape[1]}x{colours.shape[0]} pixels, its image {width}x{height}",
            )
        ids: LabelMap = colours[:, :, 0] + 256 * colours[:, :, 1] + 65536 * colours[:, :, 2]
        unknown = set(np.unique(ids).tolist()) - {0} - {segment.id for segment in self.segments}
        if unknown:
            raise Failure(
                "dataset.invalid", f"{self.path} holds segment {min(unknown)}, which its annotations lack"
            )
        return ids


@dataclass(frozen=True)
class PanopticTruth:
    """Checked COCO panoptic annotations; categories are sorted by id."""

    path: Path
    categories: tuple[Category, ...]
    images: Mapping[int | str, PanopticImage]

    @property
    def things(self) -> tuple[Category, ...]:
        """Categories with countable instances."""
        return tuple(category for category in self.categories if category.is_thing)

    @property
    def stuff(self) -> tuple[Category, ...]:
        """Categories without instances."""
        return tuple(category for category in self.categories if not category.is_thing)

    def require(self, image_ids: Iterable[int | str]) -> None:
        """Check that the images are annotated and their PNG files are there.

        Raises:
            Failure: ``dataset.invalid`` naming the image or the file.
        """
        for image_id in image_ids:
            entry = self.images.get(image_id)
            if entry is None:
                raise Failure("dataset.invalid", f"{self.path} does not annotate image {image_id}")
            if not entry.path.is_file():
                raise Failure("dataset.invalid", f"{entry.path}, which {self.path} names, does not exist")

    def label_map(self, image_id: int | str, labels: Mapping[int, int], size: tuple[int, int]) -> LabelMap:
        """Return the semantic label of each pixel, :data:`IGNORED` where nothing is annotated.

        Args:
            image_id: of an annotated image.
            labels: category id -> label.
            size: (H, W) of the image.
        """
        image = self.images[image_id]
        ids = image.read(*size)
        painted = np.full(ids.shape, IGNORED, dtype=np.int32)
        for segment in image.segments:
            painted[ids == segment.id] = labels[segment.category_id]
        return painted


def load_panoptic(path: Path, folder: Path) -> PanopticTruth:
    """Load and check COCO panoptic annotations.

    Args:
        path: the JSON file.
        folder: where its PNG files lie.

    Raises:
        Failure: ``dataset.invalid`` naming the file and what is wrong.
    """
    document, _ = read_json(path)
    _, categories = parse_images_and_categories(document, path)
    known = {category.id for category in categories}
    entries = document.get("annotations")
    if not isinstance(entries, list):
        raise Failure("dataset.invalid", f"{path} has no list 'annotations'")
    images: dict[int | str, PanopticImage] = {}
    for position, entry in enumerate(entries):
        try:
            segments = tuple(_segment(item, known) for item in entry["segments_info"])
            if len({segment.id for segment in segments}) < len(segments):
                raise ValueError("two segments have one id")
            if entry["image_id"] in images:
                raise ValueError(f"image {entry['image_id']} is annotated twice")
            images[entry["image_id"]] = PanopticImage(folder / entry["file_name"], segments)
        except (KeyError, TypeError, ValueError) as error:
            raise Failure(
                "dataset.invalid", f"{path} annotations[{position}] is not a panoptic annotation: {error}"
            ) from error
    return PanopticTruth(path, categories, images)


def _segment(item: Mapping[str, Any], known: set[int]) -> TrueSegment:
    if item["category_id"] not in known:
        raise ValueError(f"unknown category_id {item['category_id']!r}")
    if int(item["id"]) == NOTHING:
        raise ValueError(f"a segment has the id {NOTHING}, which stands for what is not annotated")
    return TrueSegment(int(item["id"]), item["category_id"], bool(item.get("iscrowd", 0)))
