"""Panoptic maps of a few images and what a model made of them, from random numbers that are alike everywhere.

``panoptic_metrics.json`` among the evaluation data is what panopticapi's ``pq_compute_single_core`` and
``pq_average`` give for them.
"""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np

SIZE = 40
THINGS, STUFF = (1, 2, 7), (90, 95, 99)
Segments = list[tuple[int, int, bool]]  # id, category, crowd


def panoptic_images() -> list[tuple[Any, Segments, Any, Segments]]:
    """True map (H, W) with its segments, and a found one with its own; 0 is nothing."""
    random = Random(7)
    return [_image(random) for _ in range(12)]


def _image(random: Random) -> tuple[Any, Segments, Any, Segments]:
    true_map, found_map = (np.zeros((SIZE, SIZE), dtype=np.int32) for _ in range(2))
    true: Segments = []
    found: Segments = []
    crowds: set[int] = set()
    for identifier in range(1, 11):
        category = (*THINGS, *STUFF[:2])[int(random.random() * 5)]
        crowd = category in THINGS and category not in crowds and random.random() < 0.2
        crowds |= {category} if crowd else set()
        top, left = (int(random.random() * 30) for _ in range(2))
        height, width = (4 + int(random.random() * 18) for _ in range(2))
        true_map[top : top + height, left : left + width] = identifier
        true.append((identifier, category, crowd))
        if random.random() < 0.8:
            shift = int(random.random() * 3)
            found_map[top + shift : top + height, left : left + width + shift] = 10 + identifier
            other = random.random() < 0.2
            found.append((10 + identifier, STUFF[2] if other else category, False))
    return true_map, _visible(true_map, true), found_map, _visible(found_map, found)


def _visible(ids: Any, segments: Segments) -> Segments:
    present = set(np.unique(ids).tolist())
    return [each for each in segments if each[0] in present]
