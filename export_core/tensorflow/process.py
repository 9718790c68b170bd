"""TensorFlow in a process of its own, which never has torch in it: calls and arrays go through a socket.

The two packages bring libraries of the same names, and an artifact is to be met by a process that has nothing
but what a consumer has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy.typing as npt

from zooport.export_core.diagnosis import diagnose_exit, out_of_memory_kills
from zooport.export_core.failures import Failure
from zooport.export_core.tensorflow.installation import check_installed
from zooport.export_core.tensorflow.launch import start

Array = npt.NDArray[Any]


class TensorFlowProcess:
    """A process with TensorFlow. What it prints goes where this process prints.

    Args:
        threads: compute threads.

    Raises:
        Failure: ``dependency.missing`` where TensorFlow is not installed or too old, ``worker.crashed``
            when the process does not start.
    """

    def __init__(self, threads: int = 1) -> None:
        check_installed()
        self._kills = out_of_memory_kills()
        self._connection, self._process = start(threads)
        self._answer()

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def convert(
        self,
        blueprint: Path,
        directory: Path,
        fields: Sequence[str],
        inner: Sequence[str],
        sample: Mapping[str, Array],
        options: Mapping[str, Any],
    ) -> list[str]:
        """Write an artifact's files; see :func:`zooport.export_core.tensorflow.child.convert`.

        Returns:
            Remarks for the user.

        Raises:
            Failure: ``unsupported.architecture``, ``export.failed``, ``resource.disk``, ``worker.crashed``.
        """
        made: list[str] = self._call(
            "convert", blueprint, directory, list(fields), list(inner), dict(sample), dict(options)
        )
        return made

    def load(self, path: Path) -> None:
        """Load a SavedModel, a frozen graph (``.pb``) or a ``.tflite`` file, which :meth:`run` then runs.

        Raises:
            Failure: ``artifact.unloadable``, ``worker.crashed``.
        """
        self._call("load", path)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run what was loaded; returns the outputs by name.

        Raises:
            Failure: ``artifact.unloadable``, ``worker.crashed``.
        """
        outputs: dict[str, Array] = self._call("run", dict(inputs))
        return outputs

    def inner(self, frozen: Path, inputs: Mapping[str, Array]) -> dict[str, list[Array]]:
        """Run a frozen graph; return what modules inside of it return, by their paths, maps as (N, H, W, C).

        Raises:
            Failure: ``artifact.unloadable``, ``worker.crashed``.
        """
        outputs: dict[str, list[Array]] = self._call("inner", frozen, dict(inputs))
        return outputs

    def close(self) -> None:
        """End the process; closing twice does no harm."""
        self._connection.close()
        self._process.end()

    def _call(self, name: str, *arguments: Any) -> Any:
        try:
            self._connection.send((name, arguments))
        except OSError:
            raise self._dead() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            value, failure = self._connection.recv()
        except (EOFError, OSError):
            raise self._dead() from None
        if failure is not None:
            raise failure
        return value

    def _dead(self) -> Failure:
        """Return why the process ended."""
        status = self._process.status() or 0
        starved = out_of_memory_kills() > self._kills
        failure = diagnose_exit(status, None, Path("the log"), starved=starved)
        self.close()
        message = f"TensorFlow: {failure.message}"
        return Failure(failure.code, message, hint="the log holds its last words", details=failure.details)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
