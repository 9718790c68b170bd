"""A graph for a batch of images, made from the graph for one.

The network runs over the whole batch; what follows, an ONNX Loop over its images. Images have different
numbers of things in them, so their results are put one behind the other, beside the index of the image that
each belongs to. The weights stay outside of the loop.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

from zooport.export_core.formats.onnx_dense import Split, needed_inside, split
from zooport.export_core.outputs import IMAGE_INDEX

_ONE = "one."  # prefix of what belongs to one image, inside of the loop
_IMAGE = "image"


def over_images(
    model: Any, count: int | str, instances: Collection[str], common: Collection[str] = (), *, whole: bool
) -> Any:
    """Return the ModelProto of a batch.

    Args:
        model: a ModelProto whose inputs and outputs are those of one image.
        count: images in a batch; a name for any number from 1 on.
        instances: outputs with one row for each thing found, which are concatenated; the others are stacked.
        common: inputs of which there is one for all images.
        whole: whether the model's image is (1, C, H, W) and its network may run over the whole batch; else it
            is (C, H, W) and all of it runs image by image.

    Returns:
        The model with ``count`` as first dimension of every other input and stacked output, and, if there are
        instances, with the output :data:`IMAGE_INDEX`, int64 (rows,).
    """
    from onnx import TensorProto, helper

    graph = model.graph
    inputs = {value.name: value.type.tensor_type for value in graph.input}
    outputs = {value.name: value.type.tensor_type for value in graph.output}
    found = split(graph, _IMAGE) if whole else Split(rest=list(graph.node))
    inner, maps = needed_inside(found, outputs)
    nodes = [deepcopy(node) for node in inner]
    picked = [name for name in inputs if name not in common and name not in found.maps]
    made_inside = {name for node in inner for name in node.output}
    _rename(
        nodes, {name: _ONE + name for name in {*picked, *maps, *outputs, *(made_inside & {*found.lengths})}}
    )
    kinds = {name: kind.elem_type for name, kind in outputs.items()}
    if instances:
        first = next(name for name in outputs if name in instances)
        nodes += [
            helper.make_node("Shape", [_ONE + first], ["loop.rows"], start=0, end=1),
            helper.make_node("Expand", ["loop.index", "loop.rows"], [_ONE + IMAGE_INDEX]),
        ]
        kinds[IMAGE_INDEX] = TensorProto.INT64
    body = _body(nodes, picked, sorted(maps), kinds)
    joined = {*instances, IMAGE_INDEX}
    lengths = {
        name: _lengths(kind) if name in joined else [count, *_lengths(kind)] for name, kind in outputs.items()
    }
    lengths[IMAGE_INDEX] = ["N"]
    given = {
        name: _lengths(kind) if name in common else [count, *_lengths(kind)[int(name in found.maps) :]]
        for name, kind in inputs.items()
    }
    made = helper.make_graph(
        [*found.network, *_outer(next(iter(inputs)), kinds, joined, body)],
        graph.name,
        [helper.make_tensor_value_info(name, kind.elem_type, given[name]) for name, kind in inputs.items()],
        [helper.make_tensor_value_info(name, kind, lengths[name]) for name, kind in kinds.items()],
        initializer=list(graph.initializer),
    )
    return helper.make_model(made, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def _body(nodes: list[Any], picked: Sequence[str], maps: Sequence[str], kinds: Mapping[str, int]) -> Any:
    """Return the graph that one turn of the loop runs: pick an image, and append what it gives."""
    from onnx import TensorProto, helper

    picks = [helper.make_node("Gather", [name, "loop.index"], [_ONE + name], axis=0) for name in picked]
    if maps:
        one = helper.make_tensor("one", TensorProto.INT64, [1], [1])
        picks += [
            helper.make_node("Constant", [], ["loop.one"], value=one),
            helper.make_node("Reshape", ["loop.index", "loop.one"], ["loop.indices"]),
            *(helper.make_node("Gather", [name, "loop.indices"], [_ONE + name], axis=0) for name in maps),
        ]
    appends = [
        helper.make_node("SequenceInsert", [f"loop.before.{name}", _ONE + name], [f"loop.after.{name}"])
        for name in kinds
    ]
    go_on = helper.make_node("Identity", ["loop.go_on"], ["loop.goes_on"])
    return helper.make_graph(
        [*picks, *nodes, go_on, *appends],
        "one_image",
        [
            helper.make_tensor_value_info("loop.index", TensorProto.INT64, []),
            helper.make_tensor_value_info("loop.go_on", TensorProto.BOOL, []),
            *_sequences("loop.before", kinds),
        ],
        [
            helper.make_tensor_value_info("loop.goes_on", TensorProto.BOOL, []),
            *_sequences("loop.after", kinds),
        ],
    )


def _outer(image: str, kinds: Mapping[str, int], joined: Collection[str], body: Any) -> list[Any]:
    """Return the nodes around the loop: count the images, start with nothing, put all results together."""
    from onnx import TensorProto, helper

    yes = helper.make_tensor("yes", TensorProto.BOOL, [], [True])
    return [
        helper.make_node("Shape", [image], ["loop.lengths"], start=0, end=1),
        helper.make_node("Squeeze", ["loop.lengths"], ["loop.count"]),
        helper.make_node("Constant", [], ["loop.start"], value=yes),
        *(
            helper.make_node("SequenceEmpty", [], [f"loop.none.{name}"], dtype=kind)
            for name, kind in kinds.items()
        ),
        helper.make_node(
            "Loop",
            ["loop.count", "loop.start", *(f"loop.none.{name}" for name in kinds)],
            [f"loop.all.{name}" for name in kinds],
            body=body,
        ),
        *(
            helper.make_node(
                "ConcatFromSequence", [f"loop.all.{name}"], [name], axis=0, new_axis=int(name not in joined)
            )
            for name in kinds
        ),
    ]


def _sequences(prefix: str, kinds: Mapping[str, int]) -> Iterator[Any]:
    from onnx import helper

    for name, kind in kinds.items():
        yield helper.make_tensor_sequence_value_info(f"{prefix}.{name}", kind, None)


def _lengths(kind: Any) -> list[int | str]:
    return [length.dim_param or length.dim_value for length in kind.shape.dim]


def _rename(nodes: Collection[Any], names: Mapping[str, str]) -> None:
    """Rename values in nodes and in the graphs inside of them."""
    for node in nodes:
        for side in (node.input, node.output):
            side[:] = [names.get(name, name) for name in side]
        for attribute in node.attribute:
            if attribute.HasField("g"):
                _rename(attribute.g.node, names)
