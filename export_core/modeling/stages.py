"""Which modules of a model make which stage of its work, and what goes in and out of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

FEATURES, PROPOSALS, HEADS = "features", "proposals", "heads"
# Attributes of the meta architectures, in the order of a forward pass; extensions may lack some.
_MODULES = {
    "normalizer": FEATURES,
    "backbone": FEATURES,
    "proposal_generator.rpn_head": PROPOSALS,
    "proposal_generator": PROPOSALS,
    "head": HEADS,
    "sem_seg_head": HEADS,
}
_ROI_HEADS = "roi_heads"


@dataclass(frozen=True)
class Call:
    """One call of a module: its arguments and what it returned, nested as they were."""

    arguments: tuple[Any, ...]
    output: Any


def stage_modules(model: nn.Module) -> dict[str, str]:
    """Return the dotted name of each module of interest -> its stage.

    Of the ROI heads it is every part that has parameters: poolers and decoders have none.
    """
    names = dict(model.named_modules())
    found = {name: stage for name, stage in _MODULES.items() if name in names}
    for name, module in names.items():
        parent, _, last = name.rpartition(".")
        listed = isinstance(names.get(parent), nn.ModuleList)
        of_roi_heads = parent == _ROI_HEADS or (listed and parent.rpartition(".")[0] == _ROI_HEADS)
        if (
            last
            and of_roi_heads
            and not isinstance(module, nn.ModuleList)
            and next(module.parameters(), None) is not None
        ):
            found[name] = HEADS
    return found


@contextmanager
def recording(model: nn.Module) -> Iterator[dict[str, Call]]:
    """Collect the first call of each module of interest in the forward passes of the block."""
    calls: dict[str, Call] = {}
    modules = dict(model.named_modules())
    handles = []

    def keep(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Any, ...], output: Any) -> None:
            # A mapping or list that the model fills or changes later is kept as it was.
            calls.setdefault(name, Call(_copied(arguments), _copied(output)))

        return hook

    try:
        handles = [modules[name].register_forward_hook(keep(name)) for name in stage_modules(model)]
        yield calls
    finally:
        for handle in handles:
            handle.remove()


def named_tensors(value: Any, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested mappings, lists and tuples in their order, named by keys and positions.

    Single numbers are none: while a model is traced, sizes are tensors too.
    """
    if isinstance(value, Tensor):
        if value.dim():
            yield name, value
    elif isinstance(value, dict):
        for key, one in value.items():
            yield from named_tensors(one, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list | tuple):
        fields = getattr(value, "_fields", range(len(value)))
        for key, one in zip(fields, value, strict=True):
            yield from named_tensors(one, f"{name}.{key}" if name else str(key))


def _copied(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copied(one) for one in value]
    if isinstance(value, tuple):
        copies = [_copied(one) for one in value]
        return type(value)(*copies) if hasattr(value, "_fields") else tuple(copies)
    return value
