"""Input files of a job on a node that does not see them: cut into pieces here, put together there.

The pieces travel through Ray's object store. On the node a file lies under its own path below the run's
folder, so that configs find their bases beside them; a node that sees the files uses its own.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections import OrderedDict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from zooport.export_core.diagnosis import disk_failure, one_line
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.export_core.sources import DATASET_PATHS, CheckpointSource
from zooport.jobs.values import BaselineJob, ExportJob, PartKind

Job = ExportJob | BaselineJob
Piece = list[tuple[str, int, bytes]]
"""Parts of files: name below the path ("" for the path itself), where the part begins, its bytes."""

_PIECE = 32 << 20  # bytes of an object
_KEPT = 4 << 30  # bytes of pieces that stay in the object store for the next job that needs them


@dataclass(frozen=True)
class Parcel:
    """One path as it travels: what tells whether a node has it, and references to its pieces."""

    path: str
    stamp: tuple[int, int]
    pieces: tuple[Any, ...]


Unit = tuple[Parcel, ...]
"""What only makes sense together: a config with its bases."""


def stamp_of(path: Path) -> tuple[int, int] | None:
    """Return (bytes, seconds since 1970) of a file, (-1, -1) for a directory, None where there is nothing."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (-1, -1) if path.is_dir() else (status.st_size, int(status.st_mtime))


def units_of(job: Job) -> Iterator[tuple[Path, ...]]:
    """Yield the input paths of a job; those that only make sense together stand in one tuple."""
    yield config_chain(job.checkpoint.config)
    yield (job.checkpoint.weights,)
    for name in job.checkpoint.imports:
        source = extension_source(name)
        if source is not None:
            yield (source,)
    if job.dataset is not None:
        for field in DATASET_PATHS:
            path = getattr(job.dataset, field)
            if path is not None:
                yield (path,)
    sample = getattr(job, "sample_image", None)
    if sample is not None:
        yield (sample,)


_chains: dict[Path, tuple[Path, ...]] = {}


def config_chain(path: Path) -> tuple[Path, ...]:
    """Return a config's file after all its bases; the file alone where they cannot be read."""
    from zooport.export_core.config.files import read_chain

    if path not in _chains:
        try:
            _chains[path] = tuple(dict.fromkeys([*(each.path for each in read_chain(path)), path]))
        except Failure:
            _chains[path] = (path,)  # its job will say what is wrong with it
    return _chains[path]


class Courier:
    """Sends input files that some node does not see; the newest few gigabytes are kept for other jobs.

    Args:
        unseen: paths that some node does not see.
    """

    def __init__(self, unseen: Collection[str] = ()) -> None:
        self._unseen = frozenset(unseen)
        self._sent: OrderedDict[str, Parcel] = OrderedDict()
        self._sizes: dict[str, int] = {}

    def send_also(self, unseen: Collection[str]) -> None:
        """Send these paths, too, from now on."""
        self._unseen |= frozenset(unseen)

    def pack(self, job: Job) -> tuple[Unit, ...]:
        """Return what has to travel with a job; nothing where every node sees its files.

        A file that cannot be read here is left out: the job says so where it runs.
        """
        if not self._unseen or (job.part is not None and job.part.kind is PartKind.COMPARE):
            return ()
        return tuple(
            self._unit(unit) for unit in units_of(job) if not self._unseen.isdisjoint(map(str, unit))
        )

    def _unit(self, paths: Sequence[Path]) -> Unit:
        parcels = []
        for path in paths:
            with suppress(OSError):
                parcels.append(self._parcel(path))
        return tuple(parcels)

    def _parcel(self, path: Path) -> Parcel:
        import ray

        name = str(path)
        stamp = stamp_of(path)
        if stamp is None:
            raise FileNotFoundError(name)
        known = self._sent.pop(name, None)
        if known is None or known.stamp != stamp:
            self._sizes[name] = 0
            pieces = []
            for piece in _cut(path):
                self._sizes[name] += sum(len(part) for _, _, part in piece)
                pieces.append(ray.put(piece))
            known = Parcel(name, stamp, tuple(pieces))
        self._sent[name] = known
        while len(self._sent) > 1 and sum(self._sizes[each] for each in self._sent) > _KEPT:
            self._sent.popitem(last=False)
        return known


def _cut(path: Path) -> Iterator[Piece]:
    """Yield the content of a file, or of all files below a directory, in pieces of bounded size."""
    piece: Piece = []
    size = 0
    for name, file in _files(path):
        with file.open("rb") as stream:
            start = 0
            while True:
                part = stream.read(_PIECE - size)
                piece.append((name, start, part))
                size += len(part)
                start += len(part)
                if size < _PIECE:
                    break
                yield piece
                piece, size = [], 0
    yield piece


def _files(path: Path) -> Iterator[tuple[str, Path]]:
    if not path.is_dir():
        yield "", path
        return
    for folder, folders, names in os.walk(path, followlinks=True):
        folders[:] = sorted(each for each in folders if each != "__pycache__")
        for name in sorted(names):
            file = Path(folder, name)
            if file.is_file():
                yield file.relative_to(path).as_posix(), file


def unpack(job: Job, units: Sequence[Unit], folder: Path) -> Job:
    """Return the job with the paths that its files have on this node; what is not here is fetched.

    Args:
        job: as the driver planned it.
        units: as :meth:`Courier.pack` returned them.
        folder: of the run on this node.

    Raises:
        Failure: ``resource.disk`` when a file cannot be written here, ``fetch.failed`` when it does not come.
    """
    import ray

    moved: dict[Path, Path] = {}
    for unit in units:
        if all(stamp_of(Path(each.path)) == each.stamp for each in unit):
            continue  # this node sees them
        for each in unit:
            try:
                moved[Path(each.path)] = _place(each, folder)
            except ray.exceptions.RayError as error:
                problem = f"{each.path} does not reach node {socket.gethostname()}: {one_line(error)}"
                raise Failure("fetch.failed", problem, stage=Stage.LOAD) from None
            except OSError as error:
                raise disk_failure(error, Stage.LOAD, folder) from None
    return _moved(job, moved) if moved else job


def _place(parcel: Parcel, folder: Path) -> Path:
    """Put a parcel's files together below the folder, unless they are there; return where."""
    import ray

    target = folder.joinpath(*Path(parcel.path).parts[1:])
    done = target.with_name(f".{target.name}.{parcel.stamp[0]}.{parcel.stamp[1]}.complete")
    if done.exists() and target.exists():
        return target
    part = target.with_name(f".{target.name}.{uuid4().hex}.part")
    part.parent.mkdir(parents=True, exist_ok=True)
    try:
        if parcel.stamp[0] < 0:
            part.mkdir()
        for reference in parcel.pieces:
            for name, start, content in ray.get(reference):
                file = part / name if name else part
                file.parent.mkdir(parents=True, exist_ok=True)
                with file.open("r+b" if start else "wb") as stream:
                    stream.seek(start)
                    stream.write(content)
        _rename(part, target)
        done.touch()
    finally:
        shutil.rmtree(part, ignore_errors=True) if part.is_dir() else part.unlink(missing_ok=True)
    return target


def _rename(part: Path, target: Path) -> None:
    try:
        part.replace(target)
    except OSError:
        if not target.is_dir():  # another worker of this node was quicker, and has put the same there
            raise


def _moved(job: Job, moved: Mapping[Path, Path]) -> Job:
    checkpoint: CheckpointSource = replace(
        job.checkpoint,
        config=moved.get(job.checkpoint.config, job.checkpoint.config),
        weights=moved.get(job.checkpoint.weights, job.checkpoint.weights),
        imports=tuple(_moved_extension(name, moved) for name in job.checkpoint.imports),
    )
    changes: dict[str, Any] = {"checkpoint": checkpoint}
    if job.dataset is not None:
        paths: dict[str, Any] = {
            field: moved[path] for field in DATASET_PATHS if (path := getattr(job.dataset, field)) in moved
        }
        changes["dataset"] = replace(job.dataset, **paths)
    sample: Path | None = getattr(job, "sample_image", None)
    if sample is not None and sample in moved:
        changes["sample_image"] = moved[sample]
    return replace(job, **changes)


def extension_source(name: str) -> Path | None:
    """Return the file or folder of an extension that is named by its path; None for an installed one."""
    if not Path(name).is_absolute():
        return None
    top = Path(name).with_name(Path(name).name.partition(".")[0])
    file = top.with_suffix(".py")
    return file if file.is_file() else top


def _moved_extension(name: str, moved: Mapping[Path, Path]) -> str:
    # The file itself is not on this node, so what was sent tells which one it is.
    top = Path(name).with_name(Path(name).name.partition(".")[0])
    for source in (top, top.with_suffix(".py")):
        if source in moved:
            return str(moved[source].with_name(Path(name).name))
    return name


def with_own_paths(failure: FailureRecord | None, folder: Path) -> FailureRecord | None:
    """Return a failure that names files by the paths that the user knows."""
    if failure is None or str(folder) not in failure.message:
        return failure
    return replace(failure, message=failure.message.replace(str(folder), ""))
