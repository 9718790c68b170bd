"""The deployment formats. A new one is a file with a :class:`Format` and a line in ``_FORMATS``."""

from __future__ import annotations

import difflib
from importlib import import_module

from zooport.export_core.failures import Failure
from zooport.export_core.formats.base import RUNTIME, Format, FormatInfo, Tolerance

__all__ = ["RUNTIME", "Format", "FormatInfo", "Tolerance", "describe", "get", "names"]

_FORMATS = {
    "torchscript-trace": "torchscript_trace:TorchScriptTrace",
    "torchscript-script": "torchscript_script:TorchScriptScript",
    "onnx": "onnx_export:Onnx",
    "torch-export": "torch_export:TorchExport",
    "caffe2": "caffe2_export:Caffe2",
    "tensorflow": "tensorflow_export:TensorFlow",
}


def names() -> list[str]:
    """Return the names of all formats, as manifests use them."""
    return list(_FORMATS)


def get(name: str) -> Format:
    """Return the format of this name.

    Raises:
        Failure: ``export.option`` naming the nearest known format.
    """
    if name not in _FORMATS:
        close = difflib.get_close_matches(name, _FORMATS, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise Failure(
            "export.option", f"there is no format {name!r}", hint=f"{hint}known: {', '.join(_FORMATS)}"
        )
    module, attribute = _FORMATS[name].split(":")
    created: Format = getattr(import_module(f"{__name__}.{module}"), attribute)()
    return created


def describe() -> list[FormatInfo]:
    """Return what is known of every format, without importing what they need."""
    return [get(name).info for name in names()]
