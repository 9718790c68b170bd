"""How parts of an evaluation reach each other where the artifact goes to an address.

What a worker has made and verified waits behind the address, in the hidden place from which it is published.
Each machine keeps a copy of the last few in the folder of the run's fork server, which goes with the run;
predictions are sent to the same hidden place.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from zooport.export_core import remote_parts
from zooport.export_core.diagnosis import disk_failure
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation import ForkServer, default_server
from zooport.export_core.places import RemotePath
from zooport.export_core.remote_parts import Uploaded
from zooport.jobs.worker import Course

_HERE = remote_parts.__name__
_COPIES = "artifacts"  # folder of a fork server's directory
_SPARE = 3  # copies that nobody uses and that stay on a machine
_PAUSE = 0.1  # seconds between two looks at a copy that another worker is fetching


def hand_over(staging: Path, prefix: RemotePath, course: Course, server: ForkServer | None) -> None:
    """Upload a staging directory for other workers; on this machine it becomes the copy that they use."""
    uploaded: Uploaded = course.run(f"{_HERE}:hand_over", staging, prefix)
    folder = _copies(server)
    _make_room(folder)
    with suppress(OSError):  # one that is the same is there, or there will be
        staging.rename(folder / uploaded.identity)
    shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def copy_of(prefix: RemotePath, course: Course, server: ForkServer | None) -> Iterator[tuple[Path, Uploaded]]:
    """Yield this machine's copy of what was handed over, which stays for as long as the block lasts.

    Raises:
        Failure: ``worker.crashed`` where it is not there any more; ``resource.disk``.
    """
    uploaded: Uploaded | None = course.run(f"{_HERE}:what_waits", prefix)
    if uploaded is None:
        raise Failure(
            "worker.crashed",
            f"{prefix}: the artifact is gone, a worker was lost after it had begun to publish it",
            hint="run it again with zooport rerun --failed",
        )
    folder = _copies(server)
    copy = folder / uploaded.identity
    with copy.with_suffix(".lock").open("wb") as lock:
        while True:
            _lock(lock.fileno(), fcntl.LOCK_EX, course)
            if not copy.is_dir():
                _make_room(folder)
                _fetch(uploaded, copy, course)
            os.utime(copy)
            _lock(lock.fileno(), fcntl.LOCK_SH, course)
            if copy.is_dir():  # else somebody made room between the two locks
                break
        yield copy, uploaded


@contextmanager
def folder_for(course: Course, server: ForkServer | None) -> Iterator[Path]:
    """Yield an empty folder of this machine, which goes with the run at the latest."""
    copies = _copies(server)
    try:
        folder = Path(tempfile.mkdtemp(dir=copies.parent))
    except OSError as error:
        raise disk_failure(error, course.stage, copies.parent) from None
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def send(folder: Path, prefix: RemotePath, course: Course) -> None:
    """Upload the files of a folder."""
    course.run(f"{_HERE}:send", folder, prefix)


def receive(prefix: RemotePath, names: list[str], folder: Path, course: Course) -> list[str]:
    """Download files into a folder; return those that are not there."""
    missing: list[str] = course.run(f"{_HERE}:receive", prefix, names, folder)
    return missing


def forget(prefix: RemotePath, course: Course) -> None:
    """Remove what was sent."""
    course.run(f"{_HERE}:forget", prefix)


def _copies(server: ForkServer | None) -> Path:
    server = server or default_server()
    server.start()  # it makes its directory
    folder = server.directory / _COPIES
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise disk_failure(error, Stage.EVALUATE, folder) from None
    return folder


def _lock(descriptor: int, kind: int, course: Course) -> None:
    while True:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
            return
        course.pause(_PAUSE)


def _fetch(uploaded: Uploaded, copy: Path, course: Course) -> None:
    part = copy.with_name(f"{copy.name}.{uuid4().hex[:8]}.part")
    try:
        course.run(f"{_HERE}:fetch", uploaded, part)
        part.rename(copy)
    except OSError as error:
        raise disk_failure(error, course.stage, part) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)


def _make_room(folder: Path) -> None:
    """Remove copies that nobody uses, but for the newest few."""
    copies = [path for path in folder.iterdir() if path.is_dir() and not path.suffix]
    for copy in sorted(copies, key=_used)[:-_SPARE]:
        with copy.with_suffix(".lock").open("wb") as lock, suppress(BlockingIOError):
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(copy, ignore_errors=True)


def _used(copy: Path) -> float:
    try:
        return copy.stat().st_mtime
    except OSError:  # another worker has removed it
        return 0.0
