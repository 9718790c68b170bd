"""The one connection to the registry: where it is, how it is opened, and what its errors mean."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event, func, select
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from zooport.export_core.failures import Failure
from zooport.export_core.places import expanded
from zooport.jobs.registry import schema

DEFAULT = "sqlite:///zooport.db"
BUSY_TIMEOUT = 10.0
POSTGRES = "postgresql+psycopg"
#: Number of the advisory lock that a PostgreSQL transaction holds which must be alone; any number would do.
ONE_AT_A_TIME = 0x7A6F6F70
#: Tables whose presence tells a zooport registry from a stranger's database.
OWN_TABLES = {"runs", "exports", "attempts"}
#: Failures that may be over in a moment.
PASSING = ("registry.locked", "registry.unavailable")
_PAUSE = 0.5  # seconds between two tries


@dataclass(frozen=True)
class Place:
    """Where a registry is; ``file`` is None for a server."""

    url: URL
    file: Path | None

    @classmethod
    def parse(cls, url: str | None) -> Place:
        """Read a URL or a path; an SQLite file becomes absolute, so that a message names it in full."""
        text = url or os.environ.get("ZOOPORT_REGISTRY") or DEFAULT
        if "://" not in text:
            return cls._of_file(text)
        try:
            parsed = make_url(text)
        except ArgumentError as error:
            raise Failure(
                "registry.invalid", f"not a database URL: {text}", hint=f"e.g. {DEFAULT}"
            ) from error
        if parsed.drivername in {"postgres", "postgresql"}:
            parsed = parsed.set(drivername=POSTGRES)
        if parsed.get_backend_name() != "sqlite":
            return cls(parsed, None)
        if parsed.database in {None, "", ":memory:"}:
            raise Failure("registry.invalid", f"{text} names no file", hint=f"e.g. {DEFAULT}")
        return cls._of_file(str(parsed.database))

    @classmethod
    def _of_file(cls, path: str) -> Place:
        file = expanded(path).absolute()
        return cls(URL.create("sqlite", database=str(file)), file)

    def __str__(self) -> str:
        return self.url.render_as_string(hide_password=True)

    @property
    def name(self) -> str:
        """The file, or the URL of a server without its password."""
        return str(self.file or self)


class Database:
    """An open registry database: hands out connections inside transactions and types their errors."""

    def __init__(self, place: Place, engine: Engine) -> None:
        self.place = place
        self._engine = engine
        self._reader = engine
        if engine.dialect.name == "postgresql":
            # Several statements answer one question; SQLite shows them one state without being asked to.
            self._reader = engine.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True
            )
        self._writer = engine.execution_options(zooport_write=True)
        self._inode = _inode(place.file)
        #: Seconds to try again when the database is locked or away; a driver has results to lose.
        self.patience = 0.0

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of the registry."""
        with typed_errors(self.place), self._reader.connect() as connection, connection.begin():
            yield connection

    @contextmanager
    def writing(self, *, alone: bool = False) -> Iterator[Connection]:
        """One transaction; all of it is kept or none.

        On SQLite nobody else writes meanwhile. On PostgreSQL drivers write their own runs side by side, but
        for transactions that are to be ``alone``: those that look at other drivers' runs before they write.
        """
        self._check_file()
        with ExitStack() as stack:
            stack.enter_context(typed_errors(self.place))
            connection = self._begin(stack)
            if alone:
                exclude_others(connection)
            yield connection

    def _begin(self, stack: ExitStack) -> Connection:
        deadline = time.monotonic() + self.patience
        while True:
            try:
                with typed_errors(self.place):
                    return stack.enter_context(self._writer.begin())
            except Failure as failure:
                if failure.code not in PASSING or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE)

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()

    def _check_file(self) -> None:
        # SQLite goes on writing to a file that was deleted under it, and everything would be lost.
        if self.place.file is not None and _inode(self.place.file) != self._inode:
            raise Failure(
                "registry.missing",
                f"{self.place.name} was deleted or replaced while it was in use",
                hint="artifacts already published are kept; submit again to record them",
            )


def open_database(url: str | None, *, create: bool, busy_timeout: float | None = None) -> Database:
    """Connect, make the schema where there is none, and refuse one that this code does not read."""
    place = Place.parse(url)
    prepare_place(place, create)
    engine = connect(place, seconds_to_wait(busy_timeout))
    try:
        with typed_errors(place):
            revision = read_revision(place, engine)
        if revision is None and create:
            # Alembic takes long to import and is needed only here and in `zooport db`.
            from zooport.jobs.registry.revisions import upgrade

            upgrade(place, engine)
        elif revision is None:
            raise Failure(
                "registry.missing", f"{place.name} holds no registry yet", hint="zooport submit makes it"
            )
        else:
            refuse_other_schema(place, revision)
    except BaseException:
        engine.dispose()
        raise
    return Database(place, engine)


def connect(place: Place, busy_timeout: float) -> Engine:
    """Return an engine for the place; nothing is opened yet."""
    if place.file is None:
        return _connect_server(place, busy_timeout)
    uri = _uri(place.file)

    def open_file() -> sqlite3.Connection:
        return sqlite3.connect(
            uri, uri=True, timeout=busy_timeout, isolation_level=None, check_same_thread=False
        )

    engine = create_engine("sqlite://", creator=open_file)
    event.listen(engine, "connect", _prepare_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _connect_server(place: Place, busy_timeout: float) -> Engine:
    settings: dict[str, Any] = {"pool_pre_ping": True}  # a server that was restarted is joined again
    if place.url.drivername == POSTGRES:
        waits = {"lock_timeout": f"{busy_timeout:g}s", "client_encoding": "UTF8"}
        options = " ".join(f"-c {name}={value}" for name, value in waits.items())
        asked = place.url.query.get("options", "")
        settings["connect_args"] = {
            "connect_timeout": max(2, round(busy_timeout)),
            "options": f"{options} {asked if isinstance(asked, str) else ' '.join(asked)}".strip(),
            "application_name": "zooport",
        }
    try:
        return create_engine(place.url, **settings)
    except NoSuchModuleError as error:
        raise Failure(
            "registry.invalid", f"no such kind of database: {place}", hint=f"e.g. {DEFAULT}"
        ) from error
    except ModuleNotFoundError as error:
        package = "'zooport[postgres]'" if place.url.drivername == POSTGRES else error.name
        raise Failure(
            "dependency.missing", f"{place} needs the package {error.name}", hint=f"pip install {package}"
        ) from error


def exclude_others(connection: Connection) -> None:
    """Wait until no other transaction is alone, and be alone until this one ends; SQLite always is."""
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(ONE_AT_A_TIME)))


def _uri(file: Path) -> str:
    """Return what SQLite opens: no file that is not there, and for reading one that may not be written."""
    uri = f"file:{quote(str(file))}?mode="
    if os.access(file, os.W_OK) and os.access(file.parent, os.W_OK):
        return uri + "rw"
    # Without a log beside it nobody is writing; SQLite would want to make one only to read.
    return uri + ("ro" if Path(f"{file}-wal").exists() else "ro&immutable=1")


def _prepare_sqlite(connection: sqlite3.Connection, _record: Any) -> None:
    connection.execute("PRAGMA foreign_keys = ON")
    # With a write-ahead log this loses no transaction when a process dies, only the last ones in a power cut.
    connection.execute("PRAGMA synchronous = NORMAL")


def _begin_sqlite(connection: Connection) -> None:
    # A deferred transaction that turns into a write may fail at once with "locked"; this one waits its turn.
    write = connection.get_execution_options().get("zooport_write")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if write else "BEGIN")


def read_revision(place: Place, engine: Engine) -> str | None:
    """Return the schema's revision, or None for an empty database; a stranger's database is refused."""
    with engine.connect() as connection:
        return revision_of(place, connection)


def revision_of(place: Place, connection: Connection) -> str | None:
    """Return the schema's revision as this connection sees it."""
    names = set(connection.dialect.get_table_names(connection))
    if not names:
        return None
    if schema.version.name in names and names >= OWN_TABLES:
        found = connection.execute(select(schema.version.c.version_num)).scalars().all()
        if len(found) == 1:
            return str(found[0])
    raise Failure(
        "registry.invalid",
        f"{place.name} is a database, but not a zooport registry",
        hint="name another file with --registry",
    )


def refuse_other_schema(place: Place, revision: str) -> None:
    """Raise unless this is the revision that this code reads."""
    if revision == schema.HEAD:
        return
    if revision < schema.HEAD:
        message = f"{place.name} has schema {revision}, this zooport reads {schema.HEAD}"
        raise Failure("registry.outdated", message, hint=f"zooport db upgrade --registry {place}")
    raise Failure(
        "registry.outdated",
        f"{place.name} has schema {revision}, made by a newer zooport; this one reads {schema.HEAD}",
        hint="upgrade zooport: pip install --upgrade zooport",
    )


def prepare_place(place: Place, create: bool) -> None:
    """Say in words what opening an SQLite file would say in codes, and make an empty one where asked to."""
    file = place.file
    if file is None or (file.is_file() and file.stat().st_size > 0):
        return
    if file.is_dir():
        raise Failure("registry.unavailable", f"{file} is a directory", hint="name a file with --registry")
    if not create:
        if file.exists():
            return
        raise Failure("registry.missing", f"there is no registry at {file}", hint="zooport submit makes it")
    try:
        file.touch()
    except OSError as error:
        message = f"cannot make {file}: {error.strerror}"
        raise Failure("registry.unavailable", message, hint="name another file with --registry") from error


@contextmanager
def typed_errors(place: Place) -> Iterator[None]:
    """Turn the driver's errors into failures that name the place."""
    try:
        yield
    except PoolTimeout as error:
        raise Failure("registry.unavailable", f"{place.name}: too many connections") from error
    except DBAPIError as error:
        failure = _typed(place, error)
        if failure is None:
            raise
        raise failure from error


def _typed(place: Place, error: DBAPIError) -> Failure | None:
    cause = error.orig
    reason = " ".join(str(cause).split())
    name = str(getattr(cause, "sqlite_errorname", ""))
    if name.startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL")):
        hint = "try again when it is done, or wait longer: ZOOPORT_REGISTRY_TIMEOUT=60"
        return Failure("registry.locked", f"{place.name} is locked by another process", hint=hint)
    if name.startswith(("SQLITE_NOTADB", "SQLITE_CORRUPT")):
        hint = "name another file with --registry, or restore this one"
        return Failure("registry.invalid", f"{place.name} is not an SQLite database: {reason}", hint=hint)
    if name.startswith(("SQLITE_CANTOPEN", "SQLITE_READONLY", "SQLITE_PERM", "SQLITE_IOERR", "SQLITE_AUTH")):
        return Failure("registry.unavailable", f"{place.name}: {reason}", hint="check file and directory")
    if name.startswith("SQLITE_FULL"):
        return Failure("resource.disk", f"{place.name}: {reason}", hint="make room, then submit again")
    return _typed_by_server(place, error, reason) if place.file is None else None


def _typed_by_server(place: Place, error: DBAPIError, reason: str) -> Failure | None:
    """Type an error by its SQLSTATE (PostgreSQL manual, appendix A)."""
    state = str(getattr(error.orig, "sqlstate", None) or "")
    if state in {"55P03", "40001", "40P01"}:  # lock not available, serialization failure, deadlock
        hint = "try again when it is done, or wait longer: ZOOPORT_REGISTRY_TIMEOUT=60"
        return Failure("registry.locked", f"{place.name} is locked by another process", hint=hint)
    if state == "53100":
        return Failure("resource.disk", f"{place.name}: {reason}", hint="make room, then submit again")
    if state in {"42501", "25006"}:  # no privilege, read-only
        return Failure("registry.unavailable", f"{place.name}: {reason}", hint="ask for the right to write")
    if isinstance(error, OperationalError):
        return Failure("registry.unavailable", f"{place.name}: {reason}", hint="is the server there?")
    return None


def seconds_to_wait(asked: float | None) -> float:
    """Return how long to wait for another process's lock: as asked, as the environment says, or 10 s."""
    if asked is not None:
        return asked
    text = os.environ.get("ZOOPORT_REGISTRY_TIMEOUT", "")
    try:
        return float(text) if text else BUSY_TIMEOUT
    except ValueError as error:
        message = f"ZOOPORT_REGISTRY_TIMEOUT={text!r} is not a number of seconds"
        raise Failure("config.invalid", message) from error


def _inode(file: Path | None) -> tuple[int, int] | None:
    try:
        status = file.stat() if file is not None else None
    except FileNotFoundError:
        return None
    return None if status is None else (status.st_dev, status.st_ino)
