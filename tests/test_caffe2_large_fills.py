"""Parameters of hundreds of megabytes are arrays all the way; in the file they are like any other."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zooport.export_core.caffe2 import large_fills
from zooport.export_core.caffe2.arguments import make_fill, make_operator
from zooport.export_core.caffe2.large_fills import fill_bytes, varint, without_large_fills
from zooport.export_core.caffe2.net_files import (
    INIT_FILE,
    Nets,
    read_nets,
    write_nets,
)
from zooport.export_core.caffe2.reference.executor import ReferenceExecutor
from zooport.export_core.caffe2.runtime import RealRuntime
from zooport.export_core.caffe2.schema import NetDef
from zooport.export_core.failures import Failure

FASTER = Path(__file__).resolve().parent / "data" / "caffe2" / "faster_rcnn_fpn"
RANDOM = np.random.default_rng(5)

Array = np.ndarray[Any, Any]


@pytest.fixture
def small_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take parameters of a few hundred bytes for large ones."""
    monkeypatch.setattr(large_fills, "LARGE", 200)


def product(folder: Path, weight: Array) -> None:
    """Write nets that multiply data (1, 3, H, W) by two parameters, of which one may be large."""
    net = NetDef(name="product", external_input=["data", "w", "b"], external_output=["y"])
    net.op.append(make_operator("Mul", ["data", "w"], ["z"]))
    net.op.append(make_operator("Mul", ["z", "b"], ["y"]))
    write_nets(folder, net, {"w": weight, "b": np.array([2.0], np.float32)})


@pytest.mark.parametrize(
    "array",
    [
        np.float32(1.5),
        np.zeros((0, 4), np.float32),
        np.array([1.0, np.nan, -np.inf, 1e-42], np.float32),
        RANDOM.standard_normal((3, 5, 7)).astype(np.float32),
        RANDOM.standard_normal((8, 6)).astype(np.float32).T,
        RANDOM.standard_normal((2, 3)),
        np.zeros(40, np.float32),
        np.zeros((1 << 20) + 3, np.float32),
    ],
    ids=lambda array: f"{np.asarray(array).dtype}{np.shape(array)}",
)
def test_a_fill_in_pieces_is_the_message_to_the_byte(array: Any) -> None:
    message = make_fill("some.weight", np.asarray(array)).SerializeToString(deterministic=True)
    written = b"".join(bytes(piece) for piece in fill_bytes("some.weight", np.asarray(array)))
    assert written == varint(len(message)) + message


@pytest.mark.usefixtures("small_is_large")
def test_the_values_of_large_fills_come_as_arrays(tmp_path: Path) -> None:
    weight = RANDOM.standard_normal((1, 3, 5, 7)).astype(np.float32)
    product(tmp_path, weight)
    nets = read_nets(tmp_path)
    assert list(nets.large) == ["w"]
    np.testing.assert_array_equal(nets.large["w"], weight)
    assert [list(operator.output) for operator in nets.init.op] == [["w"], ["b"]]
    assert nets.init.ByteSize() < 200
    data = RANDOM.standard_normal((1, 3, 5, 7)).astype(np.float32)
    found = ReferenceExecutor().load(nets).run({"data": data})
    np.testing.assert_array_equal(found["y"], data * weight * 2)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.usefixtures("small_is_large")
def test_the_real_runtime_is_given_arrays(tmp_path: Path, caffe2_runtime: RealRuntime) -> None:
    weight = RANDOM.standard_normal((1, 3, 5, 7)).astype(np.float32)
    product(tmp_path, weight)
    loaded = caffe2_runtime.load(read_nets(tmp_path))
    data = RANDOM.standard_normal((1, 3, 5, 7)).astype(np.float32)
    np.testing.assert_array_equal(loaded.run({"data": data})["y"], data * weight * np.float32(2))
    loaded.drop()


@pytest.mark.usefixtures("small_is_large")
def test_detectron2s_nets_have_the_same_parameters_either_way(monkeypatch: pytest.MonkeyPatch) -> None:
    data = (FASTER / INIT_FILE).read_bytes()
    rest, large = without_large_fills(data)
    assert len(large) > 20
    light, whole = NetDef.FromString(rest), NetDef.FromString(data)
    assert [list(one.output) for one in light.op] == [list(one.output) for one in whole.op]
    nets = Nets(NetDef(name="none"), light, (), large)
    with_large = ReferenceExecutor().load(nets)._parameters
    plain = ReferenceExecutor().load(Nets(NetDef(name="none"), whole, ()))._parameters
    assert set(with_large) == set(plain)
    for name, wanted in plain.items():
        np.testing.assert_array_equal(with_large[name].numpy(), wanted.numpy())


def spoil(operator: Any, how: str) -> None:
    if how == "count":
        del operator.arg[1].floats[-1]
    elif how == "kind":
        operator.type = "GivenTensorIntFill"
    elif how == "outputs":
        operator.output.append("more")
    elif how == "shape":
        operator.arg[0].name = "form"
    elif how == "twice":
        operator.arg.add().CopyFrom(operator.arg[1])
    elif how == "mixed":
        operator.arg[1].ints.append(3)


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("how", ["count", "kind", "outputs", "shape", "twice", "mixed"])
def test_what_is_no_plain_fill_is_left_to_the_executor(how: str) -> None:
    net = NetDef(name="init", op=[make_fill("w", np.ones((10, 10), np.float32))])
    spoil(net.op[0], how)
    data = net.SerializeToString()
    assert without_large_fills(data) == (data, {})


@pytest.mark.usefixtures("small_is_large")
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.7, 0.99])
def test_a_file_that_ends_within_a_large_parameter_is_refused_by_name(tmp_path: Path, share: float) -> None:
    product(tmp_path, np.ones((1, 3, 50, 70), np.float32))
    whole = (tmp_path / INIT_FILE).read_bytes()
    (tmp_path / INIT_FILE).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Failure) as caught:
        read_nets(tmp_path)
    assert caught.value.code == "artifact.unloadable"
    assert str(tmp_path / INIT_FILE) in caught.value.message or INIT_FILE in caught.value.message


def test_reading_and_writing_hold_no_copy_of_a_large_parameter(tmp_path: Path) -> None:
    weight = np.ones((3, 4 << 20), np.float32)  # 48 MB
    tracemalloc.start()
    product(tmp_path, weight)
    written = tracemalloc.get_traced_memory()[1]
    tracemalloc.reset_peak()
    nets = read_nets(tmp_path)
    read = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (nets.large["w"] == 1).all()
    assert written < weight.nbytes / 3
    assert read < weight.nbytes / 3
