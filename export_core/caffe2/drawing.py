"""``model.svg``: a net drawn with Graphviz, with the shapes that its tensors had in a run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import from_numpy

from zooport.export_core.caffe2.arguments import arguments_of
from zooport.export_core.caffe2.net_files import INPUTS, Nets
from zooport.export_core.caffe2.reference.executor import ReferenceNets
from zooport.export_core.caffe2.schema import NetDef
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
Array = NDArray[Any]


class NoLayout(Exception):
    """Graphviz, which works out where things go, is not there or failed."""


def draw(predict: Any, parameters: Mapping[str, Array], channels: int, path: Path) -> None:
    """Draw a net. Equal nets give equal pictures.

    Args:
        predict: a NetDef that takes ``data`` and ``im_info`` and its parameters.
        parameters: blob name -> array.
        channels: of ``data``.
        path: of the picture.

    Raises:
        NoLayout: what is missing and how to get it.
        OSError: the file cannot be written.
    """
    import graphviz

    try:
        picture = _graph(predict, _shapes(predict, parameters, channels)).pipe(format="svg")
    except graphviz.ExecutableNotFound as error:
        raise NoLayout("Graphviz's program dot is not installed (apt install graphviz)") from error
    except graphviz.CalledProcessError as error:
        raise NoLayout(f"Graphviz failed: {one_line(error)}") from error
    path.write_bytes(picture)


def _shapes(predict: Any, parameters: Mapping[str, Array], channels: int) -> _Shapes:
    """Return the shape of every blob, from one run over a grey image."""
    height, width = _IMAGE
    inputs: dict[str, Any] = {
        "data": np.full((1, channels, height, width), 114.0, np.float32),
        "im_info": np.array([[height, width, 1.0]], np.float32),
    }
    fetch = list(dict.fromkeys(name for operator in predict.op for name in operator.output))
    nets = ReferenceNets(
        Nets(predict, NetDef()), {name: from_numpy(array) for name, array in parameters.items()}
    )
    found = nets.run(inputs, fetch)
    return {name: value.shape for name, value in {**inputs, **parameters, **found}.items()}


def _graph(predict: Any, shapes: _Shapes) -> Any:
    import graphviz

    graph = graphviz.Digraph(
        "net",
        graph_attr={"rankdir": "TB", "nodesep": "0.25", "ranksep": "0.3", "fontname": "Helvetica"},
        node_attr={"shape": "box", "style": "rounded,filled", "fontname": "Helvetica", "fontsize": "11"},
        edge_attr={"fontname": "Helvetica", "fontsize": "9", "color": "#555555"},
    )
    makers: dict[str, str] = {}
    for name in INPUTS:
        graph.node(name, f"{name}\\n{_size(shapes[name])}", shape="oval", fillcolor="#ffffff")
        makers[name] = name
    for number, operator in enumerate(predict.op):
        node = f"op{number}"
        colour = _COLOURS.get(operator.type, "#eeeeee")
        graph.node(node, _label(operator, shapes, makers), fillcolor=colour, tooltip=operator.output[0])
        for name in operator.input:
            if name in makers:
                graph.edge(makers[name], node, label=_size(shapes[name]))
        makers |= dict.fromkeys(operator.output, node)
    for name in predict.external_output:
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
