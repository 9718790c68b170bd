"""Half precision where it is safe: weights, convolutions, matrix products, and what only passes them on.

Box arithmetic, scores, norms, region pooling and suppression stay in float32: they subtract large numbers,
add up many, or compare. Deformable convolutions store their weights in half precision and compute in float32,
since where they sample is counted in pixels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from zooport.export_core.failures import Failure, Stage

_PRODUCTS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}  # the second input is the weight
_STORED_ONLY = {"DeformConv"}
_PASSING = {"Relu": 1, "MaxPool": 1, "Resize": 1, "Add": 2}  # operator -> how many of its inputs are data
_HALF = ".half"


def to_half(model: Any) -> None:
    """Let a ModelProto store and compute in half precision; its inputs and outputs stay as they are.

    Raises:
        Failure: ``unsupported.combination`` naming a weight that half precision cannot hold.
    """
    graph = model.graph
    nodes = _Nodes(graph)
    for node in graph.node:
        nodes.add(node)
    made = list(nodes.with_casts_back({value.name for value in graph.output}))
    used = set(_used(made))
    kept = [one for one in (*graph.initializer, *nodes.weights.values()) if one.name in used]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(made)
    graph.initializer.extend(kept)


class _Nodes:
    """Nodes of a graph in their order; a value ``x`` in half precision is called ``x.half``."""

    def __init__(self, graph: Any) -> None:
        from onnx import TensorProto

        self.full = {one.name: one for one in graph.initializer if one.data_type == TensorProto.FLOAT}
        self.weights: dict[str, Any] = {}
        self.halves: set[str] = set()
        self.made: list[Any] = []

    def add(self, node: Any) -> None:
        """Append a node, in half precision if it is to be."""
        weighted = len(node.input) > 1 and node.input[1] in self.full
        if node.op_type in _STORED_ONLY and weighted:
            self.widen(node)
        elif node.op_type in _PRODUCTS and weighted:
            self.add_half(node, len(node.input))
        elif all(name in self.halves for name in node.input[: _PASSING.get(node.op_type, 0)]) and (
            node.op_type in _PASSING
        ):
            self.add_half(node, _PASSING[node.op_type])
        else:
            self.made.append(node)

    def add_half(self, node: Any, data: int) -> None:
        """Append a node that computes in half precision, whose first inputs are data."""
        for index in range(data):
            node.input[index] = self.half(node.input[index])
        for index, name in enumerate(node.output):
            self.halves.add(name)
            node.output[index] = name + _HALF
        self.made.append(node)

    def half(self, name: str) -> str:
        """Return the name of a value in half precision, which is made where there is none."""
        from onnx import TensorProto

        if name in self.full:
            self.store(name)
        elif name and name not in self.halves:
            self.made.append(_cast(name, name + _HALF, TensorProto.FLOAT16))
            self.halves.add(name)
        return name + _HALF if name else name

    def store(self, name: str) -> None:
        """Keep a weight in half precision."""
        from onnx import numpy_helper

        if name in self.weights:
            return
        values = numpy_helper.to_array(self.full[name])
        if np.abs(values).max(initial=0) > np.finfo(np.float16).max:
            raise Failure(
                "unsupported.combination",
                f"half precision cannot hold the weight {name}: it goes up to {np.abs(values).max():.3g}",
                stage=Stage.EXPORT,
                hint="leave out the option fp16",
                details={"parameter": name},
            )
        self.weights[name] = numpy_helper.from_array(values.astype(np.float16), name + _HALF)

    def widen(self, node: Any) -> None:
        """Append a node that computes in float32 with a weight that is stored in half precision."""
        from onnx import TensorProto

        name = node.input[1]
        self.store(name)
        node.input[1] = name + ".full"
        self.made += [_cast(name + _HALF, node.input[1], TensorProto.FLOAT), node]

    def with_casts_back(self, outputs: set[str]) -> Iterator[Any]:
        """Yield all nodes, and after those in half precision a cast where float32 is asked for."""
        from onnx import TensorProto

        wanted = outputs | set(_used(self.made))
        produced = {name for node in self.made for name in node.output}
        for node in self.made:
            yield node
            for name in node.output:
                full = name.removesuffix(_HALF)
                if full != name and full in wanted and full not in produced:
                    yield _cast(name, full, TensorProto.FLOAT)


def _cast(name: str, result: str, kind: int) -> Any:
    from onnx import helper

    return helper.make_node("Cast", [name], [result], to=kind)


def _used(nodes: Iterable[Any]) -> Iterator[str]:
    """Yield the names of values that nodes take, also those that graphs inside them take from outside."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _used(attribute.g.node)
                yield from (value.name for value in attribute.g.output)
