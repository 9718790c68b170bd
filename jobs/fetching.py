"""Weights named by address are brought here before a run is planned: a plan needs their digests."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from zooport.export_core.checkpoints.fetch import address_of, fetch, is_here
from zooport.export_core.checkpoints.remote import Progress
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.jobs.cached_weights import misnamed, outdated
from zooport.jobs.retries import PAUSE, pause
from zooport.jobs.values import ExportTarget


def fetch_weights(
    targets: Sequence[ExportTarget], addresses: Mapping[Path, str] | None = None, base: float | None = None
) -> list[ExportTarget]:
    """Return the targets, each with its weights on this machine or with the reason why they are not.

    What the cache has is fetched again where the server has another file by now; where the server does not
    say, the copy is used, and one line on standard error tells so. One address that cannot be fetched fails
    the exports of its own model only, after as many further tries as the target allows: a server that is away
    may come back. A progress bar is shown where standard error is a terminal.

    Args:
        targets: what to export.
        addresses: place in the cache -> address, as the manifest knows them; places that it does not name
            tell their address themselves.
        base: seconds before the second try; None takes the usual ones.
    """
    named = {
        weights: address
        for weights in dict.fromkeys(target.checkpoint.weights for target in targets)
        if (address := (addresses or {}).get(weights) or address_of(weights))
    }
    cached = {weights: address for weights, address in named.items() if is_here(weights)}
    refusals = misnamed(cached)
    missing = {weights: address for weights, address in named.items() if weights not in cached}
    missing |= outdated({weights: address for weights, address in cached.items() if weights not in refusals})
    tries = 1 + max((each.retries for each in targets if each.checkpoint.weights in missing), default=0)
    for number in range(1, tries + 1):
        refusals |= _fetch_all(missing, refusals)
        missing = {weights: address for weights, address in missing.items() if _may_come(refusals, weights)}
        if not missing or number == tries:
            break
        seconds = pause(number + 1, PAUSE if base is None else base)
        sys.stderr.write(f"zooport: {_reasons(missing, refusals)}; retrying in {seconds:.0f} s\n")
        time.sleep(seconds)
    return [
        replace(target, refusal=target.refusal or refusals.get(target.checkpoint.weights))
        for target in targets
    ]


def _fetch_all(
    missing: Mapping[Path, str], refusals: MutableMapping[Path, FailureRecord]
) -> dict[Path, FailureRecord]:
    """Fetch what is missing; return why some are not there, and forget why those were not that are."""
    failed: dict[Path, FailureRecord] = {}
    silent: set[str] = set()
    for number, (weights, address) in enumerate(missing.items(), 1):
        try:
            with _bar(f"{weights.name} ({number} of {len(missing)})") as progress:
                fetch(address, progress=progress, silent=silent, renew=is_here(weights))
            refusals.pop(weights, None)
        except Failure as failure:
            if is_here(weights) and failure.details.get("refused"):  # such as a login that has run out
                sys.stderr.write(f"zooport: {failure.message}; the copy in the cache is used\n")
            else:
                failed[weights] = failure.at(Stage.LOAD).record()
    return failed


def _may_come(refusals: Mapping[Path, FailureRecord], weights: Path) -> bool:
    failure = refusals.get(weights)
    return failure is not None and failure.code == "fetch.failed" and not failure.details.get("refused")


def _reasons(missing: Mapping[Path, str], refusals: Mapping[Path, FailureRecord]) -> str:
    first = next(iter(missing))
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    return f"{refusals[first].message}{more}"


@contextmanager
def _bar(label: str) -> Iterator[Progress | None]:
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Display

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with Display(*columns, console=Console(stderr=True), transient=True) as display:
        task = display.add_task(label, total=None)
        yield lambda done, total: display.update(task, completed=done, total=total)
