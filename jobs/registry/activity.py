"""How a run stands at this moment: its counts, what its driver says is running, how long it will take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, Row, and_, func, select

from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.listing import run_rows
from zooport.jobs.registry.records import LIVE, LiveJob, RunRow, RunState, now, seconds_between
from zooport.jobs.registry.schema import attempts, exports, runs
from zooport.jobs.values import Status

#: Exports that have to be done before the rest can be estimated from them.
_ENOUGH = 3


def run_state(connection: Connection, run_id: str) -> RunState:
    """Return how a run stands."""
    row = connection.execute(select(runs).where(runs.c.id == run_id)).one()
    run = run_rows(connection, [row])[0]
    going = row.status == str(Status.RUNNING)
    moment = now()
    return RunState(
        run=run,
        running=_running(connection, row) if going else (),
        driver_alive=going and driver_of(row).is_alive(row.heartbeat_at),
        cancel_requested=row.cancel_requested_at,
        elapsed=seconds_between(row.created_at, row.finished_at or moment) or 0.0,
        remaining=_remaining(connection, run, moment) if going else None,
    )


def driver_of(row: Row[Any]) -> Driver:
    """Return the process that drives, or drove, a run."""
    return Driver(row.host, row.pid, row.process)


def _running(connection: Connection, run: Row[Any]) -> tuple[LiveJob, ...]:
    """What is running by the attempts, with the stages that the driver told last, and the baselines."""
    told = {job.export or job.model: job for job in _told(run.activity or ())}
    begun = and_(attempts.c.export_pk == exports.c.pk, attempts.c.number == exports.c.attempt)
    query = (
        select(exports.c.id, exports.c.model, exports.c.format, attempts.c.started_at)
        .join(attempts, begun)
        .where(exports.c.run_id == run.id, exports.c.status == str(Status.RUNNING))
        .order_by(attempts.c.started_at)
    )
    found = [
        LiveJob(
            export=row.id,
            model=row.model,
            what=row.format,
            stage=told[row.id].stage if row.id in told else "",
            started=row.started_at,
        )
        for row in connection.execute(query)
    ]
    return (*found, *(job for job in told.values() if job.export is None))


def _told(activity: Sequence[Mapping[str, Any]]) -> list[LiveJob]:
    return [LiveJob(**values) for values in activity]


def _remaining(connection: Connection, run: RunRow, moment: str) -> float | None:
    """Seconds until the run is done if it goes on as since its first attempt; None when it is too soon."""
    left = sum(run.counts.get(status, 0) for status in LIVE)
    done = and_(exports.c.run_id == run.id, ~exports.c.status.in_(LIVE), exports.c.source_pk.is_(None))
    query = (
        select(func.count(exports.c.pk.distinct()), func.min(attempts.c.started_at))
        .select_from(exports)
        .join(attempts, attempts.c.export_pk == exports.c.pk)
        .where(done, attempts.c.seconds > 0)
    )
    count, first = connection.execute(query).one()
    if count < _ENOUGH:
        return None
    return (seconds_between(first, moment) or 0.0) / int(count) * left
