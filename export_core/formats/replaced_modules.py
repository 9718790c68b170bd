"""Modules of a model that others take the place of, while a converter records it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn


@contextmanager
def replaced(model: nn.Module, stand_in: Callable[[nn.Module], Any]) -> Iterator[None]:
    """Replace modules below a model for a while.

    Args:
        model: is as it was afterwards.
        stand_in: returns what takes a module's place, None to keep it.
    """
    places = [
        (parent, name, child, stand_in(child))
        for parent in model.modules()
        for name, child in parent.named_children()
    ]
    changed = [place for place in places if place[-1] is not None]
    try:
        for parent, name, _, other in changed:
            setattr(parent, name, other)
        yield
    finally:
        for parent, name, child, _ in changed:
            setattr(parent, name, child)
