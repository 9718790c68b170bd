"""What both TorchScript formats share: writing and reading ``model.ts`` and its deprecation noise."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.torchscript_errors import is_library, is_ours, unknown_operator

MAIN_FILE = "model.ts"
_CODE_BYTES = 1 << 20  # about what a file holds besides weights


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the notes that torch.jit is deprecated and that shapes are read while tracing."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


@contextmanager
def noting_decisions() -> Iterator[list[str]]:
    """Collect "file:line" where code turns a tensor into a Python value, which a trace keeps as a constant.

    zooport's own modules do so only where every image gives the same value, so they are left out.
    """
    import torch

    places: list[str] = []
    with quiet():
        show = warnings.showwarning

        def note(message: Any, category: Any, filename: str, lineno: int, *more: Any) -> None:
            if not issubclass(category, torch.jit.TracerWarning):  # type: ignore[attr-defined]
                show(message, category, filename, lineno, *more)
            elif not is_library(filename) and not is_ours(filename):
                places.append(f"{filename}:{lineno}")

        warnings.simplefilter("always", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        warnings.showwarning = note  # type: ignore[assignment]  # put back where quiet() ends
        yield places
    places[:] = list(dict.fromkeys(places))


def save(module: Any, directory: Path) -> None:
    """Write ``model.ts``.

    torch ends the process when its file cannot grow, so room for the weights is asked for first; a copy of
    everything in memory, whose writing could fail politely, would be the largest thing an export holds.

    Raises:
        Failure: ``resource.disk``.
    """
    path = directory / MAIN_FILE
    tensors = {each.data_ptr(): each.nbytes for each in (*module.parameters(), *module.buffers())}
    try:
        with path.open("wb") as file:
            if tensors:
                os.posix_fallocate(file.fileno(), 0, sum(tensors.values()) + _CODE_BYTES)
        with quiet():
            module.save(str(path))
    except OSError as error:
        path.unlink(missing_ok=True)
        raise Failure(
            "resource.disk",
            f"cannot write {path}: {error.strerror}",
            stage=Stage.EXPORT,
            hint="free space or name another --output",
        ) from None


def load(directory: Path) -> Any:
    """Read ``model.ts``; torchvision is imported for its operators, nothing else is needed.

    Raises:
        Failure: ``artifact.unloadable``.
    """
    import torch
    import torchvision  # noqa: F401  registers nms and roi_align

    path = directory / MAIN_FILE
    # Graphs whose shapes change with every image are interpreted faster than they are re-optimised.
    torch._C._jit_set_profiling_executor(False)
    torch._C._jit_set_profiling_mode(False)
    try:
        with quiet():
            return torch.jit.load(str(path), map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError) as error:
        operator = unknown_operator(str(error))
        if operator:
            raise Failure(
                "unsupported.operator",
                f"{path} needs the operator {operator}, which neither torch nor torchvision has",
                stage=Stage.VERIFY,
                hint="write the module with operators of torch: who loads the artifact has nothing else",
                details={"operator": operator},
            ) from error
        raise Failure(
            "artifact.unloadable",
            f"torch.jit.load cannot read {path}: {first_line(error)}",
            stage=Stage.VERIFY,
            hint="export again; if it repeats, report it with the log",
        ) from error


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    lines = [line.strip() for line in str(error).splitlines()]
    return next((line for line in lines if line), type(error).__name__)
