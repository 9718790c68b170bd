"""``model.onnx``: checked, folded, written whole, and described in its own metadata."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.diagnosis import disk_failure, one_line
from zooport.export_core.failures import Failure, Stage

if TYPE_CHECKING:
    from onnxruntime import InferenceSession, SessionOptions

MAIN_FILE = "model.onnx"
WEIGHTS_FILE = "model.onnx.data"

LARGEST_FILE = 2_000_000_000
"""Bytes; a protocol buffer cannot hold more than 2 GiB, so weights beyond go to a file of their own."""

SMALL_TENSOR = 1024  # bytes; smaller ones stay in the graph

_NO_KERNEL = re.compile(r"implementation for (?P<operator>\w+)\(")


def session_options(threads: int) -> SessionOptions:
    """Return options of a session that computes with so many threads; ONNX Runtime reads no variables."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors; it warns of every shape that is not what was inferred
    return options


def open_session(path: Path, options: SessionOptions) -> InferenceSession:
    """Open a file on the CPU."""
    import onnxruntime

    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def simplify(source: Path, target: Path) -> Any:
    """Fold constants and drop what does nothing, by ONNX Runtime's basic passes: the result is plain ONNX.

    Args:
        source: as the converter wrote it, maybe with weights in files beside it.
        target: where ONNX Runtime may write.

    Returns:
        The ModelProto, with its weights.

    Raises:
        Failure: ``unsupported.operator`` where ONNX Runtime's CPU provider lacks an operator of the graph or
            the graph needs one that is not ONNX's own; ``export.failed`` where the graph is invalid.
    """
    import onnx
    import onnxruntime

    options = session_options(threads=1)
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    external = "session.optimized_model_external_initializers_"
    options.add_session_config_entry(external + "file_name", WEIGHTS_FILE)
    options.add_session_config_entry(external + "min_size_in_bytes", str(SMALL_TENSOR))
    try:
        open_session(source, options)
    except Exception as error:
        raise _refusal(error) from error
    model = onnx.load(str(target))
    foreign = sorted({f"{node.domain}::{node.op_type}" for node in _nodes(model.graph) if node.domain})
    if foreign:
        raise Failure(
            "unsupported.operator",
            f"the graph needs {', '.join(foreign)}, which ONNX does not have",
            stage=Stage.EXPORT,
            hint="write the module with operators of torch that ONNX has a counterpart of",
            details={"operator": foreign[0]},
        )
    own = [entry for entry in model.opset_import if entry.domain in {"", "ai.onnx"}]
    del model.opset_import[:]
    model.opset_import.extend(own)
    return model


def name_lengths(model: Any, lengths: Mapping[str, Sequence[int | str]]) -> None:
    """Enter the lengths, or their names, into the inputs and outputs of a ModelProto."""
    from onnx import helper

    for value in (*model.graph.input, *model.graph.output):
        kind = value.type.tensor_type.elem_type
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, lengths[value.name]))


def write(model: Any, directory: Path) -> None:
    """Write ``model.onnx`` and check it; the ModelProto is used up.

    Args:
        model: a ModelProto with its weights.
        directory: where; of more than :data:`LARGEST_FILE` bytes, the weights go to a file beside it.

    Raises:
        Failure: ``export.failed`` if ONNX's checker, which infers all shapes, refuses it; ``resource.disk``.
    """
    import onnx

    path = directory / MAIN_FILE
    del model.graph.value_info[:]  # shapes inside: whoever needs them infers them
    model.producer_name, model.producer_version = "zooport", version("zooport")
    external = sum(len(one.raw_data) for one in model.graph.initializer) > LARGEST_FILE
    try:
        onnx.save_model(
            model,
            str(path),
            save_as_external_data=external,
            location=WEIGHTS_FILE,
            size_threshold=SMALL_TENSOR,
        )
    except OSError as error:
        raise disk_failure(error, Stage.EXPORT, path) from None
    try:
        onnx.checker.check_model(str(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Failure(
            "export.failed",
            f"ONNX's checker refuses the graph: {one_line(error)}",
            stage=Stage.EXPORT,
            hint="report it with the log",
        ) from error


def add_metadata(path: Path, entries: Mapping[str, str]) -> None:
    """Add metadata properties to a file.

    They are appended: in a protocol buffer, repeated fields of parts that follow each other add up. A file of
    gigabytes need not be read for it.

    Raises:
        Failure: ``resource.disk``.
    """
    import onnx

    addition = onnx.ModelProto()
    onnx.helper.set_model_props(addition, dict(entries))
    try:
        with path.open("ab") as file:
            file.write(addition.SerializeToString())
    except OSError as error:
        raise disk_failure(error, Stage.EXPORT, path) from None


def _nodes(graph: Any) -> Sequence[Any]:
    """Return the nodes of a graph and of the graphs inside them."""
    found = list(graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                found += _nodes(attribute.g)
    return found


def _refusal(error: Exception) -> Failure:
    said = one_line(error)
    found = _NO_KERNEL.search(said)
    if found is None:
        return Failure(
            "export.failed",
            f"ONNX Runtime refuses the graph: {said}",
            stage=Stage.EXPORT,
            hint="report it with the log",
        )
    return Failure(
        "unsupported.operator",
        f"ONNX Runtime has no {found['operator']} on the CPU: {said}",
        stage=Stage.EXPORT,
        hint="another opset (option opset) may have it",
        details={"operator": found["operator"]},
    )
