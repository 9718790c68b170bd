"""The model as a function from tensors to a tuple of tensors, which is what a converter records."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from zooport.export_core.formats.onnx_stages import tagged

if TYPE_CHECKING:
    from torch import nn


def flat_module(
    model: nn.Module, inputs: tuple[str, ...], fields: tuple[str, ...], *, framed: bool
) -> nn.Module:
    """Return the model as a function from tensors to the tuple of its fields.

    Args:
        model: takes and returns lists of dictionaries.
        inputs: names of the arguments, the image first.
        fields: names of the results.
        framed: whether height and width of the original image follow, in whose frame the results are to be.

    Returns:
        The module; behind the fields it returns the tensors of :attr:`tags`, name -> number of dimensions.
    """
    import torch

    from zooport.export_core.formats.onnx_frame import to_frame
    from zooport.export_core.modeling.stages import recording

    class Flat(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.tags: dict[str, int] = {}

        def forward(self, *arguments: torch.Tensor) -> Any:
            with recording(self.model) as calls:
                found = self.model([dict(zip(inputs, arguments, strict=False))])[0]
            inner = tagged(calls, {} if framed else found)
            self.tags = {name: value.dim() for name, value in inner.items()}
            if framed:
                found = to_frame(found, arguments[0], *arguments[-2:])
            return tuple(found[name] for name in fields) + tuple(inner.values())

    return Flat().eval()


def has_own_network(model: nn.Module) -> bool:
    """Whether a model's images go to its normalizer and nowhere else, so that a batch may go there as one.

    A meta architecture of an extension may do with them what it likes.
    """
    from zooport.export_core.modeling.images import ImageNormalizer

    known = type(model).__module__.startswith("zooport.export_core.modeling.")
    return known and type(getattr(model, "normalizer", None)) is ImageNormalizer
