"""Stages that do nothing, as disposable processes import them; light to import."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def export(
    checkpoint: Any,
    format: str,  # noqa: A002
    options: Mapping[str, Any],
    dataset: Any,
    sample_image: Path | None,
    staging: Path,
    report: Any,
) -> list[str]:
    """Leave the smallest artifact there is."""
    (staging / "model.ts").write_text(checkpoint.name, encoding="utf-8")
    (staging / "model.json").write_text("{}", encoding="utf-8")
    return []


def verify(staging: Path, dataset: Any, report: Any) -> dict[str, float]:
    """Find everything in order."""
    return {}


def baseline(checkpoint: Any, dataset: Any, values: Any, report: Any) -> dict[str, float]:
    """Measure nothing."""
    return {}
