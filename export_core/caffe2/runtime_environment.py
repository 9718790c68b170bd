"""The environment of the real Caffe2 runtime: where it is, whether it is whole, and how it is made.

torch 1.10.2 is the last release whose wheels hold Caffe2 with the operators of detection. The environment is
made beside its place, tried, and renamed into it, so that what is there works.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from zooport.export_core.cache import cache_root
from zooport.export_core.caffe2.interpreters import Interpreter, find_interpreter
from zooport.export_core.diagnosis import disk_failure, is_full
from zooport.export_core.failures import Failure

NAME = "caffe2"
PACKAGES = (
    "torch==1.10.2",
    "numpy==1.21.6",
    "protobuf==3.20.3",
    "future==1.0.0",
    "six==1.17.0",
    "typing-extensions==4.13.2",
)
NOTE_FILE = "runtime.json"
Report = Callable[[str], None]

_HINT = f"zooport runtime install {NAME}"
_NETWORK = re.compile(
    r"connection|timed out|temporary failure|resolve|proxy|certificate|retries exceeded|network",
    re.IGNORECASE,
)
_NO_SPACE = "No space left on device"
# What a user's shell says about Python is not meant for this environment.
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "PIP_TARGET", "PIP_PREFIX", "PIP_USER", "PIP_PYTHON")


@dataclass(frozen=True)
class Installed:
    """An environment that has been tried.

    Attributes:
        directory: where it is.
        python: version of its interpreter.
        packages: name==version of what was asked for.
        made_with: the interpreter that it was made with, which must stay.
    """

    directory: str
    python: str
    packages: tuple[str, ...]
    made_with: str

    @property
    def interpreter(self) -> Path:
        """The environment's own interpreter."""
        return Path(self.directory) / "bin" / "python"


def runtime_directory() -> Path:
    """Return where the environment is, or would be: below the cache directory."""
    return cache_root() / "runtimes" / NAME


def installed_runtime(directory: Path | None = None) -> Installed | None:
    """Return the environment, or None where there is none that was finished."""
    directory = directory or runtime_directory()
    try:
        note = json.loads((directory / NOTE_FILE).read_text(encoding="utf-8"))
        return Installed(str(directory), note["python"], tuple(note["packages"]), note["made_with"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def defect(runtime: Installed) -> str:
    """Return what is wrong with an environment that was whole once, "" if nothing is to be seen."""
    if not runtime.interpreter.exists():  # a link; its target may have been removed
        return f"its interpreter {runtime.made_with} is gone"
    if runtime.packages != PACKAGES:
        return "made by another version of zooport"
    return ""


def runtime_python() -> Path:
    """Return the interpreter of the installed runtime.

    Raises:
        Failure: ``dependency.missing`` if there is none, or it lost what it was made with.
    """
    runtime = installed_runtime()
    if runtime is None:
        message = f"the Caffe2 runtime is not installed in {runtime_directory()}"
        raise Failure("dependency.missing", message, hint=_HINT)
    if problem := defect(runtime):
        message = f"the Caffe2 runtime in {runtime.directory} does not work any more: {problem}"
        raise Failure("dependency.missing", message, hint=_HINT)
    return runtime.interpreter


def install_runtime(
    python: Path | None = None, *, force: bool = False, report: Report = lambda line: None
) -> Installed:
    """Make the environment, unless it is there.

    Args:
        python: CPython 3.8 or 3.9; None finds one.
        force: make it anew.
        report: is told each step, as one line.

    Raises:
        Failure: ``dependency.missing`` if there is no interpreter or the packages do not install or work,
            ``fetch.failed`` if the package index cannot be reached, ``resource.disk``.
    """
    directory = runtime_directory()
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with _alone(directory.with_suffix(".lock"), report):
            present = installed_runtime()
            if present is not None and not defect(present) and not force:
                return present
            return _install(find_interpreter(python), directory, report)
    except OSError as error:
        raise disk_failure(error, place=directory) from error


def _install(interpreter: Interpreter, directory: Path, report: Report) -> Installed:
    made = Path(tempfile.mkdtemp(prefix=f"{NAME}-", suffix=".part", dir=directory.parent))
    try:
        report(f"making an environment with Python {interpreter.version} ({interpreter.path})")
        environment = made / "env"
        python = environment / "bin" / "python"
        if interpreter.has_venv:
            _run([interpreter.path, "-I", "-m", "venv", environment], report)
            pip: Sequence[str | Path] = [python, "-I", "-m", "pip", "install", "--disable-pip-version-check"]
        elif uv := shutil.which("uv"):
            _run([uv, "venv", "--no-project", "--python", interpreter.path, environment], report)
            pip = [uv, "pip", "install", "--python", python]
        else:
            message = f"{interpreter.path} can make no environment: it has no venv and ensurepip"
            hint = "install its venv package (Debian: apt-get install python3.9-venv) or uv"
            raise Failure("dependency.missing", message, hint=hint)
        _run([*pip, *PACKAGES], report)
        report("trying the runtime")
        _try(python)
        # The environment's own path is of no consequence: nothing but its interpreter is used.
        target = Installed(str(directory), interpreter.version, PACKAGES, str(interpreter.path))
        note = json.dumps(asdict(target), indent=2)
        (environment / NOTE_FILE).write_text(note, encoding="utf-8")
        if directory.exists():
            directory.rename(made / "old")
        environment.rename(directory)
        return target
    finally:
        shutil.rmtree(made, ignore_errors=True)


def _run(command: Sequence[str | Path], report: Report) -> None:
    """Run one step and report its lines; a step that fails ends in a typed failure with its last words."""
    own = {name: text for name, text in os.environ.items() if name not in _FOREIGN}
    lines: list[str] = []
    with subprocess.Popen(  # noqa: S603 - venv, pip or uv
        [str(part) for part in command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=own,
        text=True,
        errors="replace",
    ) as process:
        assert process.stdout is not None  # noqa: S101 - a pipe
        for line in process.stdout:
            if said := line.strip():
                lines.append(said)
                report(said)
    if process.returncode:
        raise _failed_step(command, lines)


def _failed_step(command: Sequence[str | Path], lines: list[str]) -> Failure:
    said = next((line for line in reversed(lines) if "error" in line.lower()), "no last words")
    details = {"log_tail": lines[-12:]}
    place = runtime_directory().parent
    if any(_NO_SPACE in line for line in lines) or is_full(place):
        return Failure(
            "resource.disk", f"{place}: no space left for the Caffe2 runtime (2 GB)", details=details
        )
    tool = Path(command[0]).name if "pip" not in command else "pip"
    message = f"{tool} could not make the Caffe2 runtime: {said}"
    if any(_NETWORK.search(line) for line in lines):
        return Failure("fetch.failed", message, hint="is the package index reachable?", details=details)
    return Failure("dependency.missing", message, details=details)


def _try(python: Path) -> None:
    """Start the runtime once; what does not start, or lacks the operators of detection, is not installed."""
    from zooport.export_core.caffe2.runtime import RealRuntime

    with RealRuntime(python) as runtime:
        missing = {"GenerateProposals", "BoxWithNMSLimit", "RoIAlign"} - set(runtime.operators())
    if missing:
        raise Failure("dependency.missing", f"the runtime lacks {', '.join(sorted(missing))}")


@contextlib.contextmanager
def _alone(lock: Path, report: Report) -> Iterator[None]:
    """Hold a lock, so that two installations do not do the same work."""
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            report("another process is installing the runtime; waiting for it")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
