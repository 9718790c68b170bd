"""Weights by address that are here already: whether they are what their names and servers say."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from zooport.export_core.checkpoints.fetch import is_named_by_md5, is_outdated, require_as_named
from zooport.export_core.checkpoints.remote import TransferError
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.export_core.places import shown
from zooport.jobs.digests import DigestCache, default_cache

_AS_NAMED = "as named"
_AT_ONCE = 8  # servers answer slowly, and cost nothing here


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


def outdated(cached: Mapping[Path, str]) -> dict[Path, str]:
    """Return those that are another file on their server by now; say in one line which cannot be asked about.

    What is named by its MD5 is never another file, and nobody is asked.

    Args:
        cached: place -> address of what is here.
    """
    asked = {
        path: address
        for path, address in cached.items()
        if not address.startswith("file:") and not is_named_by_md5(path)
    }
    if not asked:
        return {}
    silent: set[str] = set()
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = dict(
            zip(asked, pool.map(lambda address: _ask(address, silent), asked.values()), strict=True)
        )
    _say_unknown({asked[path]: answer for path, answer in answers.items() if isinstance(answer, str)})
    return {path: address for path, address in asked.items() if answers[path] is True}


def _ask(address: str, silent: set[str]) -> bool | str:
    """Return whether the server has another file, or in words why it does not say."""
    try:
        return is_outdated(address, silent=silent)
    except Failure as failure:
        return failure.message
    except (TransferError, OSError) as error:
        return str(error)


def _say_unknown(reasons: Mapping[str, str]) -> None:
    if not reasons:
        return
    address, reason = next(iter(reasons.items()))
    more = f" and {len(reasons) - 1} more" if len(reasons) > 1 else ""
    copies = "the copies in the cache are used" if more else "the copy in the cache is used"
    sys.stderr.write(f"zooport: no word on whether {shown(address)}{more} changed: {reason}; {copies}\n")


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
