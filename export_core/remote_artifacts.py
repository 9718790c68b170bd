"""Artifacts behind an address: uploaded beside their final place, read back, and revealed file by file.

Object stores have no rename of directories. An artifact is there when its ``model.json`` is there: that file
goes first when an artifact is replaced, and comes last when one is published, so that a reader sees the old
artifact, none, or the new one, and never half of one.
"""

from __future__ import annotations

import errno
import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any
from uuid import uuid4

from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.places import Place, RemotePath

DESCRIPTION = "model.json"
_BLOCK = 8 << 20  # bytes read at once
_PROBE = ".zooport-probe"
_MARK = ".zooport-publishing"  # tells an artifact that is being replaced from somebody else's files
# What a storage says of a file that changes with its content.
_IDENTITY = ("ETag", "etag", "md5Hash", "generation", "LastModified", "updated", "last_modified", "mtime")


def upload(
    staging: Path,
    prefix: RemotePath,
    files: Mapping[str, str],
    report: Callable[[Stage], None] = lambda _: None,
) -> None:
    """Copy files to a staging prefix, and read each of them back to see that it arrived as it is.

    Args:
        staging: directory with the files.
        prefix: where they go; what is there is removed before.
        files: sha256 (hex) by relative path.
        report: told the stage.

    Raises:
        Failure: ``resource.disk``, naming the address.
    """
    report(Stage.PUBLISH)
    with typed_errors(prefix):
        remove_tree(prefix)
        for name, expected in files.items():
            target = prefix / name
            with errors_of(target):
                system, path = target.filesystem()
                system.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
                system.put_file(str(staging / name), path)
            if remote_sha256(target) != expected:
                raise OSError(errno.EIO, "arrived with another content than was sent", str(target))


def reveal(
    prefix: RemotePath,
    final: RemotePath,
    files: Mapping[str, str],
    report: Callable[[Stage], None] = lambda _: None,
) -> None:
    """Make what was uploaded the artifact ``final``: its description is taken away first and comes last.

    Args:
        prefix: as :func:`upload` filled it; it is removed.
        final: the artifact's directory.
        files: what belongs there; other files of an earlier artifact are removed.
        report: told the stage.

    Raises:
        Failure: ``resource.disk``, naming the address; ``output.occupied``.
    """
    report(Stage.PUBLISH)
    with typed_errors(final):
        check_replaceable(final)
        write(final / _MARK, b"")
        hide(final)
        for path in files_below(final):
            if path.relative_name(final) not in {*files, _MARK}:
                _remove_file(path)
        for name in sorted(files, key=lambda each: (each == DESCRIPTION, each)):
            _move(prefix / name, final / name)
        _remove_file(final / _MARK)
        remove_tree(prefix)


def check_replaceable(final: RemotePath) -> None:
    """Raise ``output.occupied`` unless ``final`` is free, an artifact, or one whose publication broke off.

    OSError if nobody can tell.
    """
    names = {path.relative_name(final) for path in files_below(final)}
    if names and DESCRIPTION not in names and _MARK not in names:
        raise Failure(
            "output.occupied",
            f"{final} is there and is not an artifact, so it is not replaced",
            stage=Stage.PUBLISH,
            hint="name another output, or move it away",
        )


def check_writable(root: RemotePath) -> None:
    """Write a small file below ``root``, read it back and remove it.

    Raises:
        Failure: ``output.unwritable``, ``dependency.missing``.
    """
    place = root / f"{_PROBE}-{uuid4().hex[:12]}"
    try:
        with errors_of(root):
            write(place, b"zooport")
            system, path = place.filesystem()
            arrived = system.cat_file(path)
            system.rm_file(path)
        if arrived != b"zooport":
            raise OSError(errno.EIO, "what was written cannot be read back", str(root))
    except OSError as error:
        raise Failure(
            "output.unwritable",
            f"cannot write to {root}: {error.strerror}",
            hint="check the address and the credentials, or name another output",
        ) from None


def remote_sha256(place: RemotePath) -> str:
    """Return the sha256 (hex) of a remote file, read block by block; OSError when it cannot be read."""
    digest = hashlib.sha256()
    with errors_of(place):
        system, path = place.filesystem()
        with system.open(path, "rb", block_size=_BLOCK, cache_type="none") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def stamp(place: RemotePath) -> str:
    """Return what changes when a remote file does, "" if its storage does not tell; OSError if it is gone."""
    with errors_of(place):
        system, path = place.filesystem()
        system.invalidate_cache()
        about: Mapping[str, Any] = system.info(path)
    known = {key: str(about[key]) for key in _IDENTITY if about.get(key)}
    return f"{about.get('size')}:{sorted(known.items())}" if known else ""


def read_text(place: RemotePath, limit: int) -> str:
    """Return the text of a small remote file; OSError when it is not there or larger, in bytes, than that."""
    with errors_of(place):
        system, path = place.filesystem()
        system.invalidate_cache()
        if system.size(path) > limit:
            raise OSError(errno.EFBIG, "too large", str(place))
        content: bytes = system.cat_file(path)
    return content.decode("utf-8", "backslashreplace")


def store_file(source: Path, place: RemotePath) -> None:
    """Copy a local file to an address; OSError when that does not succeed."""
    with errors_of(place):
        system, path = place.filesystem()
        system.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        system.put_file(str(source), path)


def fetch_file(place: RemotePath, target: Path) -> None:
    """Copy a remote file to this machine; FileNotFoundError, OSError when that does not succeed."""
    with errors_of(place):
        system, path = place.filesystem()
        system.get_file(path, str(target))


def is_there(place: RemotePath) -> bool:
    """Whether there is a file, or a directory with anything in it; OSError if nobody can tell."""
    with errors_of(place):
        system, path = place.filesystem()
        system.invalidate_cache()
        return bool(system.exists(path))


def folders(place: RemotePath) -> list[RemotePath]:
    """Return the directories in a directory, sorted; OSError when it cannot be listed."""
    with errors_of(place):
        system, path = place.filesystem()
        system.invalidate_cache()
        entries = system.ls(path, detail=True)
    names = {PurePosixPath(each["name"]).name for each in entries if each["type"] == "directory"}
    return [place / name for name in sorted(names) if name]


def usage(place: RemotePath) -> tuple[int, float | None]:
    """Return the bytes below a directory, and when the newest of its files was written if that is known."""
    with errors_of(place):
        system, path = place.filesystem()
        system.invalidate_cache()
        found: Mapping[str, Mapping[str, Any]] = system.find(path, detail=True)
    times = [moment for each in found.values() if (moment := _written_at(each)) is not None]
    return sum(int(each.get("size") or 0) for each in found.values()), max(times, default=None)


def remove_tree(place: RemotePath) -> None:
    """Remove a directory with all that is in it; nothing happens where there is none."""
    with errors_of(place), suppress(FileNotFoundError):
        system, path = place.filesystem()
        system.invalidate_cache()
        if system.exists(path):
            system.rm(path, recursive=True)


def hide(place: RemotePath) -> None:
    """Take an artifact's description away: from then on it is none."""
    _remove_file(place / DESCRIPTION)


@contextmanager
def kept_log(log: Place, *, goes_on: bool = False) -> Iterator[Path]:
    """Yield a file of this machine to log to; one that belongs to an address is stored there at the end.

    A log that cannot be stored is no failure of its job; the worker's own log says so then.

    Args:
        log: where it is kept.
        goes_on: what is there already stays; a file of this machine is always appended to.
    """
    if isinstance(log, Path):
        yield log
        return
    with tempfile.TemporaryDirectory(prefix="zooport-") as folder:
        here = Path(folder, log.name)
        if goes_on:
            with suppress(OSError, Failure):
                fetch_file(log, here)
        try:
            yield here
        finally:
            try:
                if here.exists():
                    store_file(here, log)
            except (OSError, Failure) as error:
                sys.stderr.write(f"zooport: {log} could not be stored: {one_line(error)}\n")


@contextmanager
def errors_of(place: RemotePath) -> Iterator[None]:
    """Turn what a storage's library raises, each of its own family, into OSError with the address."""
    try:
        yield
    except (Failure, FileNotFoundError):
        raise
    except PermissionError as error:
        raise PermissionError(errno.EACCES, "permission denied", str(place)) from error
    except OSError as error:
        words = error.strerror or one_line(error)
        raise OSError(error.errno or errno.EIO, words, str(place)) from error
    except Exception as error:  # botocore, google.api, aiohttp ...
        raise OSError(errno.EIO, one_line(error), str(place)) from error


@contextmanager
def typed_errors(place: RemotePath) -> Iterator[None]:
    """Turn OSError into the failure ``resource.disk`` with the address."""
    try:
        yield
    except OSError as error:
        where = error.filename if error.filename is not None else place
        raise Failure(
            "resource.disk",
            f"{where}: {error.strerror or one_line(error)}",
            stage=Stage.PUBLISH,
            hint="check the storage and its credentials, or write elsewhere (--output)",
        ) from None


def files_below(place: RemotePath) -> list[RemotePath]:
    """Return all files below a directory; OSError when it cannot be listed."""
    with errors_of(place):
        system, path = place.filesystem()
        system.invalidate_cache()
        try:
            found = list(system.find(path))
        except FileNotFoundError:
            return []
    return [place / str(PurePosixPath("/", each).relative_to(PurePosixPath("/", path))) for each in found]


def _remove_file(place: RemotePath) -> None:
    with errors_of(place), suppress(FileNotFoundError):
        system, path = place.filesystem()
        if system.exists(path):
            system.rm_file(path)


def write(place: RemotePath, content: bytes) -> None:
    """Write a small file; OSError when that does not succeed."""
    with errors_of(place):
        system, path = place.filesystem()
        system.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        system.pipe_file(path, content)


def _move(source: RemotePath, target: RemotePath) -> None:
    with errors_of(target):
        system, path = target.filesystem()
        _, before = source.filesystem()
        system.makedirs(str(PurePosixPath(path).parent), exist_ok=True)
        size = system.size(before)
        system.mv(before, path)  # one rename where there is such a thing, else a copy by the storage itself
        system.invalidate_cache()
        if system.size(path) != size:
            raise OSError(errno.EIO, "is not whole after it was moved to its place", str(target))


def _written_at(about: Mapping[str, Any]) -> float | None:
    for key in ("LastModified", "last_modified", "mtime", "updated", "created"):
        value = about.get(key)
        if isinstance(value, datetime):
            return value.timestamp()
        if isinstance(value, int | float):
            return float(value)
        if isinstance(value, str):
            with suppress(ValueError):
                return datetime.fromisoformat(value).timestamp()
    return None
