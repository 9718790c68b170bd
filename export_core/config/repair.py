"""Undo one known damage: a search-and-replace of ``WEIGHTS: ...`` that also hit ``BBOX_REG_WEIGHTS: ...``.

People point a dumped config at their weights with sed. A dump spells lists of box regression weights as
``BBOX_REG_WEIGHTS: &id001`` followed by the items, or as ``BBOX_REG_WEIGHTS: *id001``; both lines then carry
the path of the weights. The signature is narrow: a key that ends in ``_WEIGHTS``, whose default is a list of
numbers, holding exactly the text of ``MODEL.WEIGHTS``. Anything else of a wrong type stays an error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MAX_REPAIRS = 16  # detectron2 has four such keys

_ITEM = re.compile(r" *- (?:- )*(?:&\w+\s*$|-?[0-9.])")
_FOLDED = re.compile(r"(?: - -?[0-9.eE+-]+)+")


def repair_text(text: str) -> tuple[str, list[str]]:
    """Take the path away from a damaged line whose list items still follow it.

    Such a file is no YAML any more, so this happens before parsing.

    Args:
        text: a config file.

    Returns:
        The text, unchanged when the signature is absent, and one remark per repaired line.
    """
    lines = text.split("\n")
    entries = [_entry(line) for line in lines]
    paths = {value for indent, key, value in entries if key == "WEIGHTS" and indent and value}
    notes: list[str] = []
    for number, (indent, key, value) in enumerate(entries[:-1]):
        below = lines[number + 1]
        if len(notes) == MAX_REPAIRS:
            break
        if key.endswith("_WEIGHTS") and value in paths and _ITEM.match(below) and _indent(below) >= indent:
            lines[number] = f"{' ' * indent}{key}:"
            notes.append(
                f"line {number + 1}: {_dotted(entries, number)} {_held(value)}; the list below it is used"
            )
    return "\n".join(lines), notes


def _entry(line: str) -> tuple[int, str, str]:
    """Indentation, key and value of a line ``  KEY: value``; the key is empty for other lines."""
    key, colon, value = line.partition(":")
    return (
        (_indent(line), key.strip(), value.strip()) if colon and key.strip().isidentifier() else (0, "", "")
    )


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _dotted(entries: list[tuple[int, str, str]], number: int) -> str:
    """The full key of a line: the nearest line above with less indentation, and so on."""
    indent, name, _ = entries[number]
    for above, key, _ in reversed(entries[:number]):
        if key and above < indent:
            name, indent = f"{key}.{name}", above
    return name


def _held(value: str) -> str:
    return f"held the text of MODEL.WEIGHTS ({value!r:.80}), as a search-and-replace leaves it"


def repair_values(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Replace damaged values that parsed as text.

    Args:
        values: the nested mapping of one file; left as it is.
        defaults: detectron2's defaults.

    Returns:
        The mapping with a list in place of the path (the numbers that were folded into the text, else the
        default), and one remark per repaired key.
    """
    model = values.get("MODEL")
    weights = model.get("WEIGHTS") if isinstance(model, Mapping) else None
    notes: list[str] = []
    if not isinstance(weights, str) or not weights:
        return dict(values), notes
    return _repair(values, defaults, weights, "", notes), notes


def _repair(
    values: Mapping[str, Any], defaults: Mapping[str, Any], weights: str, path: str, notes: list[str]
) -> dict[str, Any]:
    repaired: dict[str, Any] = {}
    for name, value in values.items():
        key, default = f"{path}.{name}" if path else name, defaults.get(name)
        if isinstance(value, Mapping) and isinstance(default, Mapping):
            repaired[name] = _repair(value, default, weights, key, notes)
        elif name.endswith("_WEIGHTS") and isinstance(default, list) and _is_damaged(value, weights):
            repaired[name] = _numbers(value[len(weights) :], len(default)) or default
            notes.append(f"{key} {_held(value)}; {repaired[name]} is used")
        else:
            repaired[name] = value
    return repaired


def _is_damaged(value: Any, weights: str) -> bool:
    if not isinstance(value, str) or not value.startswith(weights):
        return False
    rest = value[len(weights) :]
    return not rest or _FOLDED.fullmatch(rest) is not None


def _numbers(folded: str, count: int) -> list[float] | None:
    """The numbers of ``" - 1.0 - 1.0"``, which YAML makes of items indented below a text."""
    try:
        numbers = [float(part) for part in folded.split(" - ")[1:]]
    except ValueError:
        return None
    return numbers if len(numbers) == count else None
