"""What went wrong in torch.export, as the operator or expression, and the part of the model it is in."""

from __future__ import annotations

import linecache
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.diagnosis import diagnose
from zooport.export_core.failures import Failure, Stage

if TYPE_CHECKING:
    from torch import nn

_KNOWN_NAMESPACES = {"aten", "higher_order", "prim", "prims", "torchvision"}
_SHOWN = 200  # characters of an error's first line, and of a line of code


def conversion_failure(error: Exception, model: nn.Module) -> Failure:
    """Return what an exception of torch.export.export amounts to.

    Returns:
        ``unsupported.operator`` naming the operator, or the expression that Python decides by, and the
        module of the model it is in; else ``export.failed``. Lack of memory and the like are kept.
    """
    known = diagnose(error, Stage.EXPORT)
    if known.code != "export.failed" or isinstance(error, Failure):
        return known
    what, operator, hint = _reason(error)
    module, file, line = _place(error, model)
    message = f"torch.export: {what}"
    if module:
        message += f", in {module}"
    if file:
        code = linecache.getline(file, line).strip()
        message += f", at {file}:{line}" + (f": {_shortened(code)}" if code else "")
    return Failure(
        "unsupported.operator" if operator else "export.failed",
        message,
        stage=Stage.EXPORT,
        hint=hint,
        details={"operator": operator, "module": module, "file": file, "line": line},
    )


def refuse_foreign_operators(program: Any) -> None:
    """Refuse a program with operators that whoever loads it does not have.

    Raises:
        Failure: ``unsupported.operator``.
    """
    import torch

    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            if getattr(node.target, "namespace", "aten") not in _KNOWN_NAMESPACES:
                module = _innermost(node.meta.get("nn_module_stack") or {})
                raise Failure(
                    "unsupported.operator",
                    f"torch.export: neither torch nor torchvision has the operator {node.target}"
                    + (f", in {module}" if module else ""),
                    stage=Stage.EXPORT,
                    hint="write the module with operators of torch: who loads the artifact has nothing else",
                    details={"operator": str(node.target), "module": module},
                )


def refuse_fixed_lengths(program: Any, image: str) -> None:
    """Refuse a program that takes images of the sample's height or width alone.

    Args:
        program: whose first input is the image.
        image: its name, for the message.

    Raises:
        Failure: ``export.failed``.
    """
    first = program.graph_signature.user_inputs[0]
    (node,) = (each for each in program.graph.nodes if each.name == first)
    for axis, side in ((1, "height"), (2, "width")):
        length = node.meta["val"].shape[axis]
        if str(length).isdecimal():  # a symbol may stand for one number
            raise Failure(
                "export.failed",
                f"torch.export: a module of the model expects every {image} to have the {side} {length}",
                stage=Stage.EXPORT,
                hint="compute lengths from shapes (x.shape) and not from a number in the code",
                details={"side": side, "length": int(length)},
            )


def _reason(error: Exception) -> tuple[str, str, str]:
    """Return what happened, the operator or expression ("" for another error), and what to do."""
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedOperatorException,
    )
    from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

    if isinstance(error, GuardOnDataDependentSymNode):
        expression = str(error.cond)
        return (
            f"Python decides or loops by a value that differs from image to image ({expression})",
            expression,
            "decide by tensors (torch.where), loop with torch's while_loop, or state what holds for every"
            " image with torch._check",
        )
    without_shape = UnsupportedOperatorException, DynamicOutputShapeException, DataDependentOutputException
    if isinstance(error, without_shape):
        operator = str(error.func)
        return (
            f"nothing tells the shape of what the operator {operator} returns",
            operator,
            "write the module with other operators of torch",
        )
    first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    said = f"{type(error).__name__}: {_shortened(first)}" if first else type(error).__name__
    return said, "", "this line raised while the model was recorded; the log holds the stack trace"


def _place(error: Exception, model: nn.Module) -> tuple[str, str, int]:
    """Return the innermost module of the model that was running, and the innermost line of its code."""
    from torch.nn import Module

    # torch calls a module through a proxy that shares its attributes and the name of its class.
    names = {id(vars(module)): name for name, module in model.named_modules()}
    found, file, line = "", "", 0
    for frame, number in traceback.walk_tb(error.__traceback__):
        owner = frame.f_locals.get("self")
        key = id(vars(owner)) if isinstance(owner, Module) else 0
        if key in names:
            found = _described(names[key], type(owner).__name__)
        if found and not _is_library(frame.f_code.co_filename):
            file, line = frame.f_code.co_filename, number
    return found, file, line


def _innermost(stack: dict[str, Any]) -> str:
    """Return the last entry of a node's stack of modules: key -> (path, class)."""
    if not stack:
        return ""
    path, kind = list(stack.values())[-1]
    name = kind if isinstance(kind, str) else kind.__name__
    return _described(path.removeprefix("model").removeprefix("."), name.rpartition(".")[2])


def _described(path: str, kind: str) -> str:
    return f"{path} ({kind})" if path else kind


def _is_library(file: str) -> bool:
    import torch
    import torchvision

    return any(Path(file).is_relative_to(folder) for each in (torch, torchvision) for folder in each.__path__)


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN else text[:_SHOWN].rstrip() + " ..."
