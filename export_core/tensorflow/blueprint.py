"""A model as plain values: which modules it is made of, their settings, their arrays.

The side that has torch writes a blueprint (:func:`of_model`), the side that has TensorFlow reads it; neither
needs the other's package.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import nn

_TREE = "blueprint"  # the key of the file's metadata that holds the modules
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Blueprint:
    """One module.

    Attributes:
        path: its dotted name in the model, "" for the model itself.
        kind: full name of the class that says what the module computes: of its classes the first with a
            method of its own, so that classes which only put others together count as what they are made
            from.
        name: full name of its own class.
        settings: its plain attributes.
        arrays: its parameters, buffers and other tensors by the names of the attributes; tensors in lists are
            ``name.0``, ``name.1`` ...
        children: its submodules in their order.
    """

    path: str
    kind: str
    name: str
    settings: Mapping[str, Any]
    arrays: Mapping[str, npt.NDArray[Any]]
    children: Mapping[str, Blueprint] = field(default_factory=dict)

    def walk(self) -> Iterator[Blueprint]:
        """Yield this module and all below it."""
        yield self
        for child in self.children.values():
            yield from child.walk()


def of_model(model: nn.Module, path: str = "") -> Blueprint:
    """Return the blueprint of a torch model; the arrays are views of its tensors."""
    from zooport.export_core.modeling.layers import ModuleAliases

    settings: dict[str, Any] = {}
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, value in vars(model).items():
        if name.startswith("_") or name == "training":
            continue
        if _is_plain(value):
            settings[name] = value
        elif _is_tensors(value):
            arrays |= {f"{name}.{index}": each.detach().numpy() for index, each in enumerate(value)}
    for name, tensor in (*model._parameters.items(), *model._buffers.items()):
        if tensor is not None:
            arrays[name] = tensor.detach().cpu().numpy()
    prefix = f"{path}." if path else ""
    children = {
        name: of_model(child, prefix + name)
        for name, child in model._modules.items()
        if child is not None and not isinstance(child, ModuleAliases)
    }
    own = type(model)
    return Blueprint(path, _full_name(_computing_class(own)), _full_name(own), settings, arrays, children)


def write_blueprint(blueprint: Blueprint, path: Path) -> None:
    """Write it into one file, in the safetensors format."""
    from safetensors.numpy import save_file

    arrays = {
        f"{each.path}|{name}": np.ascontiguousarray(array)
        for each in blueprint.walk()
        for name, array in each.arrays.items()
    }
    save_file(arrays, path, {_TREE: json.dumps(_to_tree(blueprint))})


def read_blueprint(path: Path) -> Blueprint:
    """Read what :func:`write_blueprint` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
        return _from_tree(json.loads(file.metadata()[_TREE]), arrays)


def _to_tree(blueprint: Blueprint) -> dict[str, Any]:
    return {
        "path": blueprint.path,
        "kind": blueprint.kind,
        "name": blueprint.name,
        "settings": blueprint.settings,
        "arrays": list(blueprint.arrays),
        "children": {name: _to_tree(child) for name, child in blueprint.children.items()},
    }


def _from_tree(tree: Mapping[str, Any], arrays: Mapping[str, npt.NDArray[Any]]) -> Blueprint:
    path = tree["path"]
    return Blueprint(
        path,
        tree["kind"],
        tree["name"],
        tree["settings"],
        {name: arrays[f"{path}|{name}"] for name in tree["arrays"]},
        {name: _from_tree(child, arrays) for name, child in tree["children"].items()},
    )


def _computing_class(own: type) -> type:
    for each in own.__mro__:
        methods = (name for name, value in vars(each).items() if isinstance(value, FunctionType))
        if any(not name.startswith("__") for name in methods):
            return each
    return own


def _full_name(own: type) -> str:
    return f"{own.__module__}.{own.__qualname__}"


def _is_plain(value: object) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_plain(each) for each in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(each) for key, each in value.items())
    return isinstance(value, _PLAIN)


def _is_tensors(value: object) -> bool:
    from torch import Tensor

    return isinstance(value, list | tuple) and bool(value) and all(isinstance(one, Tensor) for one in value)
