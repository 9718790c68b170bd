"""From a blueprint to a SavedModel and a frozen graph, of the same operators and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.outputs import IMAGE_INDEX, has_rows
from zooport.export_core.tensorflow import translators as _translators
from zooport.export_core.tensorflow.blueprint import Blueprint
from zooport.export_core.tensorflow.translation import Keep, Module, Record

IMAGE, PROPOSALS = "image", "proposal_boxes"
SIGNATURE = "serving_default"
STAGE = "stage/"

Array = npt.NDArray[Any]

_SMALL = 1024  # numbers
_LARGEST = 2**31 - 1  # bytes of a protobuf message
_TRANSLATORS = _translators  # imported for what they enter into the table


@dataclass(frozen=True)
class Wanted:
    """What is to be built.

    Attributes:
        fields: names of the outputs.
        inputs: names of the inputs, "image" first.
        batch: number of images of a call; None for one image without a batch dimension.
        inner: paths of the modules whose outputs have names in the frozen graph.
        channels: of an image.
    """

    fields: Sequence[str]
    inputs: Sequence[str]
    batch: int | None = None
    inner: Sequence[str] = ()
    channels: int = 3

    @property
    def outputs(self) -> list[str]:
        """Names of all outputs: the fields, and of a batch which image each row belongs to."""
        rows = any(has_rows(name) for name in self.fields)
        return [*self.fields, IMAGE_INDEX] if self.batch is not None and rows else list(self.fields)


def save_frozen(blueprint: Blueprint, wanted: Wanted, path: Path) -> None:
    """Write the model as one graph whose parameters are constants; inputs and outputs go by their names.

    What the modules of ``wanted.inner`` return has names, too: ``stage/MODULE/NUMBER``. Operators that nobody
    asks for cost nothing.

    Raises:
        Failure: ``unsupported.architecture`` naming a module; ``export.failed`` when it would not fit into a
            file of TensorFlow's.
    """
    size = sum(array.nbytes for each in blueprint.walk() for array in each.arrays.values())
    if size > _LARGEST:
        raise Failure(
            "export.failed",
            f"the model has {size} bytes of parameters, a TensorFlow graph holds {_LARGEST}",
            stage=Stage.EXPORT,
            hint="onnx and torch-export take larger models",
        )
    graph = _build(blueprint, wanted, _constant, record=_Inner(wanted.inner))
    definition = graph.as_graph_def()
    del graph  # as large as the parameters
    path.write_bytes(definition.SerializeToString(deterministic=True))


def save_model(blueprint: Blueprint, wanted: Wanted, directory: Path, *, lite: bool = False) -> None:
    """Write the model as a SavedModel.

    Its parameters are variables: constants are copied a dozen times on loading. Its operators have the names
    that they have in the frozen graph, so that one program runs either.

    Args:
        blueprint: the model.
        wanted: what goes in and comes out.
        directory: of the SavedModel; must not be there.
        lite: use operators of TensorFlow Lite alone, which takes longer.

    Raises:
        Failure: ``unsupported.architecture`` naming a module.
    """
    parameters = _Variables()
    graph = _build(blueprint, wanted, parameters.keep, lite=lite)
    inputs, outputs = (
        {name: graph.get_tensor_by_name(f"{name}:0") for name in names}
        for names in (wanted.inputs, wanted.outputs)
    )
    builder = tf.compat.v1.saved_model.Builder(str(directory))
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        parameters.fill(session)
        signature = tf.compat.v1.saved_model.predict_signature_def(inputs, outputs)
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING], {SIGNATURE: signature})
        builder.save()


def _build(
    blueprint: Blueprint, wanted: Wanted, keep: Keep, *, lite: bool = False, record: Record | None = None
) -> tf.Graph:
    graph = tf.Graph()
    with graph.as_default():
        given = {
            name: tf.compat.v1.placeholder(spec.dtype, spec.shape, name=name)
            for name, spec in _specs(wanted).items()
        }
        model = Module(blueprint, keep, lite=lite, record=record)
        for name, value in _joined(model(*_arguments(given, wanted)), wanted).items():
            tf.identity(value, name=name)
    return graph


def _constant(name: str, array: Array) -> tf.Tensor:
    return tf.constant(array, name=name.rpartition(".")[2])


class _Inner:
    """Gives names to what modules return when they are called first.

    Args:
        paths: of the modules.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        self._awaited = set(paths)

    def __call__(self, path: str, outputs: Any) -> None:
        """Name the tensors in the outputs of a module, nested as they may be."""
        if path not in self._awaited:
            return
        self._awaited.remove(path)
        for number, tensor in enumerate(_tensors(outputs)):
            with tf.name_scope(f"{STAGE}{path}/"):  # the last stroke makes it absolute
                tf.identity(tensor, name=str(number))


def _tensors(outputs: Any) -> Iterator[tf.Tensor]:
    """Yield tensors in the order in which they stand; ``tf.nest`` would sort dictionaries."""
    if isinstance(outputs, dict | list | tuple):
        for each in outputs.values() if isinstance(outputs, dict) else outputs:
            yield from _tensors(each)
    elif outputs.shape.rank != 0:  # single numbers are sizes
        yield outputs


class _Variables:
    """Parameters as variables of the graph that is being built."""

    def __init__(self) -> None:
        self._values: list[tuple[tf.Variable, Array]] = []

    def keep(self, name: str, array: Array) -> tf.Tensor:
        """Return the value of a variable; small arrays are constants, which optimizers can look into."""
        if array.size < _SMALL:
            return _constant(name, array)
        variable = tf.compat.v1.get_variable(
            name.replace(".", "/"),
            shape=array.shape,
            dtype=array.dtype,
            initializer=tf.compat.v1.zeros_initializer(),
            trainable=False,
            use_resource=True,
        )
        self._values.append((variable, array))
        return variable.read_value()

    def fill(self, session: tf.compat.v1.Session) -> None:
        """Give the variables their values in a session."""
        for variable, array in self._values:
            session.run(variable.initializer, {variable.initializer.inputs[1]: array})


def _specs(wanted: Wanted) -> dict[str, tf.TensorSpec]:
    leading = [] if wanted.batch is None else [wanted.batch]
    shapes = {IMAGE: [None, None, wanted.channels], PROPOSALS: [None, 4]}
    return {name: tf.TensorSpec(leading + shapes[name], tf.float32, name=name) for name in wanted.inputs}


def _arguments(given: Mapping[str, tf.Tensor], wanted: Wanted) -> list[list[tf.Tensor]]:
    """Return the inputs as the model's translator takes them: a list with one entry for each image."""
    if wanted.batch is None:
        return [[given[name]] for name in wanted.inputs]
    return [tf.unstack(given[name]) for name in wanted.inputs]


def _joined(found: Sequence[Mapping[str, tf.Tensor]], wanted: Wanted) -> dict[str, tf.Tensor]:
    """Return the outputs of one image, or of a batch: the rows of all images under each other."""
    if wanted.batch is None:
        return {name: found[0][name] for name in wanted.fields}
    results: dict[str, tf.Tensor] = {}
    for name in wanted.fields:
        join = tf.concat if has_rows(name) else tf.stack
        results[name] = join([fields[name] for fields in found], axis=0)
    rows = next((name for name in wanted.fields if has_rows(name)), None)
    if rows is not None:
        index = [
            tf.fill(tf.shape(fields[rows])[:1], tf.constant(number, tf.int64))
            for number, fields in enumerate(found)
        ]
        results[IMAGE_INDEX] = tf.concat(index, axis=0)
    return results
