"""Reads Pascal VOC annotations: a list of image names, and for each image an XML file."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

from zooport.export_core.evaluation.annotations import PATHS_HINT, Annotation, Category
from zooport.export_core.evaluation.datasets import Dataset, DatasetImage, choose, require_files
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource

#: The twenty classes of Pascal VOC, in the order in which detectron2's models number them.
CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
_LARGEST_FILE = 16 << 20  # bytes; the annotations of an image take some thousand
_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


def load(source: DatasetSource) -> Dataset:
    """Load and check a Pascal VOC dataset.

    An image's id is its name in the list. Boxes become x, y, width, height from 0 on, where VOC counts pixels
    from 1 and the last one belongs to the object.

    Raises:
        Failure: ``dataset.invalid`` naming the file and what is missing or wrong in it.
    """
    if source.image_list is None or source.year is None:
        raise Failure("dataset.invalid", f"VOC dataset {source.name} needs an image_list and a year")
    listed, content = _names(source.image_list)
    names = choose(source, listed, lambda name: name)
    classes = source.classes or CLASSES
    if len(set(classes)) < len(classes):
        raise Failure("dataset.invalid", f"VOC dataset {source.name} names a class twice: {list(classes)}")
    index = {name: position for position, name in enumerate(classes)}
    digest = hashlib.sha256(content)
    images: list[DatasetImage] = []
    annotations: list[Annotation] = []
    for name in names:
        path = source.annotations / f"{name}.xml"
        root, content = _parse(path)
        digest.update(hashlib.sha256(content).digest())
        height, width = _size(root, path)
        file = _image_file(source.images, name)
        images.append(DatasetImage(name, file.name, file, height, width))
        for each in root.findall("object"):
            annotations.append(_annotation(_object(each, path), index, name, len(annotations), path))
    require_files(source, images)
    return Dataset(
        source=source,
        images=tuple(images),
        categories=tuple(Category(position, name) for name, position in index.items()),
        annotations=tuple(annotations),
        annotations_sha256=digest.hexdigest(),
        annotation_files=(source.image_list, *(source.annotations / f"{name}.xml" for name in names)),
    )


def _names(path: Path) -> tuple[list[str], bytes]:
    """Return the image names of a list, and its bytes; what follows a name on its line is left out."""
    content = _read(path)
    try:
        lines = content.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise Failure("dataset.invalid", f"{path} is not UTF-8 text: {error}") from None
    names = [line.split()[0] for line in lines if line.strip()]
    if not names:
        raise Failure("dataset.invalid", f"{path} lists no images")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise Failure("dataset.invalid", f"{path} lists image {name} twice")
        seen.add(name)
    return names, content


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise Failure("dataset.invalid", f"{path} is too large for VOC annotations")
        return path.read_bytes()
    except OSError as error:
        problem = f"cannot read annotations {path}: {error.strerror or error}"
        raise Failure("dataset.invalid", problem, hint=PATHS_HINT) from error


def _parse(path: Path) -> tuple[ET.Element, bytes]:
    content = _read(path)
    letters = content.replace(b"\0", b"")  # also of UTF-16
    if b"<!DOCTYPE" in letters or b"<!ENTITY" in letters:
        # VOC's files have none; entities are how a small file becomes a huge one.
        raise Failure("dataset.invalid", f"{path} declares entities, which annotations do not need")
    try:
        root = ET.fromstring(content)  # noqa: S314 - entities are refused above
    except (ET.ParseError, ValueError, LookupError) as error:
        raise Failure("dataset.invalid", f"{path} is not XML: {error}") from error
    return root, content


def _size(root: ET.Element, path: Path) -> tuple[int, int]:
    found = [_number(root, f"size/{key}", path) for key in ("height", "width")]
    if not all(value > 0 and value == int(value) for value in found):
        raise Failure("dataset.invalid", f"{path}: height and width must be positive integers, not {found}")
    return int(found[0]), int(found[1])


def _object(element: ET.Element, path: Path) -> _Object:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise Failure("dataset.invalid", f"{path}: an object has no name")
    left, top, right, bottom = (
        _number(element, f"bndbox/{key}", path) for key in ("xmin", "ymin", "xmax", "ymax")
    )
    if right < left or bottom < top:
        raise Failure("dataset.invalid", f"{path}: the box of a {name} ends before it begins")
    difficult = 0.0 if element.find("difficult") is None else _number(element, "difficult", path)
    return _Object(name, (left, top, right, bottom), bool(difficult))


def _number(element: ET.Element, key: str, path: Path) -> float:
    text = element.findtext(key)
    try:
        value = float(text or "")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise Failure("dataset.invalid", f"{path}: {key} of {element.tag} is {text!r}, not a number")
    return value


def _annotation(
    found: _Object, index: Mapping[str, int], image: str, identifier: int, path: Path
) -> Annotation:
    if found.name not in index:
        raise Failure(
            "dataset.invalid",
            f"{path} has an object of the unknown class {found.name!r}",
            hint="name the dataset's classes, in the order of the model's, with the key classes",
        )
    left, top, right, bottom = found.corners
    width, height = right - left + 1, bottom - top + 1
    return Annotation(
        id=identifier,
        image_id=image,
        category_id=index[found.name],
        box=(left - 1, top - 1, width, height),
        area=width * height,
        crowd=False,
        difficult=found.difficult,
    )


def _image_file(folder: Path, name: str) -> Path:
    """Return the file of an image: JPEG as in VOC itself, or another that has its name."""
    candidates = [folder / f"{name}{suffix}" for suffix in _SUFFIXES]
    return next((path for path in candidates if path.is_file()), candidates[0])
