"""From a blueprint to a SavedModel and a frozen graph, of the same constants and operators."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow as tf

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.tensorflow import translators as _translators
from zooport.export_core.tensorflow.blueprint import Blueprint
from zooport.export_core.tensorflow.translation import Module

SAVED_MODEL, FROZEN = "saved_model", "model.pb"
IMAGE, PROPOSALS, IMAGE_INDEX = "image", "proposal_boxes", "image_index"
SIGNATURE = "serving_default"

_LARGEST = 2**31 - 1  # bytes of a protobuf message
_WHOLE = ("sem_seg",)  # fields without a row for each thing found
_SHAPES: Mapping[str, list[int | None]] = {IMAGE: [None, None, 3], PROPOSALS: [None, 4]}
_TRANSLATORS = _translators  # imported for what they enter into the table


@dataclass(frozen=True)
class Wanted:
    """What is to be built.

    Attributes:
        fields: names of the outputs.
        inputs: names of the inputs, "image" first.
        batch: number of images of a call; None for one image without a batch dimension.
    """

    fields: Sequence[str]
    inputs: Sequence[str]
    batch: int | None = None

    @property
    def outputs(self) -> list[str]:
        """Names of all outputs: the fields, and of a batch which image each row belongs to."""
        rows = any(name not in _WHOLE for name in self.fields)
        return [*self.fields, IMAGE_INDEX] if self.batch is not None and rows else list(self.fields)


def build(blueprint: Blueprint, wanted: Wanted, *, lite: bool = False) -> tf.Graph:
    """Return the model as a graph whose parameters are constants; inputs and outputs go by their names.

    Args:
        blueprint: the model.
        wanted: what goes in and comes out.
        lite: use operators of TensorFlow Lite alone, which takes longer.

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
    leading = [] if wanted.batch is None else [wanted.batch]
    graph = tf.Graph()
    with graph.as_default():
        given = {
            name: tf.compat.v1.placeholder(tf.float32, leading + _SHAPES[name], name=name)
            for name in wanted.inputs
        }
        found = Module(blueprint, lite=lite)(*_arguments(given, wanted))
        for name, value in _joined(found, wanted).items():
            tf.identity(value, name=name)
    return graph


def save(graph: tf.Graph, wanted: Wanted, directory: Path) -> None:
    """Write ``saved_model/`` and ``model.pb``: one graph in two containers."""
    definition = graph.as_graph_def()
    data = definition.SerializeToString(deterministic=True)
    (directory / FROZEN).write_bytes(data)
    del definition, data
    inputs, outputs = (
        {name: graph.get_tensor_by_name(f"{name}:0") for name in names}
        for names in (wanted.inputs, wanted.outputs)
    )
    builder = tf.compat.v1.saved_model.Builder(str(directory / SAVED_MODEL))
    with graph.as_default(), tf.compat.v1.Session(graph=graph) as session:
        signature = tf.compat.v1.saved_model.predict_signature_def(inputs, outputs)
        builder.add_meta_graph_and_variables(session, [tf.saved_model.SERVING], {SIGNATURE: signature})
        builder.save()


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
        join = tf.stack if name in _WHOLE else tf.concat
        results[name] = join([fields[name] for fields in found], axis=0)
    rows = next((name for name in wanted.fields if name not in _WHOLE), None)
    if rows is not None:
        index = [
            tf.fill(tf.shape(fields[rows])[:1], tf.constant(number, tf.int64))
            for number, fields in enumerate(found)
        ]
        results[IMAGE_INDEX] = tf.concat(index, axis=0)
    return results
