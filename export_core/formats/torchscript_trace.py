"""TorchScript by tracing: one tensor in, a tuple out, what detectron2's tracing export produces."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats import torchscript_runtime as runtime
from zooport.export_core.formats.base import AnyPredictor, Array, Entry, Format, FormatInfo, as_arrays
from zooport.export_core.formats.replaced_modules import replaced
from zooport.export_core.formats.torchscript_errors import conversion_failure
from zooport.export_core.formats.torchscript_stages import call_modules

if TYPE_CHECKING:
    from torch import Tensor, nn

IMAGE_SIZE = "image_size"
DECIDED = "the trace may hold for its sample only, because a tensor becomes a Python value at "


class TorchScriptTrace(Format):
    """``model.ts``: forward(image) -> (fields in alphabetical order..., image size)."""

    info = FormatInfo(
        name="torchscript-trace",
        summary="TorchScript by tracing: one image tensor in, a tuple of tensors out",
        main_file=runtime.MAIN_FILE,
        call="outputs = torch.jit.load('model.ts')(image)",
        options={"batch": "N: (N, C, H, W) in, a tuple of N tuples out; default: one image (C, H, W)"},
    )

    inner_parts_are_called = True

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse unknown options and a batch that is no positive integer."""
        super().check_options(options)
        batch = options.get("batch", 1)
        if type(batch) is not int or batch < 1:
            raise Failure(
                "export.option",
                f"torchscript-trace: batch = {batch!r} is not a positive integer",
                stage=Stage.PLAN,
                hint="leave it out for one image at a time",
            )

    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Record one pass over the sample; see :meth:`Format.export`."""
        import torch

        batch = options.get("batch")
        wrapper = flat_module(model, tuple(inputs), tuple(fields), batch)
        arguments = tuple(inputs.values())
        if batch is not None:
            arguments = tuple(torch.stack([value] * batch) for value in arguments)
        with runtime.noting_decisions() as places, torch.no_grad():
            try:
                with compiled_loops(model):
                    traced = torch.jit.trace(wrapper, arguments, check_trace=False)
            except Exception as error:
                raise conversion_failure("torch.jit.trace", error) from error
        self.remarks = [DECIDED + ", ".join(places)] if places else []
        runtime.save(traced, directory)

    def explain(self, failure: Failure, notes: Sequence[str]) -> Failure:
        """Name the lines that may have been recorded as they went for the sample."""
        decided = next((note for note in notes if note.startswith(DECIDED)), None)
        if decided is None:
            return failure
        hint = f"{decided}; decide by tensors (torch.where), or set loops_over_data on that module"
        return Failure(failure.code, failure.message, stage=failure.stage, hint=hint, details=failure.details)

    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load the artifact with torch and torchvision alone."""
        import torch

        module = runtime.load(directory)
        names = [*fields, IMAGE_SIZE]
        batch = options.get("batch")

        def predict(image: Array, **more: Array) -> dict[str, Array]:
            inputs = [torch.from_numpy(value) for value in (image, *more.values())]
            with torch.inference_mode():
                if batch is None:
                    outputs = module(*inputs)
                else:
                    # The image goes last, behind neighbours unlike it: they must not matter.
                    images = torch.stack([inputs[0].flip(-1)] * (batch - 1) + [inputs[0]])
                    more_inputs = [torch.stack([value] * batch) for value in inputs[1:]]
                    outputs = module(images, *more_inputs)[-1]
                return as_arrays(dict(zip(names, outputs, strict=True)))

        return predict

    def inner_outputs(
        self,
        directory: Path,
        inputs: Mapping[str, Array],
        calls: Mapping[str, Sequence[Any]],
        options: Mapping[str, Any],
    ) -> Mapping[str, Sequence[Array]]:
        """Call the parts of the module, which have the names of the eager model's."""
        return call_modules(runtime.load(directory).model, calls, traced=True)

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Name the elements of the tuple in their order."""
        size = {
            "name": IMAGE_SIZE,
            "dtype": "int64",
            "shape": [2],
            "meaning": "height and width of the given image",
        }
        batch = options.get("batch")
        if batch is None:
            return inputs, [*outputs, size]
        inputs = [{**entry, "shape": [batch, *entry["shape"]]} for entry in inputs]
        container = f"a tuple of {batch} tuples, one for each image"
        return inputs, [{**entry, "container": container} for entry in (*outputs, size)]


def compiled_loops(model: nn.Module) -> AbstractContextManager[None]:
    """Compile modules that loop over data (``loops_over_data``), which a tracer would unroll, for a while."""
    import torch

    def compiled(module: nn.Module) -> Any:
        return torch.jit.script(module) if getattr(module, "loops_over_data", False) else None

    return replaced(model, compiled)


def flat_module(
    model: nn.Module, inputs: tuple[str, ...], fields: tuple[str, ...], batch: int | None
) -> nn.Module:
    """Return the model as a function of tensors to tuples.

    Args:
        model: takes and returns lists of dictionaries.
        inputs: names of the arguments, the image first.
        fields: names of the results, in the order of the tuple.
        batch: number of images in each argument's first dimension; None for one image without it.
    """
    import torch

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *arguments: torch.Tensor) -> Any:
            if batch is None:
                images = [arguments]
            else:
                images = list(zip(*(argument.unbind(0) for argument in arguments), strict=True))
            found = self.model([dict(zip(inputs, image, strict=True)) for image in images])
            # The size is an output of the graph, so it is read by an operator and not as a Python number.
            size = torch._shape_as_tensor(arguments[0])[-2:]
            results = tuple((*(one[name] for name in fields), size) for one in found)
            return results[0] if batch is None else results

    return Flat().eval()
