"""Everything about one export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Row, and_, select

from zooport.export_core.places import stored_place
from zooport.export_core.sources import CheckpointSource
from zooport.jobs.registry.listing import OWNER, export_row, judged_anew, metrics_of, with_outcomes
from zooport.jobs.registry.records import (
    AttemptRow,
    BaselineRow,
    ExportDetail,
    job_from_dict,
)
from zooport.jobs.registry.schema import (
    VERIFIED_BY,
    artifacts,
    attempts,
    baseline_attempts,
    checkpoints,
    drifts,
    exports,
    failures,
    runs,
)
from zooport.jobs.values import ArtifactRecord, ExportJob


def detail(connection: Connection, pk: int) -> ExportDetail:
    """Return everything about the export of this key."""
    one = select(exports.c.pk, OWNER.label("owner"), exports.c.attempt).where(exports.c.pk == pk)
    row = connection.execute(with_outcomes(one)).one()
    measured = metrics_of(connection, one).get((row.owner, row.attempt), {})
    if row.source_pk is not None:
        measured = judged_anew(connection, {pk: measured})[pk]
    more = connection.execute(
        select(
            exports.c.target,
            exports.c.content_key,
            exports.c.job,
            runs.c.manifest_path,
            checkpoints,
        )
        .join(runs, runs.c.id == exports.c.run_id)
        .join(checkpoints, checkpoints.c.id == exports.c.checkpoint_id)
        .where(exports.c.pk == pk)
    ).one()
    shown = (row.owner, row.attempt)
    of_target = select(exports.c.id).where(exports.c.target == more.target)
    source = select(exports.c.id).where(exports.c.pk == row.source_pk)
    job = job_from_dict(more.job, checkpoint_of(more))
    return ExportDetail(
        row=export_row(row, measured),
        manifest=more.manifest_path,
        content_key=more.content_key,
        job=job,
        details=_details(connection, *shown),
        artifact=_artifact(connection, *shown),
        attempts=_attempts(connection, more.target, pk),
        newest=connection.execute(of_target.order_by(exports.c.pk.desc()).limit(1)).scalar_one(),
        source=connection.execute(source).scalar_one_or_none(),
        baseline=_baseline(connection, job.baseline),
        drift=_drift(connection, *shown),
        runtime=_runtime(connection, row.owner),
    )


def checkpoint_of(row: Row[Any]) -> CheckpointSource:
    """Return a row of ``checkpoints`` as a value."""
    return CheckpointSource(row.name, Path(row.config), Path(row.weights), row.overrides, tuple(row.imports))


def job_of(connection: Connection, pk: int) -> ExportJob:
    """Return the job of the export of this key."""
    query = (
        select(exports.c.job, checkpoints)
        .join(checkpoints, checkpoints.c.id == exports.c.checkpoint_id)
        .where(exports.c.pk == pk)
    )
    row = connection.execute(query).one()
    return job_from_dict(row.job, checkpoint_of(row))


def _details(connection: Connection, pk: int, number: int) -> dict[str, Any]:
    query = select(failures.c.details).where(failures.c.export_pk == pk, failures.c.number == number)
    return connection.execute(query).scalar_one_or_none() or {}


def _drift(connection: Connection, pk: int, number: int) -> dict[str, Any] | None:
    query = select(drifts.c.report).where(drifts.c.export_pk == pk, drifts.c.number == number)
    return connection.execute(query).scalar_one_or_none()


def _runtime(connection: Connection, pk: int) -> str | None:
    query = select(exports.c.job[VERIFIED_BY].as_string()).where(exports.c.pk == pk)
    return connection.execute(query).scalar_one_or_none()


def _artifact(connection: Connection, pk: int, number: int) -> ArtifactRecord | None:
    query = select(artifacts).where(artifacts.c.export_pk == pk, artifacts.c.number == number)
    row = connection.execute(query).one_or_none()
    return None if row is None else artifact_record(row)


def artifact_record(row: Row[Any]) -> ArtifactRecord:
    """Return a row of ``artifacts`` as a value."""
    return ArtifactRecord(stored_place(row.path), row.main_file, row.sha256, row.bytes, row.files)


def _attempts(connection: Connection, target: str, pk: int) -> tuple[AttemptRow, ...]:
    """All attempts at the target up to this export."""
    reason = and_(failures.c.export_pk == attempts.c.export_pk, failures.c.number == attempts.c.number)
    query = (
        select(attempts, exports.c.id, exports.c.run_id, failures.c.code, failures.c.message)
        .select_from(exports)
        .join(attempts, attempts.c.export_pk == exports.c.pk)
        .outerjoin(failures, reason)
        .where(exports.c.target == target, exports.c.pk <= pk)
        .order_by(exports.c.pk, attempts.c.number)
    )
    return tuple(
        AttemptRow(
            export=row.id,
            run=row.run_id,
            attempt=row.number,
            status=row.status,
            code=row.code,
            message=row.message,
            seconds=row.seconds,
            stages=row.stages,
            notes=tuple(row.notes),
            worker=row.worker,
            log=row.log,
            started=row.started_at,
            finished=row.finished_at,
            command=row.command,
        )
        for row in connection.execute(query)
    )


def _baseline(connection: Connection, key: str | None) -> tuple[BaselineRow, ...]:
    query = (
        select(baseline_attempts)
        .where(baseline_attempts.c.key == (key or ""))
        .order_by(baseline_attempts.c.finished_at, baseline_attempts.c.number)
    )
    return tuple(
        BaselineRow(
            run=row.run_id,
            attempt=row.number,
            status=row.status,
            code=(row.failure or {}).get("code"),
            message=(row.failure or {}).get("message"),
            seconds=row.seconds,
            log=row.log,
            finished=row.finished_at,
        )
        for row in connection.execute(query)
    )
