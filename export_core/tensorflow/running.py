"""SavedModels and frozen graphs as a consumer runs them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf
from google.protobuf.message import DecodeError

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.tensorflow.conversion import SIGNATURE, STAGE

Array = npt.NDArray[Any]

_UNTELLING = ("Graph execution error", "Detected at", "<stack", "Original stack")


class SavedModel:
    """A SavedModel, run by its signature.

    Args:
        path: the directory.

    Raises:
        Failure: ``artifact.unloadable``.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._loaded = tf.saved_model.load(str(path))
            self._signature = self._loaded.signatures[SIGNATURE]
        except (OSError, KeyError, ValueError, RuntimeError, tf.errors.OpError) as error:
            message = f"TensorFlow does not load {path.name}: {first_line(error)}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            Failure: ``artifact.unloadable``.
        """
        try:
            found = self._signature(**{name: tf.constant(value) for name, value in inputs.items()})
        except (ValueError, TypeError, tf.errors.OpError) as error:
            message = f"the SavedModel fails: {first_line(error)}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error
        return {name: value.numpy() for name, value in found.items()}


class FrozenGraph:
    """A frozen graph in a session.

    Optimizers are off: each would copy all constants for the few runs that a graph has here.

    Args:
        path: of the file; beside it lies nothing that is needed.

    Raises:
        Failure: ``artifact.unloadable``.
    """

    def __init__(self, path: Path) -> None:
        definition = tf.compat.v1.GraphDef()
        graph = tf.Graph()
        try:
            definition.ParseFromString(path.read_bytes())
            with graph.as_default():
                tf.import_graph_def(definition, name="")
        except (DecodeError, ValueError, OSError) as error:
            message = f"TensorFlow does not load {path.name}: {first_line(error)}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error
        self._outputs = _results(definition)
        self._inner = [node.name for node in definition.node if node.name.startswith(STAGE)]
        del definition  # as large as the parameters
        settings = tf.compat.v1.ConfigProto()
        settings.graph_options.rewrite_options.disable_meta_optimizer = True
        settings.graph_options.optimizer_options.opt_level = -1
        self._session = tf.compat.v1.Session(graph=graph, config=settings)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            Failure: ``artifact.unloadable``.
        """
        return self._fetch(self._outputs, inputs)

    def inner(self, inputs: Mapping[str, Array]) -> dict[str, list[Array]]:
        """Return what modules inside of the graph return, by their paths; maps are (N, H, W, C).

        Raises:
            Failure: ``artifact.unloadable``.
        """
        found: dict[str, list[Array]] = {}
        for name, value in self._fetch(self._inner, inputs).items():
            found.setdefault(name.removeprefix(STAGE).rpartition("/")[0], []).append(value)
        return found

    def _fetch(self, names: Sequence[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = {f"{name}:0": value for name, value in inputs.items()}
        try:
            found = self._session.run([f"{name}:0" for name in names], given)
        except (ValueError, TypeError, tf.errors.OpError) as error:
            message = f"the frozen graph fails: {first_line(error)}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error
        return dict(zip(names, found, strict=True))


def _results(definition: Any) -> list[str]:
    """Return the names of the outputs: operators in no scope that nobody takes anything from."""
    taken = {name.lstrip("^").partition(":")[0] for node in definition.node for name in node.input}
    last = [node.name for node in definition.node if node.op == "Identity" and node.name not in taken]
    return [name for name in last if "/" not in name]


def first_line(error: Exception) -> str:
    """Return the line of TensorFlow's many that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_UNTELLING)]
    return (telling or lines or [type(error).__name__])[0][:300]
