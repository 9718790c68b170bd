"""An exported program of torch.export: what takes TorchScript's place in PyTorch."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.diagnosis import disk_failure, one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import AnyPredictor, Array, Format, FormatInfo, as_arrays
from zooport.export_core.formats.torch_export_errors import (
    conversion_failure,
    refuse_fixed_lengths,
    refuse_foreign_operators,
)
from zooport.export_core.outputs import FIELDS

if TYPE_CHECKING:
    from torch import Tensor, nn

MAIN_FILE = "model.pt2"
IMAGE = "image"
_ASSERTION = "Runtime assertion failed"
_GRAPH_BYTES = 16 << 20  # more than a file holds besides weights


class TorchExport(Format):
    """``model.pt2``: forward(image) -> {field: tensor}."""

    info = FormatInfo(
        name="torch-export",
        summary="PyTorch's exported program: one image of any size in, a dictionary of tensors out",
        main_file=MAIN_FILE,
        call="import torchvision; outputs = torch.export.load('model.pt2').module()(image)",
    )

    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Record the model with symbols for all lengths that differ between images; see Format.export."""
        program = exported_program(model, inputs, fields)
        forget_the_sample(program)
        _save(program, directory)

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the artifact with torch and torchvision alone."""
        import torch
        import torchvision  # noqa: F401  registers nms, roi_align and deform_conv2d

        path = directory / MAIN_FILE
        try:
            module = torch.export.load(path).module()
        except Exception as error:
            raise Failure(
                "artifact.unloadable",
                f"torch.export.load cannot read {path}: {one_line(error)}",
                stage=Stage.VERIFY,
                hint="export again; if it repeats, report it with the log",
            ) from error

        def predict(image: Array, **more: Array) -> dict[str, Array]:
            given = {name: torch.from_numpy(value) for name, value in more.items()}
            with torch.no_grad():
                found = module(torch.from_numpy(image), **given)
            return as_arrays({name: found[name] for name in fields})

        return predict

    def explain(self, failure: Failure, notes: Sequence[str]) -> Failure:
        """Say what it means that a program states a length, and an image does not have it."""
        if _ASSERTION not in failure.message:
            return failure
        hint = "a module expects a length of the first sample; compute it from shapes (x.shape, reshape(-1))"
        return Failure(failure.code, failure.message, stage=failure.stage, hint=hint, details=failure.details)


def exported_program(model: nn.Module, inputs: Mapping[str, Tensor], fields: Sequence[str]) -> Any:
    """Return the model as an ExportedProgram from an image, and further inputs by name, to its fields.

    Lengths of the inputs are symbols without a value (torch calls them unbacked): no decision can be taken
    by what they are for the sample, so the graph holds for every size or is not made at all.

    Raises:
        Failure: ``unsupported.operator``, ``export.failed`` or ``dependency.missing``.
    """
    import torch

    from zooport.export_core.formats.torch_export_stand_ins import stand_ins

    flat, shapes = _flat_module(model, tuple(fields)), _shapes(inputs)
    image, more = inputs[IMAGE], {name: value for name, value in inputs.items() if name != IMAGE}
    with warnings.catch_warnings(), torch.no_grad(), stand_ins(model):
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(flat, (image,), more, dynamic_shapes=shapes, strict=False)
        except Exception as error:
            raise conversion_failure(error, model) from error
    refuse_foreign_operators(program)
    refuse_fixed_lengths(program, IMAGE)
    return program


def forget_the_sample(program: Any) -> None:
    """Take out of a program what would tell on whose machine and of which image it was made."""
    import torch

    program._example_inputs = None  # would be stored: the sample image as it is
    for part in program.graph_module.modules():
        if isinstance(part, torch.fx.GraphModule):
            for node in part.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of files


def _shapes(inputs: Mapping[str, Tensor]) -> Any:
    """Return the shapes that inputs may have; of an input that is not known, the number of rows differs.

    Raises:
        Failure: ``dependency.missing`` before torch 2.14.
    """
    try:
        from torch.fx.experimental.dynamic_spec import ParamsSpec, ShapesSpec, ShapeVar, TensorSpec
    except ImportError:
        raise Failure(
            "dependency.missing",
            f"torch {version('torch')} cannot record lengths as symbols without a value",
            stage=Stage.EXPORT,
            hint="pip install 'torch>=2.14', or choose another format",
        ) from None
    shapes: dict[str, Any] = {}
    for name, value in inputs.items():
        lengths: list[Any] = list(value.shape)
        if name == IMAGE:
            lengths[1:] = [ShapeVar("height", min=1), ShapeVar("width", min=1)]
        elif name in FIELDS:
            known = FIELDS[name].shape
            lengths = [ShapeVar(each, min=0) if isinstance(each, str) else each for each in known]
        elif lengths:
            lengths[0] = ShapeVar(f"{name}_rows", min=0)
        shapes[name] = TensorSpec(lengths)
    return ShapesSpec(params=ParamsSpec(shapes))


def _flat_module(model: nn.Module, fields: tuple[str, ...]) -> nn.Module:
    """Return the model, which takes and returns lists of dictionaries, as a function of one image."""
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, image: torch.Tensor, **more: torch.Tensor) -> dict[str, torch.Tensor]:
            found = self.model([{IMAGE: image, **more}])[0]
            return {name: found[name] for name in fields}

    return Flat().eval()


def _save(program: Any, directory: Path) -> None:
    """Write ``model.pt2``.

    torch ends the process when its file cannot grow, so room for the weights is asked for first.

    Raises:
        Failure: ``resource.disk``.
    """
    import torch

    path = directory / MAIN_FILE
    weights = {value.data_ptr(): value.nbytes for value in program.state_dict.values()}
    try:
        with path.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, sum(weights.values()) + _GRAPH_BYTES)
        torch.export.save(program, path)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise disk_failure(error, Stage.EXPORT, path) from None
