"""Digests of files, remembered by size, times and inode: planning does not read what did not change."""

from __future__ import annotations

import json
import os
import sqlite3
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

from zooport.export_core import remote_artifacts
from zooport.export_core.artifacts import file_sha256
from zooport.export_core.cache import cache_root
from zooport.export_core.places import Place, RemotePath

_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS files (path TEXT PRIMARY KEY, stamp TEXT, sha256 TEXT)",
    "CREATE TABLE IF NOT EXISTS derived (name TEXT PRIMARY KEY, stamps TEXT, value TEXT)",
)
_FRESH = 2.0  # seconds: a file changed so recently may change again within one tick of its clock
_WAIT = 5.0  # seconds for another process's lock


def default_cache() -> Path:
    """Return ``digests.sqlite`` in zooport's cache directory."""
    return cache_root() / "digests.sqlite"


class DigestCache:
    """Digests by path. A cache that cannot be read or written only costs time.

    Args:
        path: the SQLite file to remember in; None remembers nothing beyond this object.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._known: dict[str, tuple[str, str]] = {}
        self._known_derived: dict[str, tuple[str, str]] = {}
        self._new: dict[str, tuple[str, str]] = {}
        self._new_derived: dict[str, tuple[str, str]] = {}
        self._lock = threading.Lock()
        self._load()

    def file(self, path: Place) -> str:
        """Return the sha256 (hex) of a file's content; OSError when it cannot be read."""
        name = str(path).encode("utf-8", "backslashreplace").decode()  # SQLite takes no other bytes
        stamp, is_fresh = _stamp(path)
        found = self._new.get(name) or self._known.get(name)
        if found is not None and found[0] == stamp:
            return found[1]
        digest = file_sha256(path)
        if not is_fresh:
            with self._lock:
                self._new[name] = (stamp, digest)
        return digest

    def recall(self, name: str) -> str | None:
        """Return what was remembered under a name, None when one of the files behind it has changed."""
        found = self._new_derived.get(name) or self._known_derived.get(name)
        if found is None:
            return None
        try:
            intact = all(_stamp(Path(path))[0] == stamp for path, stamp in json.loads(found[0]).items())
        except OSError:
            return None
        return found[1] if intact else None

    def remember(self, name: str, files: Iterable[Path], value: str) -> None:
        """Keep a value that was derived from the content of files, as long as none of them changes."""
        try:
            stamps = {os.fspath(path): _stamp(path) for path in files}
        except OSError:
            return
        if not any(is_fresh for _, is_fresh in stamps.values()):
            kept = json.dumps({path: stamp for path, (stamp, _) in stamps.items()})
            self._new_derived[name] = (kept, value)

    def warm(self, paths: Iterable[Path]) -> None:
        """Read files that are not known yet, several at once; those that cannot be read are passed over."""
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for _ in pool.map(self._try, set(paths)):
                pass

    def save(self) -> None:
        """Write what was learned, for the next process."""
        if self._path is None or not (self._new or self._new_derived):
            return
        files = [(path, *value) for path, value in self._new.items()]
        derived = [(name, *value) for name, value in self._new_derived.items()]
        with suppress(OSError, sqlite3.Error):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(sqlite3.connect(self._path, timeout=_WAIT)) as connection, connection:
                for statement in _SCHEMA:
                    connection.execute(statement)
                connection.executemany("INSERT OR REPLACE INTO files VALUES (?, ?, ?)", files)
                connection.executemany("INSERT OR REPLACE INTO derived VALUES (?, ?, ?)", derived)

    def _try(self, path: Path) -> None:
        with suppress(OSError):
            self.file(path)

    def _load(self) -> None:
        if self._path is None:
            return
        uri = f"{self._path.absolute().as_uri()}?mode=ro"  # of a file that is not there, an error
        with (
            suppress(sqlite3.Error),
            closing(sqlite3.connect(uri, uri=True, timeout=_WAIT)) as connection,
        ):
            for path, stamp, digest in connection.execute("SELECT path, stamp, sha256 FROM files"):
                self._known[path] = (stamp, digest)
            for name, stamps, value in connection.execute("SELECT name, stamps, value FROM derived"):
                self._known_derived[name] = (stamps, value)


def _stamp(path: Place) -> tuple[str, bool]:
    """Return what changes when a file does, and whether it changed just now; OSError if it is not there."""
    if isinstance(path, RemotePath):
        told = remote_artifacts.stamp(path)
        return told, not told
    status = path.stat()
    stamp = f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}:{status.st_dev}"
    return stamp, time.time() - max(status.st_mtime, status.st_ctime) <= _FRESH
