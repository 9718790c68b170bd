"""Reads datasets that have label maps and nothing else: ADE20K, and Cityscapes for semantic segmentation."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from zooport.export_core.evaluation.annotations import PATHS_HINT
from zooport.export_core.evaluation.datasets import Dataset, DatasetImage, choose, require_files
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource

IMAGES = (".jpg", ".jpeg", ".png")
_CITYSCAPES = "_leftImg8bit", "_gtFine_labelTrainIds"  # ends of the names of an image and of its label map


def load(source: DatasetSource) -> Dataset:
    """Load and check a dataset of label maps.

    The images are all below the folder ``images``; the label map of each lies at the same place below
    ``annotations``. An image's id is its path there, without the ending.

    Raises:
        Failure: ``dataset.invalid`` naming the file that is missing or cannot be read.
    """
    require_files(source, ())
    files = sorted(path for path in source.images.rglob("*") if path.suffix.lower() in IMAGES)
    if not files:
        raise Failure("dataset.invalid", f"{source.images} has no images", hint=PATHS_HINT)
    _require_one_each(source, files)
    digest = hashlib.sha256()
    images = []
    for file in choose(source, files, lambda path: _identify(source, path)):
        name = file.relative_to(source.images).as_posix()
        height, width = _size(label_file(source, name), digest)
        images.append(DatasetImage(_identify(source, file), name, file, height, width))
    return Dataset(
        source=source,
        images=tuple(images),
        categories=(),
        annotations=(),
        annotations_sha256=digest.hexdigest(),
        annotation_files=tuple(label_file(source, image.file_name) for image in images),
        listed_folders=(source.images, *sorted(each for each in source.images.rglob("*") if each.is_dir())),
    )


def label_file(source: DatasetSource, name: str) -> Path:
    """Return the label map of an image, ``name`` as its path below the folder of images."""
    path = Path(name)
    end, other = _CITYSCAPES
    stem = path.stem.removesuffix(end) + other if path.stem.endswith(end) else path.stem
    return source.annotations / path.with_name(f"{stem}.png")


def _require_one_each(source: DatasetSource, files: Sequence[Path]) -> None:
    """Refuse two images with one label map: mostly the one is the label map, in the folder of the images."""
    seen: dict[Path, Path] = {}
    for file in files:
        truth = label_file(source, file.relative_to(source.images).as_posix())
        other = seen.setdefault(truth, file)
        if other != file:
            problem = f"{file} and {other.name} are two images with one label map"
        elif truth == file:
            problem = f"{file} is both an image and its label map"
        else:
            continue
        hint = "keep label maps outside of the folder of the images"
        raise Failure("dataset.invalid", problem, hint=hint)


def _identify(source: DatasetSource, file: Path) -> str:
    return file.relative_to(source.images).with_suffix("").as_posix()


def _size(path: Path, digest: hashlib._Hash) -> tuple[int, int]:
    """Return height and width of a label map, and add its name and content to the digest."""
    try:
        content = path.read_bytes()
        with Image.open(path) as file:
            width, height = file.size
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError and more
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        reason = reason or type(error).__name__
        problem = f"cannot read label map {path}: {reason}"
        raise Failure("dataset.invalid", problem, hint=PATHS_HINT) from error
    digest.update(f"\n{hashlib.sha256(content).hexdigest()} {path.name}".encode("utf-8", "surrogateescape"))
    return height, width
