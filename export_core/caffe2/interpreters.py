"""Interpreters that the Caffe2 runtime's wheels are made for, wherever a version manager keeps them."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from zooport.export_core.failures import Failure

VERSIONS = ("3.9", "3.8")
"""Of CPython, in the order of preference."""

_PROBE_TIMEOUT = 60.0  # seconds
_PROBE = """
import importlib.util, json, platform, sys
print(json.dumps({
    "executable": sys.executable,
    "version": platform.python_version(),
    "implementation": platform.python_implementation(),
    "bits": sys.maxsize.bit_length() + 1,
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
}))
"""
_HINT = (
    "install CPython 3.8 or 3.9 (pyenv install 3.9, or uv python install 3.9) or name one:"
    " zooport runtime install caffe2 --python PATH"
)


@dataclass(frozen=True)
class Interpreter:
    """An interpreter that runs.

    Attributes:
        path: as it calls itself.
        version: such as 3.9.18.
        has_venv: whether it can make an environment with pip in it, all by itself.
    """

    path: Path
    version: str
    has_venv: bool


def find_interpreter(given: Path | None = None) -> Interpreter:
    """Return the interpreter to use.

    Args:
        given: use this one; None looks on the PATH, then among those of pyenv and of uv. One that can make
            an environment by itself is preferred, then the order of :data:`VERSIONS`.

    Raises:
        Failure: ``dependency.missing`` if there is none, or if the given one is not of a fitting version.
    """
    if given is not None:
        return _given(given)
    found = [one for path in candidates() if (one := probe(path)) is not None and _fits(one)]
    if not found:
        raise Failure(
            "dependency.missing",
            "the Caffe2 runtime needs CPython 3.8 or 3.9, and none was found on the PATH, in pyenv or in uv",
            hint=_HINT,
        )
    return next((one for one in found if one.has_venv), found[0])


def _given(path: Path) -> Interpreter:
    found = probe(path)
    if found is None:
        raise Failure("dependency.missing", f"{path}: no CPython that runs", hint=_HINT)
    if not _fits(found):
        reason = f"{path} is Python {found.version}; the Caffe2 runtime's wheels are for 3.8 and 3.9"
        raise Failure("dependency.missing", reason, hint=_HINT)
    return found


def _fits(interpreter: Interpreter) -> bool:
    return interpreter.version.rpartition(".")[0] in VERSIONS


def candidates() -> Iterator[Path]:
    """Yield every place where a fitting interpreter may be, once, the preferred ones first."""
    seen: set[Path] = set()
    for path in _all_candidates():
        if path not in seen and path.exists():
            seen.add(path)
            yield path


def _all_candidates() -> Iterator[Path]:
    home = Path.home()
    pyenv = Path(os.environ.get("PYENV_ROOT") or home / ".pyenv") / "versions"
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    uv = Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or data / "uv" / "python")
    for version in VERSIONS:
        if on_path := shutil.which(f"python{version}"):
            yield Path(on_path)
        for folder in (*sorted(pyenv.glob(f"{version}.*")), *sorted(uv.glob(f"cpython-{version}.*"))):
            yield folder / "bin" / f"python{version}"


def probe(path: Path) -> Interpreter | None:
    """Ask an interpreter what it is; None if it is no 64-bit CPython, or does not run.

    A version manager leaves a script of this name on the PATH for versions that it does not have.
    """
    command = [str(path), "-I", "-c", _PROBE]
    try:
        done = subprocess.run(  # noqa: S603 - an interpreter of this machine, asked for its version
            command, capture_output=True, text=True, check=True, timeout=_PROBE_TIMEOUT
        )
        said = json.loads(done.stdout)
    except (OSError, subprocess.SubprocessError, ValueError):
        return None
    if said["implementation"] != "CPython" or said["bits"] != 64:
        return None
    return Interpreter(Path(said["executable"]), said["version"], bool(said["venv"]))
