"""Average recall of proposals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zooport.export_core.evaluation import evaluate, load_dataset
from zooport.export_core.evaluation.proposal_metrics import cover
from zooport.tests.evaluation_support import Oracle, make_config, write_dataset


def proposals_of(outputs: dict[str, Any]) -> dict[str, Any]:
    return {"proposal_boxes": outputs["pred_boxes"], "objectness_logits": outputs["scores"]}


def test_perfect_proposals_recall_everything(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    config = make_config(MODEL__META_ARCHITECTURE="ProposalNetwork", MODEL__ROI_HEADS__NUM_CLASSES=80)

    metrics = evaluate(Oracle(dataset, proposals_of), dataset, config)

    assert metrics == {
        f"box_proposals/{name}": pytest.approx(100.0) for name in ("AR@100", "ARs@100", "AR@1000", "ARs@1000")
    }


def test_no_proposals_recall_nothing(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    config = make_config(MODEL__META_ARCHITECTURE="ProposalNetwork")

    def silent(outputs: dict[str, Any]) -> dict[str, Any]:
        return {name: value[:0] for name, value in proposals_of(outputs).items()}

    assert evaluate(Oracle(dataset, silent), dataset, config)["box_proposals/AR@100"] == 0.0


def test_the_best_hundred_count_at_a_hundred(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    config = make_config(MODEL__META_ARCHITECTURE="ProposalNetwork", INPUT__MIN_SIZE_TEST=0)

    def buried(outputs: dict[str, Any]) -> dict[str, Any]:
        noise = np.tile(np.array([[0, 0, 2, 2]], dtype=np.float32), (100, 1))
        return {
            "proposal_boxes": np.concatenate([outputs["pred_boxes"], noise]),
            "objectness_logits": np.concatenate([outputs["scores"] - 9, np.zeros(100, dtype=np.float32)]),
        }

    metrics = evaluate(Oracle(dataset, buried), dataset, config)

    assert metrics["box_proposals/AR@100"] == 0.0
    assert metrics["box_proposals/AR@1000"] == pytest.approx(100.0)


def test_each_proposal_covers_one_object() -> None:
    objects = np.array([[0, 0, 10, 10], [0, 0, 10, 8]], dtype=np.float64)
    proposals = np.array([[0, 0, 10, 9], [50, 50, 60, 60]], dtype=np.float64)

    assert cover(proposals, objects) == [pytest.approx(0.9), 0.0]
    assert cover(proposals[:1], objects) == [pytest.approx(0.9), 0.0]
    assert cover(proposals[:0], objects) == [0.0, 0.0]
