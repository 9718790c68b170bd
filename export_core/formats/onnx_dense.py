"""Which nodes of a graph for one image do the same for a batch: its network, up to where things are chosen.

The graph takes (1, C, H, W). A node belongs to the network when it treats each entry of the first dimension
by itself and says nothing of how many there are: it gets N of them instead of one, and gives N.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

#: Whose results have the first dimension of the first input, whatever the others, which are weights, hold.
_WEIGHTED = {"Conv", "ConvTranspose", "BatchNormalization", "InstanceNormalization", "Pad", "Clip"}
_ELEMENTWISE = {
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Relu",
    "Sigmoid",
    "HardSigmoid",
    "Sqrt",
    "Exp",
    "Cast",
    "Identity",
}
_POOLING = {"MaxPool", "AveragePool", "GlobalAveragePool"}
_BROADCAST = 3  # dimensions of a constant that do not reach the first of a map's four


@dataclass
class Split:
    """The nodes of a graph, each kind in its order.

    Attributes:
        network: may get a batch.
        rest: need one image.
        maps: results of the network with the first dimension of the image, and the image.
        lengths: node by result: shapes of maps, which begin with the size of the batch. They belong to the
            network, and to the rest as well where that takes them.
    """

    network: list[Any] = field(default_factory=list)
    rest: list[Any] = field(default_factory=list)
    maps: set[str] = field(default_factory=set)
    lengths: dict[str, Any] = field(default_factory=dict)


def split(graph: Any, image: str) -> Split:
    """Split a GraphProto's nodes; its input ``image`` is (1, C, H, W), other inputs are for the rest."""
    kinds = _Kinds(graph, image)
    found = Split(maps=kinds.maps, lengths=kinds.lengths)
    for node in graph.node:
        (found.network if kinds.belongs(node) else found.rest).append(node)
    return found


class _Kinds:
    """What the values of a graph are: maps of all images, their lengths, or the same for all images."""

    def __init__(self, graph: Any, image: str) -> None:
        self.constants: dict[str, Any] = {one.name: one for one in graph.initializer}
        self.maps = {image}
        self.lengths: dict[str, Any] = {}
        self.shared = {"", *self.constants}

    def belongs(self, node: Any) -> bool:
        """Whether a node may get a batch; notes what its results are then."""
        if node.op_type == "Constant":
            self.constants[node.output[0]] = node.attribute[0].t
            self.shared.add(node.output[0])
        elif self._gives_maps(node):
            self.maps.update(node.output)
        elif self._gives_lengths(node):
            self.lengths[node.output[0]] = node
        elif node.input and self._is_shared(node):
            self.shared.update(node.output)
        else:
            return False
        return True

    def _gives_maps(self, node: Any) -> bool:
        kind, others = node.op_type, node.input[1:]
        if not node.input or node.input[0] not in self.maps:
            return kind in _ELEMENTWISE and len(others) == 1 and self._is_broadcast(node)
        if kind in _WEIGHTED:
            return self.shared.issuperset(others)
        if kind in _ELEMENTWISE | _POOLING:
            return self._is_broadcast(node)
        check = getattr(self, f"_keeps_{kind.lower()}", None)
        return check is not None and check(node, others)

    def _keeps_deformconv(self, node: Any, others: Any) -> bool:
        return others[0] in self.shared and (self.maps | self.shared).issuperset(others)

    def _keeps_resize(self, node: Any, others: Any) -> bool:
        return all(name in self.shared or name in self.lengths for name in others)

    def _keeps_reshape(self, node: Any, others: Any) -> bool:
        return others[0] in self.lengths

    def _keeps_slice(self, node: Any, others: Any) -> bool:
        return self.shared.issuperset(others) and 0 not in self._integers(others[2:3], [0])

    def _keeps_concat(self, node: Any, others: Any) -> bool:
        return _attribute(node, "axis", 0) > 0 and self.maps.issuperset(others)

    def _keeps_transpose(self, node: Any, others: Any) -> bool:
        order = _attribute(node, "perm", None)
        return bool(order) and order[0] == 0

    def _is_broadcast(self, node: Any) -> bool:
        """Whether all inputs are maps, or constants that hold for each entry of the first dimension."""
        constants = [name for name in node.input if name not in self.maps]
        if len(constants) == len(node.input):
            return False
        dims = [self.constants[name].dims for name in constants if name in self.constants]
        return len(dims) == len(constants) and all(len(each) <= _BROADCAST or each[0] == 1 for each in dims)

    def _gives_lengths(self, node: Any) -> bool:
        if node.op_type == "Shape":
            return node.input[0] in self.maps and _attribute(node, "start", 0) == 0
        if node.op_type == "Slice" and node.input[0] in self.lengths:
            return self._integers(node.input[1:2], [1]) == [0]
        if node.op_type == "Concat" and node.input[0] in self.lengths:
            return self.shared.issuperset(node.input[1:])
        return False

    def _is_shared(self, node: Any) -> bool:
        """Whether the result is the same for all images: made of what is, or of lengths but the first."""
        if node.op_type == "Shape" and node.input[0] in self.maps:
            return bool(_attribute(node, "start", 0) > 0)
        if node.input[0] in self.lengths:
            picks = {
                "Slice": self._integers(node.input[1:2], [0]),
                "Gather": self._integers(node.input[1:2], [0]),
            }
            chosen = picks.get(node.op_type, [0])
            return self.shared.issuperset(node.input[1:]) and all(number > 0 for number in chosen)
        has_graph = any(attribute.HasField("g") for attribute in node.attribute)
        return not has_graph and self.shared.issuperset(node.input)

    def _integers(self, names: Any, default: list[int]) -> list[int]:
        """Return the integers that a constant holds; the default for what is none."""
        from onnx import numpy_helper

        if len(names) != 1 or names[0] not in self.constants:
            return default
        found: list[int] = numpy_helper.to_array(self.constants[names[0]]).reshape(-1).tolist()
        return found


def needed_inside(found: Split, outputs: Mapping[str, Any]) -> tuple[list[Any], set[str]]:
    """Return the nodes that one image needs, and the maps of which it needs its own part.

    Args:
        found: from :func:`split`.
        outputs: of the graph, by name.
    """
    nodes: list[Any] = []
    wanted = set(outputs) | _taken(found.rest)
    pending = [name for name in wanted if name in found.lengths]
    copied: set[str] = set()
    while pending:
        name = pending.pop()
        if name not in copied:
            copied.add(name)
            node = found.lengths[name]
            wanted.update(node.input)
            pending += [one for one in node.input if one in found.lengths]
    nodes += [node for node in found.network if copied.intersection(node.output)]
    return [*nodes, *found.rest], wanted & found.maps


def _taken(nodes: Any) -> set[str]:
    """Return what nodes take, and what graphs inside of them take from outside."""
    names: set[str] = set()
    for node in nodes:
        names.update(node.input)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _taken(attribute.g.node) | {value.name for value in attribute.g.output}
    return names


def _attribute(node: Any, name: str, default: Any) -> Any:
    from onnx import helper

    for attribute in node.attribute:
        if attribute.name == name:
            return helper.get_attribute_value(attribute)
    return default
