"""Reads COCO annotation files and checks every field that evaluation will touch.

A file that would fail or, worse, silently count wrong in the middle of an evaluation is refused here, before
any forward pass, as ``dataset.invalid`` naming the file and the entry.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_util

from zooport.export_core.failures import Failure

# pycocotools walks along a polygon's edges pixel by pixel: absurd coordinates would take memory and hours.
_COORDINATE_LIMIT = 1e6
_NUMBER_LIMIT = 1e300
# Characters of one compressed run length: six hold 29 bits, more pixels than any image has.
_LONGEST_RUN = 6

PATHS_HINT = (
    "check the dataset's paths in the manifest; detectron2's names are looked up below DETECTRON2_DATASETS"
)


@dataclass(frozen=True)
class ImageEntry:
    """One image as the annotation file lists it; sizes in pixels, after EXIF rotation."""

    id: int | str
    file_name: str
    height: int
    width: int


@dataclass(frozen=True)
class Category:
    """One category.

    Attributes:
        keypoints: names of its keypoints, their numbers from 0 on where the file gives no names; empty when
            it has none.
        frequency: in LVIS, by images of the training set: "r" (rare), "c" (common) or "f" (frequent).
        skeleton: which keypoints a line joins when they are drawn, as pairs of indices from 0 on.
    """

    id: int
    name: str
    keypoints: tuple[str, ...] = ()
    is_thing: bool = True
    frequency: str = ""
    skeleton: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Annotation:
    """One annotated object, in pixels of the original image.

    Attributes:
        box: x, y, width, height.
        area: of the object, as the file says; of its mask, or else of its box, when the file does not say.
        crowd: a region of many objects, which costs a model neither matches nor false positives.
        difficult: in Pascal VOC, an object that costs neither when found nor when missed.
        segmentation: polygons or a run-length encoding as pycocotools reads them, None without a mask.
        keypoints: x, y, visibility for each keypoint, flat; None when there are none.
    """

    id: int | str
    image_id: int | str
    category_id: int
    box: tuple[float, float, float, float]
    area: float
    crowd: bool
    segmentation: Any = None
    keypoints: tuple[float, ...] | None = None
    difficult: bool = False


@dataclass(frozen=True)
class CocoFile:
    """A checked COCO annotation file; categories are sorted by id, the rest is in the file's order."""

    images: tuple[ImageEntry, ...]
    categories: tuple[Category, ...]
    annotations: tuple[Annotation, ...]


def read_json(path: Path) -> tuple[Mapping[str, Any], bytes]:
    """Read a JSON object and return it with the bytes of the file.

    Raises:
        Failure: ``dataset.invalid``: missing, unreadable, not JSON, or not an object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Failure(
            "dataset.invalid",
            f"cannot read annotations {path}: {error.strerror or error}",
            hint=PATHS_HINT,
        ) from error
    try:
        document = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise Failure("dataset.invalid", f"{path} is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise Failure("dataset.invalid", f"{path} holds a JSON {type(document).__name__}, not an object")
    return document, content


def parse_coco(document: Mapping[str, Any], path: Path) -> CocoFile:
    """Check the content of a COCO instances or keypoints file.

    Args:
        document: the parsed JSON object.
        path: where it came from, for messages.

    Raises:
        Failure: ``dataset.invalid`` naming the file, the entry and what is wrong with it.
    """
    reader = _Reader(path)
    categories = reader.entries(document, "categories", reader.category)
    images = reader.entries(document, "images", reader.image)
    if not images:
        raise reader.failure("lists no images")
    if not categories:
        raise reader.failure("defines no categories")
    by_image = {image.id: image for image in images}
    by_category = {category.id: category for category in categories}
    annotations = reader.entries(
        document, "annotations", lambda entry, what: reader.annotation(entry, what, by_image, by_category)
    )
    named = reader.with_keypoints(categories, annotations)
    ordered = tuple(sorted(named, key=lambda category: category.id))
    return CocoFile(tuple(images), ordered, tuple(annotations))


def parse_images_and_categories(
    document: Mapping[str, Any], path: Path
) -> tuple[tuple[ImageEntry, ...], tuple[Category, ...]]:
    """Check the images and categories that a COCO panoptic file shares with the other kinds."""
    reader = _Reader(path)
    categories = reader.entries(document, "categories", reader.category)
    images = reader.entries(document, "images", reader.image)
    return tuple(images), tuple(sorted(categories, key=lambda category: category.id))


class _Reader:
    """Checks the entries of one file; every complaint starts with the file's name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def failure(self, what: str, hint: str = "") -> Failure:
        return Failure("dataset.invalid", f"{self.path} {what}", hint=hint)

    def entries(
        self, document: Mapping[str, Any], key: str, parse: Callable[[Mapping[str, Any], str], Any]
    ) -> list[Any]:
        """Parse the objects of one top-level list and refuse an id that comes twice."""
        raw = document.get(key)
        if not isinstance(raw, list):
            hint = "zooport reads the COCO format"
            raise self.failure(f"has no list '{key}'" if raw is None else f"'{key}' is not a list", hint)
        parsed, seen = [], set()
        singular = {"categories": "category"}.get(key, key.removesuffix("s"))
        for position, entry in enumerate(raw):
            if not isinstance(entry, dict) or "id" not in entry:
                raise self.failure(f"{key}[{position}] is not an object with an id")
            identifier = entry["id"]
            if isinstance(identifier, bool) or not isinstance(identifier, int | str):
                raise self.failure(f"{key}[{position}] has the id {identifier!r}, not an integer")
            if identifier in seen:
                raise self.failure(f"has more than one {singular} with id {identifier}")
            seen.add(identifier)
            parsed.append(parse(entry, f"{singular} {identifier}"))
        return parsed

    def category(self, entry: Mapping[str, Any], what: str) -> Category:
        if not isinstance(entry["id"], int):
            raise self.failure(f"{what}: the id of a category must be an integer")
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise self.failure(f"{what} has no name")
        keypoints = entry.get("keypoints") or []
        if not isinstance(keypoints, list):
            raise self.failure(f"{what}: keypoints must be a list of names")
        names = tuple(str(keypoint) for keypoint in keypoints)
        return Category(
            entry["id"],
            name,
            names,
            bool(entry.get("isthing", 1)),
            skeleton=_skeleton(entry.get("skeleton"), len(names)),
        )

    def image(self, entry: Mapping[str, Any], what: str) -> ImageEntry:
        file_name = entry.get("file_name")
        if not isinstance(file_name, str) or not file_name or "\0" in file_name:
            raise self.failure(f"{what} has no file_name")
        size = [entry.get("height"), entry.get("width")]
        if not all(isinstance(value, int) and not isinstance(value, bool) and value > 0 for value in size):
            raise self.failure(
                f"{what} ({file_name}): height and width must be positive integers, not {size}"
            )
        return ImageEntry(entry["id"], file_name, entry["height"], entry["width"])

    def annotation(
        self,
        entry: Mapping[str, Any],
        what: str,
        images: Mapping[int | str, ImageEntry],
        categories: Mapping[int, Category],
    ) -> Annotation:
        image = self._known(entry, "image_id", images, what)
        category = self._known(entry, "category_id", categories, what)
        box = self._box(entry.get("bbox"), what)
        segmentation = self._segmentation(entry.get("segmentation"), image, what)
        crowd = entry.get("iscrowd", 0)
        if crowd not in (0, 1):
            raise self.failure(f"{what}: iscrowd must be 0 or 1, not {crowd!r}")
        area = entry.get("area")
        if area is None:
            area = self._mask_area(segmentation, image, what) if segmentation else box[2] * box[3]
        elif not _is_number(area) or area < 0:
            raise self.failure(f"{what}: area must be a number that is not negative, not {area!r}")
        return Annotation(
            id=entry["id"],
            image_id=image.id,
            category_id=category.id,
            box=box,
            area=float(area),
            crowd=bool(crowd),
            segmentation=segmentation,
            keypoints=self._keypoints(entry.get("keypoints"), category, what),
        )

    def _known(self, entry: Mapping[str, Any], key: str, known: Mapping[Any, Any], what: str) -> Any:
        value = entry.get(key)
        if isinstance(value, int | str) and not isinstance(value, bool) and value in known:
            return known[value]
        raise self.failure(
            f"{what} has {key} {value!r}, which the file does not define",
            hint=f"define it in the file, or remove the annotation; {len(known)} are defined",
        )

    def _box(self, box: Any, what: str) -> tuple[float, float, float, float]:
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            raise self.failure(f"{what}: bbox must be four numbers x, y, width, height, not {box!r}")
        if box[2] < 0 or box[3] < 0:
            raise self.failure(
                f"{what}: bbox {box} has a negative width or height",
                hint="COCO boxes are x, y, width, height",
            )
        x, y, width, height = map(float, box)
        return x, y, width, height

    def _segmentation(self, value: Any, image: ImageEntry, what: str) -> Any:
        if not value:
            return None
        if isinstance(value, list):
            return self._polygons(value, what)
        if isinstance(value, dict):
            return self._run_lengths(value, image, what)
        raise self.failure(f"{what}: segmentation is neither polygons nor a run-length encoding")

    def _polygons(self, polygons: Sequence[Any], what: str) -> Any:
        for polygon in polygons:
            if not isinstance(polygon, list) or not polygon or len(polygon) % 2:
                raise self.failure(f"{what}: a polygon must be a flat list of x, y pairs")
            if not all(_is_number(value) and abs(value) <= _COORDINATE_LIMIT for value in polygon):
                raise self.failure(f"{what}: a polygon holds a coordinate that is not a plausible number")
        return polygons

    def _run_lengths(self, rle: Mapping[str, Any], image: ImageEntry, what: str) -> Any:
        size, counts = rle.get("size"), rle.get("counts")
        if size != [image.height, image.width]:
            raise self.failure(
                f"{what}: its mask has size {size}, but image {image.file_name} has"
                f" [{image.height}, {image.width}]"
            )
        if not isinstance(counts, list | str):
            raise self.failure(f"{what}: its run-length encoding has no counts")
        runs = _decode_counts(counts) if isinstance(counts, str) else counts
        whole = all(isinstance(run, int) and run >= 0 for run in runs)
        if not whole or sum(runs) != image.height * image.width:
            raise self.failure(f"{what}: its run lengths do not add up to its image's pixels")
        return rle

    def _mask_area(self, segmentation: Any, image: ImageEntry, what: str) -> float:
        try:
            return float(mask_util.area(mask_rle(segmentation, image.height, image.width)))
        except ValueError as error:
            raise self.failure(f"{what}: segmentation: {error}") from error

    def _keypoints(self, value: Any, category: Category, what: str) -> tuple[float, ...] | None:
        if not value:
            return None
        wanted = 3 * len(category.keypoints)
        numbers = value if isinstance(value, list) and all(map(_is_number, value)) else ()
        if not numbers or len(numbers) % 3 or wanted not in (0, len(numbers)):
            each = f"each of the {len(category.keypoints)} keypoints" if wanted else "each keypoint"
            raise self.failure(
                f"{what}: keypoints must be {f'{wanted} ' if wanted else ''}numbers, x, y and visibility for"
                f" {each} of category {category.name}"
            )
        return tuple(map(float, numbers))

    def with_keypoints(
        self, categories: Sequence[Category], annotations: Sequence[Annotation]
    ) -> list[Category]:
        """Number the keypoints of categories that do not name them; nothing is measured by their names."""
        counts: dict[int, int] = {}
        for annotation in annotations:
            if annotation.keypoints is None:
                continue
            count = len(annotation.keypoints) // 3
            first = counts.setdefault(annotation.category_id, count)
            if count != first:
                raise self.failure(
                    f"annotation {annotation.id} has {count} keypoints, others of its category {first}"
                )
        return [
            category
            if category.keypoints
            else replace(category, keypoints=tuple(map(str, range(counts.get(category.id, 0)))))
            for category in categories
        ]


def mask_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Rasterise polygons or an uncompressed encoding to pycocotools' compressed run lengths.

    Raises:
        ValueError: pycocotools cannot read it.
    """
    try:
        if isinstance(segmentation, list):
            rle = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
        elif isinstance(segmentation["counts"], list):
            rle = mask_util.frPyObjects(segmentation, height, width)
        else:
            rle = segmentation
        area = int(mask_util.area(rle))
    except Exception as error:  # its extension raises bare Exception for what it cannot read
        raise ValueError(str(error)) from error
    if area > height * width:
        raise ValueError("more pixels than the image has")
    return dict(rle)


def _decode_counts(text: str) -> list[int]:
    """Decode COCO's compressed run lengths; pycocotools loops for ever over malformed ones.

    Each number is written five bits to a character, the lowest first, with a sixth bit for "more follows" and
    the sign in the last fifth bit; from the fourth number on it is the difference to the last but one.

    Returns:
        The run lengths, or [-1] for what cannot be one.
    """
    codes = np.frombuffer(text.encode("ascii", "replace"), dtype=np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63 or codes[-1] & 32:
        return [-1]
    ends = np.flatnonzero(codes & 32 == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _LONGEST_RUN:
        return [-1]
    digit = np.arange(codes.size) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((codes & 31) << 5 * digit, starts)
    values -= np.where(codes[ends] & 16, 1 << 5 * (ends - starts + 1), 0)
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    runs: list[int] = values.tolist()
    return runs


def _skeleton(given: Any, count: int) -> tuple[tuple[int, int], ...]:
    """Return COCO's pairs, which count from 1, from 0 on; it is for drawing, so a strange one is none."""
    pairs = given if isinstance(given, list) else []
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return ()
    if not all(type(end) is int and 1 <= end <= count for pair in pairs for end in pair):
        return ()
    return tuple((first - 1, second - 1) for first, second in pairs)


def _is_number(value: Any) -> bool:
    """Whether a JSON value is a finite number; comparing also holds for NaN and for endless integers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _NUMBER_LIMIT
