"""What the arguments of detectron2's ``export_model.py`` mean here."""

from __future__ import annotations

from collections.abc import Sequence

from zooport.export_core.failures import Failure

_WEIGHTS = "MODEL.WEIGHTS"
# (format, method) -> format; the first method of a format is the one that is meant when none is named.
_FORMATS = {
    ("torchscript", "tracing"): "torchscript-trace",
    ("torchscript", "scripting"): "torchscript-script",
    ("onnx", "tracing"): "onnx",
    ("onnx", "caffe2_tracing"): "onnx",
    ("caffe2", "caffe2_tracing"): "caffe2",
}


def format_name(name: str, method: str | None) -> str:
    """Return the format that ``--format`` and ``--export-method`` name; a format of zooport's is itself.

    Raises:
        Failure: ``export.option`` for a method that the format is not made by.
    """
    methods = [each for form, each in _FORMATS if form == name]
    if method is None:
        return _FORMATS[name, methods[0]] if methods else name
    if method not in methods:
        known = ", ".join(methods) or "none: it says by itself how it is made"
        raise Failure("export.option", f"--export-method {method}: methods of --format {name}: {known}")
    return _FORMATS[name, method]


def given_weights(weights: str | None, overrides: Sequence[str]) -> str:
    """Return ``--weights``, or what the overrides say of ``MODEL.WEIGHTS``.

    Raises:
        Failure: ``export.option`` where neither says anything.
    """
    said = dict(zip(overrides[::2], overrides[1::2], strict=False))
    found = weights or said.get(_WEIGHTS)
    if not found:
        raise Failure("export.option", "the weights are missing", hint=f"--weights FILE, or {_WEIGHTS} FILE")
    return found
