"""Is TensorFlow here, and new enough? Found out without importing it."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from zooport.export_core.failures import Failure, Stage

DISTRIBUTIONS = ("tensorflow-cpu", "tensorflow")
"""Packages that bring TensorFlow; the first one is what zooport's extra installs."""
OLDEST = (2, 20)
INSTALL = "pip install 'zooport[tensorflow]'"


def check_installed() -> str:
    """Return the version of TensorFlow.

    Raises:
        Failure: ``dependency.missing`` where it is not installed or too old, with the command that installs
        it.
    """
    found = None if find_spec("tensorflow") is None else installed_version()
    if found is None:
        raise _missing("needs TensorFlow, which is not installed")
    if _numbers(found) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise _missing(f"needs TensorFlow {oldest} or newer; {found} is installed")
    return found


def installed_version() -> str | None:
    """Return the version of the package that brings TensorFlow, None without one."""
    for name in DISTRIBUTIONS:
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _numbers(found: str) -> tuple[int, ...]:
    return tuple(int(part) for part in found.split(".")[:2] if part.isdecimal())


def _missing(what: str) -> Failure:
    return Failure("dependency.missing", f"the format tensorflow {what}", stage=Stage.PLAN, hint=INSTALL)
