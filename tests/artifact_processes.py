"""What disposable processes do in tests of formats: one makes artifacts, another, fresh one uses them.

This module imports nothing of zooport's models: the process that uses an artifact has torch and torchvision.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from zooport.export_core.failures import Stage

Report = Callable[[Stage], None]
Array = np.ndarray[Any, Any]
Fields = dict[str, Array]

TRACE, SCRIPT, ONNX = "torchscript-trace", "torchscript-script", "onnx"
# The first is the recorded one. The others are no multiple of any stride; together they are a batch.
SIZES = ((240, 320), (144, 200), (210, 136))
BATCH = slice(1, 3)


def export_official(name: str, directory: Path, tiny: bool, *, report: Report) -> dict[str, list[Fields]]:
    """Export an official model, or a tiny one of its architecture, in all formats.

    Returns:
        What the eager model returns: "single" for each of the sizes alone, and "batch".
    """
    import torch

    from zooport.export_core import formats
    from zooport.tests import official_zoo

    model = official_zoo.build_for_export(name, tiny=tiny)
    inputs = [official_zoo.inputs_of(name, *size) for size in SIZES]
    with torch.no_grad():
        eager = {"single": [model([one])[0] for one in inputs], "batch": model(inputs[BATCH])}
    fields = sorted(eager["single"][0])
    for format_ in (TRACE, SCRIPT, ONNX):
        (directory / format_).mkdir()
        formats.get(format_).export(model, inputs[0], fields, directory / format_, {})
    return {key: [arrays(one) for one in found] for key, found in eager.items()}


def use_official(
    inputs: Sequence[Fields], fields: Sequence[str], directory: Path, *, report: Report
) -> dict[str, list[Fields]]:
    """Run all artifacts as a stranger would: image by image, the scripted one also on a batch."""
    import onnxruntime
    import torch
    import torchvision  # noqa: F401  registers operators

    assert not models_in_this_process()
    images = [{key: torch.from_numpy(value) for key, value in one.items()} for one in inputs]
    traced = torch.jit.load(directory / TRACE / "model.ts")
    found: dict[str, list[Fields]] = {"traced": [], "scripted": [], "onnx": []}
    for image in images:
        *values, size = traced(*image.values())
        assert size.tolist() == list(image["image"].shape[1:])
        found["traced"].append(arrays(dict(zip(fields, values, strict=True))))
    del traced
    scripted = torch.jit.load(directory / SCRIPT / "model.ts")
    found["scripted"] = [arrays(scripted([image])[0]) for image in images]
    found["batch"] = [arrays(one) for one in scripted(images[BATCH])]
    del scripted
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(directory / ONNX / "model.onnx", options)
    names = [output.name for output in session.get_outputs()]
    found["onnx"] = [dict(zip(names, session.run(None, one), strict=True)) for one in inputs]
    assert not models_in_this_process()
    return found


def models_in_this_process() -> list[str]:
    """Modules of zooport's models that are imported here."""
    return [name for name in sys.modules if name.startswith("zooport.export_core.modeling")]


def arrays(fields: Mapping[str, Any]) -> Fields:
    """Return numpy arrays of an artifact's tensors."""
    return {name: value.numpy() for name, value in fields.items()}


def verify_without_models(staging: Path, dataset: Any, *, report: Report) -> dict[str, float]:
    """Verify and evaluate an artifact where zooport's models were never imported."""
    from zooport.export_core.pipeline import verify_stage

    assert not models_in_this_process()
    metrics = verify_stage(staging, dataset, report)
    assert not models_in_this_process()
    return metrics
