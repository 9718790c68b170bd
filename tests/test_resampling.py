"""Confidence intervals of differences: resamples are counted as datasets are; chance is told from drift."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from zooport.export_core import pipeline, sharding
from zooport.export_core.artifacts import VALUES
from zooport.export_core.evaluation import ImagePrediction, compute_metrics, load_dataset, predict
from zooport.export_core.evaluation.coco_metrics import BoxAP
from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.deltas import compare, judge, remarks
from zooport.export_core.evaluation.metric_names import METRICS
from zooport.export_core.evaluation.resampling import (
    RESAMPLES,
    compare_values,
    draw,
    paired,
    read_tallies,
    write_tallies,
)
from zooport.export_core.evaluation.tasks import measure_of
from zooport.export_core.failures import Failure
from zooport.export_core.shards import split
from zooport.tests.evaluation_support import demo_source, make_config, recorded_predictions, repeated
from zooport.tests.test_pipeline import ignore, source_of

Array = npt.NDArray[Any]
FIVE: dict[str, Any] = {"MODEL__ROI_HEADS__NUM_CLASSES": 5}


def measured(
    dataset: Dataset, predictions: list[ImagePrediction], config: Any
) -> tuple[dict[str, float], dict[str, Mapping[str, Array]]]:
    tallies: dict[str, Mapping[str, Array]] = {}
    return compute_metrics(predictions, dataset, config, tallies), tallies


def resampled(tallies: Mapping[str, Mapping[str, Array]], weights: Array) -> dict[str, Array]:
    tasks: Mapping[str, Any] = predict.known_tasks()
    return {
        f"{task}/{name}": values
        for task, tally in tallies.items()
        for name, values in tasks[task].resampled(tally, weights).items()
    }


def boxes_and_masks(zoo: Path) -> tuple[Dataset, list[ImagePrediction], Any]:
    dataset = load_dataset(demo_source(zoo))
    predictions = recorded_predictions("mask_rcnn_fpn", dataset, {"bbox": "bbox", "segm": "segmentation"})
    return dataset, predictions, make_config(MODEL__MASK_ON=True, **FIVE)


def test_every_image_once_gives_the_metrics_themselves(demo_zoo: Path) -> None:
    dataset, predictions, config = boxes_and_masks(demo_zoo)
    metrics, tallies = measured(dataset, predictions, config)
    found = resampled(tallies, np.ones((1, len(dataset.images)), dtype=np.int32))
    defined = {name: float(values[0]) for name, values in found.items() if np.isfinite(values[0])}
    assert defined == pytest.approx(metrics, abs=1e-9)
    assert metrics["segm/AP"] > 10
    assert metrics == compute_metrics(predictions, dataset, config)


def test_a_resample_counts_as_a_dataset_of_its_images_does(demo_zoo: Path) -> None:
    dataset, predictions, config = boxes_and_masks(demo_zoo)
    config.MODEL.MASK_ON = False
    _, tallies = measured(dataset, predictions, config)
    weights = draw(len(dataset.images))[:3]
    found = resampled(tallies, weights)
    for number, row in enumerate(weights):
        drawn, copies = repeated(dataset, predictions, row)
        again = compute_metrics(copies, drawn, config)
        for name, points in again.items():
            # Equal scores of different images may stand in another order.
            assert found[name][number] == pytest.approx(points, abs=0.02), name


def test_keypoints_are_resampled_too(demo_zoo: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo, "keypoints_val.json"))
    predictions = recorded_predictions(
        "keypoint_rcnn_fpn", dataset, {"bbox": "bbox", "keypoints": "bbox keypoints"}
    )
    config = make_config(
        MODEL__KEYPOINT_ON=True,
        MODEL__ROI_HEADS__NUM_CLASSES=len(dataset.categories),
        MODEL__ROI_KEYPOINT_HEAD__NUM_KEYPOINTS=5,
        TEST__KEYPOINT_OKS_SIGMAS=[0.1] * 5,
    )
    metrics, tallies = measured(dataset, predictions, config)
    found = resampled(tallies, np.ones((1, len(dataset.images)), dtype=np.int32))
    assert {name: float(values[0]) for name, values in found.items() if np.isfinite(values[0])} == (
        pytest.approx(metrics, abs=1e-9)
    )
    assert metrics["keypoints/AP"] > 1


class TestSums:
    """Tasks whose metrics come from sums over images."""

    def test_proposals(self, demo_zoo: Path) -> None:
        dataset = load_dataset(demo_source(demo_zoo, limit=20))
        generator = np.random.default_rng(1)
        values = [
            {"AR@100": generator.uniform(0, 1, count).tolist(), "ARs@100": []}
            for count in generator.integers(0, 9, 20)
        ]
        self.check("box_proposals", values, dataset, make_config(), "AR@100")

    def test_semantic(self, demo_zoo: Path) -> None:
        dataset = load_dataset(demo_source(demo_zoo, limit=20))
        generator = np.random.default_rng(2)
        values = [
            [[int(found), int(true), int(area)] for found, true, area in generator.integers(0, 4, (6, 3))]
            for _ in range(20)
        ]
        self.check("sem_seg", values, dataset, make_config(MODEL__SEM_SEG_HEAD__NUM_CLASSES=4), "mIoU")

    def test_panoptic(self, demo_zoo: Path) -> None:
        data = demo_zoo / "data"
        panoptic: dict[str, Any] = {
            "panoptic": data / "annotations" / "panoptic_val.json",
            "panoptic_masks": data / "panoptic_val",
        }
        dataset = load_dataset(demo_source(demo_zoo, limit=20, **panoptic))
        ids = [category.id for category in dataset.require_panoptic().categories]
        generator = np.random.default_rng(3)
        values = [
            [
                [ids[index], 0.75 * hits, hits, spurious, missed]
                for index, hits, spurious, missed in generator.integers(0, 3, (4, 4)).tolist()
                if hits + spurious + missed
            ]
            for _ in range(20)
        ]
        self.check("panoptic_seg", values, dataset, make_config(), "PQ")

    @staticmethod
    def check(name: str, values: list[Any], dataset: Dataset, config: Any, main: str) -> None:
        task: Any = predict.known_tasks()[name]
        metrics, tally = task.measure(values, dataset, config)
        assert metrics == task.score(values, dataset, config)
        assert metrics[main] > 1
        weights = draw(20)[:4]
        found = task.resampled(tally, weights)
        for number, row in enumerate(weights):
            copies = [value for value, times in zip(values, row.tolist(), strict=True) for _ in range(times)]
            again = task.score(copies, dataset, config)
            sampled = {key: float(each[number]) for key, each in found.items() if np.isfinite(each[number])}
            assert sampled == pytest.approx(again, abs=1e-9)


def spoiled(predictions: list[ImagePrediction], every: int, seed: int) -> list[ImagePrediction]:
    """Shift the boxes of every so manieth image, at random, as an inexact export may."""
    generator = np.random.default_rng(seed)
    changed = []
    for number, prediction in enumerate(predictions):
        rows = json.loads(json.dumps(prediction.values["bbox"]))
        if number % every == 0:
            for row in rows:
                row["bbox"] = [side + float(generator.normal(0, 1.5)) for side in row["bbox"][:2]] + row[
                    "bbox"
                ][2:]
        changed.append(replace(prediction, values={"bbox": rows}))
    return changed


def test_an_equal_export_has_an_interval_of_no_width(demo_zoo: Path) -> None:
    dataset, predictions, config = boxes_and_masks(demo_zoo)
    _, tallies = measured(dataset, predictions, config)
    found = paired(predict.known_tasks()["bbox"].resampled, tallies["bbox"], tallies["bbox"], 100)  # type: ignore[attr-defined]
    assert found["AP"] == (0.0, 0.0)
    assert "AP-circle" in found


def test_chance_is_told_from_drift(demo_zoo: Path, tmp_path: Path) -> None:
    dataset, predictions, config = boxes_and_masks(demo_zoo)
    config.MODEL.MASK_ON = False
    eager, tallies = measured(dataset, predictions, config)
    write_tallies(tmp_path / "eager", dataset, tallies)
    verdicts = {}
    for name, every in (("one image", 100), ("all images", 1)):
        exported, changed = measured(dataset, spoiled(predictions, every, 3), config)
        write_tallies(tmp_path / name, dataset, changed)
        intervals = compare_values(tmp_path / "eager", tmp_path / name, ignore)
        deltas = compare(eager, exported, intervals)
        low, high = intervals["bbox/AP"]
        assert low <= deltas["bbox/AP"].delta <= high  # type: ignore[operator]
        tight = {"AP": abs(deltas["bbox/AP"].delta or 0.0) / 2}
        verdicts[name] = judge(deltas, tight), remarks(deltas, tight)
    failure, said = verdicts["one image"]
    assert failure is None
    assert "inconclusive, evaluate more images" in said[0]
    failure, said = verdicts["all images"]
    assert failure is not None
    assert failure.code == "accuracy.drift"
    assert "95% interval -" in failure.message
    assert said == ()


def test_the_same_files_give_the_same_interval(demo_zoo: Path, tmp_path: Path) -> None:
    dataset, predictions, config = boxes_and_masks(demo_zoo)
    config.MODEL.MASK_ON = False
    for name, found in (("a", predictions), ("b", spoiled(predictions, 2, 1))):
        write_tallies(tmp_path / name, dataset, measured(dataset, found, config)[1])
    first = compare_values(tmp_path / "a", tmp_path / "b", ignore)
    assert first == compare_values(tmp_path / "a", tmp_path / "b", ignore)
    turned = compare_values(tmp_path / "b", tmp_path / "a", ignore)["bbox/AP"]
    assert first["bbox/AP"] == pytest.approx((-turned[1], -turned[0]))


def test_files_hold_what_was_written_and_damage_is_told(demo_zoo: Path, tmp_path: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo, limit=3))
    tally = {"rows": np.arange(6.0).reshape(2, 3), "labels": np.array(["a/b", "ü"])}
    write_tallies(tmp_path / "new" / "values.npz", dataset, {"bbox": tally})
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["values.npz"]
    ids, read = read_tallies(tmp_path / "new" / "values.npz")
    assert ids == [image.id for image in dataset.images]
    assert all(np.array_equal(read["bbox"][name], tally[name]) for name in tally)
    (tmp_path / "half").write_bytes((tmp_path / "new" / "values.npz").read_bytes()[:200])
    for name in ("half", "absent"):
        with pytest.raises(Failure, match=name) as caught:
            compare_values(tmp_path / name, tmp_path / "new" / "values.npz", ignore)
        assert caught.value.code == "worker.error"
    write_tallies(tmp_path / "fewer", load_dataset(demo_source(demo_zoo, limit=2)), {"bbox": tally})
    with pytest.raises(Failure, match="different images"):
        compare_values(tmp_path / "fewer", tmp_path / "new" / "values.npz", ignore)


def test_every_way_to_evaluate_leaves_the_same_values(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("panoptic_fpn", limit=3)
    whole = tmp_path / "kept" / "whole.npz"
    metrics = pipeline.measure_eager(checkpoint, dataset, whole, ignore)
    shards = split(3, 2)
    for shard in shards:
        sharding.predict_shard(checkpoint, dataset, shard, tmp_path, ignore)
    sharding.merge_shards(checkpoint, dataset, shards, tmp_path, ignore)
    ids, tallies = read_tallies(whole)
    others, joined = read_tallies(tmp_path / VALUES)
    assert ids == others
    assert tallies.keys() == joined.keys() == {name.partition("/")[0] for name in without_costs(metrics)}
    for task, tally in tallies.items():
        assert all(np.array_equal(tally[name], joined[task][name]) for name in tally), task
    intervals = compare_values(whole, tmp_path / VALUES, ignore)
    assert set(intervals.values()) == {(0.0, 0.0)}
    assert intervals.keys() == without_costs(metrics).keys()


def test_a_task_that_scores_by_rules_of_its_own_is_not_resampled_by_those_it_inherits() -> None:
    class Other(BoxAP):
        def score(self, values: Any, dataset: Any, config: Any) -> dict[str, float]:
            return {"AP": 1.0}

    class Same(BoxAP):
        pass

    assert measure_of(Other()) is None
    assert measure_of(Same()) is not None
    assert all(measure_of(predict.known_tasks()[name]) is not None for name in METRICS)


def test_one_image_has_no_interval(demo_zoo: Path, tmp_path: Path) -> None:
    dataset = load_dataset(demo_source(demo_zoo, limit=1))
    write_tallies(tmp_path / "one", dataset, {})
    assert compare_values(tmp_path / "one", tmp_path / "one", ignore) == {}


def test_a_metric_that_few_resamples_define_has_no_interval() -> None:
    def rare(tally: Any, weights: Array) -> dict[str, Array]:
        return {
            "rare": np.where(weights[:, 0] > 3, 1.0, np.nan) * tally["factor"],
            "common": weights[:, 0] * tally["factor"],
        }

    found = paired(rare, {"factor": np.array(1.0)}, {"factor": np.array(2.0)}, 50)
    assert found.keys() == {"common"}


def test_every_resample_has_as_many_images() -> None:
    drawn = draw(50)
    assert drawn.shape == (RESAMPLES, 50)
    assert (drawn.sum(axis=1) == 50).all()
    assert len({row.tobytes() for row in drawn}) == RESAMPLES


@pytest.mark.parametrize(
    ("interval", "drifts"),
    [
        ((0.1, 0.5), True),
        ((-0.1, 0.7), False),
        ((0.0, 0.6), False),
        ((0.3, 0.3), True),
        (None, True),
    ],
)
def test_drift_is_beyond_tolerance_with_an_interval_on_one_side_of_zero(
    interval: tuple[float, float] | None, drifts: bool
) -> None:
    for sign in (1, -1):
        found = {}
        if interval is not None:
            low, high = sorted(sign * end for end in interval)
            found = {"bbox/AP": (low, high)}
        deltas = compare({"bbox/AP": 40.0}, {"bbox/AP": 40.0 + sign * 0.3}, found)
        assert (judge(deltas) is not None) == drifts
        assert bool(remarks(deltas)) != drifts
        assert judge(deltas, {"AP": 0.5}) is None
        assert remarks(deltas, {"AP": 0.5}) == ()
