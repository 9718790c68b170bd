"""Weights by address: fetched once into a cache, checked, and from then on a plain local file.

Cache layout: ``<cache>/<scheme>/<host>/<path>``. A transfer in progress is a hidden ``.part`` file beside the
final place; the final name appears by one rename, after the check. A hidden ``.version`` file keeps what the
server said of the file.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import unquote, urlsplit

from zooport.export_core.cache import cache_root
from zooport.export_core.checkpoints.remote import Progress, TransferError, describe, download
from zooport.export_core.checkpoints.strangers import START, answered_instead
from zooport.export_core.checkpoints.versions import is_current, remember
from zooport.export_core.failures import Failure
from zooport.export_core.places import shown

DETECTRON2_HOST = "https://dl.fbaipublicfiles.com/detectron2/"
"""What ``detectron2://`` stands for; the environment variable ZOOPORT_DETECTRON2_URL names a mirror."""

SCHEMES = ("file", "http", "https", "detectron2", "s3", "gs")

_QUERY = "?"
# detectron2's release files end in the first six digits of their own MD5: model_final_280758.pkl.
_NAMED_BY_MD5 = re.compile(r"model_(?:final|\d{7})_([0-9a-f]{6})\.pkl")


def is_url(text: str) -> bool:
    """Return whether ``text`` is an address rather than a path."""
    return "://" in text


def cache_path(url: str, cache_dir: Path | None = None) -> Path:
    """Return where the file of this address is, or will be, on this machine; opens nothing.

    Raises:
        Failure: ``config.invalid`` for an address of an unknown scheme or one that names no file.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise Failure("config.invalid", f"{shown(url)}: {error}", hint="give a whole address") from None
    if parts.scheme not in SCHEMES:
        expected = ", ".join(f"{scheme}://" for scheme in SCHEMES)
        raise Failure("config.invalid", f"{shown(url)}: unknown scheme", hint=f"expected one of {expected}")
    if parts.scheme == "file":
        return Path(unquote(parts.path))
    folders = [part for part in parts.path.split("/") if part]
    if not parts.netloc or not folders or {".", ".."} & set(folders) or parts.path.endswith("/"):
        raise Failure("config.invalid", f"{shown(url)}: this address names no file")
    if parts.query:
        folders.insert(-1, _QUERY + hashlib.sha256(parts.query.encode()).hexdigest()[:12])
    host = parts.netloc.rpartition("@")[2]
    return (cache_dir or cache_root()).joinpath(parts.scheme, host, *folders)


def address_of(path: Path, cache_dir: Path | None = None) -> str | None:
    """Return the address that a place in the cache belongs to; None for any other path.

    An address with a query cannot be told from its place: signatures do not belong on disk.
    """
    try:
        scheme, host, *folders = path.relative_to(cache_dir or cache_root()).parts
    except ValueError:
        return None
    if scheme not in SCHEMES or not folders or any(folder.startswith(_QUERY) for folder in folders):
        return None
    return f"{scheme}://{host}/{'/'.join(folders)}"


def is_cached(path: Path, cache_dir: Path | None = None) -> bool:
    """Return whether a path is a place for what is fetched, with or without a query in its address."""
    try:
        scheme, *more = path.relative_to(cache_dir or cache_root()).parts or ("",)
    except ValueError:
        return False
    return scheme in SCHEMES and len(more) > 1


def is_here(path: Path) -> bool:
    """Return whether a file is at this place, as far as this process can see."""
    try:
        return path.exists()
    except OSError:  # a directory that may not be searched
        return False


def fetch(
    url: str,
    cache_dir: Path | None = None,
    progress: Progress | None = None,
    silent: set[str] | None = None,
    *,
    renew: bool = False,
) -> Path:
    """Return a local file with the content of ``url``, fetching it unless the cache has it.

    Two processes that ask for the same file at once fetch it once. A broken transfer is continued, in this
    call and in later ones.

    Args:
        url: address with one of :data:`SCHEMES`; ``detectron2://`` as in detectron2's configs.
        cache_dir: where files are kept; :func:`cache_root` by default.
        progress: called with the bytes that are here and the bytes in all (or None).
        silent: servers to which no connection came about: added to here, and not asked again, so that many
            addresses of one server fail as quickly as one where there is no network.
        renew: ask the server about a file that the cache has, and fetch it again if there is another.

    Raises:
        Failure: ``checkpoint.missing`` when there is no such file, ``fetch.failed`` when it cannot be
            reached or something else was sent in its place, ``checkpoint.corrupt`` when it is not the file
            that its name promises, ``resource.disk`` when it cannot be written here, ``dependency.missing``
            when the scheme needs an extra.
    """
    final = cache_path(url, cache_dir)
    if is_here(final) and not renew:
        require_as_named(url, final)
        return final
    if urlsplit(url).scheme == "file":
        raise Failure("checkpoint.missing", f"{final} does not exist", details={"path": str(final)})
    silent = set() if silent is None else silent
    try:
        with _locked(final):
            if not final.exists() or (renew and is_outdated(url, cache_dir, silent)):
                _fill(url, final, progress or _ignore, silent)
    except TransferError as error:
        raise _unreachable(url, final, error) from error
    except OSError as error:
        raise Failure(
            "resource.disk",
            f"cannot write {final}: {error.strerror or error}",
            hint="free space or set ZOOPORT_CACHE",
        ) from error
    return final


def is_outdated(url: str, cache_dir: Path | None = None, silent: set[str] | None = None) -> bool:
    """Ask the server whether it has another file than the cache; what the cache has is not touched.

    Args:
        url: address, as for :func:`fetch`.
        cache_dir: where files are kept.
        silent: servers that are not asked again; those that give no answer are added.

    Raises:
        TransferError: it does not say.
        Failure: ``dependency.missing``.
        OSError: the cache has none.
    """
    final, source = cache_path(url, cache_dir), _resolved(url)
    with _asking(source, set() if silent is None else silent):
        told = describe(source).told
    if not is_current(final, told):
        return True
    remember(final, told)
    return False


def is_named_by_md5(path: Path) -> bool:
    """Return whether a file's name holds the first digits of its MD5, as those of detectron2's zoo do."""
    return _NAMED_BY_MD5.fullmatch(path.name) is not None


def require_as_named(url: str, path: Path) -> None:
    """Read a file if its name holds digits of its MD5, and compare them.

    Raises:
        Failure: ``checkpoint.corrupt``: they differ.
        OSError: it cannot be read.
    """
    if not _is_as_named(path, path.name):
        raise _corrupt(url, path, hint=f"remove {path} to have it fetched again")


def _fill(url: str, final: Path, progress: Progress, silent: set[str]) -> None:
    """Download, check, publish; what arrives damaged is fetched anew once."""
    source = _resolved(url)
    for _ in range(2):
        with _asking(source, silent):
            part, remote = download(source, final.parent, final.name, progress)
        _require_weights(url, part)
        if _is_as_named(part, final.name):
            part.replace(final)
            remember(final, remote.told)  # never before: an old file would pass for the new one
            return
        part.unlink()
    raise _corrupt(url, final, hint="it was removed; the server's file, or what lies between, is damaged")


@contextmanager
def _asking(source: str, silent: set[str]) -> Iterator[None]:
    """Ask no server that is known to be silent, and note which one turns out to be."""
    server = urlsplit(source).netloc
    if server in silent:
        raise TransferError(f"no connection to {server}")
    try:
        yield
    except TransferError as error:
        silent.update({server} if error.unconnected else ())
        raise


def _require_weights(url: str, part: Path) -> None:
    """Remove and refuse a page that a server sent, as if all were well, in place of the file."""
    with part.open("rb") as file:
        found = answered_instead(file.read(START))
    if found:
        part.unlink()
        raise Failure(
            "fetch.failed",
            f"cannot fetch {shown(url)}: the server sent {found} in place of weights",
            hint="open the address in a browser: it may want a login, or be of a page about the file",
            details={"url": shown(url), "refused": True},
        )


def _resolved(url: str) -> str:
    if not url.startswith("detectron2://"):
        return url
    host = os.environ.get("ZOOPORT_DETECTRON2_URL", DETECTRON2_HOST)
    return f"{host.rstrip('/')}/{url.removeprefix('detectron2://')}"


def _is_as_named(path: Path, name: str) -> bool:
    promised = _NAMED_BY_MD5.fullmatch(name)
    if promised is None:
        return True
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False))
    return digest.hexdigest().startswith(promised[1])


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    """Hold the right to fetch this file; waits for a process that is at it. Freed when the holder dies."""
    final.parent.mkdir(parents=True, exist_ok=True)
    with final.with_name(f".{final.name}.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _corrupt(url: str, path: Path, hint: str) -> Failure:
    return Failure(
        "checkpoint.corrupt",
        f"{path}: its MD5 does not begin with the digits in its name",
        hint=hint,
        details={"url": shown(url), "path": str(path)},
    )


def _unreachable(url: str, final: Path, error: TransferError) -> Failure:
    place = f"without network, place the file at {final}"
    older = f"{final} is not what is there now; to use it, name that file instead of the address"
    return Failure(
        "checkpoint.missing" if error.missing else "fetch.failed",
        f"cannot fetch {shown(url)}: {error}",
        hint=older if is_here(final) else place,
        details={"url": shown(url), "path": str(final), "refused": error.permanent},
    )


def _ignore(done: int, total: int | None) -> None:
    """Report nothing."""
