"""Which artifacts the registry names, and where artifacts of its runs may lie."""

from __future__ import annotations

from collections.abc import Iterator

from sqlalchemy import Connection, and_, func, or_, select

from zooport.export_core.places import Place, stored_place
from zooport.jobs.registry.activity import driver_of
from zooport.jobs.registry.details import artifact_record
from zooport.jobs.registry.listing import OWNER
from zooport.jobs.registry.records import LIVE, Inventory, OutputRoot, StoredArtifact
from zooport.jobs.registry.schema import artifacts, exports, runs
from zooport.jobs.values import Status


def stored_artifacts(connection: Connection, run_id: str | None) -> list[StoredArtifact]:
    """Return the newest row of every artifact's path; with a run only where that run made or serves it."""
    newest = (
        select(artifacts.c.path, func.max(artifacts.c.export_pk).label("pk"))
        .group_by(artifacts.c.path)
        .subquery()
    )
    query = (
        select(exports.c.id, exports.c.model, exports.c.format, exports.c.latest, artifacts)
        .select_from(newest)
        .join(artifacts, and_(artifacts.c.export_pk == newest.c.pk, artifacts.c.path == newest.c.path))
        .join(exports, exports.c.pk == newest.c.pk)
        .order_by(artifacts.c.export_pk, artifacts.c.number)
    )
    if run_id is not None:
        query = query.where(exports.c.pk.in_(select(OWNER).where(exports.c.run_id == run_id)))
    served = select(exports.c.source_pk).where(exports.c.latest, exports.c.source_pk.is_not(None))
    serving = set(connection.execute(served).scalars())
    found = {
        row.path: StoredArtifact(
            export=row.id,
            model=row.model,
            format=row.format,
            is_latest=row.latest or row.export_pk in serving,
            record=artifact_record(row),
        )
        for row in connection.execute(query)
    }
    return list(found.values())


def inventory(connection: Connection, run_id: str | None) -> Inventory:
    """Return what tells a left-over directory from one that somebody needs; with a run only for that one."""
    live = live_runs(connection)
    return Inventory(
        roots=tuple(output_roots(connection, run_id)),
        formats=frozenset(connection.execute(select(exports.c.format).distinct()).scalars()),
        named=frozenset(named_paths(connection)),
        busy=frozenset(outputs_of(connection, live)),
        outputs=frozenset(outputs_of(connection, set() if run_id is None else {run_id})),
        values=frozenset(named_values(connection)),
        runs=frozenset(connection.execute(select(runs.c.id)).scalars()),
        live=frozenset(live),
    )


def named_paths(connection: Connection) -> set[Place]:
    """Return the directory of every artifact that any row names."""
    return {stored_place(path) for path in connection.execute(select(artifacts.c.path).distinct()).scalars()}


def output_roots(connection: Connection, run_id: str | None) -> list[OutputRoot]:
    """Return the directories below which artifacts were to be written, and how deep."""
    depths: dict[Place, int] = {}
    for model, output in _outputs(connection, run_id):
        parts = len(model.split("/"))
        root = output.parents[parts]
        depths[root] = max(depths.get(root, 0), parts + 1)
    return [OutputRoot(root, depth) for root, depth in sorted(depths.items(), key=lambda each: str(each[0]))]


def live_runs(connection: Connection) -> set[str]:
    """Return the runs whose driver lives."""
    query = select(runs).where(runs.c.status == str(Status.RUNNING))
    return {run.id for run in connection.execute(query) if driver_of(run).is_alive(run.heartbeat_at)}


def outputs_of(connection: Connection, run_ids: set[str]) -> set[Place]:
    """Return where the exports of these runs are written."""
    return {output for run_id in run_ids for _, output in _outputs(connection, run_id)}


def being_written(connection: Connection) -> set[Place]:
    """Return where exports are written that living runs have not come to the end of."""
    query = select(exports.c.job["output"].as_string()).where(
        exports.c.status.in_(LIVE), exports.c.run_id.in_(live_runs(connection))
    )
    return {stored_place(path) for path in connection.execute(query).scalars()}


def named_values(connection: Connection) -> set[Place]:
    """Return the files of eager models' values that the newest exports, and those of living runs, name."""
    current = or_(exports.c.latest, exports.c.run_id.in_(live_runs(connection)))
    query = select(exports.c.job["baseline_values"].as_string()).distinct().where(current)
    return {stored_place(path) for path in connection.execute(query).scalars() if path}


def _outputs(connection: Connection, run_id: str | None) -> Iterator[tuple[str, Place]]:
    query = select(exports.c.model, exports.c.job["output"].as_string()).distinct()
    if run_id is not None:
        query = query.where(exports.c.run_id == run_id)
    for model, output in connection.execute(query):
        yield model, stored_place(output)
