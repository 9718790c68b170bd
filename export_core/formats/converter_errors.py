"""What torch's ONNX converter raises, as typed failures: for each format whose way leads through it."""

from __future__ import annotations

import re

from zooport.export_core.diagnosis import diagnose
from zooport.export_core.failures import Failure, Stage

_OPERATOR = re.compile(r"operator '?(?P<name>[\w:]+)'?")


def conversion_failure(error: Exception, target: str) -> Failure:
    """Return what an exception of the converter amounts to, on the way to what ``target`` names."""
    import torch

    known = diagnose(error, Stage.EXPORT)
    if known.code != "export.failed" or isinstance(error, Failure):
        return known
    unsupported = torch.onnx.errors.UnsupportedOperatorError, torch.onnx.OnnxExporterError
    found = _OPERATOR.search(str(error)) if isinstance(error, unsupported) else None
    if found is None:
        first = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        return Failure(
            "export.failed",
            f"torch.onnx.export: {type(error).__name__}: {first[:200]}",
            stage=Stage.EXPORT,
            hint="the log holds the stack trace",
        )
    return Failure(
        "unsupported.operator",
        f"{found['name']} has no counterpart in {target}",
        stage=Stage.EXPORT,
        hint="write the module with other operators of torch",
        details={"operator": found["name"]},
    )
