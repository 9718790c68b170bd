"""An artifact that waits behind an address while workers of any machine evaluate it in parts.

Everything of its staging directory is uploaded, hidden files too; a list with the sha256 of each comes last,
so that who sees the list sees all of it. The functions run in disposable processes, as a storage may hang.
"""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from zooport.export_core import remote_artifacts as remote
from zooport.export_core.artifacts import Published, file_sha256
from zooport.export_core.diagnosis import disk_failure
from zooport.export_core.failures import Stage
from zooport.export_core.places import RemotePath

Report = Callable[[Stage], None]

LIST = ".parts.json"
"""The file that tells what has been uploaded; the staging directory is complete where it is."""

_LIST_LIMIT = 16 << 20  # bytes


@dataclass(frozen=True)
class Uploaded:
    """A staging directory behind an address: sha256 (hex) and bytes of each file by its relative path."""

    prefix: RemotePath
    files: Mapping[str, tuple[str, int]]

    @property
    def identity(self) -> str:
        """What tells two uploads apart."""
        listed = json.dumps([str(self.prefix), sorted(self.files.items())])
        return hashlib.sha256(listed.encode()).hexdigest()[:16]

    def published(self) -> Published:
        """Return what of it belongs to the artifact."""
        shown = {name: each for name, each in self.files.items() if not _is_hidden(name)}
        digests = {name: digest for name, (digest, _) in shown.items()}
        return Published(digests, sum(size for _, size in shown.values()))


def hand_over(staging: Path, prefix: RemotePath, report: Report) -> Uploaded:
    """Upload everything of a staging directory, each file read back, the list last.

    Raises:
        Failure: ``resource.disk``, naming the address.
    """
    names = [path.relative_to(staging).as_posix() for path in sorted(staging.rglob("*")) if path.is_file()]
    files = {name: (file_sha256(staging / name), (staging / name).stat().st_size) for name in names}
    remote.upload(staging, prefix, {name: digest for name, (digest, _) in files.items()}, report)
    with remote.typed_errors(prefix):
        remote.write(prefix / LIST, json.dumps(files).encode())
    return Uploaded(prefix, files)


def what_waits(prefix: RemotePath, report: Report) -> Uploaded | None:
    """Return what was handed over; None where it is not there, or not any more.

    Raises:
        Failure: ``resource.disk``, naming the address.
    """
    with remote.typed_errors(prefix):
        try:
            found: Any = json.loads(remote.read_text(prefix / LIST, _LIST_LIMIT))
        except FileNotFoundError:
            return None
    return Uploaded(prefix, {name: (str(digest), int(size)) for name, (digest, size) in found.items()})


def fetch(uploaded: Uploaded, folder: Path, report: Report) -> None:
    """Download what was handed over into a new folder, and see that it is the same.

    Raises:
        Failure: ``resource.disk``, naming the address or the folder.
    """
    for name, (digest, _) in uploaded.files.items():
        place = uploaded.prefix / name
        with remote.typed_errors(place):
            _download(place, folder / name)
            if file_sha256(folder / name) != digest:
                raise OSError(errno.EIO, "arrives with another content than it had", str(place))


def send(folder: Path, prefix: RemotePath, report: Report) -> None:
    """Upload the files of a folder to a prefix, beside what is there.

    Raises:
        Failure: ``resource.disk``, naming the address.
    """
    for path in sorted(folder.iterdir()):
        with remote.typed_errors(prefix):
            remote.store_file(path, prefix / path.name)


def receive(prefix: RemotePath, names: Sequence[str], folder: Path, report: Report) -> list[str]:
    """Download files of a prefix into a folder; return those that are not there.

    Raises:
        Failure: ``resource.disk``, naming the address or the folder.
    """
    missing = []
    for name in names:
        with remote.typed_errors(prefix):
            try:
                _download(prefix / name, folder / name)
            except FileNotFoundError:
                missing.append(name)
    return missing


def forget(prefix: RemotePath, report: Report = lambda _: None) -> None:
    """Remove a prefix, if the storage can be reached; otherwise ``zooport gc`` finds it later."""
    with suppress(OSError):
        remote.remove_tree(prefix)


def _download(place: RemotePath, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_failure(error, Stage.EVALUATE, target.parent) from None
    remote.fetch_file(place, target)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in PurePosixPath(name).parts)
