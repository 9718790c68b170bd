"""Checks what a model returned for one image before it is counted."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zooport.export_core.evaluation.postprocess import INSTANCE_FIELDS, Array
from zooport.export_core.failures import Failure

_ANY_NUMBER = 1 << 31

# Per instance field, the shape after the first dimension; None is any length.
_INSTANCE_SHAPES: dict[str, tuple[int | None, ...]] = {
    "pred_boxes": (4,),
    "scores": (),
    "pred_classes": (),
    "pred_masks": (1, None, None),
    "pred_keypoints": (None, 3),
    "pred_keypoint_heatmaps": (None, None, None),
    "proposal_boxes": (4,),
    "objectness_logits": (),
    "sem_seg": (None, None),
}


def check_outputs(outputs: Mapping[str, Array], image: str, classes: int) -> dict[str, Array]:
    """Check shapes, lengths, class indices and finiteness.

    Args:
        outputs: detectron2's field names -> numpy arrays.
        image: name for messages.
        classes: number of classes that ``pred_classes`` indexes; 0 where it is not known.

    Returns:
        The same arrays.

    Raises:
        Failure: ``accuracy.nonfinite`` naming the output and the image; ``artifact.mismatch`` for a wrong
            shape or a class index out of range.
    """
    checked = {name: np.asarray(value) for name, value in outputs.items()}
    for name, value in checked.items():
        if name in _INSTANCE_SHAPES:
            _check_shape(name, value, image)
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise Failure(
                "accuracy.nonfinite",
                f"output {name} holds NaN or infinity for image {image}",
                hint="compare with the eager model on this image",
                details={"output": name, "image": image},
            )
    for group in INSTANCE_FIELDS:
        _check_lengths({name: len(checked[name]) for name in group if name in checked}, image)
    _check_classes(checked.get("pred_classes"), image, classes or _ANY_NUMBER)
    return checked


def _check_shape(name: str, value: Array, image: str) -> None:
    expected = _INSTANCE_SHAPES[name]
    fits = value.ndim == 1 + len(expected) and all(
        wanted in (None, found) for wanted, found in zip(expected, value.shape[1:], strict=True)
    )
    if not fits:
        wanted_text = ", ".join(["N", *("?" if size is None else str(size) for size in expected)])
        raise Failure(
            "artifact.mismatch",
            f"output {name} has shape {value.shape} for image {image}, not ({wanted_text})",
        )


def _check_lengths(lengths: Mapping[str, int], image: str) -> None:
    if len(set(lengths.values())) > 1:
        listed = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise Failure("artifact.mismatch", f"outputs for image {image} differ in length: {listed}")


def _check_classes(indices: Array | None, image: str, classes: int) -> None:
    if indices is None or not indices.size:
        return
    if not np.issubdtype(indices.dtype, np.integer):
        raise Failure(
            "artifact.mismatch", f"output pred_classes is {indices.dtype}, not integer, for image {image}"
        )
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= classes:
        wrong = low if low < 0 else high
        raise Failure(
            "artifact.mismatch",
            f"output pred_classes holds {wrong} for image {image}; there are {classes} classes",
        )
