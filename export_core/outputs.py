"""The fields that models return: their type, shape, meaning and frame, for model.json and for checks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FRAME = "pixels of the given image: x to the right, y down, (0, 0) at the corner of the first pixel"


@dataclass(frozen=True)
class Field:
    """One output of a model for one image.

    Attributes:
        shape: lengths, or names of dynamic ones ("N" detections).
        kind: how it is compared: "pixels", "keypoints" (pixels, the last column a score), "score", "mask",
            "exact" or "tensor".
        frame: what its coordinates mean, where it has coordinates.
    """

    dtype: str
    shape: tuple[int | str, ...]
    meaning: str
    kind: str
    frame: str = ""


FIELDS: dict[str, Field] = {
    "pred_boxes": Field("float32", ("N", 4), "boxes x1, y1, x2, y2, best score first", "pixels", frame=FRAME),
    "scores": Field("float32", ("N",), "confidence, 0 to 1", "score"),
    "pred_classes": Field("int64", ("N",), "index into classes", "exact"),
    "pred_masks": Field(
        "float32",
        ("N", 1, "M", "M"),
        "probability of the object in each cell of its box; paste, then threshold at 0.5",
        "mask",
        frame="the detection's own box, divided into M x M cells",
    ),
    "pred_keypoints": Field(
        "float32",
        ("N", "K", 3),
        "x, y and score of each keypoint; the score is a softmax over the heatmap's cells",
        "keypoints",
        frame=FRAME,
    ),
    "pred_keypoint_heatmaps": Field(
        "float32",
        ("N", "K", "S", "S"),
        "logits of each keypoint's place in the detection's box",
        "tensor",
        frame="the detection's own box, divided into S x S cells",
    ),
    "sem_seg": Field(
        "float32",
        ("C", "height", "width"),
        "logits of each pixel's label; resize to the original image, then take the largest",
        "tensor",
        frame=FRAME,
    ),
    "proposal_boxes": Field(
        "float32", ("P", 4), "class-agnostic boxes x1, y1, x2, y2, best first", "pixels", frame=FRAME
    ),
    "objectness_logits": Field("float32", ("P",), "confidence of each proposal, as a logit", "tensor"),
}


ROWS = ("N", "P")  # names of lengths in FIELDS: things found
IMAGE_INDEX = "image_index"
"""The output of a batch that says which image each row belongs to."""


def has_rows(name: str) -> bool:
    """Whether a field has a row for each thing found; fields of extensions are taken to have."""
    return name not in FIELDS or FIELDS[name].shape[0] in ROWS


def describe_outputs(names: Sequence[str]) -> list[dict[str, Any]]:
    """Return the model.json entries of these fields, in this order.

    A field of an extension that is not in :data:`FIELDS` is entered by its name alone.
    """
    entries = []
    for name in names:
        entry: dict[str, Any] = {"name": name}
        if name in FIELDS:
            field = FIELDS[name]
            entry |= {"dtype": field.dtype, "shape": list(field.shape), "meaning": field.meaning}
            if field.frame:
                entry["frame"] = field.frame
        entries.append(entry)
    return entries
