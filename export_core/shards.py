"""Slices of a dataset, so that its evaluation can be shared out and joined again."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

SHARD_IMAGES = 250
"""Images of one shard when nothing else is asked for."""


@dataclass(frozen=True)
class Shard:
    """The images ``start`` to ``stop`` - 1 of a dataset, in its order; ``number`` counts from 1 to ``of``."""

    number: int
    of: int
    start: int
    stop: int

    @property
    def file_name(self) -> str:
        """How the file of its predictions is called."""
        return f"shard-{self.number}-of-{self.of}.gz"

    @property
    def costs_name(self) -> str:
        """How the file with what its predictions took is called."""
        return f"{self.file_name}.costs"


def split(images: int, size: int) -> tuple[Shard, ...]:
    """Cut a dataset of so many images into shards of at most ``size``, as equal as can be.

    Raises:
        ValueError: ``size`` is not positive.
    """
    if size < 1:
        raise ValueError(f"a shard has at least one image, not {size}")
    count = -(-images // size)
    edges = [images * number // count for number in range(count + 1)] if count else []
    return tuple(
        Shard(number, count, start, stop) for number, (start, stop) in enumerate(pairwise(edges), start=1)
    )
