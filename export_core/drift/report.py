"""What is found out about a drift, as plain values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FEATURES, PROPOSALS, HEADS = "features", "proposals", "heads"
POST_PROCESSING = "post-processing"
OUTPUTS = "outputs"
"""The stages in the order of a forward pass; "outputs" where it cannot be told which one it was."""


@dataclass(frozen=True)
class DriftReport:
    """Where an exported model departs from the eager one.

    Attributes:
        stage: the first one whose tensors differ.
        tensor: the one that differs most in that stage: dotted name of the module that returns it and, where
            it returns several, its key; or the name of an output.
        difference: how much, in ``unit``.
        categories: those that moved most, the most moved first: "<task>/<category>", and the metric of the
            eager and of the exported model in points (0-100), AP or, of labels of pixels, IoU.
        images: those with the most different results, the worst first: file name, path of the PNG, and the
            difference, 0 (the same) to 1 (nothing in common).
        images_seen: how many images were compared.
        remark: what could not be told; "" where nothing is to be said.
    """

    stage: str
    tensor: str
    difference: float
    unit: str
    categories: tuple[tuple[str, float, float], ...]
    images: tuple[tuple[str, str, float], ...]
    images_seen: int
    remark: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DriftReport:
        """Return the report that :meth:`to_dict` was called on."""
        rows = {name: tuple(tuple(row) for row in values[name]) for name in ("categories", "images")}
        return cls(**{**values, **rows})
