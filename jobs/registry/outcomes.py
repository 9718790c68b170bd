"""How exports and runs go on and end: started, finished, cancelled, or left behind by a dead driver."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, Select, and_, func, insert, select, update

from zooport.export_core.artifacts import discard
from zooport.export_core.failures import CODES, FailureRecord, Stage
from zooport.export_core.places import Place, stored_place
from zooport.jobs import reproduce
from zooport.jobs.registry.details import job_of
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import LIVE, Delta, Metric, finite, now, plain, seconds_between, text
from zooport.jobs.registry.schema import (
    VERIFIED_BY,
    artifacts,
    attempts,
    baseline_attempts,
    baseline_metrics,
    baselines,
    drifts,
    exports,
    failures,
    metrics,
    runs,
)
from zooport.jobs.values import ArtifactRecord, BaselineResult, ExportResult, Status

_NUMBERS = ("baseline", "exported", "delta", "low", "high", "tolerance")


def find(connection: Connection, export_id: str) -> Row[Any]:
    """Return key, run, status and attempt of an export."""
    columns = (exports.c.pk, exports.c.id, exports.c.run_id, exports.c.status, exports.c.attempt)
    query: Select[Any] = select(*columns).where(exports.c.id == export_id)
    # Locked until the transaction ends: another driver may be closing this run, which it takes for dead.
    row = connection.execute(query.with_for_update()).one_or_none()
    if row is None:
        raise LookupError(f"no export {export_id}")
    return row


def start(connection: Connection, export: Row[Any], worker: str, log: Place | None) -> int:
    """Insert the next attempt and return its number; a failed export may be tried again in its own run."""
    if export.status not in {str(Status.PENDING), str(Status.FAILED)}:
        raise LookupError(f"export {export.id} is {export.status}, not waiting for an attempt")
    number = int(export.attempt) + 1
    row = {
        "export_pk": export.pk,
        "number": number,
        "status": str(Status.RUNNING),
        "worker": text(worker),
        "log": text(log or _planned_log(connection, export.pk)),
        "started_at": now(),
        "stages": {},
        "notes": [],
    }
    connection.execute(insert(attempts).values(row))
    values = {"status": str(Status.RUNNING), "attempt": number, "code": None}
    connection.execute(update(exports).where(exports.c.pk == export.pk).values(values))
    beat(connection, export.run_id)
    return number


def _planned_log(connection: Connection, pk: int) -> str:
    return str(connection.execute(select(exports.c.job).where(exports.c.pk == pk)).scalar_one()["log"])


def finish(
    connection: Connection,
    export: Row[Any],
    number: int,
    result: ExportResult,
    deltas: Mapping[str, Delta],
    failure: FailureRecord | None,
    *,
    again: bool = False,
) -> Status:
    """Close attempt ``number`` with all that came out of it; with ``again`` the export waits for another."""
    status = status_of(failure)
    attempt = {
        "status": str(status),
        "seconds": finite(result.seconds),
        "finished_at": now(),
        "stages": plain(result.stages),
        "notes": plain(result.notes),
        "command": _command(connection, export.pk, failure),
    }
    row = (attempts.c.export_pk == export.pk) & (attempts.c.number == number)
    connection.execute(update(attempts).where(row).values(attempt))
    values = {"status": str(status), "code": None if failure is None else failure.code}
    if again:
        values = {"status": str(Status.PENDING), "code": None}
    connection.execute(update(exports).where(exports.c.pk == export.pk).values(values))
    if result.artifact is not None:
        _keep_artifact(connection, export.pk, number, result.artifact)
        _keep_runtime(connection, export.pk, result.artifact.runtime)
    _keep_metrics(connection, export.pk, number, result.metrics, deltas)
    if failure is not None:
        _keep_failures(connection, [(export.pk, number)], failure)
    beat(connection, export.run_id)
    return status


def _command(connection: Connection, pk: int, failure: FailureRecord | None) -> str | None:
    """Return what reproduces a failure; nothing does for a cancelled job and for one that was not begun."""
    if failure is None or failure.code == "run.cancelled" or failure.stage == Stage.PLAN:
        return None
    return text(reproduce.command(job_of(connection, pk), int(failure.details.get("limit_bytes", 0))))


def status_of(failure: FailureRecord | None) -> Status:
    """Return the status that an attempt with this failure ends in."""
    if failure is None:
        return Status.SUCCEEDED
    if failure.unsupported:
        return Status.UNSUPPORTED
    return Status.CANCELLED if failure.code == "run.cancelled" else Status.FAILED


def _keep_artifact(connection: Connection, pk: int, number: int, artifact: ArtifactRecord) -> None:
    row = {
        "export_pk": pk,
        "number": number,
        "path": text(artifact.path),
        "main_file": text(artifact.main_file),
        "sha256": artifact.sha256,
        "bytes": artifact.size,
        "files": plain(artifact.files),
    }
    connection.execute(insert(artifacts).values(row))


def _keep_runtime(connection: Connection, pk: int, runtime: str) -> None:
    """Note beside the job, which may leave the choice open, what verified the newest attempt's artifact."""
    if not runtime:
        return
    job = connection.execute(select(exports.c.job).where(exports.c.pk == pk)).scalar_one()
    noted = {**job, VERIFIED_BY: text(runtime)}
    connection.execute(update(exports).where(exports.c.pk == pk).values(job=noted))


def _keep_metrics(
    connection: Connection, pk: int, number: int, measured: Mapping[str, float], deltas: Mapping[str, Delta]
) -> None:
    rows: dict[str, Delta] = {name: Metric(None, value, None) for name, value in measured.items()}
    values = [
        {
            "export_pk": pk,
            "number": number,
            "name": text(name),
            **{each: finite(getattr(delta, each, None)) for each in _NUMBERS},
            "origin": None if (origin := getattr(delta, "origin", None)) is None else text(origin),
        }
        for name, delta in (rows | dict(deltas)).items()
    ]
    if values:
        connection.execute(insert(metrics), values)


def keep_drift(
    connection: Connection, export: Row[Any], report: Mapping[str, Any] | None, remark: str
) -> None:
    """Keep where a drift begins, and add a remark to the newest attempt."""
    if report is not None:
        row = {"export_pk": export.pk, "number": export.attempt, "report": plain(report)}
        connection.execute(insert(drifts).values(row))
    if remark:
        where = (attempts.c.export_pk == export.pk) & (attempts.c.number == export.attempt)
        notes = connection.execute(select(attempts.c.notes).where(where)).scalar_one()
        connection.execute(update(attempts).where(where).values(notes=[*notes, plain(remark)]))
    beat(connection, export.run_id)


def _keep_failures(connection: Connection, keys: Iterable[tuple[int, int]], failure: FailureRecord) -> None:
    common = {
        "code": failure.code,
        "stage": failure.stage,
        "message": text(failure.message),
        "hint": text(failure.hint),
        "retryable": failure.retryable,
        "details": plain(failure.details),
        "recorded_at": now(),
    }
    connection.execute(
        insert(failures), [{"export_pk": pk, "number": number, **common} for pk, number in keys]
    )


def keep_baseline(
    connection: Connection, run_id: str, result: BaselineResult, log: Place | None, *, again: bool
) -> bool:
    """Close a try of a baseline of the run and, unless there will be another one, the baseline itself.

    Returns:
        False if the run has no baseline of this key that is open.
    """
    status = Status.SUCCEEDED if result.failure is None else Status.FAILED
    values = {
        "status": str(status),
        "seconds": finite(result.seconds),
        "failure": None if result.failure is None else plain(result.failure.to_dict()),
        "finished_at": now(),
    }
    row = (baselines.c.run_id == run_id) & (baselines.c.key == result.key) & baselines.c.status.in_(LIVE)
    closed = update(baselines).where(row).values({"status": str(Status.RUNNING)} if again else values)
    if connection.execute(closed).rowcount != 1:
        return False
    of_this = (baseline_attempts.c.run_id == run_id) & (baseline_attempts.c.key == result.key)
    before = connection.execute(
        select(func.count()).select_from(baseline_attempts).where(of_this)
    ).scalar_one()
    more = {
        "run_id": run_id,
        "key": result.key,
        "number": before + 1,
        "log": "" if log is None else text(log),
    }
    connection.execute(insert(baseline_attempts).values(values | more))
    if again:
        beat(connection, run_id)
        return True
    rows = [
        {"run_id": run_id, "key": result.key, "name": text(name), "value": finite(value)}
        for name, value in result.metrics.items()
    ]
    if rows:
        connection.execute(insert(baseline_metrics), rows)
    beat(connection, run_id)
    return True


def beat(connection: Connection, run_id: str) -> None:
    """Note that the run's driver lives."""
    connection.execute(update(runs).where(runs.c.id == run_id).values(heartbeat_at=now()))


def pulse(connection: Connection, run_id: str, activity: Sequence[Mapping[str, Any]]) -> None:
    """Note that the run's driver lives, and what it says is running."""
    values = {"heartbeat_at": now(), "activity": plain(activity)}
    connection.execute(update(runs).where(runs.c.id == run_id).values(values))


def request_cancel(connection: Connection, run_id: str) -> bool:
    """Ask the run's driver to cancel it; return False if the run is over."""
    still_going = (runs.c.id == run_id) & (runs.c.status == str(Status.RUNNING))
    asked = update(runs).where(still_going).values(cancel_requested_at=now())
    return connection.execute(asked).rowcount == 1


def refuse(connection: Connection, export_id: str, failure: FailureRecord) -> None:
    """Close an export that cannot be tried, with an attempt that says why."""
    export = find(connection, export_id)
    number = start(connection, export, "", None)
    finish(connection, export, number, ExportResult(export_id, 0.0), {}, failure)


def cancel(connection: Connection, which: ColumnElement[bool]) -> int:
    """Cancel those of the exports that are pending or running; return how many."""
    record = _record("run.cancelled", "the run was cancelled before this export was done")
    return sum(_settle(connection, which, status, record) for status in LIVE)


def close_run(connection: Connection, run_id: str, status: Status | None) -> Status:
    """Cancel what is open in the run, and close it with this status or the one that its exports add up to."""
    cancel(connection, exports.c.run_id == run_id)
    still_open = (baselines.c.run_id == run_id) & baselines.c.status.in_(LIVE)
    connection.execute(update(baselines).where(still_open).values(status=str(Status.CANCELLED)))
    ended = status or _sum_up(connection, run_id)
    moment = now()
    values = {"status": str(ended), "finished_at": moment, "heartbeat_at": moment, "activity": []}
    if connection.execute(update(runs).where(runs.c.id == run_id).values(values)).rowcount != 1:
        raise LookupError(f"no run {run_id}")
    return ended


def _sum_up(connection: Connection, run_id: str) -> Status:
    """What the worst export says; a refusal of what is unsupported is no failure of the run."""
    query = select(exports.c.status, func.count()).where(exports.c.run_id == run_id)
    found = {status for status, _ in connection.execute(query.group_by(exports.c.status))}
    worst = (status for status in (Status.CANCELLED, Status.FAILED) if str(status) in found)
    return next(worst, Status.SUCCEEDED)


def close_stale_runs(connection: Connection) -> list[str]:
    """Close the runs whose driver is dead; return their ids.

    What their workers have half-written is removed before the runs are closed: if this process dies in
    between, the next one begins again. A worker that outlives its driver finds nothing to publish then.
    """
    closed = []
    query = select(runs).where(runs.c.status == str(Status.RUNNING)).order_by(runs.c.number)
    for run in connection.execute(query).all():
        if Driver(run.host, run.pid, run.process).is_alive(run.heartbeat_at):
            continue
        _discard_staged(connection, run.id)
        message = f"the driver of this run (process {run.pid} on {run.host}) died while this was running"
        crashed = _record("worker.crashed", message, driver=run.pid, host=run.host)
        _settle(connection, exports.c.run_id == run.id, str(Status.RUNNING), crashed)
        close_run(connection, run.id, Status.CANCELLED)
        closed.append(run.id)
    return closed


def lost_its_driver(code: str | None, details: Mapping[str, Any] | None) -> bool:
    """Return whether this failure was recorded by :func:`close_stale_runs`: the job itself did not fail."""
    return code == "worker.crashed" and "driver" in (details or {})


def _discard_staged(connection: Connection, run_id: str) -> None:
    # What is pending has not begun or waits for another try; what succeeded or was refused has left nothing.
    begun = exports.c.status.in_([str(Status.RUNNING), str(Status.FAILED), str(Status.CANCELLED)])
    query = select(exports.c.id, exports.c.job["output"].as_string()).where(
        exports.c.run_id == run_id, begun, exports.c.source_pk.is_(None)
    )
    for export_id, output in connection.execute(query):
        discard(stored_place(output), export_id)


def _settle(connection: Connection, which: ColumnElement[bool], status: str, failure: FailureRecord) -> int:
    """Close the exports that have this status, and their running attempts, with a failure."""
    query = select(exports.c.pk, exports.c.attempt).where(which, exports.c.status == status)
    found = [(row.pk, row.attempt) for row in connection.execute(query)]
    if not found:
        return 0
    if status == str(Status.PENDING):
        found = _with_attempts_that_never_were(connection, which, found, failure)
    _keep_failures(connection, found, failure)
    ended = str(status_of(failure))
    if status == str(Status.RUNNING):
        _close_attempts(connection, found, failure)
    values = {"status": ended, "code": failure.code}
    connection.execute(update(exports).where(which, exports.c.status == status).values(values))
    return len(found)


def _with_attempts_that_never_were(
    connection: Connection,
    which: ColumnElement[bool],
    found: Sequence[tuple[int, int]],
    failure: FailureRecord,
) -> list[tuple[int, int]]:
    """Give exports that waited for another attempt one that ends before it begins; return all with numbers.

    Their last attempt has a failure already, and that one stays what it was.
    """
    reason = and_(failures.c.export_pk == exports.c.pk, failures.c.number == exports.c.attempt)
    query = select(exports.c.pk).join(failures, reason).where(which, exports.c.status == str(Status.PENDING))
    waited = set(connection.execute(query).scalars())
    moment = now()
    for pk, number in found:
        if pk not in waited:
            continue
        row = {
            "export_pk": pk,
            "number": number + 1,
            "status": str(status_of(failure)),
            "worker": "",
            "log": text(_planned_log(connection, pk)),
            "started_at": moment,
            "finished_at": moment,
            "seconds": 0.0,
            "stages": {},
            "notes": [],
        }
        connection.execute(insert(attempts).values(row))
        connection.execute(update(exports).where(exports.c.pk == pk).values(attempt=number + 1))
    return [(pk, number + (pk in waited)) for pk, number in found]


def _close_attempts(connection: Connection, keys: Iterable[tuple[int, int]], failure: FailureRecord) -> None:
    moment = now()
    # When a dead driver's attempt ended is not known.
    is_timed = failure.code != "worker.crashed"
    for pk, number in keys:
        row = (attempts.c.export_pk == pk) & (attempts.c.number == number)
        started = connection.execute(select(attempts.c.started_at).where(row)).scalar_one()
        seconds = seconds_between(started, moment) if is_timed else None
        values = {
            "status": str(status_of(failure)),
            "finished_at": moment,
            "seconds": seconds,
            "command": _command(connection, pk, failure),
        }
        connection.execute(update(attempts).where(row).values(values))


def _record(code: str, message: str, **details: Any) -> FailureRecord:
    hint = "submit the manifest again: what is done is not repeated"
    return FailureRecord(code, "", message, hint, CODES[code].retryable, details)
