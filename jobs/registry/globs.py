"""Shell patterns over columns: SQL narrows them down by an index, Python decides."""

from __future__ import annotations

import re
from fnmatch import fnmatchcase

from sqlalchemy import Column, ColumnElement, and_

_SPECIAL = re.compile(r"[*?\[]")


def is_exact(glob: str) -> bool:
    """Return whether the pattern can match only itself."""
    return _SPECIAL.search(glob) is None


def matches(value: str | None, glob: str) -> bool:
    """Return whether the pattern matches all of the value; cases differ on every platform and database."""
    return value is not None and fnmatchcase(value, glob)


def condition(column: Column[str], glob: str) -> ColumnElement[bool]:
    """Return SQL that is true for every match of the pattern and perhaps for some others."""
    if is_exact(glob):
        return column == glob
    start = _SPECIAL.split(glob, maxsplit=1)[0]
    return and_(starts_with(column, start), column.like(_like(glob), escape="\\"))


def starts_with(column: Column[str], start: str) -> ColumnElement[bool]:
    """Return SQL for "begins with", as a range where the order of text is that of its code points."""
    return and_(column >= start, column < start + "\U0010ffff")


def _like(glob: str) -> str:
    """Return a LIKE pattern that matches at least what the glob does: a set becomes any one character."""
    pattern = ""
    position = 0
    while position < len(glob):
        character = glob[position]
        close = _end_of_set(glob, position) if character == "[" else None
        if close is not None:
            pattern += "_"
            position = close
        elif character in "%_\\":
            pattern += "\\" + character
        else:
            pattern += {"*": "%", "?": "_"}.get(character, character)
        position += 1
    return pattern


def _end_of_set(glob: str, start: int) -> int | None:
    """Return where the set that opens at ``start`` closes, None when it does not: then "[" is itself."""
    first = start + 2 if glob[start + 1 : start + 2] == "!" else start + 1
    close = glob.find("]", first + 1)
    return None if close < 0 else close
