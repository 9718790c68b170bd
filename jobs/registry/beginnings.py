"""How a run comes into the registry: refused if another driver is at it, linked to what it continues."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, func, insert, select, update

from zooport.export_core.failures import Failure
from zooport.export_core.places import real, stored_place
from zooport.export_core.sources import CheckpointSource
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import LIVE, Success, chunks, job_to_dict, now, plain, text
from zooport.jobs.registry.schema import baselines, checkpoints, exports, runs
from zooport.jobs.values import BaselineJob, ExportJob, Status


@dataclass(frozen=True)
class Beginning:
    """What :meth:`Registry.begin_run` was asked to record."""

    run_id: str
    parent: str | None
    kind: str
    manifest_path: str
    manifest_text: str
    jobs: Sequence[ExportJob]
    baselines: Sequence[BaselineJob]
    cached: Mapping[str, Success]
    replaces: Mapping[str, str]


def insert_run(connection: Connection, beginning: Beginning) -> None:
    """Record the run, its checkpoints, exports and baselines."""
    targets = _targets(connection, beginning)
    _refuse_conflict(connection, beginning, targets.values())
    _insert_driver(connection, beginning)
    sources = [job.checkpoint for job in beginning.jobs] + [job.checkpoint for job in beginning.baselines]
    known = _checkpoint_ids(connection, sources)
    _insert_exports(connection, beginning, targets, known)
    rows = [
        {
            "run_id": beginning.run_id,
            "key": job.key,
            "checkpoint_id": known[_digest(job.checkpoint)],
            "dataset": text(job.dataset.name),
            "status": str(Status.PENDING),
        }
        for job in beginning.baselines
    ]
    if rows:
        connection.execute(insert(baselines), rows)


def _targets(connection: Connection, beginning: Beginning) -> dict[str, str]:
    """Job id -> what stays the same from run to run; a repeated export keeps that of the first."""
    inherited: dict[str, str] = {}
    for chunk in chunks(list(beginning.replaces.values())):
        query = select(exports.c.id, exports.c.target).where(exports.c.id.in_(chunk))
        inherited |= {row.id: row.target for row in connection.execute(query)}
    lost = sorted(set(beginning.replaces.values()) - inherited.keys())
    if lost:
        raise LookupError(f"no export {lost[0]} to be replaced")
    return {
        job.id: inherited[beginning.replaces[job.id]]
        if job.id in beginning.replaces
        else _hash([beginning.manifest_path, job.checkpoint.name, job.format])
        for job in beginning.jobs
    }


def _refuse_conflict(connection: Connection, beginning: Beginning, targets: Iterable[str]) -> None:
    """Raise if a run that is still going has the same manifest or one of the same exports.

    Dead drivers' runs are closed before this is asked, so every run that is open is alive.
    """
    other, shared = _same_exports(connection, beginning, targets), ""
    if other is None:
        other, shared = _same_output(connection, beginning)
    if other is not None:
        also = f", writes {shared}, too," if shared else ""
        raise Failure(
            "run.conflict",
            f"run {other.id} of {other.manifest_path}{also} is still going:"
            f" process {other.pid} on {other.host}",
            hint=f"wait until it is done, or stop it: zooport cancel {other.id}",
            details={"run": other.id, "pid": other.pid, "host": other.host},
        )


def _same_exports(connection: Connection, beginning: Beginning, targets: Iterable[str]) -> Row[Any] | None:
    """Return a run that is still going with this manifest or with one of these exports."""
    live = runs.c.status == str(Status.RUNNING)
    query = select(runs).where(live, runs.c.manifest_path == beginning.manifest_path)
    found: Row[Any] | None = connection.execute(query).first()
    for chunk in chunks(list(targets)):
        if found is not None:
            break
        found = connection.execute(
            select(runs)
            .join(exports, exports.c.run_id == runs.c.id)
            .where(live, exports.c.target.in_(chunk), exports.c.status.in_(LIVE))
            .limit(1)
        ).first()
    return found


def _same_output(connection: Connection, beginning: Beginning) -> tuple[Row[Any] | None, str]:
    """Return a run that is writing where this one will, and the directory: two manifests may share it."""
    wanted = {real(job.output) for job in beginning.jobs}
    output = exports.c.job["output"].as_string()
    query = (
        select(exports.c.run_id, output.label("output"))
        .join(runs, runs.c.id == exports.c.run_id)
        .where(runs.c.status == str(Status.RUNNING), exports.c.status.in_(LIVE))
    )
    for row in connection.execute(query):
        if real(stored_place(row.output)) in wanted:
            owner = connection.execute(select(runs).where(runs.c.id == row.run_id)).one()
            return owner, row.output
    return None, ""


def _insert_driver(connection: Connection, beginning: Beginning) -> None:
    driver = Driver.current()
    moment = now()
    newest = connection.execute(select(func.max(runs.c.number))).scalar_one()
    row = {
        "id": beginning.run_id,
        "number": (newest or 0) + 1,
        "parent_id": beginning.parent,
        "kind": beginning.kind,
        "status": str(Status.RUNNING),
        "manifest_path": beginning.manifest_path,
        "manifest_text": beginning.manifest_text,
        "host": driver.host,
        "pid": driver.pid,
        "process": driver.process,
        "created_at": moment,
        "heartbeat_at": moment,
    }
    connection.execute(insert(runs).values(row))


def _checkpoint_ids(connection: Connection, sources: Sequence[CheckpointSource]) -> dict[str, int]:
    """Digest -> key of every checkpoint; those not known yet are inserted."""
    wanted = {_digest(source): source for source in sources}
    known = _known_checkpoints(connection, wanted)
    rows = [
        {
            "digest": digest,
            "name": text(source.name),
            "config": text(source.config),
            "weights": text(source.weights),
            "overrides": plain(source.overrides),
            "imports": list(source.imports),
        }
        for digest, source in wanted.items()
        if digest not in known
    ]
    if not rows:
        return known
    connection.execute(insert(checkpoints), rows)
    return _known_checkpoints(connection, wanted)


def _known_checkpoints(connection: Connection, digests: Mapping[str, Any]) -> dict[str, int]:
    known: dict[str, int] = {}
    for chunk in chunks(digests.keys()):
        query = select(checkpoints.c.digest, checkpoints.c.id).where(checkpoints.c.digest.in_(chunk))
        known |= {row.digest: row.id for row in connection.execute(query)}
    return known


def _insert_exports(
    connection: Connection, beginning: Beginning, targets: Mapping[str, str], known: Mapping[str, int]
) -> None:
    attempts = _supersede(connection, targets.values())
    served = _served_from(connection, beginning.cached.values())
    moment = now()
    rows = []
    for job in beginning.jobs:
        success = beginning.cached.get(job.id)
        target = targets[job.id]
        row = {
            "id": job.id,
            "run_id": beginning.run_id,
            "checkpoint_id": known[_digest(job.checkpoint)],
            "model": text(job.checkpoint.name),
            "format": job.format,
            "content_key": job.key,
            "target": target,
            "latest": True,
            "status": str(Status.PENDING if success is None else Status.SUCCEEDED),
            "attempt": attempts.get(target, 0) if success is None else success.attempt,
            "source_pk": None if success is None else served[success.export_id],
            "job": job_to_dict(job),
            "created_at": moment,
        }
        rows.append(row)
    if rows:
        connection.execute(insert(exports), rows)


def _supersede(connection: Connection, targets: Iterable[str]) -> dict[str, int]:
    """Make earlier exports of these targets history; return target -> number of its last attempt."""
    attempts: dict[str, int] = {}
    for chunk in chunks(list(targets)):
        query = select(exports.c.target, func.max(exports.c.attempt).label("attempt"))
        of_target = exports.c.target.in_(chunk)
        found = connection.execute(query.where(of_target).group_by(exports.c.target))
        attempts |= {row.target: row.attempt for row in found}
        connection.execute(update(exports).where(of_target, exports.c.latest).values(latest=False))
    return attempts


def _served_from(connection: Connection, successes: Iterable[Success]) -> dict[str, int]:
    keys: dict[str, int] = {}
    for chunk in chunks([success.export_id for success in successes]):
        query = select(exports.c.id, exports.c.pk).where(exports.c.id.in_(chunk))
        keys |= {row.id: row.pk for row in connection.execute(query)}
    return keys


def _digest(source: CheckpointSource) -> str:
    values = [source.name, text(source.config), text(source.weights), plain(source.overrides)]
    return _hash([*values, list(source.imports)] if source.imports else values)


def _hash(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
