"""Bring one remote file here through fsspec, continuing where an earlier, broken transfer stopped."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from zooport.export_core.failures import Failure

Progress = Callable[[int, int | None], None]
"""Called with the bytes that are here and the bytes in all (None where the server does not say)."""

BLOCK = 8 << 20
"""Bytes asked for at once; as much is asked for again after a break."""

ATTEMPTS = 4
"""How often in a row a transfer may break without a single new byte."""

FIRST_PAUSE = 0.5
"""Seconds before the second attempt; doubled for each one after it."""

EXTRAS = {"s3": "s3", "gs": "gs"}
"""Schemes whose fsspec backend is an extra of this package."""

_ANSWER = 15.0  # seconds for an answer without content
_TRY_AGAIN = {408, 425, 429}
_IDENTITY = (
    "size",
    "ETag",
    "Last-Modified",
    "LastModified",
    "md5Hash",
    "generation",
    "updated",
    "mtime",
)


class TransferError(Exception):
    """A transfer that did not finish.

    Attributes:
        permanent: asking again is pointless: the server answered, and the answer is no.
        missing: the server says that there is no such file.
        unconnected: no connection to the server came about, or it left a question unanswered.
    """

    def __init__(
        self, reason: str, *, permanent: bool = False, missing: bool = False, unconnected: bool = False
    ) -> None:
        super().__init__(reason)
        self.permanent = permanent
        self.missing = missing
        self.unconnected = unconnected


@dataclass(frozen=True)
class RemoteFile:
    """What a server says about a file.

    Attributes:
        size: bytes, None where it is not said.
        told: all that tells versions apart, such as ``ETag``, ``Last-Modified`` and ``size``.
        version: a digest of the address and of what is told.
    """

    size: int | None
    told: Mapping[str, str]
    version: str


def describe(url: str) -> RemoteFile:
    """Ask the server once what it has at an address, without its content.

    Raises:
        TransferError: it does not answer in time, or has nothing there for us.
        Failure: ``dependency.missing`` when the scheme needs a package that is not installed.
    """
    try:
        return _Source(url, _ANSWER).describe()
    except TransferError as error:
        error.unconnected |= _timed_out(error)
        raise


def download(url: str, folder: Path, name: str, progress: Progress) -> tuple[Path, RemoteFile]:
    """Fetch ``url`` into ``folder``; return the file under its temporary name, and what was said of it.

    What has arrived stays in ``folder`` when the transfer breaks, and counts the next time if the remote file
    is still the same one.

    Raises:
        TransferError: the file is not there, access is refused, or the transfer broke again and again.
        Failure: ``dependency.missing`` when the scheme needs a package that is not installed.
        OSError: writing here failed.
    """
    source = _Source(url)
    failures = 0
    while True:
        before = _arrived(folder, name)
        try:
            return source.append_to(folder, name, progress)
        except TransferError as error:
            failures = 1 if _arrived(folder, name) > before else failures + 1
            if error.permanent or failures >= ATTEMPTS:
                raise
            time.sleep(FIRST_PAUSE * 2 ** (failures - 1))


def _arrived(folder: Path, name: str) -> int:
    return max((path.stat().st_size for path in folder.glob(f".{name}.*.part")), default=0)


class _Source:
    """One remote file and the connection to its server."""

    def __init__(self, url: str, seconds: float | None = None) -> None:
        self.url = url
        self.filesystem = _filesystem(urlsplit(url).scheme, seconds)
        self.streaming = False

    def append_to(self, folder: Path, name: str, progress: Progress) -> tuple[Path, RemoteFile]:
        """Append what is missing; one attempt."""
        remote = self.describe()
        part = folder / f".{name}.{remote.version}.part"
        for stale in set(folder.glob(f".{name}.*.part")) - {part}:
            stale.unlink(missing_ok=True)
        with part.open("ab") as target:
            if self.streaming or (remote.size is not None and target.tell() > remote.size):
                target.truncate(0)
            progress(target.tell(), remote.size)
            for block in self._blocks(target.tell(), remote.size):
                target.write(block)
                progress(target.tell(), remote.size)
            target.flush()
            os.fsync(target.fileno())
            done = target.tell()
        if remote.size is not None and done != remote.size:
            raise TransferError(f"it ended after {done} of {remote.size} bytes")
        return part, remote

    def describe(self) -> RemoteFile:
        """Ask what there is."""
        with self._errors():
            about = self.filesystem.info(self.url)
        identity = {key: str(about[key]) for key in _IDENTITY if about.get(key) is not None}
        digest = hashlib.sha256(json.dumps([self.url, identity], sort_keys=True).encode()).hexdigest()
        return RemoteFile(about.get("size"), identity, digest[:12])

    def _blocks(self, start: int, size: int | None) -> Iterator[bytes]:
        """Yield the bytes from ``start`` on; fewer than there are when the server ends early."""
        if size is not None and start >= size:
            return
        with self._errors():
            # Block size 0 is fsspec's word for one plain stream, for servers that cannot start in the middle.
            options = {"block_size": 0} if self.streaming else {"block_size": BLOCK, "cache_type": "none"}
            file = self.filesystem.open(self.url, "rb", **options)
        with file:
            with self._errors():
                if start:
                    file.seek(start)
            while size is None or start < size:
                with self._errors():
                    block = file.read(BLOCK)
                if not block:
                    return
                start += len(block)
                yield block

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate what the backend raises; each backend has a family of exceptions of its own."""
        try:
            yield
        except ValueError as error:
            if self.streaming:
                raise TransferError(_describe_error(error)) from error
            self.streaming = True
            raise TransferError("the server cannot continue in the middle of a file") from error
        except Exception as error:
            raise _classified(error) from error


def _filesystem(scheme: str, seconds: float | None) -> Any:
    import fsspec

    if scheme in {"http", "https"}:
        import aiohttp

        # A large file may take hours, silence may not: no limit in all, a minute without a byte is a break.
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=20, sock_read=60)
        client = {"trust_env": True, "timeout": timeout, "headers": {"Accept-Encoding": "identity"}}
        return fsspec.filesystem(scheme, skip_instance_cache=True, client_kwargs=client)
    try:
        return fsspec.filesystem(scheme, skip_instance_cache=True)
    except ImportError as error:
        raise Failure(
            "dependency.missing",
            f"{scheme}:// needs a package that is not installed: {error.name or error}",
            hint=f"pip install 'zooport[{EXTRAS.get(scheme, scheme)}]'",
        ) from error


def _classified(error: Exception) -> TransferError:
    status = _http_status(error)
    if status is not None:
        permanent = 400 <= status < 500 and status not in _TRY_AGAIN
        reason = f"the server answers {status}" + (" (no such file)" if status in {404, 410} else "")
        return TransferError(reason, permanent=permanent, missing=status in {404, 410})
    server = _unconnected_server(error)
    if server is not None:
        return TransferError(f"no connection to {server}: {_describe_error(error)}", unconnected=True)
    if isinstance(error, FileNotFoundError) and error.__cause__ is None:
        return TransferError("no such file", permanent=True, missing=True)
    return TransferError(_describe_error(error), permanent=isinstance(error, PermissionError))


def _unconnected_server(error: BaseException | None) -> str | None:
    """Return the host and port to which no connection came about, where that is the origin of this error."""
    import aiohttp

    while error is not None:
        if isinstance(error, aiohttp.ClientConnectorError):
            return f"{error.host}:{error.port}"
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return "the server"
        error = error.__cause__
    return None


def _timed_out(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, TimeoutError):
            return True
        error = error.__cause__
    return False


def _http_status(error: BaseException | None) -> int | None:
    """Return the status that a server answered, where one is the origin of this error."""
    while error is not None:
        status = getattr(error, "status", None)
        if isinstance(status, int):
            return status
        error = error.__cause__
    return None


def _describe_error(error: BaseException) -> str:
    """Return the innermost error's own words: fsspec reports a dead network as a missing file."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split()) or type(error).__name__
