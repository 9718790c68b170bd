"""``zooport verify`` and ``zooport gc``: compare registry and disk, tell, and clean up."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from zooport.export_core import remote_artifacts as remote
from zooport.export_core.places import Place, RemotePath
from zooport.jobs.audit import (
    WRONG,
    Finding,
    State,
    check_registry,
    find_leftovers,
    find_unused,
    remove,
)
from zooport.jobs.output import OutputFormat, print_rows, size
from zooport.jobs.registry import open_registry

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

COLUMNS = ("state", "model", "format", "export", "path", "problem", "bytes")
_STYLES = {
    State.INTACT: "green",
    State.MISSING: "bold red",
    State.ALTERED: "bold red",
    State.UNREADABLE: "bold red",
    State.ORPHANED: "yellow",
    State.STAGING: "yellow",
    State.FOREIGN: "dim",
    State.UNUSED: "yellow",
    State.BUSY: "cyan",
}


def verify(url: str | None, run: str | None, output: OutputFormat, *, everything: bool = False) -> int:
    """Compare every artifact with the registry and print what is wrong.

    Args:
        url: the registry.
        run: only artifacts that this run made or serves.
        output: how to print.
        everything: print also what is intact and what is another registry's.

    Returns:
        The exit code: 1 if anything is wrong.
    """
    with open_registry(url, create=False) as registry:
        run_id = None if run is None else registry.run(run).id
        stored = registry.artifacts(run_id)
        with _bar("reading", sum(each.record.size for each in stored)) as advance:
            checked = check_registry(registry, stored, run_id, advance)
        found = [*checked, *find_leftovers(registry, run_id)]
    shown = found if everything else [each for each in found if each.state in WRONG]
    rows = [each.to_dict() for each in shown]
    print_rows(rows, COLUMNS, output, lambda _: _verify_page(shown, found))
    return 1 if any(each.state in WRONG for each in found) else 0


def collect_garbage(
    url: str | None, output: OutputFormat, *, yes: bool = False, include_foreign: bool = False
) -> int:
    """Print what nobody needs, and with ``yes`` remove it.

    Args:
        url: the registry.
        output: how to print.
        yes: do it; otherwise nothing is changed.
        include_foreign: also what runs of another registry may have made.

    Returns:
        The exit code: 1 if something could not be removed.
    """
    with open_registry(url, create=False) as registry:
        found = [*find_leftovers(registry), *find_unused(registry)]
        kept = [each for each in found if each.state is State.FOREIGN and not include_foreign]
        doomed = [each for each in found if each not in kept]
        failed = []
        if yes:
            registry.recover_stale_runs()
            failed = remove(registry, doomed)
    gone = [each for each in doomed if yes and not _is_there(each.path)]
    problems = {each.path: each.problem for each in failed}
    rows: list[Mapping[str, object]] = [
        each.to_dict() | {"problem": problems.get(each.path, each.problem), "removed": each in gone}
        for each in doomed
    ]
    page = partial(_garbage_page, doomed, kept, gone if yes else None, failed)
    print_rows(rows, (*COLUMNS, "removed"), output, lambda _: page())
    return 1 if failed else 0


def _is_there(place: Place) -> bool:
    return remote.is_there(place) if isinstance(place, RemotePath) else place.exists()


@contextmanager
def _bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show how many bytes are done: a bar on a terminal, elsewhere one line at the beginning."""
    if not sys.stderr.isatty():
        sys.stderr.write(f"zooport: {label} {size(total)}\n")
        yield lambda _: None
        return
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    from zooport.jobs.output import console

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total)
        yield lambda count: progress.advance(task, count)


def _lines(findings: Sequence[Finding]) -> RenderableType:
    from zooport.jobs.lines import Lines
    from zooport.jobs.output import cell

    lines = Lines("state", "size", "path", right=("size",), remark="problem")
    for each in findings:
        lines.add(
            cell(each.state, _STYLES[each.state]), size(each.bytes), str(each.path), remark=each.problem
        )
    return lines


def _verify_page(shown: Sequence[Finding], found: Sequence[Finding]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    counts = Counter(each.state for each in found)
    total = size(sum(each.bytes for each in found if each.state is State.INTACT))
    summary = Text(f"{counts[State.INTACT]} intact ({total})", style="bold")
    for state in (*WRONG, State.FOREIGN, State.BUSY):
        if counts[state]:
            summary.append(f", {counts[state]} {state}", style=_STYLES[state])
    advice = []
    if counts[State.MISSING] or counts[State.ALTERED]:
        advice.append("zooport submit MANIFEST makes anew what is missing or altered")
    if counts[State.ORPHANED] or counts[State.STAGING]:
        advice.append("zooport gc shows and removes what nobody names")
    parts = [*([_lines(shown), Text()] if shown else []), summary, *(Text(line, "dim") for line in advice)]
    return Group(*parts)


def _garbage_page(
    doomed: Sequence[Finding],
    kept: Sequence[Finding],
    removed: Sequence[Finding] | None,
    failed: Sequence[Finding],
) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    parts = [_lines(doomed), Text()] if doomed else []
    if not doomed:
        parts.append(Text("nothing to remove"))
    elif removed is None:
        parts.append(Text(f"would remove {_amount(doomed)}; zooport gc --yes removes them", "bold"))
    else:
        parts.append(Text(f"removed {_amount(removed)}", "bold"))
        parts += [Text(f"kept {each.path}: {each.problem}", "bold red") for each in failed]
    if kept:
        line = f"{len(kept)} more may be of another registry's runs: --include-foreign takes them, too"
        parts.append(Text(line, "dim"))
    return Group(*parts)


def _amount(findings: Sequence[Finding]) -> str:
    files = sum(each.path.suffix == ".npz" for each in findings)  # values; all else is in directories
    return f"{_parts(len(findings) - files, files)}, {size(sum(each.bytes for each in findings))}"


def _parts(directories: int, files: int) -> str:
    """Return "2 directories and 1 file"."""
    parts = (
        [f"{directories} director{'y' if directories == 1 else 'ies'}"] if directories or not files else []
    )
    return " and ".join(parts + ([f"{files} file{'' if files == 1 else 's'}"] if files else []))
