"""What a person types for a run or an export: an id, a part of it, a model and a format."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection, Select, and_, or_, select

from zooport.export_core.failures import Failure
from zooport.jobs.registry import globs
from zooport.jobs.registry.schema import (
    exports,
    runs,
)


def resolve_export(connection: Connection, name: str) -> int:
    """Return the key of the one export that a person means by ``name``."""
    ids = exports.c.id
    steps = (
        select(exports.c.pk, ids).where(ids == name),
        select(exports.c.pk, ids).where(globs.starts_with(ids, name)),
        select(exports.c.pk, ids).where(ids.in_(_ids_ending_in(name))),
        _latest_of(name),
    )
    for step in steps if name else ():
        rows = connection.execute(step.limit(20)).all()
        if len(rows) == 1:
            return int(rows[0].pk)
        if rows:
            raise _unclear("export", name, [row.id for row in rows])
    newest = select(ids, exports.c.model, exports.c.format).where(exports.c.latest.in_([True]))
    known = connection.execute(newest.order_by(exports.c.pk.desc()).limit(1000)).all()
    names = [name for row in known for name in (row.model, f"{row.model}/{row.format}", row.id)]
    raise _unknown("export", name, names)


def _ids_ending_in(name: str) -> Select[Any]:
    # By way of the runs, which are few: "k3fx.7" is number 7 of a run whose id ends in "-k3fx".
    run, dot, number = name.rpartition(".")
    return select(runs.c.id + dot + number).where(runs.c.id.endswith(f"-{run}", autoescape=True))


def _latest_of(name: str) -> Select[Any]:
    # A model's name may hold slashes, a format's does not.
    model, _, export_format = name.rpartition("/")
    pair = and_(exports.c.model == model, exports.c.format == export_format)
    named = or_(exports.c.model == name, pair)
    return select(exports.c.pk, exports.c.id).where(exports.c.latest.in_([True]), named)


def resolve_run(connection: Connection, name: str) -> str:
    """Return the id of the one run that a person means by ``name``."""
    newest = select(runs.c.id).order_by(runs.c.number.desc())
    if name == "latest":
        found = connection.execute(newest.limit(1)).scalars().all()
        if found:
            return str(found[0])
        raise Failure("registry.unknown", "there is no run yet", hint="zooport submit makes one")
    near = or_(globs.starts_with(runs.c.id, name), runs.c.id.endswith(f"-{name}", autoescape=True))
    for step in (newest.where(runs.c.id == name), newest.where(near)) if name else ():
        found = connection.execute(step.limit(20)).scalars().all()
        if len(found) == 1:
            return str(found[0])
        if found:
            raise _unclear("run", name, found)
    raise _unknown("run", name, connection.execute(newest.limit(1000)).scalars().all())


def _unclear(what: str, name: str, found: Iterable[str]) -> Failure:
    some = list(found)
    return Failure(
        "registry.unknown",
        f"more than one {what} answers to {name!r}: " + ", ".join(some[:5]) + (", ..." if some[5:] else ""),
        hint="name one in full",
    )


def _unknown(what: str, name: str, known: Iterable[str]) -> Failure:
    near = difflib.get_close_matches(name, list(dict.fromkeys(known)), n=3, cutoff=0.4)
    command = "zooport list" if what == "export" else "zooport runs"
    hint = f"nearest: {', '.join(near)}" if near else f"{command} shows what there is"
    return Failure("registry.unknown", f"no {what} answers to {name!r}", hint=hint)
