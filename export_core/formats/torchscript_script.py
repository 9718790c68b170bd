"""TorchScript by scripting: a list of images of any number and sizes in, a list of named fields out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.formats import torchscript_runtime as runtime
from zooport.export_core.formats.base import AnyPredictor, Array, Entry, Format, FormatInfo, as_arrays
from zooport.export_core.formats.torchscript_errors import conversion_failure
from zooport.export_core.formats.torchscript_stages import call_modules

if TYPE_CHECKING:
    from torch import Tensor, nn


class TorchScriptScript(Format):
    """``model.ts``: forward(List[Dict[str, Tensor]]) -> List[Dict[str, Tensor]]."""

    info = FormatInfo(
        name="torchscript-script",
        summary="TorchScript by scripting: any number of images of any sizes",
        main_file=runtime.MAIN_FILE,
        call="outputs = torch.jit.load('model.ts')([{'image': image}, ...])",
    )

    inner_parts_are_called = True

    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Compile the model's source; see :meth:`Format.export`."""
        import torch

        with runtime.quiet():
            try:
                scripted = torch.jit.script(model)
            except Exception as error:
                raise conversion_failure("torch.jit.script", error) from error
        runtime.save(scripted, directory)

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the artifact with torch and torchvision alone."""
        import torch

        module = runtime.load(directory)

        def predict(image: Array, **more: Array) -> dict[str, Array]:
            inputs = {name: torch.from_numpy(value) for name, value in {"image": image, **more}.items()}
            with torch.inference_mode():
                return as_arrays(module([inputs])[0])

        return predict

    def inner_outputs(
        self,
        directory: Path,
        inputs: Mapping[str, Array],
        calls: Mapping[str, Sequence[Any]],
        options: Mapping[str, Any],
    ) -> Mapping[str, Sequence[Array]]:
        """Call the parts of the module, which have the names of the eager model's."""
        return call_modules(runtime.load(directory), calls, traced=False)

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Say that images come and fields go in lists of dictionaries."""
        container = "List[Dict[str, Tensor]], one dictionary for each image"
        return tuple([{**entry, "container": container} for entry in side] for side in (inputs, outputs))  # type: ignore[return-value]
