"""Where an export drifts: artifacts of checkpoints that differ from the eager one in a known part."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from zooport.export_core import demo, pipeline
from zooport.export_core.drift import DriftReport, locate
from zooport.export_core.drift.agreement import difference, pair_up
from zooport.export_core.drift.locating import moved_categories
from zooport.export_core.drift.stages import counterparts, proposal_deviation
from zooport.export_core.evaluation.findings import Finding, Kind
from zooport.export_core.evaluation.postprocess import PastedMask
from zooport.export_core.failures import Stage
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.export_core.vocabulary import Term
from zooport.jobs.manifest import load_manifest

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

ONNX, TRACE, SCRIPT = "onnx", "torchscript-trace", "torchscript-script"
MASK, PANOPTIC, RETINANET = "mask_rcnn_fpn", "panoptic_fpn", "retinanet_fpn"
NMS, RPN_NMS = "MODEL.ROI_HEADS.NMS_THRESH_TEST", "MODEL.RPN.NMS_THRESH"
SIZE = (40, 60)

Drifted = Callable[..., Path]


def ignore(stage: Stage) -> None:
    """Nobody asks which stage begins."""


def source_of(model: str, limit: int) -> tuple[CheckpointSource, DatasetSource]:
    targets = load_manifest(demo.MANIFEST).targets
    target = next(target for target in targets if target.checkpoint.name == model)
    assert target.dataset is not None
    return target.checkpoint, replace(target.dataset, limit=limit)


def export_altered(
    folder: Path,
    model: str,
    form: str,
    part: str = "",
    overrides: dict[str, Any] | None = None,
    **options: Any,
) -> Path:
    """Export a demo model whose weights are noisy in one part, or whose config differs."""
    checkpoint, dataset = source_of(model, 2)
    weights = checkpoint.weights
    if part:
        content = torch.load(weights, weights_only=True)
        noise = torch.Generator().manual_seed(0)
        altered = [name for name, value in content["model"].items() if name.startswith(part)]
        assert altered
        for name in altered:
            value = content["model"][name]
            if value.dim() > 1:
                scale = 0.4 * value.float().std()
                value += (torch.randn(value.shape, generator=noise) * scale).to(value.dtype)
        weights = folder / "altered.pth"
        torch.save(content, weights)
    directory = folder / "artifact"
    directory.mkdir()
    source = replace(checkpoint, weights=weights, overrides=overrides or {})
    pipeline.export_stage(source, form, options, dataset, None, directory, ignore)
    return directory


@pytest.mark.parametrize(
    ("model", "form", "part", "overrides", "options", "stage", "tensor"),
    [
        (MASK, ONNX, "backbone.", {}, {}, "features", "backbone"),
        (MASK, ONNX, "proposal_generator.", {}, {}, "proposals", "proposal_generator.rpn_head"),
        (MASK, ONNX, "", {RPN_NMS: 0.3}, {}, "proposals", "proposal_generator: boxes"),
        (MASK, ONNX, "roi_heads.mask_head.", {}, {}, "heads", "roi_heads.mask_head"),
        (MASK, ONNX, "", {NMS: 0.1}, {}, "post-processing", "detections"),
        (MASK, ONNX, "roi_heads.box_head.", {}, {"fp16": True}, "heads", "roi_heads.box_head"),
        (MASK, ONNX, "backbone.", {}, {"batch": 2}, "outputs", "detections"),
        (PANOPTIC, ONNX, "sem_seg_head.", {}, {"postprocess": True}, "heads", "sem_seg_head"),
        (RETINANET, ONNX, "head.", {}, {}, "heads", "head"),
        (MASK, TRACE, "roi_heads.box_predictor.", {}, {}, "heads", "roi_heads.box_predictor"),
        (MASK, TRACE, "", {NMS: 0.1}, {}, "post-processing", "detections"),
        (MASK, SCRIPT, "", {RPN_NMS: 0.3}, {}, "proposals", "proposal_generator"),
    ],
)
def test_the_first_stage_that_differs_is_the_one_that_was_altered(
    model: str,
    form: str,
    part: str,
    overrides: dict[str, Any],
    options: dict[str, Any],
    stage: str,
    tensor: str,
    tmp_path: Path,
) -> None:
    directory = export_altered(tmp_path, model, form, part, overrides, **options)
    checkpoint, dataset = source_of(model, 2)

    found = locate(checkpoint, directory, dataset, tmp_path / "pictures", ignore)

    assert found.stage == stage
    assert found.tensor.startswith(tensor)
    assert found.difference > 0.01
    assert bool(found.remark) == (stage == "outputs" or (form, stage) == (TRACE, "post-processing"))


def test_categories_and_the_three_worst_images_are_named_and_drawn(tmp_path: Path) -> None:
    directory = export_altered(tmp_path, MASK, ONNX, "roi_heads.box_predictor.")
    checkpoint, dataset = source_of(MASK, 8)
    stages: list[Stage] = []

    found = locate(checkpoint, directory, dataset, tmp_path / "pictures", stages.append)

    assert stages == [Stage.LOAD, Stage.EVALUATE]
    assert (found.stage, found.images_seen) == ("heads", 8)
    names = [name for name, _, _ in found.images]
    known = {entry["file_name"] for entry in json.loads(dataset.annotations.read_text())["images"][:8]}
    assert len(set(names)) == 3
    assert set(names) <= known
    differences = [apart for _, _, apart in found.images]
    assert differences == sorted(differences, reverse=True)
    assert 0 < differences[-1] <= differences[0] <= 1
    for _, path, _ in found.images:
        with Image.open(path) as picture:
            assert Path(path).parent == tmp_path / "pictures"
            left, right = np.asarray(picture)[40:, :300], np.asarray(picture)[40:, -300:]
            assert (left != right).any()
    moves = [abs(exported - eager) for _, eager, exported in found.categories]
    assert moves == sorted(moves, reverse=True)
    assert moves[0] > 1
    baseline = pipeline.evaluate_eager(checkpoint, dataset, ignore)
    for name, eager, _ in found.categories:
        task, _, category = name.partition("/")
        assert eager == pytest.approx(baseline[f"{task}/AP-{category}"])
    assert DriftReport.from_dict(json.loads(json.dumps(found.to_dict()))) == found


@pytest.fixture(scope="module")
def unaltered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact that does what the eager model does."""
    return export_altered(tmp_path_factory.mktemp("unaltered"), MASK, ONNX)


def test_an_artifact_that_does_not_drift_has_nothing_to_show(unaltered: Path, tmp_path: Path) -> None:
    checkpoint, dataset = source_of(MASK, 2)

    found = locate(checkpoint, unaltered, dataset, tmp_path / "pictures", ignore)

    assert (found.stage, found.images, found.categories) == ("outputs", (), ())
    assert "are the same" in found.remark


def test_inner_values_are_in_the_graph_and_are_no_outputs_of_it(unaltered: Path) -> None:
    graph = onnx.load(unaltered / "model.onnx").graph

    assert {value.name for value in graph.output} == {"pred_boxes", "pred_classes", "pred_masks", "scores"}
    made = {name for node in graph.node for name in node.output}
    assert {"stage/backbone/0", "stage/proposal_generator/0", "stage/roi_heads.mask_head/0"} <= made
    used = {value.name for value in graph.output} | set(names_taken(graph.node))
    assert all(used.intersection(node.output) for node in graph.node)
    assert {weight.name for weight in graph.initializer} <= used


def names_taken(nodes: Any) -> list[str]:
    """Names that nodes take, also inside of their graphs."""
    inner = [attribute.g for node in nodes for attribute in node.attribute if attribute.HasField("g")]
    names = [name for node in nodes for name in node.input]
    for graph in inner:
        names += names_taken(graph.node) + [value.name for value in graph.output]
    return names


def box(x: float, score: float, index: int = 0, mask: PastedMask | None = None) -> Finding:
    corners = np.array([x, 5, x + 10, 15], dtype=np.float32)
    return Finding(Kind.INSTANCE, Term(index, str(index), None), corners, score, mask)


@pytest.mark.parametrize(
    ("eager", "exported", "expected"),
    [
        ([], [], 0.0),
        ([box(0, 0.9)], [box(0, 0.9)], 0.0),
        ([box(0, 0.9)], [], 1.0),
        ([box(0, 0.9)], [box(30, 0.9)], 1.0),
        ([box(0, 0.9)], [box(0, 0.9, index=1)], 1.0),
        ([box(0, 0.8)], [box(0, 0.4)], 1 - 2 * 0.4 / 1.2),
        ([box(0, 0.5), box(30, 0.5)], [box(0, 0.5)], 1 - 2 * 0.5 / 1.5),
        ([box(0, 0.5)], [box(2, 0.5)], 1 - 80 / 120),  # the boxes share 8 of 12 columns
    ],
)
def test_the_difference_of_detections(eager: list[Finding], exported: list[Finding], expected: float) -> None:
    assert difference(eager, exported, SIZE) == pytest.approx(expected)
    assert difference(exported, eager, SIZE) == pytest.approx(expected)


def test_masks_and_keypoints_count_where_there_are_any() -> None:
    whole, half = (PastedMask(np.ones((10, width), dtype=bool), 5, 0) for width in (10, 6))
    points = np.array([[3.0, 3, 1], [5, 5, 1]])
    moved = points + np.array([2, 0, 0])

    masks = difference([box(0, 0.5, mask=whole)], [box(0, 0.5, mask=half)], SIZE)
    keypoints = difference(
        [replace(box(0, 0.5), keypoints=points)], [replace(box(0, 0.5), keypoints=moved)], SIZE
    )

    assert masks == pytest.approx(0.4)
    assert keypoints == pytest.approx(1 - np.exp(-(2**2) / (2 * 100 * 0.1**2)))


def test_the_difference_of_maps_is_the_part_of_the_pixels() -> None:
    def label(index: int, rows: int, top: int) -> Finding:
        mask = PastedMask(np.ones((rows, SIZE[1]), dtype=bool), top, 0)
        return Finding(Kind.LABEL, Term(index, str(index), None), np.zeros(4, np.float32), mask=mask)

    eager, exported = [label(0, 10, 0), label(1, 30, 10)], [label(0, 16, 0), label(1, 24, 16)]

    assert difference(eager, exported, SIZE) == pytest.approx(6 / 40)


def test_a_detection_is_in_one_pair_at_most() -> None:
    pairs = pair_up([box(0, 0.9), box(1, 0.8)], [box(0, 0.9)], SIZE)

    assert [(pair.eager.score, pair.exported.score) for pair in pairs] == [(0.9, 0.9)]


def test_proposals_are_compared_as_a_set() -> None:
    boxes = np.arange(400, dtype=np.float32).reshape(100, 4) * 3
    shuffled = boxes[np.random.default_rng(0).permutation(100)]

    assert proposal_deviation("boxes", boxes, shuffled + 0.01, 0.0).difference == 0
    assert proposal_deviation("boxes", boxes, shuffled[:90], 0.0).difference == pytest.approx(0.1)
    assert proposal_deviation("boxes", boxes[:0], boxes, 0.0).difference == 1
    np.testing.assert_array_equal(shuffled[counterparts(boxes, shuffled)], boxes)


def test_categories_that_moved_most_come_first() -> None:
    eager = {
        "bbox/AP": 40.0,
        "bbox/AP-cat": 50.0,
        "bbox/AP-dog": 30.0,
        "sem_seg/IoU-sky": 80.0,
        "bbox/APs": 9.0,
    }
    exported = {**eager, "bbox/AP": 39.0, "bbox/AP-dog": 30.5, "sem_seg/IoU-sky": 70.0, "bbox/APs": 1.0}

    assert moved_categories(eager, exported, ("cat", "dog")) == [
        ("sem_seg/sky", 80.0, 70.0),
        ("bbox/dog", 30.0, 30.5),
    ]
    assert moved_categories({"bbox/AP": 40.0}, {"bbox/AP": 41.0}, ("cat",)) == [("bbox/cat", 40.0, 41.0)]
