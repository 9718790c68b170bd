"""What planning asks: what is done already, what is to be run again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection, Row, Select, and_, func, select

from zooport.jobs.registry import globs
from zooport.jobs.registry.details import artifact_record, checkpoint_of
from zooport.jobs.registry.listing import metrics_of
from zooport.jobs.registry.outcomes import lost_its_driver
from zooport.jobs.registry.records import (
    LIVE,
    FailedExport,
    Success,
    UnfinishedExport,
    job_from_dict,
)
from zooport.jobs.registry.schema import (
    artifacts,
    attempts,
    baseline_metrics,
    baselines,
    checkpoints,
    exports,
    failures,
    runs,
)
from zooport.jobs.values import Status

_OPEN = (Status.CANCELLED, Status.FAILED)


def successes(connection: Connection, keys: list[str]) -> dict[str, list[Success]]:
    """Return the successes of each of these content keys that has some: the newest of each directory.

    The newest comes first. Equal checkpoints under two names, or in two outputs, have one key.
    """
    product = and_(artifacts.c.export_pk == exports.c.pk, artifacts.c.number == exports.c.attempt)
    newest = (
        select(func.max(exports.c.pk).label("pk"))
        .select_from(exports)
        .join(artifacts, product)
        .where(
            exports.c.content_key.in_(keys),
            exports.c.status == str(Status.SUCCEEDED),
            exports.c.source_pk.is_(None),
        )
        .group_by(exports.c.content_key, artifacts.c.path)
        .subquery()
    )
    shown = and_(attempts.c.export_pk == exports.c.pk, attempts.c.number == exports.c.attempt)
    query = (
        select(exports.c.id, exports.c.content_key, exports.c.attempt, attempts.c.seconds, artifacts)
        .select_from(newest)
        .join(exports, exports.c.pk == newest.c.pk)
        .join(attempts, shown)
        .join(artifacts, product)
        .order_by(exports.c.pk.desc())
    )
    chosen = select(exports.c.pk.label("owner"), exports.c.attempt).where(
        exports.c.pk.in_(select(newest.c.pk))
    )
    measured = metrics_of(connection, chosen)
    found: dict[str, list[Success]] = {}
    for row in connection.execute(query):
        success = Success(
            export_id=row.id,
            key=row.content_key,
            attempt=row.attempt,
            seconds=row.seconds or 0.0,
            artifact=artifact_record(row),
            metrics=measured.get((row.export_pk, row.number), {}),
        )
        found.setdefault(row.content_key, []).append(success)
    return found


def known_baselines(connection: Connection, keys: list[str]) -> dict[str, dict[str, float]]:
    """Return the newest metrics of each of these baseline keys that has some."""
    query = (
        select(baselines.c.key, baselines.c.run_id, baseline_metrics.c.name, baseline_metrics.c.value)
        .join(
            baseline_metrics,
            and_(
                baseline_metrics.c.run_id == baselines.c.run_id,
                baseline_metrics.c.key == baselines.c.key,
            ),
        )
        .where(baselines.c.key.in_(keys), baselines.c.status == str(Status.SUCCEEDED))
        .order_by(baselines.c.key, baselines.c.finished_at)
    )
    by_run: dict[str, tuple[str, dict[str, float]]] = {}
    for row in connection.execute(query):
        if row.key not in by_run or by_run[row.key][0] != row.run_id:
            by_run[row.key] = (row.run_id, {})
        by_run[row.key][1][row.name] = float("nan") if row.value is None else row.value
    return {key: values for key, (_, values) in by_run.items()}


def begun_before(connection: Connection, keys: list[str], run_id: str) -> list[tuple[str, Row[Any]]]:
    """Return (key, run) for each of these baselines that is open in a run which began before this one."""
    number = select(runs.c.number).where(runs.c.id == run_id).scalar_subquery()
    query = (
        select(baselines.c.key, runs)
        .join(runs, runs.c.id == baselines.c.run_id)
        .where(
            baselines.c.key.in_(keys),
            baselines.c.status.in_(LIVE),
            runs.c.status == str(Status.RUNNING),
            runs.c.number < number,
        )
    )
    return [(row.key, row) for row in connection.execute(query)]


def failed(
    connection: Connection, run_id: str | None, statuses: list[str], code_glob: str | None
) -> list[FailedExport]:
    """Return what ended with one of these statuses and has not succeeded since."""
    query = _ended(statuses, code_glob)
    if run_id is None:
        query = query.where(exports.c.latest.in_([True]))
    else:
        query = query.where(exports.c.run_id == run_id, ~_settled_since())
    rows = connection.execute(query.order_by(exports.c.pk)).all()
    return [_failed_export(row) for row in rows if code_glob is None or globs.matches(row.code, code_glob)]


def _ended(statuses: list[str], code_glob: str | None) -> Select[Any]:
    reason = and_(failures.c.export_pk == exports.c.pk, failures.c.number == exports.c.attempt)
    query = (
        select(
            exports.c.id,
            exports.c.run_id,
            exports.c.model,
            exports.c.format,
            exports.c.status,
            exports.c.attempt,
            exports.c.job,
            runs.c.manifest_path,
            failures.c.code,
            failures.c.message,
            checkpoints.c.name,
            checkpoints.c.config,
            checkpoints.c.weights,
            checkpoints.c.overrides,
            checkpoints.c.imports,
        )
        .join(runs, runs.c.id == exports.c.run_id)
        .join(checkpoints, checkpoints.c.id == exports.c.checkpoint_id)
        .join(failures, reason)
        .where(exports.c.status.in_(statuses))
    )
    return query if code_glob is None else query.where(globs.condition(exports.c.code, code_glob))


def unfinished(connection: Connection, run_id: str) -> list[UnfinishedExport]:
    """Return the exports of a run that never came to an end, neither in it nor in a newer run.

    Cancelled, or running when the driver died. What succeeded, failed by itself or was refused is at its end.
    """
    newest = exports.alias("newest")
    reason = and_(failures.c.export_pk == newest.c.pk, failures.c.number == newest.c.attempt)
    query = (
        select(
            exports.c.job,
            checkpoints,
            newest.c.id.label("newest_id"),
            newest.c.status,
            failures.c.code,
            failures.c.details,
        )
        .select_from(exports)
        .join(checkpoints, checkpoints.c.id == exports.c.checkpoint_id)
        .join(newest, and_(newest.c.target == exports.c.target, newest.c.latest))
        .outerjoin(failures, reason)
        .where(exports.c.run_id == run_id, newest.c.status.in_([*LIVE, *map(str, _OPEN)]))
        .order_by(exports.c.pk)
    )
    return [
        UnfinishedExport(job_from_dict(row.job, checkpoint_of(row)), row.newest_id)
        for row in connection.execute(query)
        if row.status != str(Status.FAILED) or lost_its_driver(row.code, row.details)
    ]


def _settled_since() -> Any:
    """True for an export whose target has succeeded, or is on its way, in a newer export."""
    newer = exports.alias("newer")
    settled = newer.c.status.in_([str(Status.SUCCEEDED), *LIVE])
    return (
        select(newer.c.pk)
        .where(newer.c.target == exports.c.target, newer.c.pk > exports.c.pk, newer.c.latest, settled)
        .exists()
    )


def _failed_export(row: Row[Any]) -> FailedExport:
    return FailedExport(
        id=row.id,
        run=row.run_id,
        model=row.model,
        format=row.format,
        status=row.status,
        code=row.code,
        message=row.message,
        attempt=row.attempt,
        manifest=row.manifest_path,
        job=job_from_dict(row.job, checkpoint_of(row)),
    )
