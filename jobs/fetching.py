"""Weights named by address are brought here before a run is planned: a plan needs their digests."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from zooport.export_core.checkpoints.fetch import address_of, fetch
from zooport.export_core.checkpoints.remote import Progress
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.jobs.values import ExportTarget


def fetch_weights(
    targets: Sequence[ExportTarget], addresses: Mapping[Path, str] | None = None
) -> list[ExportTarget]:
    """Return the targets, each with its weights on this machine or with the reason why they are not.

    One address that cannot be fetched fails the exports of its own model only. A progress bar is shown where
    standard error is a terminal.

    Args:
        targets: what to export.
        addresses: place in the cache -> address, as the manifest knows them; places that it does not name
            tell their address themselves.
    """
    missing = {
        weights: address
        for weights in dict.fromkeys(target.checkpoint.weights for target in targets)
        if (address := (addresses or {}).get(weights) or address_of(weights)) and not weights.exists()
    }
    refusals: dict[Path, FailureRecord] = {}
    silent: set[str] = set()
    for number, (weights, address) in enumerate(missing.items(), 1):
        try:
            with _bar(f"{weights.name} ({number} of {len(missing)})") as progress:
                fetch(address, progress=progress, silent=silent)
        except Failure as failure:
            refusals[weights] = failure.at(Stage.LOAD).record()
    return [
        replace(target, refusal=target.refusal or refusals.get(target.checkpoint.weights))
        for target in targets
    ]


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
