"""The process that has TensorFlow: it converts blueprints and runs what came of them, as it is told."""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy.typing as npt

from zooport.export_core.diagnosis import diagnose
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation.child import redirect, settle
from zooport.export_core.tensorflow.settings import import_tensorflow

Array = npt.NDArray[Any]


class Server:
    """What the process can be asked for.

    Args:
        threads: compute threads.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._run: Callable[[Mapping[str, Array]], dict[str, Array]] | None = None

    def load(self, path: Path) -> None:
        """Load a SavedModel, a frozen graph (``.pb``) or a ``.tflite`` file.

        Raises:
            Failure: ``artifact.unloadable``.
        """
        from zooport.export_core.tensorflow.lite import LiteModel
        from zooport.export_core.tensorflow.running import FrozenGraph, SavedModel

        self._run = None  # what was loaded before
        if path.suffix == ".tflite":
            self._run = LiteModel(path, self._threads)
        else:
            self._run = FrozenGraph(path) if path.suffix == ".pb" else SavedModel(path)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs of what was loaded, by name.

        Raises:
            Failure: ``artifact.unloadable``.
        """
        assert self._run is not None  # noqa: S101 - load() comes before
        return self._run(inputs)

    def inner(self, frozen: Path, inputs: Mapping[str, Array]) -> dict[str, list[Array]]:
        """Return what modules inside of a frozen graph return, by their paths."""
        from zooport.export_core.tensorflow.running import FrozenGraph

        return FrozenGraph(frozen).inner(inputs)

    def convert(
        self,
        blueprint: Path,
        directory: Path,
        fields: list[str],
        inner: list[str],
        sample: Mapping[str, Array],
        options: Mapping[str, Any],
    ) -> list[str]:
        """Write ``saved_model/``, ``model.pb`` and what the options ask for; return remarks for the user.

        Args:
            blueprint: the file that describes the model; others are made beside it.
            directory: where the artifact's files go.
            fields: names of the outputs.
            inner: paths of the modules whose outputs can be asked for.
            sample: inputs to try the files on, the image (H, W, C).
            options: of the format.

        Raises:
            Failure: ``unsupported.architecture``, ``unsupported.operator``, ``export.failed``.
        """
        from zooport.export_core.tensorflow import conversion, files, lite
        from zooport.export_core.tensorflow.blueprint import read_blueprint

        described = read_blueprint(blueprint)
        channels = sample[conversion.IMAGE].shape[-1]
        wanted = conversion.Wanted(fields, list(sample), options.get("batch"), inner, channels)
        conversion.save_frozen(described, wanted, directory / files.FROZEN)
        conversion.save_model(described, wanted, directory / files.SAVED_MODEL)
        if not options.get("tflite"):
            return []
        path = directory / files.LITE
        with tempfile.TemporaryDirectory(dir=blueprint.parent) as folder:
            conversion.save_model(described, wanted, Path(folder) / "lite", lite=True)
            lite.convert(Path(folder) / "lite", path, options.get("quantize"))
        return lite.remarks_on(path, sample, self._threads)


def serve(connection: Connection, threads: int) -> None:
    """Answer calls until the other side is gone."""
    import_tensorflow(threads)
    server = Server(threads)
    calls: dict[str, Callable[..., Any]] = {
        each.__name__: each for each in (server.convert, server.load, server.run, server.inner)
    }
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


def serve_forked(connection: socket.socket, _server: Path) -> NoReturn:
    """Serve a job, as a fork of a server that has imported TensorFlow; its log gets what is printed."""
    talk = Connection(connection.detach())
    log, import_path, directory = talk.recv()
    redirect(Path(log))
    settle(import_path, directory)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(talk, threads=1)
    os._exit(0)
