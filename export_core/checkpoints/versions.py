"""Which version of a remote file the cache holds: what its server said of it, kept beside the file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

_TIMES = ("Last-Modified", "LastModified", "updated", "mtime")


def remember(path: Path, told: Mapping[str, str]) -> None:
    """Note what the server says of the file that is here; what cannot be noted is found out again."""
    if _noted(path) != told:
        with suppress(OSError):
            _note(path).write_text(json.dumps(dict(told)), encoding="utf-8")


def is_current(path: Path, told: Mapping[str, str]) -> bool:
    """Return whether the file here is the one that its server tells of.

    A file of which nothing was noted, as one placed by hand, is if it has the length and is not older.
    OSError when it is not there.

    Args:
        path: of the file in the cache.
        told: what the server says now, see :class:`~zooport.export_core.checkpoints.remote.RemoteFile`.
    """
    noted = _noted(path)
    if noted is None:
        status = path.stat()
        return told.get("size") in (None, str(status.st_size)) and _changed(told) <= status.st_mtime
    common = noted.keys() & told.keys()
    if "ETag" in common:  # it tells of the content, where times tell of the upload or of one of many servers
        common &= {"ETag", "size"}
    return all(_plain(noted[key]) == _plain(told[key]) for key in common)


def _note(path: Path) -> Path:
    return path.with_name(f".{path.name}.version")


def _noted(path: Path) -> dict[str, str] | None:
    try:
        noted = json.loads(_note(path).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return noted if isinstance(noted, dict) else None


def _plain(value: str) -> str:
    return value.removeprefix("W/")  # what lies between may weaken an ETag of the same file


def _changed(told: Mapping[str, str]) -> float:
    """Return when the remote file was written, in seconds since 1970; 0 where that is not told."""
    for text in (told[key] for key in _TIMES if key in told):
        for parse in (float, _iso_time, _http_time):
            with suppress(ValueError, OverflowError):
                return parse(text)
    return 0.0


def _iso_time(text: str) -> float:
    moment = datetime.fromisoformat(text)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _http_time(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()
