"""Rows of exports and runs: two statements for any number of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, select

from zooport.export_core.evaluation.deltas import tolerance_of
from zooport.jobs.registry import globs
from zooport.jobs.registry.records import (
    ExportFilter,
    ExportRow,
    Metric,
    RunRow,
    chunks,
    seconds_between,
)
from zooport.jobs.registry.schema import (
    artifacts,
    attempts,
    checkpoints,
    exports,
    failures,
    metrics,
)

#: The export whose attempt is shown: its own, or for a cached one that of its source.
OWNER = func.coalesce(exports.c.source_pk, exports.c.pk)


def list_exports(connection: Connection, wanted: ExportFilter) -> list[ExportRow]:
    """Return the exports that pass the filter, oldest first; ``wanted.run`` is an id in full."""
    if wanted.limit is None:
        return _fetch(connection, wanted, None)
    found = _fetch(connection, wanted, wanted.limit)
    if len(found) < wanted.limit and not _is_decided_by_sql(wanted):
        found = _fetch(connection, wanted, None)
    return found[-wanted.limit :]


def _fetch(connection: Connection, wanted: ExportFilter, limit: int | None) -> list[ExportRow]:
    chosen = _chosen(wanted, limit)
    rows = connection.execute(with_outcomes(chosen)).all()
    measured = metrics_of(connection, chosen)
    measured_of = {row.pk: measured.get((row.owner, row.attempt), {}) for row in rows}
    served = [row.pk for row in rows if row.source_pk is not None]
    measured_of |= judged_anew(connection, {pk: measured_of[pk] for pk in served})
    found = [export_row(row, measured_of[row.pk]) for row in rows]
    return [row for row in found if _passes(row, wanted)]


def _is_decided_by_sql(wanted: ExportFilter) -> bool:
    return all(glob is None or globs.is_exact(glob) for glob in (wanted.format, wanted.model, wanted.code))


def _chosen(wanted: ExportFilter, limit: int | None) -> Select[Any]:
    """The newest exports that the filter lets through, or a few more: globs are approximated."""
    columns = exports.c
    query = select(columns.pk, OWNER.label("owner"), columns.attempt)
    narrowed = list(_conditions(wanted))
    if wanted.run is not None:
        query = query.where(columns.run_id == wanted.run)
    elif not wanted.everything:
        query = query.where(columns.latest.in_([True]))
    elif narrowed:
        # Always true, but the indexes begin with this column.
        query = query.where(columns.latest.in_([True, False]))
    query = query.where(*narrowed)
    return query if limit is None else query.order_by(columns.pk.desc()).limit(limit)


def _conditions(wanted: ExportFilter) -> Iterator[ColumnElement[bool]]:
    if wanted.statuses:
        yield exports.c.status.in_(wanted.statuses)
    if wanted.format is not None:
        yield globs.condition(exports.c.format, wanted.format)
    if wanted.code is not None:
        yield globs.condition(exports.c.code, wanted.code)
    if wanted.model is not None:
        # There are far fewer names than exports: the pattern is tried on those.
        names = select(checkpoints.c.name).where(globs.condition(checkpoints.c.name, wanted.model))
        yield exports.c.model.in_(names)


def _passes(row: ExportRow, wanted: ExportFilter) -> bool:
    pairs = ((row.format, wanted.format), (row.model, wanted.model), (row.code, wanted.code))
    return all(glob is None or globs.matches(value, glob) for value, glob in pairs)


def with_outcomes(chosen: Select[Any]) -> Select[Any]:
    """The columns of :class:`ExportRow` for the chosen exports."""
    selected = chosen.subquery()
    shown = and_(attempts.c.export_pk == selected.c.owner, attempts.c.number == selected.c.attempt)
    product = and_(artifacts.c.export_pk == selected.c.owner, artifacts.c.number == selected.c.attempt)
    reason = and_(failures.c.export_pk == selected.c.owner, failures.c.number == selected.c.attempt)
    return (
        select(
            exports.c.pk,
            exports.c.id,
            exports.c.run_id,
            exports.c.model,
            exports.c.format,
            exports.c.status,
            exports.c.attempt,
            exports.c.created_at,
            exports.c.source_pk,
            selected.c.owner,
            attempts.c.seconds,
            attempts.c.log,
            attempts.c.started_at,
            attempts.c.finished_at,
            artifacts.c.path,
            failures.c.code,
            failures.c.stage,
            failures.c.message,
            failures.c.hint,
            failures.c.retryable,
            failures.c.recorded_at,
        )
        .select_from(selected)
        .join(exports, exports.c.pk == selected.c.pk)
        .outerjoin(attempts, shown)
        .outerjoin(artifacts, product)
        .outerjoin(failures, reason)
        .order_by(exports.c.pk)
    )


def metrics_of(connection: Connection, chosen: Select[Any]) -> dict[tuple[int, int], dict[str, Metric]]:
    """The metrics of the chosen exports by (owner, attempt)."""
    selected = chosen.subquery()
    shown = and_(metrics.c.export_pk == selected.c.owner, metrics.c.number == selected.c.attempt)
    found: dict[tuple[int, int], dict[str, Metric]] = {}
    for row in connection.execute(select(metrics).select_from(selected).join(metrics, shown)):
        measured = found.setdefault((row.export_pk, row.number), {})
        measured[row.name] = Metric(
            row.baseline, row.exported, row.delta, row.low, row.high, row.tolerance, row.origin
        )
    return found


def judged_anew(
    connection: Connection, served: Mapping[int, Mapping[str, Metric]]
) -> dict[int, dict[str, Metric]]:
    """Return metrics with the tolerances of these exports' own jobs.

    What serves an export from an earlier success was judged by the tolerances of its time. Planning judges
    the recorded numbers again, by those in force, and serves it only if they pass.
    """
    found = {}
    for chunk in chunks(served.keys()):
        query = select(exports.c.pk, exports.c.job["tolerance"], exports.c.job["tolerance_origins"])
        for pk, points, origins in connection.execute(query.where(exports.c.pk.in_(chunk))):
            found[pk] = {name: _judged(name, each, points, origins) for name, each in served[pk].items()}
    return found


def _judged(
    name: str, metric: Metric, points: Mapping[str, float] | None, origins: Mapping[str, str] | None
) -> Metric:
    said = tolerance_of(name, points or {}, origins)
    return replace(
        metric, tolerance=None if said is None else said.points, origin=None if said is None else said.origin
    )


def export_row(row: Row[Any], measured: dict[str, Metric]) -> ExportRow:
    """Return a row of :func:`with_outcomes` as the value that leaves the registry."""
    return ExportRow(
        id=row.id,
        run=row.run_id,
        model=row.model,
        format=row.format,
        status=row.status,
        code=row.code,
        message=row.message,
        hint=row.hint or None,
        stage=row.stage or None,
        retryable=bool(row.retryable),
        cached=row.source_pk is not None,
        artifact=row.path,
        metrics=measured,
        attempt=row.attempt,
        seconds=row.seconds,
        log=row.log or None,
        created=row.created_at,
        started=row.started_at,
        finished=row.finished_at or row.recorded_at,
    )


def run_rows(connection: Connection, found: Iterable[Row[Any]]) -> list[RunRow]:
    """Return these rows of ``runs`` with the number of exports of each status."""
    rows = list(found)
    counts: dict[str, dict[str, int]] = {row.id: {} for row in rows}
    cached = dict.fromkeys(counts, 0)
    for chunk in chunks(counts):
        query = select(
            exports.c.run_id, exports.c.status, func.count(), func.count(exports.c.source_pk)
        ).where(exports.c.run_id.in_(chunk))
        for run, status, number, served in connection.execute(
            query.group_by(exports.c.run_id, exports.c.status)
        ):
            counts[run][status] = number
            cached[run] += served
    return [
        RunRow(
            id=row.id,
            parent=row.parent_id,
            kind=row.kind,
            status=row.status,
            manifest=row.manifest_path,
            counts=counts[row.id],
            cached=cached[row.id],
            created=row.created_at,
            finished=row.finished_at,
            seconds=seconds_between(row.created_at, row.finished_at),
            host=row.host,
            pid=row.pid,
        )
        for row in rows
    ]
