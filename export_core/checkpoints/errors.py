"""What can be wrong with the bytes of a checkpoint; the reader turns these into typed failures."""

from __future__ import annotations


class CheckpointError(ValueError):
    """The bytes cannot be read as weights; the message is one line and names no file."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class CorruptError(CheckpointError):
    """Truncated, inconsistent, or not what it claims to be."""


class UnsafeError(CheckpointError):
    """Loading it would call, import or build something that no weights need."""


def shorten(text: object, limit: int = 80) -> str:
    """Return text from a file fit for a one-line message."""
    shown = repr(text[: limit + 1] if isinstance(text, (str, bytes)) else text)
    return shown if len(shown) <= limit else shown[: limit - 3] + "..."
