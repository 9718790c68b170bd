"""Remarks on many exports, for people: each kind once, with the models that it concerns."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from zooport.jobs.output import cell

if TYPE_CHECKING:
    from zooport.jobs.registry.remarks import Remark

#: More kinds than this are counted, not printed; ``zooport show`` has them all.
MOST_KINDS = 10
MOST_MODELS = 3
LONGEST = 200
#: Remarks on a config begin with its path, which differs from model to model.
_PATH = re.compile(r"^/.*?\.ya?ml: ")


def note_section(remarks: Iterable[Remark]) -> RenderableType | None:
    """Return a short section for the end of a run; None when nothing was remarked."""
    kinds: dict[str, dict[str, None]] = {}
    for remark in remarks:
        kinds.setdefault(_PATH.sub("", remark.text), {})[remark.model] = None
    if not kinds:
        return None
    lines = [f"{_shortened(kind)} ({_named(list(models))})" for kind, models in kinds.items()]
    shown = lines[:MOST_KINDS]
    if len(lines) > MOST_KINDS:
        shown.append(
            f"and {len(lines) - MOST_KINDS} more: zooport show MODEL/FORMAT prints those of one export"
        )
    return notes_page(shown)


def notes_page(lines: Sequence[str]) -> RenderableType:
    """Return notes below their heading."""
    return Group(
        Text("notes", style="bold"), *(Padding(cell(line), (0, 0, 0, 2), expand=False) for line in lines)
    )


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1].rstrip()}\u2026"


def _named(models: Sequence[str]) -> str:
    if len(models) <= MOST_MODELS + 1:
        return ", ".join(models)
    return f"{', '.join(models[:MOST_MODELS])} and {len(models) - MOST_MODELS} more models"
