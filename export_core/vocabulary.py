"""What the numbers in a model's outputs stand for: classes, labels, keypoints; as model.json has it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from zooport.export_core.config import Config
    from zooport.export_core.evaluation import Dataset


@dataclass(frozen=True)
class Term:
    """One class or label.

    Attributes:
        index: its number in the outputs, from 0 on.
        dataset_id: the dataset's own category id; None where it has none.
    """

    index: int
    name: str
    dataset_id: int | None

    @property
    def category_id(self) -> int:
        """The dataset's id, or else the index."""
        return self.index if self.dataset_id is None else self.dataset_id


@dataclass(frozen=True)
class PanopticMerge:
    """How instances and semantic labels become one map; see ``evaluation.segmentation.merge_panoptic``."""

    overlap: float
    stuff_area: int
    confidence: float


@dataclass(frozen=True)
class Vocabulary:
    """Everything that is known of a model's outputs.

    Attributes:
        classes: what ``pred_classes`` counts, None where the model was exported without a dataset or with
            one that has no categories.
        labels: the channels of ``sem_seg``; None where there are none or they have no names.
        keypoints: names of the keypoints of an instance.
        skeleton: which of them a line joins, as pairs of indices.
        panoptic: None for a model whose instances and labels stay apart.
    """

    classes: tuple[Term, ...] | None = None
    labels: tuple[Term, ...] | None = None
    keypoints: tuple[str, ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    panoptic: PanopticMerge | None = None

    def thing(self, index: int) -> Term:
        """Return a class; an unknown one is called by its number."""
        return _term(self.classes, index)

    def label(self, index: int) -> Term:
        """Return a semantic label; an unknown one is called by its number."""
        return _term(self.labels, index)

    @classmethod
    def from_description(cls, description: Mapping[str, Any]) -> Vocabulary:
        """Return what a model.json says.

        Raises:
            KeyError, TypeError: it is not one.
        """
        keypoints, panoptic = description.get("keypoints") or {}, description.get("panoptic")
        return cls(
            _terms(description.get("classes")),
            _terms(description.get("labels")),
            tuple(keypoints.get("names", ())),
            tuple((first, second) for first, second in keypoints.get("skeleton", ())),
            None if panoptic is None else PanopticMerge(**panoptic),
        )


def describe_vocabulary(config: Config, dataset: Dataset | None, fields: Collection[str]) -> dict[str, Any]:
    """Return the entries of model.json: classes, labels, keypoints, panoptic; None for what is not known.

    Args:
        config: of the model.
        dataset: gives names and ids, None without one.
        fields: names of the model's outputs.
    """
    entries: dict[str, Any] = dict.fromkeys(("classes", "labels", "keypoints", "panoptic"))
    if {"sem_seg", "pred_masks"} <= set(fields) and config.MODEL.PANOPTIC_FPN.COMBINE.ENABLED:
        node = config.MODEL.PANOPTIC_FPN.COMBINE
        merge = PanopticMerge(node.OVERLAP_THRESH, node.STUFF_AREA_LIMIT, node.INSTANCES_CONFIDENCE_THRESH)
        entries["panoptic"] = asdict(merge)
    if dataset is None:
        return entries
    if dataset.categories:
        pairs = zip(dataset.class_names, dataset.category_ids, strict=True)
        entries["classes"] = [asdict(Term(index, name, id_)) for index, (name, id_) in enumerate(pairs)]
    if "sem_seg" in fields:
        entries["labels"] = _labels(config, dataset)
    if "pred_keypoints" in fields:
        having = [category for category in dataset.categories if category.keypoints]
        if having:
            entries["keypoints"] = {
                "names": list(having[0].keypoints),
                "skeleton": [list(pair) for pair in having[0].skeleton],
            }
    return entries


def _labels(config: Config, dataset: Dataset) -> list[dict[str, Any]]:
    from zooport.export_core.evaluation.semantic_metrics import label_terms

    terms = label_terms(config, dataset)
    return [asdict(Term(index, name, id_)) for index, (name, id_) in enumerate(terms)]


def _terms(entries: Any) -> tuple[Term, ...] | None:
    if entries is None:
        return None
    return tuple(Term(entry["index"], entry["name"], entry["dataset_id"]) for entry in entries)


def _term(terms: tuple[Term, ...] | None, index: int) -> Term:
    known = terms is not None and index < len(terms)
    return terms[index] if terms is not None and known else Term(index, str(index), None)
