"""The types of values: how text becomes a value, and which value may stand in for which default."""

from __future__ import annotations

import ast
import math
import re
import warnings
from typing import Any

from zooport.export_core.config.yaml_reader import MAX_INTEGER

MAX_LITERAL = 20_000

# What can be a Python literal by its first character; everything else stays text without being parsed.
_LITERAL = re.compile(r"[ \t]*(?:[\[({'\"+\-.0-9]|(?:None|True|False)\Z)")

# Where a value of None is as good as absent: nothing there reaches an exported model.
_TRAINING_SECTIONS = ("SOLVER.", "DATALOADER.", "DATASETS.", "OUTPUT_DIR", "SEED", "VIS_PERIOD", "GLOBAL.")


class WrongTypeError(ValueError):
    """A value cannot stand where it was put; the message says what was expected and what was found."""


def decode(value: Any) -> Any:
    """Turn text that is a Python literal into its value, as detectron2 does for files and overrides.

    ``"(640, 672)"`` becomes a list, ``"1e-3"`` a float, ``"True"`` a bool; other text stays as it is.
    Literals that are no plain values (bytes, sets, dicts, complex numbers) stay text too.
    """
    if not isinstance(value, str) or len(value) > MAX_LITERAL or not _LITERAL.match(value):
        return value
    try:
        with warnings.catch_warnings(action="ignore"):  # on odd escapes, which are nobody's concern here
            literal = ast.literal_eval(value)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value
    return plain(literal) if _is_plain(literal) else value


def plain(value: Any) -> Any:
    """Return ``value`` with tuples as lists."""
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def decode_tree(value: Any) -> Any:
    """Decode every leaf of a node that has no defaults to compare with."""
    if isinstance(value, dict):
        return {key: decode_tree(item) for key, item in value.items()}
    return decode(value)


def coerce(value: Any, default: Any, key: str) -> Any:
    """Return ``value`` in the type of ``default``.

    A tuple may replace a list, an int a float, None anything that only training reads; where the default is
    None any plain value is taken, and where it is text the text is kept although it looks like a number.

    Args:
        value: what a file or an override says; text is decoded first.
        default: detectron2's default for this key, a leaf.
        key: the full dotted key, for the rules that depend on the section.

    Raises:
        WrongTypeError: the types do not agree.
    """
    decoded = plain(decode(value))
    if isinstance(decoded, float) and math.isnan(decoded):
        raise WrongTypeError("NaN is no value of a config")
    if default is None:
        return decoded
    if isinstance(default, str):
        return _text(value, decoded)
    if decoded is None and key.startswith(_TRAINING_SECTIONS):
        return None
    if isinstance(default, list) and isinstance(decoded, list):
        return _elements(decoded, default)
    if type(default) is float and type(decoded) is int:
        return float(decoded)
    if type(decoded) is type(default):
        return decoded
    raise WrongTypeError(f"expected {_name(default)}, got {_show(decoded)}")


def _text(value: Any, decoded: Any) -> str:
    """Text stays as written; None stands for the empty text that detectron2 treats alike."""
    if isinstance(decoded, str):
        return decoded
    if isinstance(value, str):
        return value
    if decoded is None:
        return ""
    raise WrongTypeError(f"expected text, got {_show(decoded)}; quote it if it is meant as text")


def _elements(values: list[Any], default: list[Any]) -> list[Any]:
    """Check a list against its default: numbers and bools among numbers, text among text."""
    kinds = {_kind(leaf) for leaf in _leaves(default)}
    for leaf in _leaves(values):
        if kinds and _kind(leaf) not in kinds:
            raise WrongTypeError(f"expected a list of {kinds.pop()}, got {_show(leaf)} in it")
    return values


def _leaves(values: list[Any]) -> list[Any]:
    return [leaf for item in values for leaf in (_leaves(item) if isinstance(item, list) else [item])]


def _kind(leaf: Any) -> str:
    if isinstance(leaf, (bool, int, float)):
        return "numbers"
    return "texts" if isinstance(leaf, str) else "other values"


def _name(value: Any) -> str:
    names = {bool: "true or false", int: "an integer", float: "a number", str: "text", list: "a list"}
    return names.get(type(value), "a mapping of keys to values")


def _show(value: Any) -> str:
    text = "nothing (null)" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_plain(value: Any, depth: int = 0) -> bool:
    if isinstance(value, (list, tuple)):
        return depth < 16 and all(_is_plain(item, depth + 1) for item in value)
    if type(value) is int:
        return abs(value) < MAX_INTEGER
    return value is None or type(value) in (bool, float, str)
