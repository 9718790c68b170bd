"""The reference executor computes what the real Caffe2 runtime computes, and refuses what that refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from zooport.export_core.caffe2.arguments import make_operator
from zooport.export_core.caffe2.executors import Executor, choose_executor
from zooport.export_core.caffe2.net_files import Nets, one_operator_net, read_net, read_nets
from zooport.export_core.caffe2.reference.executor import ReferenceExecutor
from zooport.export_core.caffe2.reference.sorting import best_first
from zooport.export_core.caffe2.runtime import RealRuntime
from zooport.export_core.caffe2.schema import NetDef
from zooport.export_core.failures import Failure
from zooport.tests.caffe2_cases import Case
from zooport.tests.caffe2_detection_cases import detection_cases
from zooport.tests.caffe2_plain_cases import plain_cases

DATA = Path(__file__).resolve().parent / "data" / "caffe2"
FASTER = DATA / "faster_rcnn_fpn"
IMAGES = 3
TOLERANCE = 1e-4
ROUNDING = 5e-7  # four units in the last place, for another processor's order of sums
CASES = [*plain_cases().by_kind(), *detection_cases().by_kind()]


def recorded(number: int) -> tuple[dict[str, NDArray[Any]], dict[str, NDArray[Any]]]:
    """Inputs and outputs of detectron2's net for one image, as the real runtime computed it elsewhere."""
    with np.load(FASTER / "io.npz") as file:
        found = {name: file[name] for name in file.files if name.startswith(f"{number}/")}
    inputs = {name.split("/")[2]: found[name].astype(np.float32) for name in found if "/in/" in name}
    return inputs, {name.split("/")[2]: found[name] for name in found if "/out/" in name}


def check_recorded(executor: Executor) -> None:
    nets = executor.load(read_nets(FASTER))
    for number in range(IMAGES):
        inputs, expected = recorded(number)
        found = nets.run(inputs)
        assert list(found) == ["bbox_nms", "score_nms", "class_nms"]
        assert len(found["bbox_nms"]) > 5
        for name, array in expected.items():
            np.testing.assert_allclose(found[name], array, rtol=ROUNDING, atol=TOLERANCE, err_msg=name)


def test_reference_reproduces_the_recorded_outputs_of_detectron2s_net() -> None:
    check_recorded(ReferenceExecutor())


@pytest.mark.slow
@pytest.mark.alone
def test_real_runtime_reproduces_the_recorded_outputs_of_detectron2s_net(caffe2_runtime: RealRuntime) -> None:
    check_recorded(caffe2_runtime)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.parametrize(("kind", "cases"), CASES, ids=[kind for kind, _ in CASES])
def test_operator_is_that_of_the_real_runtime(
    kind: str, cases: list[Case], caffe2_runtime: RealRuntime
) -> None:
    for case in cases:
        nets, feed = case.nets()
        expected, found = (
            outcome(executor, nets, feed) for executor in (caffe2_runtime, ReferenceExecutor())
        )
        assert isinstance(found, Failure) == isinstance(expected, Failure), f"{case}: {expected} / {found}"
        if isinstance(expected, Mapping) and isinstance(found, Mapping):
            compare(case, expected, found)


def outcome(executor: Executor, nets: Nets, feed: dict[str, NDArray[Any]]) -> Any:
    """What comes of one run: arrays, or the failure."""
    try:
        return executor.load(nets).run(feed)
    except Failure as failure:
        if failure.code not in {"artifact.unloadable", "unsupported.operator"}:
            raise
        return failure


def compare(case: Case, expected: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, f"{case} {name}"
        assert found[name].shape == array.shape, f"{case} {name}"
        allowed = case.tolerance * np.maximum(1, np.nan_to_num(np.abs(array.astype(np.float64))))
        same = (found[name] == array) | (np.isnan(found[name]) & np.isnan(array))
        with np.errstate(invalid="ignore"):  # infinity less infinity
            near = np.abs(found[name].astype(np.float64) - array.astype(np.float64)) <= allowed
        assert (same | near).all(), f"{case} {name}: {found[name]} is not {array}"


def test_every_operator_of_the_reference_is_compared_but_those_the_runtime_lacks() -> None:
    compared = {kind for kind, _ in CASES}
    copies = {"CopyCPUToGPU", "CopyGPUToCPU"}  # what these do here is Copy
    assert set(ReferenceExecutor().operators()) - compared == copies | {
        "GenerateProposalsCPP",
        "UpsampleNearest",
    }


@pytest.mark.parametrize("name", ["mask_rcnn_fpn", "panoptic_fpn", "retinanet_fpn", "faster_rcnn_fpn/model"])
def test_every_operator_of_detectron2s_nets_is_known(name: str) -> None:
    net = read_net(DATA / f"{name}.pb")
    assert {operator.type for operator in net.op} <= set(ReferenceExecutor().operators())


# What g++ 12 printed for std::sort and std::partial_sort of 0, 1, 2 ... with `score[a] > score[b]`.
ALL_EQUAL = ([10, 19, 18, 17, 16, 15, 14, 13, 12, 11, 0, 9, 8, 7, 6, 5, 4, 3, 2, 1], [3, 4, 1, 0, 2, 5])
FIVE_LEVELS = (
    [
        2,
        57,
        37,
        22,
        7,
        52,
        27,
        42,
        12,
        47,
        17,
        32,
        34,
        24,
        39,
        19,
        44,
        14,
        49,
        29,
        9,
        54,
        4,
        59,
        1,
        31,
        36,
        41,
        46,
        51,
        56,
        26,
        11,
        6,
        21,
        16,
        28,
        8,
        53,
        48,
        13,
        43,
        18,
        3,
        38,
        23,
        58,
        33,
        5,
        55,
        30,
        0,
        10,
        50,
        15,
        45,
        20,
        40,
        25,
        35,
    ],
    [12, 32, 37, 7, 2, 17, 42, 27, 22],
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [([0] * 20, ALL_EQUAL), ([number * 7 % 5 for number in range(60)], FIVE_LEVELS)],
    ids=["all equal", "five levels"],
)
def test_equal_scores_are_ordered_as_the_cpp_library_leaves_them(
    scores: list[int], expected: tuple[list[int], list[int]]
) -> None:
    everything, best = expected
    array = np.array(scores, np.float32)
    assert best_first(array).tolist() == everything
    assert best_first(array, len(best)).tolist() == best


def test_operator_unknown_to_the_executor_is_named() -> None:
    nets = one_operator_net(make_operator("DeformConv", ["x"], ["y"]))
    with pytest.raises(Failure, match=r"operator 0: DeformConv is not known") as caught:
        ReferenceExecutor().load(nets)
    assert caught.value.code == "unsupported.operator"
    assert caught.value.details["operator"] == "DeformConv"


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("Conv", {"order": "NHWC", "kernel": 1}),
        ("BoxWithNMSLimit", {"soft_nms_enabled": 1}),
        ("BBoxTransform", {"rotated": 1}),
    ],
)
def test_argument_that_is_not_implemented_is_named(kind: str, arguments: dict[str, Any]) -> None:
    nets = one_operator_net(make_operator(kind, ["x", "w", "b"], ["y"], arguments))
    feed = {name: np.ones((1, 1, 1, 1), np.float32) for name in nets.inputs}
    with pytest.raises(Failure, match=rf"{kind} with {next(iter(arguments))}=") as caught:
        ReferenceExecutor().load(nets).run(feed)
    assert caught.value.code == "unsupported.operator"


def test_operator_that_does_not_take_its_inputs_is_named_with_their_shapes() -> None:
    nets = one_operator_net(make_operator("FC", ["x", "w", "b"], ["y"]))
    feed = {"x": np.ones((5, 6)), "w": np.ones((4, 5)), "b": np.ones(4)}
    with pytest.raises(Failure, match=r"operator 0 \(FC, making y\).*x: \(5, 6\), w: \(4, 5\)") as caught:
        ReferenceExecutor().load(nets).run({name: array.astype(np.float32) for name, array in feed.items()})
    assert caught.value.code == "artifact.unloadable"


def test_missing_input_is_named() -> None:
    nets = ReferenceExecutor().load(read_nets(FASTER))
    with pytest.raises(Failure, match="the net's input 'im_info' was not given"):
        nets.run({"data": np.zeros((1, 3, 64, 64), np.float32)})


def test_net_whose_init_net_lacks_a_blob_is_refused_by_name() -> None:
    nets = read_nets(FASTER)
    gone = nets.init.op[0].output[0]
    shortened = NetDef(op=list(nets.init.op)[1:])
    with pytest.raises(Failure, match=f"does not make the blob '{gone}'") as caught:
        ReferenceExecutor().load(Nets(nets.predict, shortened, nets.inputs))
    assert caught.value.details["blob"] == gone


def test_blobs_between_can_be_fetched_and_inputs_stay_as_they_are() -> None:
    nets = read_nets(FASTER)
    inputs, _ = recorded(0)
    before = {name: array.copy() for name, array in inputs.items()}
    found = ReferenceExecutor().load(nets).run(inputs, fetch=["normalized_data", "rpn_rois"])
    assert found["normalized_data"].shape == inputs["data"].shape
    assert found["rpn_rois"].shape[1] == 5
    assert all((inputs[name] == array).all() for name, array in before.items())
    with pytest.raises(Failure, match="no blob 'nowhere'"):
        ReferenceExecutor().load(nets).run(inputs, fetch=["nowhere"])


def test_executor_of_no_name_is_refused_and_the_reference_is_taken_without_a_runtime(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_CACHE", str(tmp_path))
    assert choose_executor().name == "reference"
    with pytest.raises(Failure, match="not installed") as caught:
        choose_executor("caffe2")
    assert caught.value.code == "dependency.missing"
    assert caught.value.hint == "zooport runtime install caffe2"
    with pytest.raises(ValueError, match="no executor 'torch'"):
        choose_executor("torch")
