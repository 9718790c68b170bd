"""Objects and proposals of a few images, from random numbers that are alike everywhere.

``proposal_metrics.json`` among the evaluation data is what detectron2's ``COCOEvaluator`` measures on them.
"""

from __future__ import annotations

from random import Random
from typing import Any

SIZE = 300
Box = list[float]  # x, y, width, height


def proposal_images() -> list[tuple[list[dict[str, Any]], list[tuple[Box, float]]]]:
    """Objects (box, area, crowd) of each image, and proposals with their logits, 150 to 1200 of them."""
    random = Random(9)
    images = []
    for number in range(8):
        objects: list[dict[str, Any]] = [
            {"bbox": box, "area": 0.7 * box[2] * box[3], "iscrowd": int(random.random() < 0.1)}
            for box in (_box(random) for _ in range(2 + int(random.random() * 20)))
        ]
        proposals = [(_box(random), random.random() * 8 - 4) for _ in range(150 * (1 + number))]
        for each in objects:
            shift = random.random() * 0.2
            x, y, width, height = each["bbox"]
            proposals.append(([x + shift * width, y, width, height], random.random() * 6 - 4))
        images.append((objects, proposals))
    return images


def _box(random: Random) -> Box:
    longest = (30, 90, 200)[int(random.random() * 3)]
    width, height = (5 + random.random() * longest for _ in range(2))
    return [random.random() * (SIZE - width), random.random() * (SIZE - height), width, height]
