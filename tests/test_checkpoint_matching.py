"""Weights fit a model exactly, up to what detectron2 tolerates; what does not fit is listed by name."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from zooport.export_core.checkpoints import Weights, match_weights
from zooport.export_core.failures import Failure

EXPECTED = {
    "backbone.conv1.weight": (4, 3, 3, 3),
    "backbone.conv1.norm.weight": (4,),
    "backbone.conv1.norm.bias": (4,),
    "backbone.conv1.norm.running_mean": (4,),
    "backbone.conv1.norm.running_var": (4,),
    "roi_heads.box_predictor.cls_score.weight": (6, 8),
    "roi_heads.box_predictor.bbox_pred.weight": (20, 8),
}


def arrays(shapes: Any = EXPECTED, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


def match(found: Any, expected: Any = EXPECTED, **fields: Any) -> Any:
    notes: list[str] = []
    return match_weights(expected, Weights(found, **fields), source="model.pth", notes=notes), notes


def mismatch(found: Any, expected: Any = EXPECTED, **fields: Any) -> Failure:
    with pytest.raises(Failure) as caught:
        match(found, expected, **fields)
    assert caught.value.code == "checkpoint.mismatch"
    assert "model.pth" in caught.value.message
    assert "\n" not in str(caught.value)
    return caught.value


def test_every_expected_parameter_comes_back_as_a_copy() -> None:
    found = arrays()
    found["backbone.conv1.weight"] = np.asfortranarray(found["backbone.conv1.weight"].astype(np.float64))
    matched, notes = match(found)
    assert list(matched) == list(EXPECTED)
    for name, array in matched.items():
        assert np.array_equal(array, found[name].astype(np.float32))
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        assert array.flags.writeable
        assert not np.shares_memory(array, found[name])
    assert notes == []


def test_names_that_do_not_fit_are_listed_and_counted() -> None:
    shapes = {f"layer{n}.weight": (2,) for n in range(9)}
    found = arrays(shapes | {"layer8.weight": (3,)})
    del found["layer0.weight"]
    found |= {f"other{n}.weight": np.ones(1, np.float32) for n in range(5)}
    failure = mismatch(found, shapes)
    assert "1 parameter missing: layer0.weight" in failure.message
    assert "5 entries unexpected: other0.weight, other1.weight, other2.weight and 2 more" in failure.message
    assert "layer8.weight is (3,), expected (2,)" in failure.message
    assert failure.details["missing"] == ["layer0.weight"]
    assert failure.details["unexpected"] == [f"other{n}.weight" for n in range(5)]
    assert failure.details["shapes"] == {"layer8.weight": {"found": (3,), "expected": (2,)}}


def test_another_number_of_classes_is_recognised() -> None:
    shapes = EXPECTED | {
        "roi_heads.box_predictor.cls_score.weight": (81, 8),
        "roi_heads.box_predictor.bbox_pred.weight": (320, 8),
    }
    assert "NUM_CLASSES 80" in mismatch(arrays(shapes)).hint


def test_what_follows_from_the_config_may_be_missing_extra_or_of_any_shape() -> None:
    expected = EXPECTED | {"pixel_mean": (3, 1, 1), "anchor_generator.cell_anchors.0": (3, 4)}
    found = arrays() | {
        "pixel_mean": np.ones((1, 3)),
        "pixel_std": np.ones(3),
        "proposal_generator.anchor_generator.cell_anchors.4": np.ones((15, 4)),
    }
    assert set(match(found, expected)[0]) == set(EXPECTED)


def test_norm_counters_may_be_missing_or_extra() -> None:
    counter = "backbone.conv1.norm.num_batches_tracked"
    assert counter not in match(arrays() | {counter: np.array(5)})[0]
    counted = match(arrays() | {counter: np.array(5)}, EXPECTED | {counter: ()})[0]
    assert (counted[counter].dtype, counted[counter]) == (np.int64, 5)
    missing = match(arrays(), EXPECTED | {counter: ()})[0]
    assert (missing[counter].dtype, missing[counter].shape, missing[counter]) == (np.int64, (), 0)


def test_running_statistics_of_frozen_norms_may_be_absent_altogether() -> None:
    affine = {name: array for name, array in arrays().items() if "running" not in name}
    matched, notes = match(affine)
    assert np.array_equal(matched["backbone.conv1.norm.running_mean"], np.zeros(4))
    assert np.array_equal(matched["backbone.conv1.norm.running_var"], np.ones(4))
    assert "no running statistics" in notes[0]
    # Some but not all: something is lost.
    partly = {name: array for name, array in arrays().items() if "running_mean" not in name}
    assert mismatch(partly).details["missing"] == ["backbone.conv1.norm.running_mean"]
    # A norm with a counter was trained; without its statistics it is another model.
    counted = EXPECTED | {"backbone.conv1.norm.num_batches_tracked": ()}
    assert len(mismatch(affine, counted).details["missing"]) == 2


def test_the_longest_ending_after_a_dot_matches() -> None:
    expected = {"body.res.layer.weight": (2,), "body.layer.weight": (2,), "body.own_layer.weight": (2,)}
    found = {
        "res.layer.weight": np.full(2, 1.0),
        "layer.weight": np.full(2, 2.0),
        "own_layer.weight": np.full(2, 3.0),
    }
    matched, notes = match(found, expected)
    assert [matched[name][0] for name in expected] == [1, 2, 3]
    assert "3 names are matched by their endings" in notes[0]


def test_an_entry_matches_one_parameter_only() -> None:
    expected = {"a.layer.weight": (2,), "b.layer.weight": (2,)}
    failure = mismatch({"layer.weight": np.ones(2)}, expected)
    assert failure.details["ambiguous"] == ["layer.weight"]
    # An entry that a parameter has by its own name is not there for others.
    expected = {"layer.weight": (2,), "b.layer.weight": (2,)}
    assert mismatch({"layer.weight": np.ones(2)}, expected).details["missing"] == ["b.layer.weight"]


def test_without_the_heuristics_names_must_be_equal() -> None:
    shorter = {name.removeprefix("backbone."): array for name, array in arrays().items()}
    assert match(shorter)[0]
    failure = mismatch(shorter, matching_heuristics=False)
    assert len(failure.details["missing"]) == len(failure.details["unexpected"]) == 5


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_weights_that_are_no_numbers_are_refused_by_name(value: Any, dtype: Any) -> None:
    found = arrays()
    bad = found["backbone.conv1.weight"].astype(dtype)
    bad[1, 2, 0, 1] = value
    found["backbone.conv1.weight"] = bad
    with pytest.raises(Failure) as caught:
        match(found)
    assert caught.value.code == "checkpoint.nonfinite"
    assert caught.value.details["names"] == ["backbone.conv1.weight"]
    assert "backbone.conv1.weight" in caught.value.message


def test_both_infinities_and_numbers_beyond_float32_are_found() -> None:
    found = arrays()
    found["backbone.conv1.norm.bias"] = np.array([np.inf, -np.inf, 0, 0], np.float32)
    found["backbone.conv1.norm.weight"] = np.array([1e300, 0, 0, 0])
    with pytest.raises(Failure) as caught:
        match(found)
    assert len(caught.value.details["names"]) == 2


def test_large_finite_weights_are_finite() -> None:
    found = arrays()
    found["backbone.conv1.weight"] = np.full((4, 3, 3, 3), np.finfo(np.float32).max)
    assert match(found)[0]["backbone.conv1.weight"].max() == np.finfo(np.float32).max


def test_matching_takes_the_memory_of_one_copy() -> None:
    shape = (1024, 4096)
    found: dict[str, np.ndarray[Any, Any]] = {
        "a.weight": np.ones(shape, np.float16),
        "b.weight": np.ones(shape, np.float32),
    }
    size = sum(4 * array.size for array in found.values())
    tracemalloc.start()
    try:
        match(found, dict.fromkeys(found, shape))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * size
