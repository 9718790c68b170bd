"""Caffe2's nets are read and written as Caffe2 does, and what is none is refused by name."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper

from zooport.export_core.caffe2 import net_files
from zooport.export_core.caffe2.arguments import (
    arguments_of,
    floats_of,
    make_argument,
    make_fill,
    make_operator,
)
from zooport.export_core.caffe2.net_files import (
    INIT_FILE,
    PREDICT_FILE,
    parse_net,
    read_net,
    read_nets,
    write_nets,
)
from zooport.export_core.caffe2.schema import PROTO, NetDef, TensorProto, parse_proto
from zooport.export_core.failures import Failure

DATA = Path(__file__).resolve().parent / "data" / "caffe2"
FASTER = DATA / "faster_rcnn_fpn"
NETS = [FASTER / PREDICT_FILE, FASTER / INIT_FILE, *DATA.glob("*.pb")]

# Prints what Caffe2's own module says: message -> field -> [number, type, label, packed, default].
DESCRIBE = """
import json
from caffe2.proto import caffe2_pb2
def about(field):
    named = field.message_type or field.enum_type
    kind = named.name if named else field.type
    return [field.number, kind, field.label, bool(field.GetOptions().packed), str(field.default_value)]
print(json.dumps({
    name: {field.name: about(field) for field in message.fields}
    for name, message in caffe2_pb2.DESCRIPTOR.message_types_by_name.items()
}))
"""


@pytest.mark.parametrize("path", NETS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_detectron2s_nets_come_back_byte_for_byte(path: Path) -> None:
    net = read_net(path)
    assert net.SerializeToString() == path.read_bytes()
    assert len(net.op) > 100


def test_arguments_of_detectron2s_net_are_plain_values() -> None:
    net = read_net(DATA / "panoptic_fpn.pb")
    assert arguments_of(net) == {
        "size_divisibility": 32,
        "device": b"cpu",
        "meta_architecture": b"PanopticFPN",
        "combine_overlap_threshold": 0.5,
        "combine_stuff_area_limit": 256,
        "combine_instances_confidence_threshold": 0.5,
    }
    (limit,) = (operator for operator in net.op if operator.type == "BoxWithNMSLimit")
    assert arguments_of(limit)["detections_per_im"] == 50
    assert arguments_of(net.op[2])["kernels"] == [7, 7]


@pytest.mark.slow
@pytest.mark.alone
def test_field_numbers_are_caffe2s(caffe2_python: Path) -> None:
    done = subprocess.run([caffe2_python, "-I", "-c", DESCRIBE], capture_output=True, text=True, check=True)
    published = json.loads(done.stdout)
    ours = {
        message.name: {
            field.name: [
                field.number,
                field.type_name.rpartition(".")[2] or field.type,
                field.label,
                field.options.packed,
                field.default_value,
            ]
            for field in message.field
        }
        for message in parse_proto(PROTO.read_text(encoding="utf-8")).message_type
    }
    assert {"NetDef", "OperatorDef", "Argument", "TensorProto", "DeviceOption"} <= set(ours)
    for name, fields in ours.items():
        for field, (number, kind, label, packed, default) in fields.items():
            theirs = published[name][field]
            assert [number, kind, label, packed] == theirs[:4], f"{name}.{field}"
            # An enumeration's default is a number there and a name here.
            assert default in {"", *_spellings(theirs[4])}, f"{name}.{field}"


def _spellings(default: str) -> set[str]:
    names = {str(value.number): value.name for value in TensorProto.DataType.DESCRIPTOR.values}
    return {default, default.lower(), names.get(default, default)}


def test_the_schema_is_plain_proto(tmp_path: Path) -> None:
    file = parse_proto(PROTO.read_text(encoding="utf-8"))
    assert file.package == "caffe2"
    with pytest.raises(ValueError, match="'service' is not expected"):
        parse_proto("service Nothing {}")
    with pytest.raises(ValueError, match="ends too early"):
        parse_proto("message Net { optional int32 x = 1;")


@pytest.mark.parametrize(
    ("value", "field", "stored"),
    [
        (3, "i", 3),
        (True, "i", 1),
        (0.5, "f", 0.5),
        ("NCHW", "s", b"NCHW"),
        (b"\xff", "s", b"\xff"),
        ([1, 2], "ints", [1, 2]),
        ([1.5, 2], "floats", [1.5, 2.0]),
        (["a", "b"], "strings", [b"a", b"b"]),
        (np.array([1.5, 2.5]), "floats", [1.5, 2.5]),
    ],
)
def test_an_argument_holds_its_value_in_the_field_of_its_kind(value: Any, field: str, stored: Any) -> None:
    made = make_argument("name", value)
    kept = getattr(made, field)
    assert (list(kept) if isinstance(stored, list) else kept) == stored
    assert {one.name for one, _ in made.ListFields()} == {"name", field}


def test_values_of_several_kinds_are_no_argument() -> None:
    with pytest.raises(TypeError, match="mixes kinds"):
        make_argument("name", [1, "a"])  # type: ignore[arg-type]


def test_parameters_take_five_bytes_a_number_and_come_back_exactly() -> None:
    array = np.random.default_rng(1).standard_normal((100, 70)).astype(np.float32)
    array[0, :3] = np.nan, np.inf, -0.0
    fill = make_fill("w", array)
    assert fill.ByteSize() < 5 * array.size + 64
    again = parse_net(NetDef(op=[fill]).SerializeToString(), "memory").op[0]
    assert (again.type, list(again.output)) == ("GivenTensorFill", ["w"])
    assert list(again.arg[0].ints) == [100, 70]
    np.testing.assert_array_equal(floats_of(again.arg[1]).reshape(100, 70), array)


def test_parameters_of_other_types_have_their_own_fills_or_none() -> None:
    kinds = {np.int32: "Int", np.int64: "Int64", np.bool_: "Bool", np.float64: ""}
    for kind, name in kinds.items():
        assert make_fill("w", np.ones(3, kind)).type == f"GivenTensor{name}Fill"
    with pytest.raises(TypeError, match="w: no fill operator makes arrays of complex"):
        make_fill("w", np.ones(3, np.complex64))


def test_equal_nets_are_written_alike_and_read_again(tmp_path: Path) -> None:
    net = NetDef(name="small", external_input=["data", "w"], external_output=["y"])
    net.op.append(make_operator("Mul", ["data", "w"], ["y"], {"broadcast": 1, "axis": 1}))
    parameters = {"w": np.arange(300, dtype=np.float32)}
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_nets(tmp_path / name, net, parameters)
    for file in (PREDICT_FILE, INIT_FILE, net_files.TEXT_FILE):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    nets = read_nets(tmp_path / "a")
    assert nets.inputs == ("data",)
    assert nets.outputs == ("y",)
    assert nets.init.name == "small_init"
    assert list(nets.init.external_output) == ["w"]
    np.testing.assert_array_equal(floats_of(nets.init.op[0].arg[1]), parameters["w"])
    assert 'type: "Mul"' in (tmp_path / "a" / net_files.TEXT_FILE).read_text(encoding="utf-8")


@pytest.mark.parametrize("file", [PREDICT_FILE, INIT_FILE])
@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.9999])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, file: str, share: float) -> None:
    for name in (PREDICT_FILE, INIT_FILE):
        shutil.copy(FASTER / name, tmp_path / name)
    whole = (FASTER / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(Failure) as caught:
        read_nets(tmp_path)
    assert caught.value.code == "artifact.unloadable"
    assert str(tmp_path) in caught.value.message


def test_a_net_cut_between_two_operators_is_refused_naming_the_blob(tmp_path: Path) -> None:
    """Such bytes are a valid message."""
    shutil.copy(FASTER / PREDICT_FILE, tmp_path / PREDICT_FILE)
    init = read_net(FASTER / INIT_FILE)
    lost = init.op[-1].output[0]
    del init.op[-1]
    (tmp_path / INIT_FILE).write_bytes(init.SerializeToString())
    with pytest.raises(Failure, match=f"model_init.pb does not make the blob '{lost}'") as caught:
        read_nets(tmp_path)
    assert caught.value.details["blob"] == lost
    shutil.copy(FASTER / INIT_FILE, tmp_path / INIT_FILE)
    predict = read_net(FASTER / PREDICT_FILE)
    del predict.op[-1]
    (tmp_path / PREDICT_FILE).write_bytes(predict.SerializeToString())
    with pytest.raises(Failure, match=r"no operator of model\.pb makes its output 'bbox_nms'"):
        read_nets(tmp_path)
    del predict.op[5]
    (tmp_path / PREDICT_FILE).write_bytes(predict.SerializeToString())
    with pytest.raises(Failure, match=r"nothing makes the blob '\d+' that operator \d+ \(\w+\) reads"):
        read_nets(tmp_path)


def _onnx_model() -> bytes:
    value = helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", [value], [])
    return bytes(helper.make_model(graph).SerializeToString())


@pytest.mark.parametrize(
    "content",
    [b"", b"hello, this is text", _onnx_model(), b"\x80\x02}q\x00.", b"PK\x03\x04" + bytes(200), bytes(100)],
    ids=["empty", "text", "onnx", "pickle", "zip", "zeros"],
)
def test_a_foreign_file_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / PREDICT_FILE
    path.write_bytes(content)
    with pytest.raises(Failure, match=r"model\.pb: (truncated, or )?no Caffe2 net") as caught:
        read_net(path)
    assert caught.value.code == "artifact.unloadable"


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"model\.pb: No such file") as caught:
        read_nets(tmp_path)
    assert caught.value.code == "artifact.unloadable"


def test_a_full_disk_is_said(small_disk: Path) -> None:
    net = NetDef(name="small", external_output=["w"])
    with pytest.raises(Failure, match="no space left") as caught:
        write_nets(small_disk, net, {"w": np.zeros(100_000, np.float32)})
    assert caught.value.code == "resource.disk"
