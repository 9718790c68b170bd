"""An artifact as a Python object, the same for every format: ``zooport.load(directory).predict(images)``."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.places import expanded
from zooport.export_core.prediction import Artifact

if TYPE_CHECKING:
    from PIL.Image import Image

    from zooport.export_core.evaluation.findings import Finding

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Prediction:
    """One thing that a model found in an image; everything is in pixels of the original image.

    Attributes:
        kind: "instance" or "proposal"; "thing" or "stuff" of a panoptic map; "label" of a semantic one.
        category_id: the dataset's id, or the model's class number where it was exported without a dataset
            that has classes.
        category: its name.
        score: 0 to 1; None of stuff and labels.
        box: float32 (4,), x1, y1, x2, y2; of segments and labels, around their pixels.
        keypoints: float32 (K, 3), x, y and score of each, None of a model without; a pixel's middle is at .5.
    """

    kind: str
    category_id: int
    category: str
    score: float | None
    box: NDArray[np.float32]
    keypoints: NDArray[np.float32] | None
    _finding: Finding
    _size: tuple[int, int]

    @property
    def mask(self) -> NDArray[np.bool_] | None:
        """Its pixels, bool (H, W) of the whole image; None of a model without masks. Made anew each time."""
        cut = self._finding.mask
        return None if cut is None else np.ascontiguousarray(cut.full(*self._size))

    def to_coco(self, file_name: str) -> dict[str, Any]:
        """Return it as ``zooport predict -o json`` prints it: COCO's results form.

        Args:
            file_name: of the image; its stem becomes ``image_id``, a number where it is one.
        """
        from zooport.export_core.evaluation.findings import coco_result

        return coco_result(self._finding, file_name, self._size)


class Model:
    """A loaded artifact. It may be called from one thread at a time.

    Attributes:
        name: of the model.
        format: of the artifact.
        runtime: what runs it, of formats where there is a choice, "" of others.
        classes: name of each class by its number, None where it was exported without a dataset that has any.
        keypoints: names of an instance's keypoints.
        description: content of model.json.
    """

    def __init__(self, artifact: Artifact, runtime: str | None = None) -> None:
        self._artifact = artifact
        self._predictor = artifact.load(runtime)
        self.name = artifact.name
        self.format = artifact.format.info.name
        self.runtime = artifact.format.runtime
        terms = artifact.vocabulary.classes
        self.classes = None if terms is None else tuple(term.name for term in terms)
        self.keypoints = artifact.vocabulary.keypoints
        self.description = artifact.description

    def predict(self, images: Iterable[PathLike | NDArray[np.uint8] | Image]) -> list[list[Prediction]]:
        """Return what is found in each image, the best first, without a threshold on scores.

        Args:
            images: files; arrays uint8 (H, W, 3), RGB; or PIL images. Of any sizes: they are resized as the
                artifact's model.json says, and results are in pixels of what is given here.

        Raises:
            Failure: ``dataset.invalid`` naming an image that cannot be read, ``artifact.unloadable`` when the
                artifact fails on one, ``accuracy.nonfinite``, ``artifact.mismatch``.
            TypeError: for a single image in place of several.
        """
        if isinstance(images, str | os.PathLike) or hasattr(images, "convert") or _is_one_array(images):
            raise TypeError("predict takes several images: give a list, if only of one")
        return [self._predict(image, index) for index, image in enumerate(images)]

    def _predict(self, image: Any, index: int) -> list[Prediction]:
        if isinstance(image, str | os.PathLike):
            path = Path(image)
            name, prepared = str(path), self._artifact.prepare(path)
        else:
            name = f"image {index}"
            prepared = self._artifact.prepare_pixels(_rgb(image, name), name)
        height, width = prepared.original.shape[:2]
        return [
            Prediction(
                str(one.kind),
                one.term.category_id,
                one.term.name,
                one.score,
                one.box,
                one.keypoints,
                one,
                (height, width),
            )
            for one in self._artifact.find(self._predictor, prepared, name)
        ]

    def close(self) -> None:
        """End the process that runs the artifact, where there is one; closing twice does no harm."""
        close = getattr(self._predictor, "close", None)
        if close is not None:
            close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load(directory: PathLike, *, runtime: str | None = None) -> Model:
    """Load an artifact with its own runtime; its files are compared with their digests first.

    Args:
        directory: the artifact's, or a file in it.
        runtime: what runs it, of formats where there is a choice: of ``caffe2``, "caffe2" or "reference".

    Raises:
        Failure: ``artifact.missing``, ``artifact.foreign``, ``artifact.altered``, ``artifact.unloadable``;
            ``dependency.missing`` for a package or a runtime that is not installed; ``export.option`` for a
            runtime that the format does not have.
    """
    path = expanded(directory)
    return Model(Artifact.open(path.parent if path.is_file() else path), runtime)


def _is_one_array(images: Any) -> bool:
    return isinstance(images, np.ndarray) and images.ndim < 4


def _rgb(image: Any, name: str) -> NDArray[np.uint8]:
    """Return an array or a PIL image as uint8 (H, W, 3), RGB."""
    if hasattr(image, "convert"):
        from zooport.export_core.evaluation.images import pixels_of

        return pixels_of(image, "RGB")
    found = np.asarray(image)
    if found.dtype != np.uint8 or found.ndim != 3 or found.shape[2] != 3 or not found.size:
        what = f"{found.dtype} of shape {found.shape}"
        raise Failure(
            "dataset.invalid",
            f"{name} is {what}: an array has to be uint8 (H, W, 3), RGB",
            stage=Stage.EVALUATE,
        )
    return found
