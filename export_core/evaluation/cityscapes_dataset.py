"""Reads Cityscapes: images by city, and beside each a PNG file that numbers every instance of every label."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from zooport.export_core.evaluation.annotations import PATHS_HINT, Category
from zooport.export_core.evaluation.datasets import Dataset, DatasetImage, choose, require_files
from zooport.export_core.evaluation.postprocess import Array
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource

#: Cityscapes' ids of the labels that have instances and are evaluated; their order is that of the classes.
THINGS = {
    24: "person",
    25: "rider",
    26: "car",
    27: "truck",
    28: "bus",
    31: "train",
    32: "motorcycle",
    33: "bicycle",
}
_IMAGE, _TRUTH = "_leftImg8bit.png", "_gtFine_instanceIds.png"


def load(source: DatasetSource) -> Dataset:
    """Load and check a Cityscapes dataset.

    An image's id is ``<city>_<sequence>_<frame>``. Instances are not read here but image by image, with
    :func:`read_instances`.

    Raises:
        Failure: ``dataset.invalid`` naming the file that is missing or cannot be read.
    """
    require_files(source, ())
    files = sorted(source.images.glob(f"*/*{_IMAGE}"))
    if not files:
        problem = f"{source.images} has no images <city>/*{_IMAGE}"
        raise Failure("dataset.invalid", problem, hint=PATHS_HINT)
    chosen = choose(source, files, _identify)
    digest = hashlib.sha256()
    images = []
    for file in chosen:
        truth = source.annotations / file.parent.name / f"{_identify(file)}{_TRUTH}"
        height, width = _size(truth, digest)
        name = file.relative_to(source.images).as_posix()
        images.append(DatasetImage(_identify(file), name, file, height, width))
    return Dataset(
        source=source,
        images=tuple(images),
        categories=tuple(Category(identifier, name) for identifier, name in THINGS.items()),
        annotations=(),
        annotations_sha256=digest.hexdigest(),
        annotation_files=tuple(instance_file(source, image) for image in images),
        listed_folders=(source.images, *sorted(each for each in source.images.iterdir() if each.is_dir())),
    )


def instance_file(source: DatasetSource, image: DatasetImage) -> Path:
    """Return the file that numbers the instances of an image."""
    return source.annotations / Path(image.file_name).parent / f"{image.id}{_TRUTH}"


def read_instances(source: DatasetSource, image: DatasetImage) -> Array:
    """Return the instance of each pixel, int64 (H, W).

    A number below 1000 is a label without instances, or a group of them; above it is a thousand times the
    label, plus a number.

    Raises:
        Failure: ``dataset.invalid`` naming the file.
    """
    path = instance_file(source, image)
    try:
        with Image.open(path) as file:
            ids = np.asarray(file)
    except Exception as error:  # decoders raise OSError, SyntaxError, ValueError and more
        raise _unreadable(path, error) from error
    if ids.shape != (image.height, image.width) or not np.issubdtype(ids.dtype, np.integer):
        problem = f"{path} is {ids.dtype} of shape {ids.shape}, not whole numbers of one channel"
        raise Failure("dataset.invalid", problem)
    return ids.astype(np.int64)


def _identify(file: Path) -> str:
    return file.name.removesuffix(_IMAGE)


def _size(path: Path, digest: hashlib._Hash) -> tuple[int, int]:
    """Return height and width of an image, and add its name and content to the digest."""
    try:
        content = path.read_bytes()
        with Image.open(path) as file:
            width, height = file.size
    except Exception as error:  # as above
        raise _unreadable(path, error) from error
    digest.update(f"\n{hashlib.sha256(content).hexdigest()} {path.name}".encode("utf-8", "surrogateescape"))
    return height, width


def _unreadable(path: Path, error: Exception) -> Failure:
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
    return Failure("dataset.invalid", f"cannot read annotations {path}: {reason}", hint=PATHS_HINT)
