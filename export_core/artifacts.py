"""Where artifacts are written: beside their final place, flushed, then renamed into it.

A reader sees the old artifact or the new one, whole. What is not published leaves nothing behind. An artifact
that goes to an address is made in a directory of this machine, and published as remote_artifacts.py says.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zooport.export_core import remote_artifacts as remote
from zooport.export_core.diagnosis import disk_failure
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.places import Place, RemotePath

DESCRIPTION = remote.DESCRIPTION
"""The file that every artifact has; a directory without it is not taken for one."""

STAGING = ".staging"
OLD = ".old"
GONE = ".gone"
"""How the names of directories end in which an artifact is made, waits to be replaced, or is removed."""

HANDOVER = ".handover"
"""Hidden folder of a staging directory with what one stage leaves to the next."""

VALUES = "values.npz"
"""What each image adds to a model's metrics, in that folder or in one of predictions."""

_FLUSHED = 3  # directories above an artifact that may be new with it: the model's, the group's, the output
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_NO_EXCHANGE = {errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM}


@dataclass(frozen=True)
class Published:
    """What is in a published artifact: sha256 (hex) of each file by its relative path, and bytes in all."""

    files: Mapping[str, str]
    size: int


@contextmanager
def staged(final: Place, token: str) -> Iterator[Path]:
    """Make an empty directory on the file system of ``final``; what is left of it is removed at the end.

    For an address it is a directory of this machine.

    Args:
        final: the artifact's directory; its parents are made.
        token: tells apart attempts that write the same artifact, for example the export's id.

    Raises:
        Failure: ``resource.disk`` when it cannot be made, ``output.occupied`` when something that is not an
            artifact is where the artifact belongs.
    """
    staging = make_staging(final, token)
    try:
        yield staging
    finally:
        discard(final, token)


def make_staging(final: Place, token: str) -> Path:
    """Make the directory of :func:`staged`, which stays until somebody publishes or discards it."""
    staging = staging_path(final, token)
    try:
        check_replaceable(final)
        discard(final, token)
        staging.mkdir(parents=True)
    except OSError as error:
        raise disk_failure(error, Stage.PUBLISH, staging) from None
    return staging


def staging_path(final: Place, token: str) -> Path:
    """Return the hidden directory in which an artifact is made."""
    if isinstance(final, RemotePath):
        known = hashlib.sha256(str(final).encode()).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"zooport-{os.getuid()}-{token}-{known}{STAGING}"
    return final.parent / _staging_name(final, token)


def staging_prefix(final: RemotePath, token: str) -> RemotePath:
    """Return the hidden address to which an artifact is uploaded before it is revealed."""
    return final.parent / _staging_name(final, token)


def _staging_name(final: Place, token: str) -> str:
    return f".{final.name}.{token}{STAGING}"


def discard(final: Place, token: str) -> None:
    """Remove what an attempt that was killed has left behind.

    Its directory gets another name first: a process that still works on it can publish nothing any more.
    """
    staging = staging_path(final, token)
    if isinstance(final, RemotePath):
        shutil.rmtree(staging, ignore_errors=True)
        with suppress(OSError, Failure):  # a storage that cannot be reached: zooport gc finds it later
            remote.remove_tree(staging_prefix(final, token))
        return
    with suppress(OSError):
        _aside(staging, OLD).rename(final)  # killed between two renames: the earlier artifact comes back
    shutil.rmtree(_aside(staging, OLD), ignore_errors=True)
    shutil.rmtree(_aside(staging, GONE), ignore_errors=True)
    with suppress(OSError):
        staging.rename(_aside(staging, GONE))
    shutil.rmtree(_aside(staging, GONE), ignore_errors=True)


def _aside(staging: Path, suffix: str) -> Path:
    return staging.with_name(staging.name + suffix)


def check_replaceable(final: Place) -> None:
    """Raise ``output.occupied`` unless ``final`` is free, an empty directory, or an earlier artifact."""
    if isinstance(final, RemotePath):
        remote.check_replaceable(final)
        return
    if not os.path.lexists(final):
        return
    is_directory = final.is_dir() and not final.is_symlink()
    if is_directory and ((final / DESCRIPTION).is_file() or not any(final.iterdir())):
        return
    raise Failure(
        "output.occupied",
        f"{final} is there and is not an artifact, so it is not replaced",
        stage=Stage.PUBLISH,
        hint="name another output directory, or move it away",
    )


def publish(staging: Path, final: Path, permit: Callable[[], None] = lambda: None) -> Published:
    """Make the staged directory the artifact ``final``, replacing an earlier one in one step.

    Hidden files (references that only verification needs) are dropped. Every file and directory is flushed
    to the disk before the rename, and the rename itself after it.

    Args:
        staging: as :func:`staged` made it.
        final: the artifact's directory.
        permit: called right before the rename; raises if nothing may be published any more.

    Raises:
        Failure: ``resource.disk`` with the path; ``output.occupied``; what ``permit`` raises. Nothing of the
            earlier artifact is touched then.
    """
    try:
        check_replaceable(final)
        published = gather(staging)
        for path in staging.rglob("*"):
            _flush(path)
        _flush(staging)
        permit()
        _move(staging, final)
        _flush(final.parent)
        for parent in list(final.parents)[1:_FLUSHED]:
            with suppress(OSError):  # one that may not be opened was there before
                _flush(parent)
    except OSError as error:
        raise disk_failure(error, Stage.PUBLISH, staging) from None
    return published


def gather(staging: Path) -> Published:
    """Drop what only verification needs, and return what is to be published; OSError as :func:`measure`."""
    for path in list(staging.iterdir()):
        if path.name.startswith("."):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return measure(staging)


def publish_remotely(
    staging: Path,
    final: RemotePath,
    token: str,
    permit: Callable[[], None] = lambda: None,
    run: Callable[..., Any] | None = None,
) -> Published:
    """Make the staged directory the artifact behind an address; see :mod:`remote_artifacts` for how.

    What is left of an attempt that fails is removed by :func:`discard`.

    Args:
        staging: as :func:`staged` made it.
        final: the artifact's address.
        token: as :func:`staged` was given it.
        permit: called when everything is uploaded; raises if nothing may be published any more.
        run: calls a function named "package.module:name" in a disposable process, so that a storage that
            hangs keeps nobody; None calls it here.

    Raises:
        Failure: ``resource.disk`` with the address; ``output.occupied``; what ``permit`` or ``run`` raise.
    """
    try:
        published = gather(staging)
    except OSError as error:
        raise disk_failure(error, Stage.PUBLISH, staging) from None
    call = run or _call
    call(f"{remote.__name__}:upload", staging, staging_prefix(final, token), published.files)
    reveal_uploaded(final, token, published, permit, call)
    return published


def reveal_uploaded(
    final: RemotePath,
    token: str,
    published: Published,
    permit: Callable[[], None] = lambda: None,
    run: Callable[..., Any] | None = None,
) -> None:
    """Make what was uploaded to the hidden address the artifact; arguments and failures as before."""
    permit()
    (run or _call)(f"{remote.__name__}:reveal", staging_prefix(final, token), final, published.files)


def _call(function: str, *args: object) -> None:
    getattr(remote, function.rpartition(":")[2])(*args)


def measure(directory: Path) -> Published:
    """Return the digests and the size of all files below a directory; OSError when one cannot be read."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    digests = {path.relative_to(directory).as_posix(): file_sha256(path) for path in files}
    return Published(digests, sum(path.stat().st_size for path in files))


def visible_files(staging: Path) -> dict[str, str]:
    """Return the sha256 of each file that a format has written, by relative path; hidden ones are none."""
    paths = (path.relative_to(staging) for path in sorted(staging.rglob("*")) if path.is_file())
    return {
        path.as_posix(): file_sha256(staging / path)
        for path in paths
        if not any(part.startswith(".") for part in path.parts) and path.as_posix() != DESCRIPTION
    }


def file_sha256(path: Place) -> str:
    """Return the sha256 of a file in hexadecimal; the file is streamed."""
    if isinstance(path, RemotePath):
        return remote.remote_sha256(path)
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_intact(
    directory: Place, files: Mapping[str, str], digest: Callable[[Place], str] = file_sha256
) -> bool:
    """Whether every file of a published artifact is there with the content it was published with.

    Args:
        directory: the artifact.
        files: sha256 by relative path, as :func:`publish` returned it.
        digest: how a file's sha256 is found; a cache may stand in.
    """
    try:
        return bool(files) and all(digest(directory / name) == expected for name, expected in files.items())
    except OSError:
        return False


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _move(staging: Path, final: Path) -> None:
    if not final.exists():
        staging.rename(final)
    elif _exchange(staging, final):
        shutil.rmtree(staging)
    else:
        # Without an atomic exchange there is a moment with no artifact, never one with half of one.
        aside = _aside(staging, OLD)
        final.rename(aside)
        staging.rename(final)
        shutil.rmtree(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Swap two names in one step, where the kernel and the file system can (Linux's renameat2)."""
    if sys.platform != "linux":
        return False
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    names = (os.fsencode(first), os.fsencode(second))
    if library.renameat2(_AT_FDCWD, names[0], _AT_FDCWD, names[1], _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in _NO_EXCHANGE:
        return False
    raise OSError(number, os.strerror(number), str(second))
