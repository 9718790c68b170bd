"""Where artifacts go: a directory of this machine, or one behind an address such as ``s3://bucket/zoo``."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from zooport.export_core.failures import Failure

_HINT = "give a folder, or an address that fsspec can write to, such as s3://bucket/folder"
# Nothing that lies there is seen by another process.
_PRIVATE = frozenset({"memory", "data", "reference"})
_READ_ONLY = frozenset({"http", "https", "detectron2"})


class RemotePath:
    """A directory or file behind an fsspec address, with the few members of a path that a run needs.

    It opens nothing; :meth:`filesystem` leads to what can.
    """

    __slots__ = ("_parts", "_root")

    def __init__(self, address: str) -> None:
        # Not urlsplit: a folder's name may hold what a query or a fragment begins with.
        scheme, _, rest = address.partition("://")
        root, *parts = rest.split("/")
        self._root = f"{scheme.lower()}://{root}"
        self._parts = tuple(part for part in parts if part)

    @property
    def name(self) -> str:
        """The last part."""
        return self._parts[-1] if self._parts else ""

    @property
    def stem(self) -> str:
        """The last part without its suffix."""
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        """The end of the last part, from its last dot on."""
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> RemotePath:
        """The directory that this lies in; the root is its own."""
        return self._with(self._parts[:-1])

    @property
    def parents(self) -> tuple[RemotePath, ...]:
        """All directories that this lies in, the nearest first, the root last."""
        return tuple(self._with(self._parts[:end]) for end in range(len(self._parts) - 1, -1, -1))

    def with_name(self, name: str) -> RemotePath:
        """Return the path with another last part."""
        return self.parent / name

    def relative_name(self, below: RemotePath) -> str:
        """Return the way from a directory above to this, with slashes."""
        return "/".join(self._parts[len(below._parts) :])

    def filesystem(self) -> tuple[Any, str]:
        """Return the fsspec file system and what this path is called there.

        Raises:
            Failure: ``dependency.missing`` when the scheme needs a package that is not installed.
        """
        from fsspec.core import url_to_fs

        try:
            return url_to_fs(str(self))  # type: ignore[no-any-return]
        except ImportError as error:
            raise _missing(self, error) from None

    def _with(self, parts: tuple[str, ...]) -> RemotePath:
        made = RemotePath.__new__(RemotePath)
        made._root, made._parts = self._root, parts
        return made

    def __truediv__(self, more: str) -> RemotePath:
        return self._with((*self._parts, *(part for part in str(more).split("/") if part)))

    def __str__(self) -> str:
        return "/".join((self._root, *self._parts))

    def __repr__(self) -> str:
        return f"RemotePath({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and str(self) == str(other)

    def __hash__(self) -> int:
        return hash(str(self))

    def __reduce__(self) -> tuple[Any, ...]:
        return RemotePath, (str(self),)


Place = Path | RemotePath
Identity = tuple[int, int] | RemotePath


def is_address(text: str) -> bool:
    """Return whether the text is an address and no path."""
    return "://" in text


def stored_place(text: str) -> Place:
    """Return the place that a registry has kept as text."""
    return RemotePath(text) if is_address(text) else Path(text)


def local(place: Place) -> Path:
    """Return a place that is known to be on this machine; TypeError for another."""
    if isinstance(place, RemotePath):
        raise TypeError(f"{place} is not on this machine")
    return place


def output_place(output: str | Path, base: Path) -> Place:
    """Return where artifacts are to go, from what a person wrote.

    Args:
        output: a path, or an address; ``file://`` is a path.
        base: what a relative path starts from.

    Raises:
        Failure: ``output.unwritable`` for an address that nothing can be kept at, ``dependency.missing``
            for one whose scheme needs a package that is not installed.
    """
    text = str(output)
    if isinstance(output, Path) or not is_address(text):
        return without_detours(base / expanded(text))
    try:
        parts = urlsplit(text)
    except ValueError as error:
        raise Failure("output.unwritable", f"{shown(text)}: {error}", hint=_HINT) from None
    if parts.scheme == "file":
        return without_detours(Path(unquote(parts.path)))
    problem = _problem(text, parts.scheme)
    if problem:
        raise Failure("output.unwritable", f"{shown(text)}: {problem}", hint=_HINT)
    if parts.password is not None:
        hint = "credentials belong where the storage's own tools look for them: environment or profile"
        raise Failure(
            "output.unwritable", f"{shown(text)}: a password in the address is kept nowhere", hint=hint
        )
    place = RemotePath(text)
    _check_scheme(place, parts.scheme)
    return place


def shown(address: str) -> str:
    """Return an address without what may be secret: user, password, signature."""
    try:
        parts = urlsplit(address)
    except ValueError:  # nobody knows which part is which
        return f"{address.partition('://')[0]}://..."
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}" if parts.scheme else address


def expanded(path: str | os.PathLike[str]) -> Path:
    """Return a path with its ``~``; that of a user who is not there is the name of a file like any other.

    Path's own would raise.
    """
    return Path(os.path.expanduser(path))  # noqa: PTH111


def without_detours(path: Path) -> Path:
    """Return a path that is absolute and has no ``..``, so that one file has one name wherever one stands.

    Links stay as they are written: they may lead elsewhere on another machine.
    """
    path = path.absolute()
    return path.resolve() if ".." in path.parts else path


def real(place: Place) -> Place:
    """Return a place as it is called when no link leads to it: what tells whether two are the same."""
    return place if isinstance(place, RemotePath) else Path(os.path.realpath(place))


def is_same(one: Place, other: Place) -> bool:
    """Return whether two places are one, which may have several names through links."""
    return one == other or real(one) == real(other)


def identity(place: Place) -> Identity | None:
    """Return what a directory or file is on its disk, whatever it is called; None where there is nothing."""
    if isinstance(place, RemotePath):
        return place  # it has no other name
    try:
        status = place.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _problem(text: str, scheme: str) -> str:
    if scheme in _PRIVATE:
        return f"what is kept under {scheme}:// is gone with the process that wrote it"
    if scheme in _READ_ONLY:
        return f"nothing can be written to {scheme}://"
    if "::" in text:
        return "chained addresses cannot be written to"
    return "" if scheme else "this address has no scheme"


def _check_scheme(place: RemotePath, scheme: str) -> None:
    from fsspec import get_filesystem_class

    try:
        get_filesystem_class(scheme)
    except ImportError as error:
        raise _missing(place, error) from None
    except ValueError:
        raise Failure("output.unwritable", f"{place}: unknown scheme {scheme}://", hint=_HINT) from None


def _missing(place: RemotePath, error: ImportError) -> Failure:
    scheme = str(place).partition("://")[0]
    extra = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs"}.get(scheme)
    hint = f"pip install 'zooport[{extra}]'" if extra else " ".join(str(error).split())
    return Failure("dependency.missing", f"{place}: {scheme}:// needs a package that is not here", hint=hint)
