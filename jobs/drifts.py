"""Where a drift begins, for people: the stage and tensor, categories, and pictures of the worst images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from zooport.jobs.lines import Lines
from zooport.jobs.output import cell


def drift_page(drift: Mapping[str, Any]) -> RenderableType:
    """Return the report on a drift: up to the stage that it names, eager and exported model agree."""
    seen = f" ({drift['images_seen']} images compared)" if drift.get("images_seen") else ""
    by = "" if drift.get("difference") is None else f": {drift['difference']:g} {drift.get('unit', '')}"
    parts: list[RenderableType] = [
        cell(f"first at {drift['stage']}: {drift['tensor']} differs{by.rstrip()}{seen}")
    ]
    if drift.get("remark"):
        parts.append(cell(drift["remark"]))
    if drift["categories"]:
        numbers = ("eager", "exported", "delta")
        table = Lines("category", *numbers, right=numbers)
        for each in drift["categories"]:
            eager, exported = each["eager"], each["exported"]
            delta = "" if eager is None or exported is None else f"{exported - eager:+.2f}"
            table.add(str(each["name"]), _points(eager), _points(exported), delta)
        parts += [Text(), table]
    if drift["images"]:
        table = Lines("image", "difference", "eager and exported side by side", right=("difference",))
        for each in drift["images"]:
            table.add(str(each["file"]), _points(each["difference"]), str(each["picture"]))
        parts += [Text(), table]
    return Group(*parts)


def _points(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
