"""What a model found in one image, in its own frame: instances, proposals, segments or labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np

from zooport.export_core.evaluation.datasets import DatasetImage
from zooport.export_core.evaluation.outputs import check_outputs
from zooport.export_core.evaluation.postprocess import Array, PastedMask, encode_mask, to_image_frame
from zooport.export_core.evaluation.segmentation import LabelMap, merge_panoptic
from zooport.export_core.evaluation.tasks import ImageOutputs
from zooport.export_core.vocabulary import PanopticMerge, Term, Vocabulary

PROPOSAL = Term(1, "object", None)  # proposals are of no class; COCO's own ids begin with 1


class Kind(StrEnum):
    """What a finding is."""

    INSTANCE = "instance"
    PROPOSAL = "proposal"
    THING = "thing"
    STUFF = "stuff"
    LABEL = "label"


@dataclass(frozen=True)
class Finding:
    """One thing, or all pixels of one label.

    Attributes:
        term: its class or label.
        box: xyxy in pixels of the original image, float32 (4,); of a segment or label, around its pixels.
        score: 0 to 1; of a proposal, the sigmoid of its logit; None where the model gives none.
        mask: its pixels, None where the model gives none.
        keypoints: (K, 3) x, y in pixels and score, None where the model gives none.
    """

    kind: Kind
    term: Term
    box: Array
    score: float | None = None
    mask: PastedMask | None = None
    keypoints: Array | None = None

    @property
    def confidence(self) -> float:
        """The score; 1 for what has none."""
        return 1.0 if self.score is None else self.score


def find(
    outputs: Mapping[str, Array],
    name: str,
    network_size: tuple[int, int],
    image_size: tuple[int, int],
    vocabulary: Vocabulary,
) -> list[Finding]:
    """Return what the outputs of one image say, after the same post-processing as an evaluation's.

    Args:
        outputs: fields by name, in the frame of ``network_size``.
        name: of the image, for messages.
        network_size: (H, W) that coordinates count; the original's where the artifact gives such.
        image_size: (H, W) of the original image.
        vocabulary: names of classes and labels, and whether they are merged.

    Returns:
        The best first, then what has no score; a panoptic map comes as its segments alone.

    Raises:
        Failure: ``accuracy.nonfinite``, ``artifact.mismatch``.
    """
    checked = check_outputs(outputs, name, classes=len(vocabulary.classes or ()))
    framed = to_image_frame(checked, network_size, image_size)
    # ImageOutputs takes an image of a dataset; nothing here opens its file.
    image = DatasetImage(name, name, Path(name), *image_size)
    result = ImageOutputs(image, framed, network_size)
    if "sem_seg" in framed and "pred_masks" in framed and vocabulary.panoptic is not None:
        found = list(_segments(result, vocabulary, vocabulary.panoptic))
    else:
        found = [*_instances(result, vocabulary), *_proposals(result), *_labels(result, vocabulary)]
    return sorted(found, key=lambda finding: finding.score is None or -finding.score)


def coco_result(finding: Finding, file_name: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return a finding in COCO's results form: category_id, score, bbox as x, y, width, height, and more.

    Args:
        finding: in the image's frame.
        file_name: of the image; its stem becomes ``image_id``, a number where it is one.
        size: (H, W) of the image.
    """
    x1, y1, x2, y2 = finding.box.tolist()
    stem = Path(file_name).stem
    row: dict[str, Any] = {
        "image_id": int(stem) if stem.isascii() and stem.isdecimal() else stem,
        "file_name": file_name,
        "category_id": finding.term.category_id,
        "category": finding.term.name,
        "kind": str(finding.kind),
        "bbox": [x1, y1, x2 - x1, y2 - y1],
    }
    if finding.score is not None:
        row["score"] = finding.score
    if finding.mask is not None:
        row["segmentation"] = encode_mask(finding.mask, *size)
    if finding.keypoints is not None:
        points = finding.keypoints.copy()
        points[:, :2] -= 0.5  # COCO's coordinates name pixels, the model's are continuous
        row["keypoints"] = points.ravel().tolist()
    return row


def _instances(result: ImageOutputs, vocabulary: Vocabulary) -> Iterator[Finding]:
    outputs = result.outputs
    if "pred_boxes" not in outputs:
        return
    for index, box in enumerate(outputs["pred_boxes"]):
        yield Finding(
            Kind.INSTANCE,
            vocabulary.thing(int(outputs["pred_classes"][index])),
            box,
            float(outputs["scores"][index]),
            result.masks[index] if "pred_masks" in outputs else None,
            outputs["pred_keypoints"][index] if "pred_keypoints" in outputs else None,
        )


def _proposals(result: ImageOutputs) -> Iterator[Finding]:
    if "proposal_boxes" not in result.outputs or "pred_boxes" in result.outputs:
        return
    logits = result.outputs["objectness_logits"].astype(np.float64)
    scores = np.exp(-np.logaddexp(0, -logits))
    for box, score in zip(result.outputs["proposal_boxes"], scores.tolist(), strict=True):
        yield Finding(Kind.PROPOSAL, PROPOSAL, box, score)


def _labels(result: ImageOutputs, vocabulary: Vocabulary) -> Iterator[Finding]:
    if "sem_seg" not in result.outputs:
        return
    for label in np.unique(result.labels).tolist():
        mask = _cropped(result.labels, label)
        yield Finding(Kind.LABEL, vocabulary.label(label), _box_of(mask), mask=mask)


def _segments(result: ImageOutputs, vocabulary: Vocabulary, merge: PanopticMerge) -> Iterator[Finding]:
    outputs = result.outputs
    merged, segments = merge_panoptic(
        outputs["scores"],
        outputs["pred_classes"],
        result.masks,
        result.labels,
        overlap=merge.overlap,
        stuff_area=merge.stuff_area,
        confidence=merge.confidence,
    )
    for segment in segments:
        mask = _cropped(merged, segment.id)
        if segment.instance is None:
            yield Finding(Kind.STUFF, vocabulary.label(segment.label), _box_of(mask), mask=mask)
        else:
            score = float(outputs["scores"][segment.instance])
            yield Finding(Kind.THING, vocabulary.thing(segment.label), _box_of(mask), score, mask)


def _cropped(values: LabelMap, value: int) -> PastedMask:
    """Return where a map (H, W) has a value that occurs in it."""
    where = values == value
    rows, columns = np.flatnonzero(where.any(1)), np.flatnonzero(where.any(0))
    top, left = int(rows[0]), int(columns[0])
    return PastedMask(where[top : rows[-1] + 1, left : columns[-1] + 1], top, left)


def _box_of(mask: PastedMask) -> Array:
    height, width = mask.crop.shape
    return np.array([mask.left, mask.top, mask.left + width, mask.top + height], dtype=np.float32)
