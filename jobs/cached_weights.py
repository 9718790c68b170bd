"""Weights by address that are here already: whether they are still what their names say."""

from __future__ import annotations

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zooport.export_core.checkpoints.fetch import is_named_by_md5, require_as_named
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.jobs.digests import DigestCache, default_cache

_AS_NAMED = "as named"


def misnamed(cached: Mapping[Path, str]) -> dict[Path, FailureRecord]:
    """Return why files are not those that the MD5 digits in their names promise, for those that are not.

    Somebody may have placed them by hand. A file is read once: later runs remember it by size and times.

    Args:
        cached: place -> address of what is here.
    """
    named = {path: address for path, address in cached.items() if is_named_by_md5(path)}
    if not named:
        return {}
    digests = DigestCache(default_cache())
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        objections = pool.map(lambda path: _objection(path, named[path], digests), named)
        found = dict(zip(named, objections, strict=True))
    digests.save()
    return {path: failure.at(Stage.LOAD).record() for path, failure in found.items() if failure is not None}


def _objection(path: Path, address: str, digests: DigestCache) -> Failure | None:
    name = f"md5 of {path}"
    if digests.recall(name) == _AS_NAMED:
        return None
    try:
        require_as_named(address, path)
    except Failure as failure:
        return failure
    except OSError:
        return None  # the job says what it cannot read
    digests.remember(name, [path], _AS_NAMED)
    return None
