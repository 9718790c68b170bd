"""TensorFlow Lite: a SavedModel of operators that it has, as ``model.tflite``, and its interpreter."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.tensorflow.conversion import SIGNATURE

Array = npt.NDArray[Any]

_RUNS = 2  # of the interpreter with its defaults; from the second on XNNPACK may go wrong
_DIFFERENCE = 1e-2  # relative to the largest number; far above what another order of additions does


def convert(saved_model: Path, path: Path, quantize: str | None) -> None:
    """Write the SavedModel in TensorFlow Lite's format, of its own operators alone.

    Args:
        saved_model: made for TensorFlow Lite (``lite=True`` of :func:`conversion.save_model`).
        path: the file to write.
        quantize: "dynamic" keeps weights in 8 bits; None in 32.

    Raises:
        Failure: ``unsupported.operator`` naming those that TensorFlow Lite does not have.
    """
    converter = tf.lite.TFLiteConverter.from_saved_model(str(saved_model))
    if quantize:
        converter.optimizations = [tf.lite.Optimize.DEFAULT]
    try:
        converted = converter.convert()
    except Exception as error:  # of a class of its own, and others of MLIR
        raise _refusal(error) from error
    path.write_bytes(converted)


class LiteModel:
    """A ``model.tflite`` in TensorFlow Lite's interpreter.

    Args:
        path: of the file.
        threads: compute threads.
        delegates: whether the interpreter's own delegate, XNNPACK, takes part.

    Raises:
        Failure: ``artifact.unloadable``.
    """

    def __init__(self, path: Path, threads: int, *, delegates: bool = False) -> None:
        kinds = tf.lite.experimental.OpResolverType
        try:
            with _quiet():
                self._interpreter = tf.lite.Interpreter(
                    model_path=str(path),
                    num_threads=threads,
                    experimental_op_resolver_type=(
                        kinds.AUTO if delegates else kinds.BUILTIN_WITHOUT_DEFAULT_DELEGATES
                    ),
                )
                self._run = self._interpreter.get_signature_runner(SIGNATURE)
        except (ValueError, RuntimeError) as error:
            message = f"TensorFlow Lite does not load {path.name}: {error}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Return the outputs by name.

        Raises:
            Failure: ``artifact.unloadable``.
        """
        try:
            found = self._run(**inputs)
        except (ValueError, RuntimeError) as error:
            message = f"TensorFlow Lite fails: {error}"
            raise Failure("artifact.unloadable", message, stage=Stage.VERIFY) from error
        return {name: np.array(value) for name, value in found.items()}


def remarks_on(path: Path, sample: Mapping[str, Array], threads: int) -> list[str]:
    """Return what the user of a file should know: whether the default interpreter gives the same results."""
    wanted = LiteModel(path, threads)(sample)
    try:
        usual = LiteModel(path, threads, delegates=True)
        same = all(_alike(wanted, usual(sample)) for _ in range(_RUNS))
    except Failure:
        same = False
    said = [f"{path.name} has operators of TensorFlow Lite alone; select TF operators are not needed"]
    if not same:
        said.append(
            f"{path.name}: the delegate XNNPACK, which interpreters use unless told otherwise, gives other"
            " results from the second image on; verified without it (BUILTIN_WITHOUT_DEFAULT_DELEGATES)"
        )
    return said


def _alike(wanted: Mapping[str, Array], found: Mapping[str, Array]) -> bool:
    for name, value in wanted.items():
        if found[name].shape != value.shape:
            return False
        largest = max(float(np.abs(value).max(initial=0)), 1e-12)
        if not float(np.abs(value - found[name]).max(initial=0)) <= _DIFFERENCE * largest:
            return False
    return True


def _refusal(error: Exception) -> Failure:
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("TF Select ops:")]
    if named:
        return Failure(
            "unsupported.operator",
            f"TensorFlow Lite has no operators {named[0]}",
            stage=Stage.EXPORT,
            hint="leave out tflite",
            details={"operator": named[0]},
        )
    said = next((line for line in lines if line), type(error).__name__)[:300]
    return Failure("export.failed", f"TensorFlow Lite's converter: {said}", stage=Stage.EXPORT)


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the announcement that the interpreter moves to another package."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
