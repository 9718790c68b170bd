"""The process that has TensorFlow: it converts blueprints and runs SavedModels, as it is told."""

from __future__ import annotations

import signal
import sys
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy.typing as npt

from zooport.export_core.diagnosis import diagnose
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.tensorflow.settings import import_tensorflow

Array = npt.NDArray[Any]


class Runner:
    """The SavedModel that was loaded, run by its signature as any consumer would."""

    def __init__(self) -> None:
        self._signature: Any = None

    def load(self, saved_model: Path) -> None:
        """Load a SavedModel.

        Raises:
            Failure: ``artifact.unloadable``.
        """
        import tensorflow as tf

        from zooport.export_core.tensorflow.conversion import SIGNATURE

        try:
            self._loaded = tf.saved_model.load(str(saved_model))
            self._signature = self._loaded.signatures[SIGNATURE]
        except (OSError, KeyError, ValueError, RuntimeError, tf.errors.OpError) as error:
            message = f"TensorFlow does not load {saved_model.name}: {first_line(error)}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            Failure: ``artifact.unloadable``.
        """
        import tensorflow as tf

        try:
            found = self._signature(**{name: tf.constant(value) for name, value in inputs.items()})
        except (ValueError, TypeError, tf.errors.OpError) as error:
            message = f"the SavedModel fails: {first_line(error)}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error
        return {name: value.numpy() for name, value in found.items()}


def convert(
    blueprint: Path,
    directory: Path,
    fields: list[str],
    sample: Mapping[str, Array],
    options: Mapping[str, Any],
) -> list[str]:
    """Write ``saved_model/``, ``model.pb`` and what the options ask for; return remarks for the user.

    Args:
        blueprint: the file that describes the model.
        directory: where the files go.
        fields: names of the outputs.
        sample: inputs on which the files are compared with each other, the image (H, W, 3).
        options: of the format.

    Raises:
        Failure: ``unsupported.architecture``, ``export.failed``.
    """
    from zooport.export_core.tensorflow import conversion
    from zooport.export_core.tensorflow.blueprint import read_blueprint

    wanted = conversion.Wanted(fields, list(sample), options.get("batch"))
    graph = conversion.build(read_blueprint(blueprint), wanted)
    conversion.save(graph, wanted, directory)
    return []


def first_line(error: Exception) -> str:
    """Return the line of TensorFlow's many that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [
        line for line in lines if not line.startswith(("Graph execution error", "Detected at", "<stack"))
    ]
    return (telling or lines or [type(error).__name__])[0][:300]


def serve(connection: Connection, threads: int) -> None:
    """Answer calls until the other side is gone."""
    import_tensorflow(threads)
    runner = Runner()
    calls: dict[str, Callable[..., Any]] = {"convert": convert, "load": runner.load, "run": runner.run}
    connection.send((None, None))
    while True:
        try:
            name, arguments = connection.recv()
        except EOFError:
            return
        try:
            answer: tuple[Any, Failure | None] = calls[name](*arguments), None
        except BaseException as error:  # whatever it is, it is the answer
            traceback.print_exc()
            stage = Stage.EXPORT if name == "convert" else Stage.VERIFY
            answer = None, error if isinstance(error, Failure) else diagnose(error, stage)
        connection.send(answer)


def main(descriptor: int, threads: int) -> None:
    """Serve the socket of this descriptor."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt is the parent's affair
    sys.stdout = sys.stderr
    serve(Connection(descriptor), threads)
