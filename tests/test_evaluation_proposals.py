"""Average recall of proposals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import evaluate, load_dataset
from zooport.export_core.evaluation.proposal_metrics import cover
from zooport.export_core.sources import DatasetSource
from zooport.tests.evaluation_support import DATA, Oracle, make_config, write_dataset
from zooport.tests.proposal_support import SIZE, proposal_images


def proposals_of(outputs: dict[str, Any]) -> dict[str, Any]:
    return {"proposal_boxes": outputs["pred_boxes"], "objectness_logits": outputs["scores"]}


def test_recall_equals_that_of_detectron2(tmp_path: Path) -> None:
    made = proposal_images()
    Image.new("L", (SIZE, SIZE)).save(tmp_path / "one.png")
    document = {
        "images": [
            {"id": number, "file_name": "one.png", "width": SIZE, "height": SIZE}
            for number in range(len(made))
        ],
        "categories": [{"id": 1, "name": "thing"}],
        "annotations": [
            {**each, "id": f"{number}.{index}", "image_id": number, "category_id": 1}
            for number, (objects, _) in enumerate(made)
            for index, each in enumerate(objects)
        ],
    }
    (tmp_path / "a.json").write_text(json.dumps(document))
    dataset = load_dataset(DatasetSource("made up", tmp_path / "a.json", tmp_path))
    shown = iter(made)

    def model(image: Any) -> dict[str, Any]:
        proposals = next(shown)[1]
        boxes = np.array([box for box, _ in proposals], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        logits = np.array([logit for _, logit in proposals], dtype=np.float32)
        return {"proposal_boxes": boxes, "objectness_logits": logits}

    config = make_config(MODEL__META_ARCHITECTURE="ProposalNetwork", INPUT__MIN_SIZE_TEST=0)

    metrics = evaluate(model, dataset, config)

    expected = json.loads((DATA / "proposal_metrics.json").read_text())
    # detectron2 averages in float32.
    assert metrics == pytest.approx(
        {f"box_proposals/{name}": value for name, value in expected.items()}, abs=1e-4
    )


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
