"""Tolerances by metric, format and architecture: which one judges, where it is said, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from zooport.cli import run
from zooport.export_core import demo
from zooport.export_core.config.architecture import architecture_of
from zooport.export_core.evaluation import TASKS as KNOWN_TASKS
from zooport.export_core.evaluation import compare, predict
from zooport.export_core.evaluation.deltas import (
    DEFAULT_ORIGIN,
    judge,
    remarks,
    tolerance_of,
    with_tolerances,
)
from zooport.export_core.evaluation.metric_names import METRICS, TASKS, may_have, problem_with
from zooport.export_core.failures import Failure
from zooport.export_core.zoo import catalog
from zooport.jobs.manifest import load_manifest
from zooport.jobs.registry import open_registry
from zooport.jobs.values import ExportResult, ExportTarget
from zooport.tests.registry_support import begin

MODELS = """
models:
  - {name: boxes, config: boxes.yaml, weights: boxes.pth}
  - {name: panoptic, config: panoptic.yaml, weights: panoptic.pth}
formats: [torchscript-trace, onnx]
"""
CONFIGS = {
    "boxes.yaml": "MODEL: {META_ARCHITECTURE: RetinaNet}",
    "panoptic.yaml": "_BASE_: base.yaml\nMODEL: {MASK_ON: true}",
    "base.yaml": "MODEL: {META_ARCHITECTURE: PanopticFPN}",
}


def targets(folder: Path, text: str) -> dict[tuple[str, str], ExportTarget]:
    for name, content in CONFIGS.items():
        (folder / name).write_text(content)
    (folder / "zoo.yaml").write_text(MODELS + text)
    return {(each.checkpoint.name, each.format): each for each in load_manifest(folder / "zoo.yaml").targets}


def judged(target: ExportTarget, metric: str) -> tuple[float, str]:
    found = tolerance_of(metric, target.tolerance, target.tolerance_origins)
    assert found is not None
    return found.points, found.origin


def test_without_any_the_default_holds_and_says_where_it_comes_from(tmp_path: Path) -> None:
    (first, *_) = targets(tmp_path, "").values()
    assert judged(first, "bbox/AP") == (0.1, DEFAULT_ORIGIN)
    assert "detectron2 publishes" in DEFAULT_ORIGIN
    assert tolerance_of("bbox/AP50", first.tolerance) is None


def test_a_number_is_for_all_that_is_judged(tmp_path: Path) -> None:
    (first, *_) = targets(tmp_path, "tolerance: 0.3").values()
    assert judged(first, "bbox/AP") == judged(first, "panoptic_seg/PQ") == (0.3, "zoo.yaml: tolerance")
    assert tolerance_of("bbox/AP50", first.tolerance) is None


def test_the_most_exact_name_counts(tmp_path: Path) -> None:
    text = "tolerance: {bbox/AP: 0.05, AP: 0.2, AP50: 0.4}\ntolerances: [{points: 0.9}]"
    one = targets(tmp_path, text)["panoptic", "onnx"]
    assert judged(one, "bbox/AP") == (0.05, "zoo.yaml: tolerance.bbox/AP")
    assert judged(one, "segm/AP") == (0.2, "zoo.yaml: tolerance.AP")
    assert judged(one, "segm/AP50") == (0.4, "zoo.yaml: tolerance.AP50")
    assert judged(one, "sem_seg/mIoU") == (0.9, "zoo.yaml: tolerances[0]")


def test_a_format_and_an_architecture_may_have_their_own(tmp_path: Path) -> None:
    text = """
tolerance: {PQ: 0.1}
tolerances:
  - {format: onnx, points: 0.5}
  - {format: "torchscript-*", metric: AP, points: 0.6}
  - {architecture: Panoptic*, metric: PQ, points: 0.7}
  - {format: onnx, architecture: PanopticFPN, metric: PQ, points: 0.8}
"""
    found = targets(tmp_path, text)
    assert judged(found["boxes", "onnx"], "bbox/AP") == (0.5, "zoo.yaml: tolerances[0]")
    assert judged(found["boxes", "torchscript-trace"], "bbox/AP") == (0.6, "zoo.yaml: tolerances[1]")
    assert judged(found["panoptic", "torchscript-trace"], "panoptic_seg/PQ")[0] == 0.7
    assert judged(found["panoptic", "onnx"], "panoptic_seg/PQ") == (0.8, "zoo.yaml: tolerances[3]")
    assert judged(found["panoptic", "torchscript-trace"], "sem_seg/mIoU") == (0.1, DEFAULT_ORIGIN)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tolerance: {mAP: 0.1}", "tolerance.mAP: no task has a metric 'mAP', did you mean"),
        ("tolerance: {bbox/PQ: 0.1}", "tolerance.bbox/PQ: bbox has no metric 'PQ'; it has AP, AP50"),
        ("tolerance: {box/AP: 0.1}", "tolerance.box/AP: there is no task 'box', did you mean 'bbox'?"),
        ("tolerance: {bbox/AP-: 0.1}", "bbox has no metric 'AP-'"),
        ("tolerance: {AR@100: 0.1}", "no model here has AR@100: PanopticFPN has bbox/ AP, "),
        ("tolerance: {box_proposals/AR@100: 0.1}", "no model here has box_proposals/AR@100: "),
        ("tolerance: -1", "tolerance: expected points, 0 or more, got -1"),
        ("tolerance: .nan", "tolerance: expected points, 0 or more"),
        ("tolerance: much", "tolerance: expected points, or a mapping"),
        ("tolerance: {AP: true}", "tolerance.AP: expected points, 0 or more, got True"),
        ("tolerances: [{metric: AP}]", "tolerances[0].points: this key is missing"),
        (
            "tolerances: [{points: 1, metrics: AP}]",
            "tolerances[0].metrics: unknown key, did you mean 'metric'?",
        ),
        (
            "tolerances: [{points: 1, metric: mIOU}]",
            "tolerances[0]: no task has a metric 'mIOU', did you mean",
        ),
        ("tolerances: [{points: 1, format: onxx}]", "no model is exported to 'onxx', did you mean 'onnx'?"),
        (
            "tolerances: [{points: 1, architecture: FCOS}]",
            "no model here is a 'FCOS'; known: PanopticFPN, Reti",
        ),
        (
            "tolerances: [{points: 1, architecture: RetinaNet, metric: segm/AP}]",
            "tolerances[0]: no model here has segm/AP: RetinaNet has bbox/ AP,",
        ),
    ],
)
def test_a_tolerance_that_can_judge_nothing_is_refused_by_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(Failure) as caught:
        targets(tmp_path, text)
    assert caught.value.code == "manifest.invalid"
    assert " line 6: tolerance" in caught.value.message
    assert said in caught.value.message


def test_the_architecture_of_a_config_that_cannot_be_read_is_not_held_against_a_tolerance(
    tmp_path: Path,
) -> None:
    text = MODELS + "tolerances: [{points: 1, architecture: FCOS, metric: bbox/AP}]"
    (tmp_path / "zoo.yaml").write_text(text)
    assert all(not each.tolerance for each in load_manifest(tmp_path / "zoo.yaml").targets)


def test_an_override_decides_the_architecture(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("VERSION: 2")
    assert architecture_of(tmp_path / "a.yaml", {}) == "GeneralizedRCNN"
    assert architecture_of(tmp_path / "a.yaml", {"MODEL.META_ARCHITECTURE": "FCOS"}) == "FCOS"
    assert architecture_of(tmp_path / "absent.yaml", {}) is None


def test_every_task_and_metric_has_its_name(detectron2_metrics: dict[str, dict[str, float]]) -> None:
    assert predict.__name__  # the tasks are registered where models are run
    assert METRICS.keys() == {task.name for task in KNOWN_TASKS.values()}
    found = {name for measured in detectron2_metrics.values() for name in measured if "Iou" not in name}
    wrong = {name: problem_with(name) for name in found if problem_with(name) and "BoundaryIoU" not in name}
    assert wrong == {}
    assert {"bbox/AP-circle", "sem_seg/IoU-sky", "panoptic_seg/PQ_th"} & found


def test_every_official_architecture_may_have_its_published_metrics() -> None:
    for entry in catalog().values():
        architecture = architecture_of(entry.config, {})
        assert architecture in TASKS
        for metric in entry.published:
            assert not problem_with(metric), (entry.name, metric)
            assert may_have(architecture, metric), (entry.name, metric)


def test_the_command_line_refuses_a_metric_that_the_model_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (weights,) = (demo.ZOO / "retinanet_fpn").glob("model_final.*")
    words = ["export", "--config-file", str(demo.ZOO / "retinanet_fpn" / "config.yaml")]
    words += ["--weights", str(weights), "--format", "onnx", "--output", str(tmp_path / "out")]
    for name, said in (("PQ", "RetinaNet has no such metric"), ("APP", "did you mean 'AP'?")):
        assert run([*words, "--tolerance", f"{name}=0.1"]) == 2
        assert said in capsys.readouterr().err


def test_a_tolerance_of_a_category_that_is_not_there_is_remarked() -> None:
    deltas = compare({"bbox/AP": 40.0, "bbox/AP-cat": 40.0}, {"bbox/AP": 40.0, "bbox/AP-cat": 40.0})
    given = {"bbox/AP-dog": 0.1, "segm/AP-dog": 0.1, "bbox/AP-cat": 0.1}
    (said,) = remarks(deltas, given)
    assert said == "the tolerance of bbox/AP-dog judged nothing: bbox/AP-dog was not measured"


def test_a_category_may_hold_a_slash() -> None:
    name = "bbox/AP-cat/dog"
    assert problem_with(name) == problem_with("AP-cat/dog") == ""
    assert judge(compare({name: 1.0}, {name: 2.0}), {"AP-cat/dog": 0.5}) is not None


def test_show_tells_which_tolerance_judged_and_where_it_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zooport.db"
    deltas = compare(
        {"bbox/AP": 40.0, "segm/AP": 30.0, "bbox/AP50": 60.0}, {"bbox/AP": 40.2, "segm/AP": 30.0}
    )
    chosen = with_tolerances(deltas, {"bbox/AP": 0.25}, {"bbox/AP": "zoo.yaml: tolerances[2]"})
    with open_registry(str(file)) as registry:
        (job,) = begin(registry, ["mask_rcnn"])
        registry.start_attempt(job.id, "worker", job.log)
        registry.finish_attempt(job.id, ExportResult(job.id, 1.0), chosen)
        stored = registry.export("mask_rcnn").row.metrics["bbox/AP"]
    assert (stored.tolerance, stored.origin) == (0.25, "zoo.yaml: tolerances[2]")
    assert run(["show", "mask_rcnn", "--registry", str(file)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "tolerance 0.25: zoo.yaml: tolerances[2]" in shown
    assert f"tolerance 0.1: {DEFAULT_ORIGIN}" in shown
    (line,) = [line for line in shown if line.startswith("bbox/AP ")]
    assert line.split() == ["bbox/AP", "40.00", "40.20", "+0.20", "0.25"]
    (line,) = [line for line in shown if line.startswith("bbox/AP50 ")]
    assert "0.1" not in line
