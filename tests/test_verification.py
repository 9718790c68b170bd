"""Outputs of an artifact against the eager model's: detections as a set, each field by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats import Tolerance
from zooport.export_core.samples import Sample
from zooport.export_core.verification import compare_outputs, verify

Array = np.ndarray[Any, Any]
Fields = dict[str, Array]
TOLERANCE = Tolerance(pixels=0.01, score=1e-4, relative=1e-4)


def float32(values: Any) -> Array:
    return np.array(values, dtype=np.float32)


def detections() -> Fields:
    """Four detections of two classes; the second and third have equal scores."""
    corners = float32([[0, 0], [20, 5], [40, 30], [60, 10]])
    return {
        "pred_boxes": np.concatenate((corners, corners + 12), axis=1),
        "pred_classes": np.array([1, 0, 0, 1]),
        "scores": float32([0.9, 0.8, 0.8, 0.3]),
        "pred_masks": np.linspace(0, 1, 4 * 9, dtype=np.float32).reshape(4, 1, 3, 3),
        "pred_keypoints": np.arange(4 * 2 * 3, dtype=np.float32).reshape(4, 2, 3) / 100,
    }


def sample_of(outputs: Fields) -> Sample:
    return Sample("street.jpg", {"image": np.zeros((3, 40, 80), np.float32)}, outputs)


def changed(field: str, change: Callable[[Array], Array]) -> Fields:
    outputs = detections()
    return {**outputs, field: change(outputs[field].copy())}


def shifted(by: float) -> Callable[[Array], Array]:
    return lambda value: value + np.asarray(by, value.dtype)


def test_equal_outputs_deviate_by_nothing() -> None:
    deviations = compare_outputs(sample_of(detections()), detections(), TOLERANCE)

    assert deviations == dict.fromkeys(detections(), 0.0)


@pytest.mark.parametrize(
    ("field", "within", "beyond", "unit"),
    [
        ("pred_boxes", 0.009, 0.02, "px"),
        ("scores", 5e-5, 2e-4, ""),
        ("pred_masks", 5e-5, 2e-4, ""),
        ("pred_classes", 0, 1, ""),
    ],
)
def test_each_kind_has_its_own_limit(field: str, within: float, beyond: float, unit: str) -> None:
    sample = sample_of(detections())

    deviation = compare_outputs(sample, changed(field, shifted(within)), TOLERANCE)[field]
    with pytest.raises(Failure) as caught:
        compare_outputs(sample, changed(field, shifted(beyond)), TOLERANCE)

    assert deviation == pytest.approx(within, abs=1e-5)
    failure = caught.value
    assert (failure.code, failure.stage) == ("artifact.mismatch", Stage.VERIFY)
    assert f"output {field} differs by {beyond:.2g}"[:24] in failure.message
    assert unit in failure.message
    assert "street.jpg" in failure.message
    assert "80x40 with 4 detections" in failure.message
    assert failure.details == {"output": field, "sample": "street.jpg"}


def test_keypoints_are_pixels_and_a_score() -> None:
    def move(column: int, by: float) -> Fields:
        def change(keypoints: Array) -> Array:
            keypoints[1, 0, column] += by
            return keypoints

        return changed("pred_keypoints", change)

    sample = sample_of(detections())
    compare_outputs(sample, move(0, 0.005), TOLERANCE)
    for column, by, said in ((0, 0.05, "px"), (1, 0.05, "px"), (2, 0.001, "of score")):
        with pytest.raises(Failure, match=f"pred_keypoints differs .* {said}"):
            compare_outputs(sample, move(column, by), TOLERANCE)


def test_other_tensors_are_compared_relative_to_their_magnitude() -> None:
    logits = float32([[1000.0, -2.0], [3.0, 4.0]])[None]
    sample = sample_of({"sem_seg": logits})

    assert compare_outputs(sample, {"sem_seg": logits + 0.05}, TOLERANCE)["sem_seg"] < 1e-4
    with pytest.raises(Failure, match=r"sem_seg differs by 0\.000\d+ relative"):
        compare_outputs(sample, {"sem_seg": logits + 0.5}, TOLERANCE)


def test_detections_of_equal_score_may_change_places() -> None:
    swapped = {name: value[[0, 2, 1, 3]] for name, value in detections().items()}

    deviations = compare_outputs(sample_of(detections()), swapped, TOLERANCE)

    assert max(deviations.values()) == 0


def test_labels_of_pixels_keep_their_order_though_they_are_as_many_as_the_detections() -> None:
    outputs = detections()
    logits = np.arange(4 * 6, dtype=np.float32).reshape(4, 2, 3)
    swapped = {name: value[[0, 2, 1, 3]] for name, value in outputs.items()}

    deviations = compare_outputs(
        sample_of({**outputs, "sem_seg": logits}), {**swapped, "sem_seg": logits}, TOLERANCE
    )

    assert max(deviations.values()) == 0
    with pytest.raises(Failure, match="sem_seg differs"):
        compare_outputs(
            sample_of({**outputs, "sem_seg": logits}),
            {**swapped, "sem_seg": logits[[0, 2, 1, 3]]},
            TOLERANCE,
        )


def test_detections_of_nearly_equal_score_are_paired_by_their_boxes() -> None:
    outputs = detections()
    swapped = {name: value[[0, 2, 1, 3]] for name, value in outputs.items()}
    swapped["scores"] = outputs["scores"] + float32([0, 2e-5, -2e-5, 0])

    assert compare_outputs(sample_of(outputs), swapped, TOLERANCE)["pred_boxes"] == 0


def test_proposals_of_nearly_equal_logits_may_change_places_and_others_not() -> None:
    boxes = detections()["pred_boxes"]
    outputs = {"proposal_boxes": boxes, "objectness_logits": float32([9.0, 4.0, 4.0, -3.0])}
    order = [0, 2, 1, 3]
    swapped = {"proposal_boxes": boxes[order], "objectness_logits": float32([9.0, 4.00002, 4.0, -3.0])}

    assert compare_outputs(sample_of(outputs), swapped, TOLERANCE)["proposal_boxes"] == 0
    apart = {"proposal_boxes": boxes[[2, 1, 0, 3]], "objectness_logits": outputs["objectness_logits"]}
    with pytest.raises(Failure, match="proposal_boxes differs"):
        compare_outputs(sample_of(outputs), apart, TOLERANCE)


def test_a_mask_that_belongs_to_another_detection_is_found() -> None:
    with pytest.raises(Failure, match="pred_masks differs"):
        compare_outputs(
            sample_of(detections()), changed("pred_masks", lambda masks: masks[[0, 2, 1, 3]]), TOLERANCE
        )


def test_a_found_detection_stands_for_one_wanted_only() -> None:
    outputs = detections()
    doubled = {name: value[[0, 1, 1, 3]] for name, value in outputs.items()}

    with pytest.raises(Failure, match="pred_boxes differs by 25 px"):
        compare_outputs(sample_of(outputs), doubled, TOLERANCE)


def test_another_number_of_detections_is_said_first() -> None:
    fewer = {name: value[:3] for name, value in detections().items()}

    with pytest.raises(Failure, match="output scores has 3 detections instead of 4"):
        compare_outputs(sample_of(detections()), fewer, TOLERANCE)


def test_a_missing_output_is_named() -> None:
    outputs = detections()
    del outputs["pred_masks"]

    with pytest.raises(Failure, match="output pred_masks is missing"):
        compare_outputs(sample_of(detections()), outputs, TOLERANCE)


def test_another_shape_is_named() -> None:
    with pytest.raises(Failure, match=r"pred_masks has shape \(4, 1, 2, 3\) instead of \(4, 1, 3, 3\)"):
        compare_outputs(
            sample_of(detections()), changed("pred_masks", lambda masks: masks[:, :, :2]), TOLERANCE
        )


@pytest.mark.parametrize("field", ["pred_boxes", "pred_classes"])
def test_fields_of_unlike_length_are_named(field: str) -> None:
    with pytest.raises(Failure, match=rf"{field} has shape \(3,.* instead of \(4,"):
        compare_outputs(sample_of(detections()), changed(field, lambda value: value[:3]), TOLERANCE)


@pytest.mark.parametrize("field", ["pred_boxes", "scores", "pred_masks"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_no_number_is_never_within_a_limit(field: str, bad: float) -> None:
    def spoil(value: Array) -> Array:
        value[1] = bad
        return value

    with pytest.raises(Failure) as caught:
        compare_outputs(sample_of(detections()), changed(field, spoil), TOLERANCE)
    assert caught.value.code == "artifact.mismatch"


def test_images_without_detections_compare_by_shape() -> None:
    nothing = {name: value[:0] for name, value in detections().items()}

    assert set(compare_outputs(sample_of(nothing), nothing, TOLERANCE).values()) == {0.0}


def test_the_largest_deviation_over_all_samples_is_reported() -> None:
    samples = [sample_of(detections()) for _ in range(3)]
    shifts = iter([0.001, 0.008, 0.002])

    worst = verify(lambda image: changed("pred_boxes", shifted(next(shifts))), samples, TOLERANCE)

    assert worst["pred_boxes"] == pytest.approx(0.008, abs=1e-4)
    assert worst["scores"] == 0


def test_further_inputs_are_given_by_name() -> None:
    boxes = np.zeros((2, 4), np.float32)
    sample = Sample("x", {"image": np.zeros((3, 4, 4), np.float32), "proposal_boxes": boxes}, detections())
    seen: list[Any] = []

    def predict(image: Array, **more: Array) -> Fields:
        seen.append(more)
        return detections()

    verify(predict, [sample], TOLERANCE)

    assert [list(more) for more in seen] == [["proposal_boxes"]]


def test_an_artifact_that_cannot_run_is_unloadable() -> None:
    def fail(image: Array) -> Fields:
        raise RuntimeError(
            "The following operation failed:\nTraceback ...\nRuntimeError: shape '[4]' is invalid\n"
        )

    with pytest.raises(Failure, match=r"street.*shape '\[4\]' is invalid") as caught:
        verify(fail, [sample_of(detections())], TOLERANCE)
    assert caught.value.code == "artifact.unloadable"
    assert "\n" not in caught.value.message


LOOSE = Tolerance(pixels=0.5, score=0.02, mask=0.1, relative=0.05, unmatched=0.25)


def test_detections_may_lack_a_counterpart_where_the_format_has_fewer_digits() -> None:
    outputs = detections()
    fewer = {name: value[[2, 0, 1]] for name, value in outputs.items()}

    deviations = compare_outputs(sample_of(outputs), fewer, LOOSE)

    assert deviations == dict.fromkeys(outputs, 0.0)
    with pytest.raises(Failure, match="has counterparts for 2 of 4 detections among 2"):
        compare_outputs(sample_of(outputs), {name: value[:2] for name, value in outputs.items()}, LOOSE)
    doubled = {name: np.concatenate((value, value)) for name, value in outputs.items()}
    with pytest.raises(Failure, match="has counterparts for 4 of 4 detections among 8"):
        compare_outputs(sample_of(outputs), doubled, LOOSE)


@pytest.mark.parametrize(("field", "by"), [("pred_boxes", 0.6), ("scores", 0.03), ("pred_masks", 0.2)])
def test_a_detection_beyond_the_tolerance_has_no_counterpart(field: str, by: float) -> None:
    with pytest.raises(Failure, match="has counterparts for 0 of 4"):
        compare_outputs(sample_of(detections()), changed(field, shifted(by)), LOOSE)


def test_another_shape_is_named_where_detections_may_lack_a_counterpart() -> None:
    with pytest.raises(Failure, match=r"pred_masks has shape \(4, 1, 2, 3\) instead of \(4, 1, 3, 3\)"):
        compare_outputs(sample_of(detections()), changed("pred_masks", lambda masks: masks[:, :, :2]), LOOSE)


def test_what_is_no_detection_is_compared_beside_counterparts() -> None:
    outputs = detections() | {"sem_seg": np.ones((4, 40, 80), np.float32)}
    assert compare_outputs(sample_of(outputs), outputs, LOOSE)["sem_seg"] == 0
    with pytest.raises(Failure, match=r"sem_seg differs by 0\.1 relative"):
        compare_outputs(sample_of(outputs), outputs | {"sem_seg": outputs["sem_seg"] * 1.1}, LOOSE)
