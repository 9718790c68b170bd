"""Values inside of an ONNX graph that can be asked for: what the model's stages return.

While the model is converted they are outputs of the graph, so that no pass renames them; then they are values
like others. To look at them, they become outputs again, in memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.formats import onnx_file
from zooport.export_core.formats.base import Array

if TYPE_CHECKING:
    from torch import Tensor

    from zooport.export_core.modeling.stages import Call

_TAG = "stage/"  # stage/<dotted name of the module>/<number of the tensor>
_HALF = ".half"


def tagged(calls: Mapping[str, Call], outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the tensors that modules returned by the names that they get, without those that are outputs."""
    from zooport.export_core.modeling.stages import named_tensors

    known = {id(value) for value in outputs.values()}
    found = {}
    for module, call in calls.items():
        for number, (_, tensor) in enumerate(named_tensors(call.output)):
            if id(tensor) not in known:
                known.add(id(tensor))
                found[f"{_TAG}{module}/{number}"] = tensor
    return found


def untag(model: Any) -> None:
    """Take the tagged values off the outputs of a ModelProto, and what only they needed out of the graph."""
    graph = model.graph
    kept = [value for value in graph.output if not value.name.startswith(_TAG)]
    del graph.output[:]
    graph.output.extend(kept)
    needed = {value.name for value in kept}
    nodes = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            nodes.append(node)
            needed.update(_taken([node]))
    weights = [one for one in graph.initializer if one.name in needed]
    nodes.reverse()
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(weights)


def run_tagged(path: Path, inputs: Mapping[str, Array], threads: int) -> dict[str, list[Array]]:
    """Run a file and return the tagged values of each module, in their order; {} where it has none.

    A graph whose weights are in a file of their own is not looked into: it cannot be opened from memory.
    """
    import numpy as np
    import onnx
    import onnxruntime

    if (path.parent / onnx_file.WEIGHTS_FILE).exists():
        return {}
    model = onnx.load(str(path))
    there = {value.name for value in model.graph.output}
    names = [name for node in model.graph.node for name in node.output if name.startswith(_TAG)]
    # Half precision has a value of its own beside the one in float32, which need not be there.
    names = [name for name in names if not name.endswith(_HALF) or name.removesuffix(_HALF) not in names]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in there)
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), onnx_file.session_options(threads), providers=["CPUExecutionProvider"]
    )
    found: dict[str, dict[int, Array]] = {}
    for name, value in zip(names, session.run(names, dict(inputs)), strict=True) if names else ():
        _, module, number = name.removesuffix(_HALF).split("/")
        array = np.asarray(value)
        is_half = array.dtype == np.float16
        found.setdefault(module, {})[int(number)] = array.astype(np.float32) if is_half else array
    return {module: [values[number] for number in sorted(values)] for module, values in found.items()}


def _taken(nodes: Any) -> Iterator[str]:
    """Yield what nodes take, and what graphs inside of them take from outside."""
    for node in nodes:
        yield from node.input
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _taken(attribute.g.node)
                yield from (value.name for value in attribute.g.output)
