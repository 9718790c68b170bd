"""``model.svg``: a net drawn with Graphviz, with the shapes that its tensors had in a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from zooport.export_core.caffe2.arguments import arguments_of
from zooport.export_core.caffe2.net_files import Nets
from zooport.export_core.caffe2.reference.executor import ReferenceExecutor
from zooport.export_core.diagnosis import one_line

_IMAGE = (64, 96)  # height and width of the image of the run; a picture does not depend on the checkpoint's
_COLOURS = {
    "Conv": "#cfe3f7",
    "ConvTranspose": "#cfe3f7",
    "FC": "#d9d2f0",
    "GenerateProposals": "#fbe0c4",
    "CollectRpnProposals": "#fbe0c4",
    "DistributeFpnProposals": "#fbe0c4",
    "RoIAlign": "#f9d5d5",
    "BBoxTransform": "#d5efd8",
    "BoxWithNMSLimit": "#d5efd8",
}
_SHOWN = ("kernels", "strides", "group", "spatial_scale", "nms", "nms_thresh", "axis")
_Shapes = dict[str, tuple[int, ...]]


class NoLayout(Exception):
    """Graphviz, which works out where things go, is not there or failed."""


def draw(nets: Nets, path: Path) -> None:
    """Draw the predict net. Equal nets give equal pictures.

    Raises:
        NoLayout: what is missing and how to get it.
        OSError: the file cannot be written.
    """
    import graphviz

    try:
        picture = _graph(nets, _shapes(nets)).pipe(format="svg")
    except graphviz.ExecutableNotFound as error:
        raise NoLayout("Graphviz's program dot is not installed (apt install graphviz)") from error
    except graphviz.CalledProcessError as error:
        raise NoLayout(f"Graphviz failed: {one_line(error)}") from error
    path.write_bytes(picture)


def _shapes(nets: Nets) -> _Shapes:
    """Return the shape of every blob, from one run over a grey image."""
    height, width = _IMAGE
    inputs: dict[str, Any] = {
        "data": np.full((1, 3, height, width), 114.0, np.float32),
        "im_info": np.array([[height, width, 1.0]], np.float32),
    }
    fetch = list(dict.fromkeys(name for operator in nets.predict.op for name in operator.output))
    found = ReferenceExecutor().load(nets).run(inputs, fetch)
    shapes = {name: value.shape for name, value in {**inputs, **found}.items()}
    for fill in nets.init.op:
        shapes[fill.output[0]] = tuple(_filled_shape(fill))
    return shapes


def _filled_shape(fill: Any) -> list[int]:
    """Return the shape that a fill operator makes, without its values."""
    return next(list(argument.ints) for argument in fill.arg if argument.name == "shape")


def _graph(nets: Nets, shapes: _Shapes) -> Any:
    import graphviz

    graph = graphviz.Digraph(
        "net",
        graph_attr={"rankdir": "TB", "nodesep": "0.25", "ranksep": "0.3", "fontname": "Helvetica"},
        node_attr={"shape": "box", "style": "rounded,filled", "fontname": "Helvetica", "fontsize": "11"},
        edge_attr={"fontname": "Helvetica", "fontsize": "9", "color": "#555555"},
    )
    makers: dict[str, str] = {}
    for name in nets.inputs:
        graph.node(name, f"{name}\\n{_size(shapes[name])}", shape="oval", fillcolor="#ffffff")
        makers[name] = name
    for number, operator in enumerate(nets.predict.op):
        node = f"op{number}"
        colour = _COLOURS.get(operator.type, "#eeeeee")
        graph.node(node, _label(operator, shapes, makers), fillcolor=colour, tooltip=operator.output[0])
        for name in operator.input:
            if name in makers:
                graph.edge(makers[name], node, label=_size(shapes[name]))
        makers |= dict.fromkeys(operator.output, node)
    for name in nets.outputs:
        graph.node(f"out:{name}".replace(":", "_"), name, shape="oval", fillcolor="#fff3b0")
        graph.edge(makers[name], f"out_{name}", label=_size(shapes[name]))
    return graph


def _label(operator: Any, shapes: _Shapes, makers: Mapping[str, str]) -> str:
    arguments = arguments_of(operator)
    shown = [f"{name} {_plain(arguments[name])}" for name in _SHOWN if name in arguments]
    parameters = [name for name in operator.input if name not in makers]
    lines = [operator.type, operator.output[0], ", ".join(shown)]
    lines += [f"{name} {_size(shapes[name])}" for name in parameters]
    return "\\n".join(line.replace("\\", "") for line in lines if line)


def _plain(value: Any) -> str:
    if isinstance(value, list):
        return "x".join(str(each) for each in value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "scalar"
