"""From an ONNX model with Caffe2's operators in it to a Caffe2 net and its parameters.

Nodes of the domain ``caffe2`` are taken as they are; nodes of ONNX are translated one by one. Nothing is left
of what depends on constants alone. Equal models give equal nets.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.reference import ReferenceEvaluator

from zooport.export_core.caffe2.arguments import make_operator
from zooport.export_core.caffe2.schema import NetDef
from zooport.export_core.failures import Failure, Stage

Array = NDArray[Any]
DOMAIN = "caffe2"


@dataclass
class Graph:
    """A net in the making.

    Attributes:
        constants: value name -> array, of everything that is known beforehand.
        operators: OperatorDef messages so far, in the order of execution.
    """

    constants: dict[str, Array] = field(default_factory=dict)
    operators: list[Any] = field(default_factory=list)
    _names: int = 0

    def add(
        self,
        kind: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Append an operator."""
        self.operators.append(make_operator(kind, inputs, outputs, arguments))

    def spare(self) -> str:
        """Return a name for an output that nobody reads."""
        self._names += 1
        return f"_unused_{self._names}"

    def known(self, name: str, node: Any, what: str) -> Array:
        """Return a constant that Caffe2 takes as an argument."""
        if name not in self.constants:
            raise unsupported(node, f"its {what} depends on the image")
        return self.constants[name]


Translate = Callable[[Graph, Any, dict[str, Any]], None]


def to_net(model: onnx.ModelProto, name: str) -> tuple[Any, dict[str, Array]]:
    """Return the NetDef and its parameters, float32, in the order in which they are used.

    Args:
        model: of operators of ONNX up to opset 12 and of the domain ``caffe2``.
        name: of the net.

    Raises:
        Failure: ``unsupported.operator`` naming the operator and the module of the model that it is from.
    """
    graph = Graph({each.name: numpy_helper.to_array(each) for each in model.graph.initializer})
    renamed: dict[str, str] = {}
    for node in model.graph.node:
        node.input[:] = [renamed.get(each, each) for each in node.input]
        if node.domain != DOMAIN and all(each in graph.constants for each in node.input):
            _fold(graph, node)
        elif node.op_type in {"Identity", "Dropout"} or _changes_nothing(graph, node):
            renamed[node.output[0]] = node.input[0]
        else:
            _translate(graph, node)
    outputs = [each.name for each in model.graph.output]
    _keep_output_names(graph, outputs, renamed)
    _drop_dead(graph, outputs)
    inputs = [each.name for each in model.graph.input if each.name not in graph.constants]
    names = _readable_names(graph, model)
    _rename(graph, names)
    _write_in_place(graph, outputs)
    constants = {names.get(name, name): array for name, array in graph.constants.items()}
    used = dict.fromkeys(name for operator in graph.operators for name in operator.input)
    parameters = {name: _as_parameter(name, constants[name]) for name in used if name in constants}
    net = NetDef(name=name, external_input=[*inputs, *parameters], external_output=outputs)
    net.op.extend(graph.operators)
    return net, parameters


def unsupported(node: Any, why: str) -> Failure:
    """Return the failure of a node that Caffe2 has no operator for."""
    module = _module_of(node.name)
    where = f" in {module}" if module else ""
    return Failure(
        "unsupported.operator",
        f"Caffe2 has no counterpart of {node.op_type}{where}: {why}",
        stage=Stage.EXPORT,
        hint="write the module with other operators of torch",
        details={"operator": node.op_type, "module": module},
    )


def _module_of(name: str) -> str:
    """Return "backbone.bottom_up.stem" for the node "/model/backbone/bottom_up/stem/Conv"."""
    parts = [part for part in name.split("/")[1:-1] if part]
    # torch names a submodule by its path from the root or by its own name, as it happens.
    return ".".join(part for part in parts if part != "model")


def _fold(graph: Graph, node: Any) -> None:
    if node.op_type == "Constant":
        graph.constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
        return
    inputs = {each: graph.constants[each] for each in node.input if each}
    shapes = [
        onnx.helper.make_tensor_value_info(
            each, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for each, array in inputs.items()
    ]
    outputs = [onnx.ValueInfoProto(name=each) for each in node.output]
    model = onnx.helper.make_model(
        onnx.helper.make_graph([node], "folded", shapes, outputs),
        opset_imports=[onnx.helper.make_opsetid("", 12)],
    )
    for each, value in zip(node.output, ReferenceEvaluator(model).run(None, inputs), strict=True):
        graph.constants[each] = np.asarray(value)


# Outputs that operators have besides those that are of interest.
_UNNAMED_OUTPUTS = {"Reshape": 1}


def _changes_nothing(graph: Graph, node: Any) -> bool:
    """Whether this is a product with one, as of a pyramid that adds its levels up."""
    factor = graph.constants.get(node.input[1]) if node.op_type == "Mul" else None
    return factor is not None and factor.size == 1 and bool(factor == 1.0)


def _translate(graph: Graph, node: Any) -> None:
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    if node.domain == DOMAIN:
        outputs = [*node.output, *(graph.spare() for _ in range(_UNNAMED_OUTPUTS.get(node.op_type, 0)))]
        graph.add(node.op_type, node.input, outputs, attributes)
        return
    translate = _TABLE.get(node.op_type)
    if translate is None:
        raise unsupported(node, "it is not in the table of operators")
    translate(graph, node, attributes)


def _same(kind: str, *kept: str) -> Translate:
    """An operator of the same inputs and outputs, with some attributes as arguments."""

    def translate(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
        graph.add(
            kind, node.input, node.output, {name: attributes[name] for name in kept if name in attributes}
        )

    return translate


def _convolution(kind: str) -> Translate:
    def translate(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET" or any(attributes.get("output_padding", ())):
            raise unsupported(node, "padding that it works out by itself")
        names = {"strides": "strides", "pads": "pads", "kernel_shape": "kernels", "dilations": "dilations"}
        arguments = {new: list(attributes[old]) for old, new in names.items() if old in attributes}
        if kind != "MaxPool":
            arguments["group"] = attributes.get("group", 1)
        elif attributes.get("ceil_mode"):
            raise unsupported(node, "ceil_mode = 1")
        graph.add(kind, node.input, node.output[:1], arguments)

    return translate


def _average_pool(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    if attributes.get("ceil_mode") or (
        any(attributes.get("pads", ())) and not attributes.get("count_include_pad")
    ):
        raise unsupported(node, "the way it counts at the border")
    names = {"strides": "strides", "pads": "pads", "kernel_shape": "kernels"}
    arguments: dict[str, Any] = {
        new: list(attributes[old]) for old, new in names.items() if old in attributes
    }
    graph.add("AveragePool", node.input, node.output, arguments | {"count_include_pad": 1})


def _gemm(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    plain = attributes.get("alpha", 1.0) == 1.0 and attributes.get("beta", 1.0) == 1.0
    if not plain or not attributes.get("transB") or attributes.get("transA") or len(node.input) != 3:
        raise unsupported(node, "factors or transpositions other than those of a linear layer")
    graph.add("FC", node.input, node.output)


def _concat(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    graph.add("Concat", node.input, [*node.output, graph.spare()], {"axis": attributes["axis"]})


def _reshape(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    shape = graph.known(node.input[1], node, "shape").tolist()
    graph.add("Reshape", node.input[:1], [*node.output, graph.spare()], {"shape": shape})


def _resize(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    if attributes.get("mode", b"nearest") != b"nearest":
        raise unsupported(node, f"mode {attributes['mode'].decode()}")
    if len(node.input) > 3 and node.input[3]:
        raise unsupported(node, "a size instead of a scale")
    scales = graph.known(node.input[2], node, "scale").tolist()
    if len(scales) != 4 or scales[:2] != [1.0, 1.0] or any(scale != int(scale) for scale in scales):
        raise unsupported(node, f"scales {scales}")
    arguments = {"width_scale": scales[3], "height_scale": scales[2], "order": "NCHW"}
    graph.add("ResizeNearest", node.input[:1], node.output, arguments)


def _pow(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    exponent = graph.known(node.input[1], node, "exponent")
    if exponent.size != 1:
        raise unsupported(node, "an exponent for each element")
    graph.add("Pow", node.input[:1], node.output, {"exponent": float(exponent.reshape(()))})


def _clip(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    arguments = {}
    for index, name in ((1, "min"), (2, "max")):
        if len(node.input) > index and node.input[index]:
            arguments[name] = float(graph.known(node.input[index], node, name))
    graph.add("Clip", node.input[:1], node.output, arguments)


def _softmax(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    # Before opset 13 both flatten what comes after the axis, which changes nothing for a matrix.
    graph.add("Softmax", node.input, node.output, {"axis": attributes.get("axis", 1)})


def _batch_norm(graph: Graph, node: Any, attributes: dict[str, Any]) -> None:
    arguments = {"is_test": 1, "epsilon": attributes.get("epsilon", 1e-5), "order": "NCHW"}
    graph.add("SpatialBN", node.input, node.output[:1], arguments)


_TABLE: dict[str, Translate] = {
    **{
        name: _same(name)
        for name in ("Add", "Sub", "Mul", "Div", "Relu", "Sigmoid", "Exp", "Sqrt", "Sum", "Tanh")
    },
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Clip": _clip,
    "Concat": _concat,
    "Conv": _convolution("Conv"),
    "ConvTranspose": _convolution("ConvTranspose"),
    "Flatten": _same("Flatten", "axis"),
    "Gemm": _gemm,
    "MatMul": _same("MatMul"),
    "MaxPool": _convolution("MaxPool"),
    "Neg": _same("Negative"),
    "Pow": _pow,
    "ReduceMean": _same("ReduceMean", "axes", "keepdims"),
    "Reshape": _reshape,
    "Resize": _resize,
    "Softmax": _softmax,
}


def _keep_output_names(graph: Graph, outputs: Sequence[str], renamed: Mapping[str, str]) -> None:
    """Copy what would be an output under another name."""
    for name in outputs:
        if name in renamed:
            graph.add("Copy", [renamed[name]], [name])


def _drop_dead(graph: Graph, outputs: Sequence[str]) -> None:
    wanted = set(outputs)
    alive = []
    for operator in reversed(graph.operators):
        if wanted & set(operator.output):
            wanted |= set(operator.input)
            alive.append(operator)
    graph.operators = alive[::-1]


def _write_in_place(graph: Graph, outputs: Sequence[str]) -> None:
    """Let activations overwrite what nobody else reads, which saves memory and the time to fetch it."""
    readers = Counter(each for operator in graph.operators for each in operator.input)
    makers = {each: operator for operator in graph.operators for each in operator.output}
    for operator in graph.operators:
        source = operator.input[0] if operator.input else ""
        if operator.type != "Relu" or readers[source] != 1 or source not in makers or source in outputs:
            continue
        maker, result = makers[source], operator.output[0]
        maker.output[:] = [result if each == source else each for each in maker.output]
        operator.input[0] = result


_GIVEN_BY_TORCH = re.compile(r"\w+::\w+_\d+")


def _readable_names(graph: Graph, model: onnx.ModelProto) -> dict[str, str]:
    """Return a readable name for each parameter and value: those of the model's modules."""
    modules = {each: _module_of(node.name) for node in model.graph.node for each in node.output}
    names: dict[str, str] = {}
    taken: set[str] = {each.name for each in (*model.graph.input, *model.graph.output)}
    for operator in graph.operators:
        module = next((modules[each] for each in operator.output if modules.get(each)), "")
        for index, name in enumerate(operator.input):
            if name not in graph.constants or name in names:
                continue
            wanted = name.removeprefix("model.")
            if _GIVEN_BY_TORCH.fullmatch(name) or "/" in name:
                kind = {1: "weight", 2: "bias"}.get(index, f"constant{index}")
                wanted = f"{module}.{kind}" if module else f"{operator.type.lower()}.{kind}"
            names[name] = _free(wanted, taken)
        for name in operator.output:
            if name not in taken:
                names[name] = _free(name.removeprefix("/").replace("/", "."), taken)
    return names


def _free(name: str, taken: set[str]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    taken.add(free)
    return free


def _rename(graph: Graph, names: Mapping[str, str]) -> None:
    for operator in graph.operators:
        operator.input[:] = [names.get(each, each) for each in operator.input]
        operator.output[:] = [names.get(each, each) for each in operator.output]


def _as_parameter(name: str, array: Array) -> Array:
    """Return float32 with at least one dimension: the init net has no fills of other kinds."""
    if array.dtype.kind != "f":
        raise Failure(
            "unsupported.operator",
            f"a Caffe2 net's parameters are float32, {name} is {array.dtype}",
            stage=Stage.EXPORT,
            hint="compute with floats in the module that it belongs to",
        )
    return np.atleast_1d(array).astype(np.float32)
