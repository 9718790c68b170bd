"""What runs a pair of nets: the same two verbs for the real runtime and for the reference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray

from zooport.export_core.caffe2.net_files import Nets

Arrays = Mapping[str, NDArray[Any]]


class LoadedNets(Protocol):
    """Nets whose parameters are in memory."""

    def run(self, inputs: Arrays, fetch: Sequence[str] | None = None) -> dict[str, NDArray[Any]]:
        """Run the predict net once.

        Args:
            inputs: external input -> array, each of ``Nets.inputs``.
            fetch: blobs to return, also such as lie between; None returns the external outputs.

        Raises:
            Failure: ``artifact.unloadable`` naming the operator that refuses its inputs, or a missing one.
        """


class Executor(Protocol):
    """Runs nets.

    Attributes:
        name: what a verdict calls it: ``caffe2`` or ``reference``.
    """

    name: str

    def load(self, nets: Nets) -> LoadedNets:
        """Make the parameters and prepare the predict net.

        Raises:
            Failure: ``unsupported.operator`` naming an operator that is not known here,
                ``artifact.unloadable`` for anything else that is wrong with the nets.
        """

    def close(self) -> None:
        """Give back what the executor holds; its nets cannot be run any more."""


def default_executor() -> str:
    """Return ``caffe2`` where the real runtime is installed, ``reference`` elsewhere."""
    from zooport.export_core.caffe2.runtime_environment import defect, installed_runtime

    installed = installed_runtime()
    return "caffe2" if installed is not None and not defect(installed) else "reference"


def choose_executor(name: str | None = None) -> Executor:
    """Return a fresh executor.

    Args:
        name: ``caffe2`` for the real runtime, ``reference`` for the one on torch; None takes the real one
            where it is installed and the other elsewhere.

    Raises:
        Failure: ``dependency.missing`` if the real runtime is asked for and not installed.
        ValueError: another name.
    """
    name = name or default_executor()
    if name == "caffe2":
        from zooport.export_core.caffe2.runtime import RealRuntime

        return RealRuntime()
    if name == "reference":
        from zooport.export_core.caffe2.reference.executor import ReferenceExecutor

        return ReferenceExecutor()
    raise ValueError(f"there is no executor {name!r}; there are caffe2 and reference")
