"""``model.pb`` and ``model_init.pb``: read with typed failures, checked, and written alike every time."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from zooport.export_core.caffe2.arguments import make_fill
from zooport.export_core.caffe2.large_fills import fill_bytes, varint, without_large_fills
from zooport.export_core.caffe2.schema import NetDef, OperatorDef
from zooport.export_core.diagnosis import disk_failure, one_line
from zooport.export_core.failures import Failure, Stage

PREDICT_FILE = "model.pb"
INIT_FILE = "model_init.pb"
TEXT_FILE = "model.pbtxt"
INPUTS = ("data", "im_info")
"""External inputs that a consumer feeds; all others come from the init net."""

_HINT = "export the checkpoint again; both files come from one export"
_OP_TAG = 2 << 3 | 2  # NetDef.op: field 2, length-delimited
_NAME_TAG = 1 << 3 | 2


@dataclass(frozen=True)
class Nets:
    """A net and the net that makes its parameters, as NetDef messages.

    Attributes:
        predict: run for every image.
        init: run once; has no inputs.
        inputs: external inputs of ``predict`` that a consumer feeds.
        large: blob -> float32 array that the fill in ``init`` with no values makes: from the mapped file.
    """

    predict: Any
    init: Any
    inputs: tuple[str, ...] = INPUTS
    large: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what ``predict`` returns, in its order."""
        return tuple(self.predict.external_output)


def read_nets(directory: Path, inputs: Sequence[str] = INPUTS) -> Nets:
    """Read and check the two nets of a directory.

    Args:
        directory: holds ``model.pb`` and ``model_init.pb``.
        inputs: external inputs that a consumer feeds; the init net makes all others.

    Raises:
        Failure: ``artifact.unloadable`` naming the file, and the operator or blob, if a file is missing,
            truncated or no NetDef, or if the nets do not fit together.
    """
    predict = read_net(directory / PREDICT_FILE)
    init, large = _read_init(directory / INIT_FILE)
    nets = Nets(predict, init, tuple(name for name in predict.external_input if name in inputs), large)
    check_nets(nets, directory)
    return nets


def read_net(path: Path) -> Any:
    """Read one NetDef.

    Raises:
        Failure: ``artifact.unloadable``.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise _unloadable(path, error.strerror or one_line(error)) from error
    return parse_net(data, path)


def _read_init(path: Path) -> tuple[Any, dict[str, NDArray[Any]]]:
    """Read an init net, the values of large parameters as arrays; raises as :func:`read_net`."""
    try:
        with path.open("rb") as file:
            data: Any = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file
        data = b""
    except OSError as error:
        raise _unloadable(path, error.strerror or one_line(error)) from error
    rest, large = without_large_fills(data)
    return parse_net(rest, path), large


def parse_net(data: bytes, source: Path | str) -> Any:
    """Return the NetDef that the bytes are.

    Args:
        data: what a file holds.
        source: what a failure calls it.

    Raises:
        Failure: ``artifact.unloadable`` if it is cut short or something else.
    """
    net = NetDef()
    try:
        net.ParseFromString(data)
    except DecodeError as error:
        raise _unloadable(source, "truncated, or no Caffe2 net") from error
    if not net.op:
        raise _unloadable(source, "no Caffe2 net: it holds no operator")
    for number, operator in enumerate(net.op):
        if not operator.type or not operator.IsInitialized():
            raise _unloadable(source, f"no Caffe2 net: operator {number} has no type")
    return net


def check_nets(nets: Nets, source: Path | str) -> None:
    """Check that every blob an operator reads is there when it runs, and every output is made.

    Raises:
        Failure: ``artifact.unloadable`` naming the first blob that is missing and who wants it.
    """
    made = _run_through(nets.init, set(), f"{source}: {INIT_FILE}")
    for name in nets.predict.external_input:
        if name not in made and name not in nets.inputs:
            reason = f"{INIT_FILE} does not make the blob {name!r} that {PREDICT_FILE} takes"
            raise _unloadable(source, reason, blob=name)
    present = _run_through(nets.predict, made | set(nets.inputs), f"{source}: {PREDICT_FILE}")
    for name in nets.predict.external_output:
        if name not in present:
            raise _unloadable(source, f"no operator of {PREDICT_FILE} makes its output {name!r}", blob=name)


def _run_through(net: Any, present: set[str], source: str) -> set[str]:
    """Return the blobs that exist after a net, given those before it."""
    present = set(present)
    for number, operator in enumerate(net.op):
        for name in operator.input:
            if name not in present:
                who = f"operator {number} ({operator.type})"
                raise _unloadable(source, f"nothing makes the blob {name!r} that {who} reads", blob=name)
        present.update(operator.output)
    return present


def without_large(nets: Nets) -> Any:
    """Return the init net without the fills whose values are in ``nets.large``."""
    if not nets.large:
        return nets.init
    rest = NetDef(name=nets.init.name)
    rest.op.extend(one for one in nets.init.op if not set(one.output) & set(nets.large))
    return rest


def check_inputs(nets: Nets, inputs: Mapping[str, NDArray[Any]]) -> None:
    """Raise ``artifact.unloadable`` for an input that the nets take and the caller does not give."""
    for name in nets.inputs:
        if name not in inputs:
            raise Failure("artifact.unloadable", f"the net's input {name!r} was not given")


def write_nets(directory: Path, predict: Any, parameters: Mapping[str, NDArray[Any]]) -> None:
    """Write ``model.pb``, ``model_init.pb`` and ``model.pbtxt``; equal nets give equal bytes.

    Args:
        directory: must exist.
        predict: a NetDef.
        parameters: blob name -> array, written as fill operators in this order (5 bytes per float32).

    Raises:
        Failure: ``resource.disk``.
    """
    try:
        (directory / PREDICT_FILE).write_bytes(predict.SerializeToString(deterministic=True))
        (directory / TEXT_FILE).write_text(text_format.MessageToString(predict), encoding="utf-8")
        with (directory / INIT_FILE).open("wb") as file:
            for part in _init_net(f"{predict.name}_init", parameters):
                file.write(part)
    except OSError as error:
        raise disk_failure(error, Stage.EXPORT, directory) from error


def _init_net(name: str, parameters: Mapping[str, NDArray[Any]]) -> Iterable[bytes | memoryview]:
    """Yield a serialised NetDef in parts, so that no parameter is in memory once more."""
    encoded = name.encode()
    yield bytes([_NAME_TAG]) + varint(len(encoded)) + encoded
    for blob, array in parameters.items():
        yield bytes([_OP_TAG])
        if array.dtype.kind == "f":
            yield from fill_bytes(blob, array)
        else:
            operator = make_fill(blob, array).SerializeToString(deterministic=True)
            yield varint(len(operator)) + operator
    outputs = NetDef(external_output=list(parameters))
    yield outputs.SerializeToString(deterministic=True)


def one_operator_net(operator: Any) -> Nets:
    """Return nets that run one operator: its inputs are fed, its outputs returned."""
    inputs = tuple(dict.fromkeys(operator.input))
    predict = NetDef(name=f"one_{operator.type}", external_input=inputs, external_output=operator.output)
    predict.op.append(operator)
    nothing = OperatorDef(type="GivenTensorFill", output=["_nothing"])
    nothing.arg.add(name="shape").ints.append(1)
    nothing.arg.add(name="values").floats.append(0.0)
    return Nets(predict, NetDef(name=f"{predict.name}_init", op=[nothing]), inputs)


def _unloadable(source: Path | str, reason: str, blob: str = "") -> Failure:
    details = {"file": str(source)} | ({"blob": blob} if blob else {})
    return Failure("artifact.unloadable", f"{source}: {reason}", hint=_HINT, details=details)
