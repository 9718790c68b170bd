"""Where zooport keeps what it may lose: fetched weights, digests of files, resized images."""

from __future__ import annotations

import os
from pathlib import Path


def cache_root() -> Path:
    """Return the cache directory: ZOOPORT_CACHE, else ``zooport`` in the user's cache directory."""
    named = os.environ.get("ZOOPORT_CACHE")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "zooport"
