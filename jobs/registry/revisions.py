"""Schema revisions through Alembic: make, upgrade, ask. Imported only where one of these is done."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine

from zooport.jobs.registry import schema
from zooport.jobs.registry.database import (
    Place,
    connect,
    exclude_others,
    prepare_place,
    read_revision,
    refuse_other_schema,
    revision_of,
    seconds_to_wait,
    typed_errors,
)


def upgrade(place: Place, engine: Engine, target: str = "head") -> tuple[str | None, str]:
    """Bring the schema to ``target`` in one transaction; return the revision before and after.

    Raises:
        Failure: ``registry.*`` as for opening; a schema newer than this code is refused.
    """
    with typed_errors(place):
        _use_write_ahead_log(engine)
        with engine.execution_options(zooport_write=True).begin() as connection:
            exclude_others(connection)
            # Asked inside the transaction: another process may have made the schema meanwhile.
            before = revision_of(place, connection)
            if before is not None and before > schema.HEAD:
                refuse_other_schema(place, before)
            command.upgrade(_config(connection), target)
            return before, revision_of(place, connection) or ""


def upgrade_registry(url: str | None) -> tuple[str, str | None, str]:
    """Bring a registry to the newest schema; return its place, and the revision before and after."""
    place, engine = _open(url, create=True)
    try:
        return str(place), *upgrade(place, engine)
    finally:
        engine.dispose()


def current(url: str | None) -> dict[str, str]:
    """Return where a registry is, its revision, the newest one, and what to do about the difference."""
    place, engine = _open(url, create=False)
    try:
        with typed_errors(place):
            revision = read_revision(place, engine)
    finally:
        engine.dispose()
    state = "current" if revision == schema.HEAD else "empty"
    if revision is not None and revision != schema.HEAD:
        state = "older: zooport db upgrade" if revision < schema.HEAD else "newer: upgrade zooport"
    return {"registry": str(place), "revision": revision or "", "newest": schema.HEAD, "state": state}


def _open(url: str | None, *, create: bool) -> tuple[Place, Engine]:
    place = Place.parse(url)
    prepare_place(place, create)
    return place, connect(place, seconds_to_wait(None))


def head() -> str:
    """Return the newest revision in ``migrations/versions``."""
    return ScriptDirectory.from_config(_config(None)).get_current_head() or ""


def _config(connection: Connection | None) -> Config:
    config = Config()
    config.set_main_option("script_location", "zooport:migrations")
    config.attributes["connection"] = connection
    return config


def _use_write_ahead_log(engine: Engine) -> None:
    if engine.dialect.name != "sqlite":
        return
    raw = engine.raw_connection()  # the mode cannot change inside a transaction
    try:
        raw.execute("PRAGMA journal_mode = WAL")
    finally:
        raw.close()
