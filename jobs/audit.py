"""Registry against disk: which artifacts are as they were published, and what nobody names.

Only directories that are provably zooport's are ever reported as left over: an artifact is known by the
``model.json`` that zooport wrote, an unfinished one by its name.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from enum import StrEnum
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core import remote_artifacts as remote
from zooport.export_core.artifacts import DESCRIPTION, GONE, OLD, STAGING, file_sha256
from zooport.export_core.failures import Failure
from zooport.export_core.places import Identity, Place, RemotePath, identity
from zooport.jobs.plan import BASELINES, LOGS
from zooport.jobs.registry.records import Inventory, StoredArtifact
from zooport.jobs.shards import PREDICTIONS_OF_BASELINE

if TYPE_CHECKING:
    from zooport.jobs.registry.reader import Reader
    from zooport.jobs.registry.writer import Registry

#: ``.torchscript-trace.r-20260102-150405-k3fx.7.staging``: the artifact's name, then whose attempt it is.
_STAGED = re.compile(
    rf"\.(?P<name>.+?)\.((?P<run>r-\d{{8}}-\d{{6}}-\w{{4}})\.\d+|export|gc)"
    rf"{re.escape(STAGING)}({re.escape(OLD)}|{re.escape(GONE)})?"
)
_ABANDONED = 24 * 3600.0  # seconds after which unfinished work of an unknown owner is taken for left over
_DESCRIPTION_LIMIT = 16 << 20  # bytes; a larger model.json is not ours


class State(StrEnum):
    """How an artifact stands."""

    INTACT = "intact"
    MISSING = "missing"
    ALTERED = "altered"
    UNREADABLE = "unreadable"
    ORPHANED = "orphaned"
    STAGING = "staging"
    FOREIGN = "foreign"
    UNUSED = "unused"
    BUSY = "busy"


#: What is not as it has to be. A foreign artifact, of another registry's run, is none of ours; what an eager
#: model of earlier weights was worth image by image is unused, and does no harm; what a living run is at will
#: have its row.
WRONG = (State.MISSING, State.ALTERED, State.UNREADABLE, State.ORPHANED, State.STAGING)


@dataclass(frozen=True)
class Finding:
    """One directory or file and how it stands; export, model and format are empty where no row names it."""

    state: State
    path: Place
    model: str = ""
    format: str = ""
    export: str = ""
    problem: str = ""
    bytes: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return {
            "state": str(self.state),
            "model": self.model,
            "format": self.format,
            "export": self.export,
            "path": str(self.path),
            "problem": self.problem,
            "bytes": self.bytes,
        }


def check_registry(
    registry: Reader, stored: Sequence[StoredArtifact], run: str | None, progress: Callable[[int], None]
) -> list[Finding]:
    """Return how these artifacts of the registry stand; one that a run replaces meanwhile is not wrong.

    Its new files lie there before the row that names them, whose verdict may wait for a baseline.
    """
    found = {each.path: each for each in check_artifacts(stored, progress)}
    wrong = {path for path, each in found.items() if each.state in WRONG}
    if not wrong:
        return list(found.values())
    busy = registry.being_written()  # before the rows are read again
    known = {identity(path) for path in busy} - {None}
    found |= {
        each.path: each
        for each in check_artifacts([each for each in registry.artifacts(run) if each.record.path in wrong])
    }
    return [
        replace(each, state=State.BUSY, problem="a run that is going on writes it")
        if each.state in WRONG and (each.path in busy or identity(each.path) in known)
        else each
        for each in found.values()
    ]


def check_artifacts(
    stored: Sequence[StoredArtifact], progress: Callable[[int], None] = lambda _: None
) -> list[Finding]:
    """Read every file of these artifacts again and compare it with the registry, several at once.

    An artifact that a newer one elsewhere has superseded may have been deleted; that is no finding.

    Args:
        stored: what the registry names.
        progress: called with the bytes of each artifact that has been read.
    """

    def check(artifact: StoredArtifact) -> Finding | None:
        try:
            return _check(artifact)
        finally:
            progress(artifact.record.size)

    pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
    try:
        return [finding for finding in pool.map(check, stored) if finding is not None]
    finally:
        pool.shutdown(cancel_futures=True)


def _check(artifact: StoredArtifact) -> Finding | None:
    record = artifact.record
    state, problem = State.INTACT, ""
    if isinstance(record.path, Path) and not record.path.is_dir():
        if not artifact.is_latest:
            return None
        state, problem = State.MISSING, "the directory is not there"
    else:
        for name, digest in record.files.items():
            state, problem = _check_file(record.path / name, name, digest)
            if problem:
                break
        if state is State.MISSING and isinstance(record.path, RemotePath) and not artifact.is_latest:
            return None
    names = (artifact.model, artifact.format, artifact.export)
    return Finding(state, record.path, *names, problem, record.size)


def _check_file(path: Place, name: str, digest: str) -> tuple[State, str]:
    try:
        same = file_sha256(path) == digest
    except (FileNotFoundError, NotADirectoryError):
        return State.MISSING, f"{name} is not there"
    except OSError as error:
        return State.UNREADABLE, f"{name}: {error.strerror}"
    return (State.INTACT, "") if same else (State.ALTERED, f"{name} has another content")


def find_leftovers(registry: Registry, run: str | None = None) -> list[Finding]:
    """Return artifacts that no row names and unfinished work of nobody, below all known output directories.

    Args:
        registry: what is named; nothing that a living driver works on is reported.
        run: only what this run (an id in full) has left.
    """
    return list(_Search(registry.inventory(run), run).leftovers())


def find_unused(registry: Registry) -> list[Finding]:
    """Return kept values of eager models which no newest export, and none of a living run, compares with."""
    return list(_Search(registry.inventory(None), None).unused_values())


def sweep(registry: Registry, outputs: Iterable[Place]) -> None:
    """Remove unfinished work of runs that are over, beside these artifacts.

    A worker may outlive the driver that was killed by a moment, and begin one more job after that run was
    closed. Whoever runs the same exports next cleans up behind it.
    """
    for folder, names in _by_folder(outputs).items():
        for path in _below(folder, 1):
            staged = _STAGED.fullmatch(path.name)
            if staged is None or not staged["run"] or staged["name"] not in names:
                continue
            if isinstance(path, Path) and _is_over(registry, staged["run"]):
                shutil.rmtree(path, ignore_errors=True)


def _by_folder(outputs: Iterable[Place]) -> dict[Path, set[str]]:
    folders: dict[Path, set[str]] = {}
    for output in outputs:
        if isinstance(output, Path):
            folders.setdefault(output.parent, set()).add(output.name)
    return folders


def _is_over(registry: Registry, run: str) -> bool:
    try:
        return registry.run(run).status != "running"
    except Failure as failure:
        if failure.code != "registry.unknown":
            raise
        return False  # another registry's


class _Search:
    """A walk through the output directories."""

    def __init__(self, inventory: Inventory, run: str | None) -> None:
        self._inventory = inventory
        self._run = run

    def leftovers(self) -> Iterator[Finding]:
        """Yield what nobody names and nobody works on."""
        seen: set[Place] = set()
        for root in self._inventory.roots:
            strangers = self._strangers(root.path)
            for path in _below(root.path, root.depth):
                finding = None if path in seen else self._judge(path, strangers)
                seen.add(path)
                if finding is not None:
                    yield finding
            for path, run in _predictions(root.path):
                if path not in seen:
                    seen.add(path)
                    if problem := self._why_stale(path, run):
                        yield Finding(State.STAGING, path, problem=problem, bytes=_size(path))

    def unused_values(self) -> Iterator[Finding]:
        """Yield files of eager models' values that nobody compares with any more."""
        used = {identity(path) for path in self._inventory.values}
        seen: set[Identity | None] = set()  # two roots may be one, through links
        for root in self._inventory.roots:
            if isinstance(root.path, RemotePath):
                continue  # there are none
            kept = {identity(path): path for path in (root.path / BASELINES).glob("*.npz")}
            unused = {path for known, path in kept.items() if known not in used | seen}
            seen |= kept.keys()
            strangers = self._strangers(root.path) if unused else []
            for path in sorted(unused):
                state, problem = State.UNUSED, "values of single images that no newest export compares with"
                if strangers:
                    state = State.FOREIGN
                    problem = f"runs of another registry have written here, such as {strangers[-1]}"
                yield Finding(state, path, problem=problem, bytes=_size(path))

    def _strangers(self, root: Place) -> list[str]:
        """Return runs of other registries that have written below this directory, by their logs."""
        found = (each.name for each in _below(root / LOGS, 1))
        return sorted(name for name in found if name.startswith("r-") and name not in self._inventory.runs)

    def _judge(self, path: Place, strangers: Sequence[str]) -> Finding | None:
        staged = _STAGED.fullmatch(path.name)
        if staged is not None and staged["name"] in self._inventory.formats:
            problem = self._why_stale(path, staged["run"])
            return Finding(State.STAGING, path, problem=problem, bytes=_size(path)) if problem else None
        if path.name not in self._inventory.formats or self._is_needed(path) or not _is_artifact(path):
            return None
        if strangers:
            problem = f"not of this registry; runs of another have written here, such as {strangers[-1]}"
            return Finding(State.FOREIGN, path, problem=problem, bytes=_size(path))
        problem = "no export of the registry names it"
        return Finding(State.ORPHANED, path, problem=problem, bytes=_size(path))

    def _is_needed(self, path: Place) -> bool:
        inventory = self._inventory
        if self._run is not None and path not in inventory.outputs:
            return True
        return path in inventory.named or path in inventory.busy or identity(path) in self._identities

    @cached_property
    def _identities(self) -> set[Identity | None]:
        """What named and busy directories are on the disk: one may have several names, through links."""
        return {identity(path) for path in self._inventory.named | self._inventory.busy} - {None}

    def _why_stale(self, path: Place, run: str | None) -> str:
        """Return why unfinished work is nobody's any more, "" if it may be somebody's."""
        inventory = self._inventory
        if run in inventory.live or self._run not in {None, run}:
            return ""
        if run in inventory.runs:
            return f"left by {run}, which is over"
        age = time.time() - _newest(path)
        return "unfinished, untouched for more than a day" if age > _ABANDONED else ""


def _predictions(root: Place) -> Iterator[tuple[Place, str]]:
    """Yield folders with predictions of eager models below an output directory's logs, each with its run."""
    logs = root / LOGS
    if isinstance(logs, Path):
        # No glob with "**": before Python 3.13 it raises when a run that goes on removes a folder meanwhile.
        found = (path for path in _everything(logs) if fnmatchcase(path.name, PREDICTIONS_OF_BASELINE))
        for path in sorted(found):
            run = path.relative_to(logs).parts[0]
            if run.startswith("r-"):
                yield path, run
        return
    with suppress(OSError):
        folders = {file.parent for file in remote.files_below(logs)}
        for folder in sorted(folders, key=str):
            if fnmatchcase(folder.name, PREDICTIONS_OF_BASELINE):
                yield folder, folder.relative_name(logs).partition("/")[0]


def _below(folder: Place, depth: int) -> Iterator[Place]:
    """Yield directories, no links, in and below a folder, down to a depth."""
    if isinstance(folder, RemotePath):
        yield from _below_remote(folder, depth)
        return
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield Path(entry.path)
            if depth > 1 and not entry.name.startswith("."):
                yield from _below(Path(entry.path), depth - 1)


def _below_remote(folder: RemotePath, depth: int) -> Iterator[RemotePath]:
    try:
        found = remote.folders(folder)
    except OSError:
        return
    for each in found:
        yield each
        if depth > 1 and not each.name.startswith("."):
            yield from _below_remote(each, depth - 1)


def _newest(path: Place) -> float:
    """Return when something here was last written, now if that cannot be told."""
    if isinstance(path, RemotePath):
        with suppress(OSError):
            moment = remote.usage(path)[1]
            return time.time() if moment is None else moment
        return time.time()
    newest = 0.0
    for each in _everything(path):
        with suppress(OSError):
            newest = max(newest, each.lstat().st_mtime)
    return newest


def _everything(path: Path) -> Iterator[Path]:
    yield path
    for folder, folders, files in os.walk(path):
        for name in (*folders, *files):
            yield Path(folder, name)


def _size(path: Place) -> int:
    if isinstance(path, RemotePath):
        with suppress(OSError):
            return remote.usage(path)[0]
        return 0
    total = 0
    for each in _everything(path):
        with suppress(OSError):
            total += each.lstat().st_size if not each.is_dir() else 0
    return total


def _is_artifact(path: Place) -> bool:
    """Whether zooport wrote this directory: its model.json says so."""
    try:
        content = json.loads(_read(path / DESCRIPTION))
    except (OSError, ValueError, RecursionError):
        return False
    versions = content.get("versions") if isinstance(content, dict) else None
    return isinstance(versions, dict) and "zooport" in versions


def _read(description: Place) -> str:
    if isinstance(description, RemotePath):
        return remote.read_text(description, _DESCRIPTION_LIMIT)
    if description.stat().st_size > _DESCRIPTION_LIMIT:
        raise OSError(errno.EFBIG, "too large", str(description))
    return description.read_text(encoding="utf-8")


def remove(registry: Registry, findings: Sequence[Finding]) -> list[Finding]:
    """Remove what :func:`find_leftovers` found, and return what could not be removed, with the reason.

    Artifacts are moved aside (behind an address: lose their description) while no run can begin, so that none
    is taken that was named meanwhile, and removed afterwards.
    """
    doomed: list[tuple[Finding, Place]] = []
    failed: list[Finding] = []
    with registry.unnamed([each.path for each in findings]) as unnamed:
        for finding in findings:
            if finding.path in unnamed:
                try:
                    if isinstance(finding.path, Path) and finding.path.is_file():
                        _remove_file(finding.path)  # at once, before a run can begin that needs it
                    else:
                        doomed.append((finding, _move_aside(finding)))
                except OSError as error:
                    failed.append(_failed(finding, error))
    for finding, target in doomed:
        try:
            remote.remove_tree(target) if isinstance(target, RemotePath) else shutil.rmtree(target)
        except FileNotFoundError:
            pass  # somebody else cleaned up, too
        except OSError as error:
            failed.append(_failed(finding, error))
    return failed


def _remove_file(path: Path) -> None:
    path.unlink(missing_ok=True)
    with suppress(OSError):  # others are beside it
        path.parent.rmdir()


def _move_aside(finding: Finding) -> Place:
    if finding.state is State.STAGING:
        return finding.path
    if isinstance(finding.path, RemotePath):
        remote.hide(finding.path)
        return finding.path
    target = finding.path.with_name(f".{finding.path.name}.gc{STAGING}{GONE}")
    shutil.rmtree(target, ignore_errors=True)
    return finding.path.rename(target)


def _failed(finding: Finding, error: OSError) -> Finding:
    problem = f"cannot be removed: {error.strerror}: {error.filename}"
    return Finding(finding.state, finding.path, problem=problem, bytes=finding.bytes)
