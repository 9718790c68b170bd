"""Where a drift begins, for people: the stage and tensor, categories, and pictures of the worst images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from zooport.jobs.lines import Lines
from zooport.jobs.output import cell


def drift_page(drift: Mapping[str, Any]) -> RenderableType:
    """Return the report on a drift: eager and exported outputs agree up to the stage that it names."""
    difference = drift.get("difference")
    by = "" if difference is None else f", by up to {difference:g}"
    parts: list[RenderableType] = [cell(f"first at {drift['stage']}: {drift['tensor']} differs{by}")]
    if drift["categories"]:
        numbers = ("eager", "exported", "delta")
        table = Lines("category", *numbers, right=numbers)
        for each in drift["categories"]:
            values = each["eager"], each["exported"]
            pair = [_points(value) for value in values]
            delta = "" if None in values else f"{each['exported'] - each['eager']:+.2f}"
            table.add(str(each["name"]), *pair, delta)
        parts += [Text(), table]
    if drift["images"]:
        table = Lines("image", "score", "eager and exported side by side", right=("score",))
        for each in drift["images"]:
            table.add(str(each["file"]), _points(each["score"]), str(each["picture"]))
        parts += [Text(), table]
    return Group(*parts)


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
