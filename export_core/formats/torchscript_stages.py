"""Modules inside of a TorchScript artifact, called with what the eager model's modules were given."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from zooport.export_core.formats.base import Array


def call_modules(root: Any, calls: Mapping[str, Sequence[Any]], *, traced: bool) -> dict[str, list[Array]]:
    """Return the tensors that each module returns for these arguments.

    A trace knows only tensors: a module in it takes those of nested arguments one after the other. One that
    takes something else besides, or only some of them, is left out.

    Args:
        root: the module that has the eager model's parts as its own.
        calls: dotted name -> arguments.
        traced: whether it is a trace.
    """
    import torch

    from zooport.export_core.modeling.stages import named_tensors

    found = {}
    for name, arguments in calls.items():
        module = _part(root, name)
        if module is None:
            continue
        given = list(arguments)
        if traced:
            given = [tensor for _, tensor in named_tensors(given)]
            expected = module.forward.schema.arguments[1:]
            if [str(one.type) for one in expected] != ["Tensor"] * len(given):
                continue
        try:
            with torch.no_grad():
                output = module(*given)
        except RuntimeError as error:  # of a trace: a module that was recorded with other arguments
            sys.stderr.write(f"{name} cannot be called by itself: {error}\n")
            continue
        found[name] = [tensor.detach().cpu().numpy() for _, tensor in named_tensors(output)]
    return found


def _part(root: Any, name: str) -> Any:
    for step in name.split("."):
        root = getattr(root, step, None)
    return root if hasattr(root, "forward") else None
