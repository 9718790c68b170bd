"""ONNX: one file that ONNX Runtime runs with operators of the standard alone."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.diagnosis import diagnose, one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats import onnx_file
from zooport.export_core.formats.base import AnyPredictor, Array, Entry, Format, FormatInfo
from zooport.export_core.formats.onnx_operators import (
    DEFORMABLE_OPSET,
    HIGHEST_OPSET,
    LOWEST_OPSET,
    registered,
)
from zooport.export_core.outputs import FIELDS

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zooport.export_core.config import Config

DEFAULT_OPSET = HIGHEST_OPSET
DYNAMIC = ("height", "width", "N", "P")  # names of lengths in outputs.FIELDS that differ from image to image
_OPERATOR = re.compile(r"operator '?(?P<name>[\w:]+)'?")


class Onnx(Format):
    """``model.onnx``: the inputs by name -> the fields by name."""

    info = FormatInfo(
        name="onnx",
        summary="ONNX for ONNX Runtime, with operators of the standard alone",
        main_file=onnx_file.MAIN_FILE,
        call="outputs = onnxruntime.InferenceSession('model.onnx').run(None, {'image': image})",
        tools=("onnx", "onnxruntime"),
        options={"opset": f"version of ONNX's operators, {LOWEST_OPSET} to {HIGHEST_OPSET} (the default)"},
    )

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse unknown options and values that they cannot have."""
        super().check_options(options)
        _check_opset(options.get("opset", DEFAULT_OPSET))

    def requires(self, config: Config, options: Mapping[str, Any]) -> None:
        """Refuse deformable convolution before the opset that has it."""
        super().requires(config, options)
        opset = options.get("opset", DEFAULT_OPSET)
        if any(config.MODEL.RESNETS.DEFORM_ON_PER_STAGE) and opset < DEFORMABLE_OPSET:
            raise Failure(
                "unsupported.combination",
                f"MODEL.RESNETS.DEFORM_ON_PER_STAGE needs DeformConv, which opset {opset} does not have",
                stage=Stage.PLAN,
                hint=f"opset {DEFORMABLE_OPSET} or later has it",
                details={"key": "MODEL.RESNETS.DEFORM_ON_PER_STAGE", "opset": opset},
            )

    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Record one pass over the sample, write it in ONNX, simplify and check it; see Format.export."""
        with tempfile.TemporaryDirectory(dir=directory, prefix=".") as folder:
            raw, simple = Path(folder) / "raw", Path(folder) / "simple"
            raw.mkdir()
            simple.mkdir()
            _convert(model, inputs, fields, raw / onnx_file.MAIN_FILE, options.get("opset", DEFAULT_OPSET))
            onnx_file.simplify(raw / onnx_file.MAIN_FILE, simple / onnx_file.MAIN_FILE)
            onnx_file.check(simple / onnx_file.MAIN_FILE)
            for path in simple.iterdir():
                shutil.move(path, directory / path.name)

    def annotate(self, directory: Path, description: Mapping[str, Any]) -> None:
        """Enter into the file what a consumer needs to know, as JSON where it is no plain text."""
        keys = ("name", "meta_architecture", "options", "inputs", "outputs", "preprocessing", "classes")
        entries = {f"zooport.{key}": description[key] for key in keys}
        digests = {key: description["source"][key] for key in ("config_sha256", "weights_sha256")}
        entries |= {"zooport.source": digests, "zooport.versions": description["versions"]}
        onnx_file.add_metadata(
            directory / onnx_file.MAIN_FILE,
            {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()},
        )

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the artifact with ONNX Runtime alone."""
        path = directory / onnx_file.MAIN_FILE
        try:
            session = onnx_file.open_session(path, onnx_file.session_options(_threads()))
        except Exception as error:
            raise Failure(
                "artifact.unloadable",
                f"ONNX Runtime cannot read {path}: {one_line(error)}",
                stage=Stage.VERIFY,
                hint="export again; if it repeats, report it with the log",
            ) from error

        def predict(image: Array, **more: Array) -> dict[str, Array]:
            found = session.run(list(fields), {"image": image, **more})
            return dict(zip(fields, found, strict=True))

        return predict

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Inputs and outputs go by name."""
        return inputs, outputs


def _check_opset(opset: Any) -> None:
    if type(opset) is not int:
        why = "is no whole number"
    elif opset < LOWEST_OPSET:
        why = f"cannot be exact: RoiAlign has no half-pixel mode before opset {LOWEST_OPSET}"
    elif opset > HIGHEST_OPSET:
        why = f"is later than the last that torch's converter writes, {HIGHEST_OPSET}"
    else:
        return
    raise Failure(
        "export.option",
        f"onnx: opset = {opset!r} {why}",
        stage=Stage.PLAN,
        hint=f"{LOWEST_OPSET} to {HIGHEST_OPSET}; leave it out for {DEFAULT_OPSET}",
    )


def _threads() -> int:
    """Return the number of compute threads that the environment asks for, 1 where it does not."""
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) > 0 else 1


def _convert(
    model: nn.Module, inputs: Mapping[str, Tensor], fields: Sequence[str], path: Path, opset: int
) -> None:
    import torch

    from zooport.export_core.formats.onnx_stand_ins import stand_ins

    flat = _flat_module(model, tuple(inputs), tuple(fields))
    with warnings.catch_warnings(), torch.no_grad(), stand_ins(model), registered(opset):
        warnings.simplefilter("ignore")
        try:
            found = flat(*inputs.values())
            torch.onnx.export(
                flat,
                tuple(inputs.values()),
                str(path),
                dynamo=False,
                opset_version=opset,
                input_names=list(inputs),
                output_names=list(fields),
                dynamic_axes=_dynamic_axes(inputs, dict(zip(fields, found, strict=True))),
            )
        except Exception as error:
            raise _conversion_failure(error) from error


def _dynamic_axes(inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    axes = {name: _names(name, value) for name, value in {**inputs, **outputs}.items()}
    return {**axes, "image": {1: "height", 2: "width"}}


def _names(name: str, value: Tensor) -> dict[int, str]:
    """Return the name of each dimension that differs from image to image; all of an unknown field's."""
    if name not in FIELDS:
        return {axis: f"{name}_{axis}" for axis in range(value.dim())}
    return {axis: str(length) for axis, length in enumerate(FIELDS[name].shape) if length in DYNAMIC}


def _conversion_failure(error: Exception) -> Failure:
    """Return what an exception of torch's converter amounts to."""
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
        f"{found['name']} has no counterpart in ONNX",
        stage=Stage.EXPORT,
        hint="write the module with other operators of torch",
        details={"operator": found["name"]},
    )


def _flat_module(model: nn.Module, inputs: tuple[str, ...], fields: tuple[str, ...]) -> nn.Module:
    """Return the model as a function from tensors to the tuple of its fields."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *arguments: torch.Tensor) -> Any:
            found = self.model([dict(zip(inputs, arguments, strict=True))])[0]
            return tuple(found[name] for name in fields)

    return Flat().eval()
