"""SavedModels and frozen graphs as a consumer runs them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.tensorflow.conversion import FROZEN, SAVED_MODEL, SIGNATURE, Wanted

Array = npt.NDArray[Any]

_SAME = 1e-5  # relative: one graph in two containers, whose optimizers may join operators differently
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


def run_frozen(path: Path, wanted: Wanted, inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Run a frozen graph once, in a session of its own; returns the outputs by name."""
    definition = tf.compat.v1.GraphDef()
    definition.ParseFromString(path.read_bytes())
    graph = tf.Graph()
    with graph.as_default():
        tf.import_graph_def(definition, name="")
    del definition  # as large as the parameters
    with tf.compat.v1.Session(graph=graph) as session:
        given = {f"{name}:0": value for name, value in inputs.items()}
        found = session.run([f"{name}:0" for name in wanted.outputs], given)
    return dict(zip(wanted.outputs, found, strict=True))


def compare_frozen(directory: Path, wanted: Wanted, sample: Mapping[str, Array]) -> None:
    """See to it that the SavedModel and the frozen graph of an artifact give the same outputs.

    Raises:
        Failure: ``export.failed`` naming an output that differs.
    """
    frozen = run_frozen(directory / FROZEN, wanted, sample)
    for name, value in SavedModel(directory / SAVED_MODEL)(sample).items():
        largest = float(np.abs(value).max(initial=0))
        same = frozen[name].shape == value.shape and np.allclose(
            frozen[name], value, rtol=0, atol=_SAME * largest
        )
        if not same:
            message = f"{FROZEN} and {SAVED_MODEL} give different {name}"
            raise Failure("export.failed", message, stage=Stage.EXPORT)


def first_line(error: Exception) -> str:
    """Return the line of TensorFlow's many that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(_UNTELLING)]
    return (telling or lines or [type(error).__name__])[0][:300]
