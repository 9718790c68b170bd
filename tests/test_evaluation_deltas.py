"""Verdicts: two-sided tolerances by metric name, and nothing that is not a number ever passes."""

from __future__ import annotations

import pickle

import pytest

from zooport.export_core.evaluation import compare, judge, remarks

NAN = float("nan")


@pytest.mark.parametrize(
    ("exported", "tolerance", "passes"),
    [
        (43.0, {}, True),
        (43.1, {}, True),
        (42.9, {}, True),
        (43.1001, {}, False),
        (42.8999, {}, False),
        (43.4, {"AP": 0.5}, True),
        (43.4, {"bbox/AP": 0.5}, True),
        (43.4, {"AP": 0.01, "bbox/AP": 0.5}, True),
        (43.4, {"AP": 0.5, "bbox/AP": 0.01}, False),
        (43.4, {"segm/AP": 0.5}, False),
        (43.0001, {"AP": 0.0}, False),
        (43.0, {"AP": 0.0}, True),
        (43.0, {"AP": NAN}, False),
    ],
)
def test_tolerance_is_two_sided_and_the_specific_name_wins(
    exported: float, tolerance: dict[str, float], passes: bool
) -> None:
    failure = judge(compare({"bbox/AP": 43.0}, {"bbox/AP": exported}), tolerance)

    assert (failure is None) == passes
    assert failure is None or failure.code == "accuracy.drift"


def test_one_tolerance_is_for_every_task() -> None:
    deltas = compare({"bbox/AP": 40.0, "segm/AP": 30.0}, {"bbox/AP": 40.0, "segm/AP": 31.0})

    failure = judge(deltas, {})

    assert failure is not None
    assert "segm/AP moved by +1.000 points, from 30.000 (eager) to 31.000 (exported)" in failure.message
    assert "tolerance is 0.1" in failure.message
    (told,) = failure.details["metrics"].items()
    assert told[0] == "segm/AP"
    assert {key: told[1][key] for key in ("baseline", "exported", "delta", "tolerance")} == {
        "baseline": 30.0,
        "exported": 31.0,
        "delta": 1.0,
        "tolerance": 0.1,
    }


def test_the_worst_metric_is_named_and_the_others_counted() -> None:
    failure = judge(compare({"bbox/AP": 40.0, "segm/AP": 30.0}, {"bbox/AP": 39.0, "segm/AP": 25.0}))

    assert failure is not None
    assert failure.message.startswith("segm/AP moved by -5.000")
    assert "1 more" in failure.message
    assert set(failure.details["metrics"]) == {"bbox/AP", "segm/AP"}


def test_metrics_without_tolerance_are_recorded_but_not_judged() -> None:
    deltas = compare({"bbox/AP": 40.0, "bbox/AP-cat": 10.0}, {"bbox/AP": 40.0, "bbox/AP-cat": 90.0})

    assert judge(deltas, {}) is None
    assert deltas["bbox/AP-cat"].delta == 80.0
    assert judge(deltas, {"AP-cat": 1.0}) is not None


@pytest.mark.parametrize(
    "metric", ["panoptic_seg/PQ", "sem_seg/mIoU", "box_proposals/AR@100", "keypoints/AP"]
)
def test_main_metrics_of_other_tasks_are_judged_by_default(metric: str) -> None:
    assert judge(compare({metric: 50.0}, {metric: 51.0}), {}) is not None


@pytest.mark.parametrize("value", [NAN, float("inf")])
@pytest.mark.parametrize("name", ["bbox/AP", "bbox/AP-cat"])
@pytest.mark.parametrize("whose", ["eager", "exported"])
def test_what_is_not_a_number_never_passes(value: float, name: str, whose: str) -> None:
    good, bad = {"bbox/AP": 1.0, name: 1.0}, {"bbox/AP": 1.0, name: value}
    deltas = compare(bad, good) if whose == "eager" else compare(good, bad)

    failure = judge(deltas, {"AP": 1e9, "AP-cat": 1e9})

    assert failure is not None
    assert failure.code == "accuracy.nonfinite"
    assert f"{name} of the {whose} model is {value}" in failure.message


def test_two_nans_are_not_equal() -> None:
    failure = judge(compare({"bbox/AP": NAN}, {"bbox/AP": NAN}), {"AP": 100})

    assert failure is not None
    assert failure.code == "accuracy.nonfinite"


def test_a_metric_of_one_model_alone_fails() -> None:
    lost = judge(compare({"bbox/AP": 1.0, "segm/AP": 1.0}, {"bbox/AP": 1.0}), {})
    gained = judge(compare({"bbox/AP": 1.0}, {"bbox/AP": 1.0, "segm/AP": 1.0}), {})

    assert lost is not None
    assert lost.message == "the exported model has no segm/AP, which the eager model has"
    assert gained is not None
    assert gained.message == "the eager model has no segm/AP, which the exported model has"


def test_nothing_measured_is_nothing_judged() -> None:
    assert judge(compare({}, {}), {}) is None


def test_verdicts_about_models_that_find_nothing_are_remarked() -> None:
    deltas = compare(
        {"bbox/AP": 0.0, "bbox/APs": 0.0, "segm/AP": 3.0}, {"bbox/AP": 0.0, "bbox/APs": 0.0, "segm/AP": 3.0}
    )

    assert remarks(deltas) == (
        "bbox/AP is 0 for the eager and the exported model: the verdict says nothing about accuracy",
    )


def test_verdicts_travel_between_processes() -> None:
    failure = judge(compare({"bbox/AP": 1.0}, {"bbox/AP": 2.0}))

    assert failure is not None
    assert pickle.loads(pickle.dumps(failure)).record() == failure.record()
