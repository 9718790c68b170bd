"""What went wrong while TorchScript was made, as the line of code or the operator that it stumbled over."""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import textwrap
import traceback
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from zooport.export_core.diagnosis import diagnose
from zooport.export_core.failures import Failure, Stage

_OURS = Path(__file__).parents[1]
_PLACE = re.compile(r'File "(?P<file>[^"]+)", line (?P<line>\d+)')
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_OPERATOR = re.compile(r"(?:Unknown builtin op: |Python builtin <built-in \w+ )(?P<name>[\w:.]*\w)")
_INTERPRETER = "most recent call last"
_SHOWN = 100  # characters of a line of code, and of an error's first line


def conversion_failure(tool: str, error: Exception) -> Failure:
    """Return what an exception of a converter amounts to.

    Args:
        tool: the function that raised it, for the message.
        error: what it raised.

    Returns:
        ``unsupported.operator`` naming the operator, else ``export.failed``; both name the line of the
        model's code, where it is known. What a converter does not bring about (lack of memory) is kept.
    """
    known = diagnose(error, Stage.EXPORT)
    if known.code != "export.failed" or isinstance(error, Failure):
        return known
    said = _COLOUR.sub("", str(error))
    operator = unknown_operator(said) or _foreign_function(error)
    file, line = _place(said, error)
    where = _describe(file, line)
    reason = f"{operator} is no operator of TorchScript" if operator else _reason(said, error)
    return Failure(
        "unsupported.operator" if operator else "export.failed",
        f"{tool}: {reason}" + (f", at {where}" if where else ""),
        stage=Stage.EXPORT,
        hint=_advice(tool, file),
        details={"file": file, "line": line, "operator": operator},
    )


def _advice(tool: str, file: str) -> str:
    if not file or is_ours(file):
        return "report it with the log"
    if tool.endswith("trace"):
        return "this line raised while the model was recorded; the log holds the stack trace"
    return "TorchScript takes only a part of Python: rewrite this line"


def unknown_operator(said: str) -> str:
    """Return the name of the operator that an error message misses, "" when it is about something else."""
    found = _OPERATOR.search(said)
    return "" if found is None else found["name"]


def is_library(file: str) -> bool:
    """Whether a file of code belongs to torch or torchvision, which nobody here can change."""
    import torch
    import torchvision

    path = Path(file)
    return any(path.is_relative_to(folder) for each in (torch, torchvision) for folder in each.__path__)


def is_ours(file: str) -> bool:
    """Whether a file of code is zooport's own."""
    return Path(file).is_relative_to(_OURS)


def _reason(said: str, error: Exception) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    reason = lines[-1] if _INTERPRETER in said else lines[0]
    if not _PLACE.search(said):
        reason = f"{type(error).__name__}: {reason}"
    return _shortened(reason.rstrip(":."), 2 * _SHOWN)


def _place(said: str, error: Exception) -> tuple[str, int]:
    """Return file and line, innermost first choice; "" and 0 when nothing tells."""
    named = [(found["file"], int(found["line"])) for found in _PLACE.finditer(said)]
    if _INTERPRETER in said:
        named.reverse()
    candidates = [*named, *_compiled_place(error), *_raising_places(error)]
    own = (place for place in candidates if not is_library(place[0]))
    return next(own, candidates[0] if candidates else ("", 0))


def _raising_places(error: Exception) -> Iterator[tuple[str, int]]:
    """Yield the steps of the stack trace, innermost first, without those of the converter itself."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if not path.is_relative_to(_OURS) or path.is_relative_to(_OURS / "modeling"):
            yield frame.filename, frame.lineno or 0


def _describe(file: str, line: int) -> str:
    if not file:
        return ""
    code = linecache.getline(file, line).strip()
    return f"{file}:{line}" + (f": {_shortened(code, _SHOWN)}" if code else "")


def _shortened(text: str, length: int) -> str:
    return text if len(text) <= length else text[:length].rstrip() + " ..."


def _foreign_function(error: Exception) -> str:
    """Return the name of the function of another library that the compiler was asked to compile, or ""."""
    function = _innermost_local(error, "fn")
    module = getattr(function, "__module__", None) or type(function).__module__
    if function is None or inspect.isfunction(function) or module.split(".")[0] in {"torch", "builtins"}:
        return ""
    return f"{module.split('.')[0]}.{getattr(function, '__name__', type(function).__name__)}"


def _compiled_place(error: Exception) -> Iterator[tuple[str, int]]:
    """Yield where the module that is being compiled calls the function that cannot be; the compiler keeps
    both as local variables and tells neither.
    """  # noqa: D205
    module, function = _innermost_local(error, "nn_module"), _innermost_local(error, "fn")
    forward = getattr(type(module), "forward", None)
    if module is None or not inspect.isfunction(forward):
        return
    with suppress(OSError, SyntaxError):
        lines, first = inspect.getsourcelines(forward)
        file = inspect.getsourcefile(forward) or ""
        yield file, first + _line_of_call(textwrap.dedent("".join(lines)), function, forward.__globals__)


def _line_of_call(code: str, function: Any, names: dict[str, Any]) -> int:
    """Return the line (0 is the first) on which code calls a function, 0 when it does not."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and function is not None and _value(node.func, names) is function:
            return node.lineno - 1
    return 0


def _value(node: ast.expr, names: dict[str, Any]) -> Any:
    if isinstance(node, ast.Attribute):
        return getattr(_value(node.value, names), node.attr, None)
    return names.get(node.id) if isinstance(node, ast.Name) else None


def _innermost_local(error: Exception, name: str) -> Any:
    """Return a local variable of the innermost step of torch's own code that has it, None when none has."""
    found = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if name in frame.f_locals and is_library(frame.f_code.co_filename):
            found = frame.f_locals[name]
    return found
