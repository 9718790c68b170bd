"""Questions to the registry: each is a few statements that indexes answer, however long the history."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from types import TracebackType
from typing import Self

from sqlalchemy import select

from zooport.export_core.failures import Failure
from zooport.export_core.places import Place as ArtifactPlace
from zooport.jobs.registry.activity import driver_of, run_state
from zooport.jobs.registry.database import Database, Place
from zooport.jobs.registry.details import detail
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.inventory import being_written, inventory, stored_artifacts
from zooport.jobs.registry.listing import list_exports, run_rows
from zooport.jobs.registry.names import resolve_export, resolve_run
from zooport.jobs.registry.records import (
    ExportDetail,
    ExportFilter,
    ExportRow,
    FailedExport,
    Inventory,
    RunRow,
    RunState,
    StoredArtifact,
    Success,
    UnfinishedExport,
    chunks,
)
from zooport.jobs.registry.remarks import Remark, remarks_of
from zooport.jobs.registry.resuming import begun_before, failed, known_baselines, successes, unfinished
from zooport.jobs.registry.schema import (
    runs,
)
from zooport.jobs.values import Status


class Reader:
    """All questions; :class:`~zooport.jobs.registry.writer.Registry` adds what changes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections; the registry is not used afterwards."""
        self._database.close()

    @property
    def url(self) -> str:
        """Where this registry is, as ``--registry`` takes it; a password is hidden."""
        return str(self._database.place)

    @property
    def is_default(self) -> bool:
        """Whether commands find this registry without ``--registry``."""
        return Place.parse(None) == self._database.place

    def exports(self, wanted: ExportFilter | None = None) -> list[ExportRow]:
        """Return the exports that pass the filter, oldest first."""
        wanted = wanted or ExportFilter()
        with self._database.reading() as connection:
            if wanted.run is not None:
                wanted = replace(wanted, run=resolve_run(connection, wanted.run))
            return list_exports(connection, wanted)

    def export(self, name: str) -> ExportDetail:
        """Return everything about one export.

        Args:
            name: its id; a beginning or an ending of it; "model/format" or a model, for the latest of these.

        Raises:
            Failure: ``registry.unknown`` when no export or more than one answers to the name.
        """
        with self._database.reading() as connection:
            return detail(connection, resolve_export(connection, name))

    def runs(self, limit: int | None = None) -> list[RunRow]:
        """Return the runs, newest first."""
        with self._database.reading() as connection:
            query = select(runs).order_by(runs.c.number.desc()).limit(limit)
            return run_rows(connection, connection.execute(query).all())

    def run(self, name: str) -> RunRow:
        """Return one run by its id, a beginning or an ending of it, or "latest".

        Raises:
            Failure: ``registry.unknown`` when no run or more than one answers to the name.
        """
        with self._database.reading() as connection:
            run = resolve_run(connection, name)
            return run_rows(connection, connection.execute(select(runs).where(runs.c.id == run)).all())[0]

    def remarks(self, run_id: str) -> list[Remark]:
        """Return what was remarked on the exports of a run."""
        with self._database.reading() as connection:
            return remarks_of(connection, run_id)

    def state(self, name: str = "latest") -> RunState:
        """Return how a run stands, by its id, a beginning or an ending of it, or "latest".

        Raises:
            Failure: ``registry.unknown`` when no run or more than one answers to the name.
        """
        with self._database.reading() as connection:
            return run_state(connection, resolve_run(connection, name))

    def driver(self, run_id: str) -> Driver:
        """Return the process that drives, or drove, a run."""
        with self._database.reading() as connection:
            return driver_of(connection.execute(select(runs).where(runs.c.id == run_id)).one())

    def is_cancel_requested(self, run_id: str) -> bool:
        """Return whether somebody asked for the run to be cancelled; cheap enough to ask every second.

        Raises:
            Failure: ``run.cancelled`` when the run is over, because somebody took its driver for dead.
        """
        query = select(runs.c.cancel_requested_at, runs.c.status).where(runs.c.id == run_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one_or_none()
        if row is not None and row.status != str(Status.RUNNING):
            raise Failure(
                "run.cancelled",
                f"{run_id} was closed while it was going on: somebody took this driver for dead",
                hint="a machine that sleeps gives no signs of life; zooport resume goes on with what is left",
            )
        return row is not None and row.cancel_requested_at is not None

    def has_run(self, run_id: str) -> bool:
        """Return whether there is a run of exactly this id."""
        with self._database.reading() as connection:
            return connection.execute(select(runs.c.id).where(runs.c.id == run_id)).first() is not None

    def artifacts(self, run_id: str | None = None) -> list[StoredArtifact]:
        """Return the artifacts that are to be on the disk: of every path the newest.

        Args:
            run_id: only what this run made or serves.
        """
        with self._database.reading() as connection:
            return stored_artifacts(connection, run_id)

    def being_written(self) -> set[ArtifactPlace]:
        """Return the directories of exports that living runs are at: what lies there may change."""
        with self._database.reading() as connection:
            return being_written(connection)

    def inventory(self, run_id: str | None = None) -> Inventory:
        """Return what tells a left-over directory from one that somebody needs."""
        with self._database.reading() as connection:
            return inventory(connection, run_id)

    def manifest(self, run_id: str) -> tuple[str, str]:
        """Return the path and the text of the manifest that a run was given."""
        query = select(runs.c.manifest_path, runs.c.manifest_text).where(runs.c.id == run_id)
        with self._database.reading() as connection:
            row = connection.execute(query).one()
        return row.manifest_path, row.manifest_text

    def find_success(self, key: str) -> Success | None:
        """Return the newest success of this content key; whether its artifact is intact is not looked at."""
        return next(iter(self.find_successes([key]).get(key, ())), None)

    def find_successes(self, keys: Collection[str]) -> dict[str, list[Success]]:
        """Return the successes of every content key that has some: one in each directory, newest first."""
        found: dict[str, list[Success]] = {}
        with self._database.reading() as connection:
            for chunk in chunks(keys):
                found |= successes(connection, chunk)
        return found

    def baseline(self, key: str) -> dict[str, float] | None:
        """Return the metrics of the newest successful baseline of this key, None if there is none."""
        return self.find_baselines([key]).get(key)

    def find_baselines(self, keys: Collection[str]) -> dict[str, dict[str, float]]:
        """Return the newest successful metrics of every baseline key that has some; a lost number is NaN."""
        found: dict[str, dict[str, float]] = {}
        with self._database.reading() as connection:
            for chunk in chunks(keys):
                found |= known_baselines(connection, chunk)
        return found

    def baselines_elsewhere(self, keys: Collection[str], run_id: str) -> dict[str, str]:
        """Return which of these baselines a run that began before this one is to measure: key -> that run.

        Runs whose driver is dead do not count.
        """
        found: dict[str, str] = {}
        with self._database.reading() as connection:
            for chunk in chunks(keys):
                for key, run in begun_before(connection, chunk, run_id):
                    if driver_of(run).is_alive(run.heartbeat_at):
                        found[key] = run.id
        return found

    def unfinished_exports(self, run_id: str) -> list[UnfinishedExport]:
        """Return what ``resume`` goes on with: exports of the run that never came to an end."""
        with self._database.reading() as connection:
            return unfinished(connection, run_id)

    def failed_exports(
        self,
        run: str | None = None,
        code_glob: str | None = None,
        *,
        include_unsupported: bool = False,
        include_cancelled: bool = True,
    ) -> list[FailedExport]:
        """Return what ``rerun --failed`` runs again: what ended badly and has not succeeded since.

        Args:
            run: only what ended badly in this run (as :meth:`run` takes it).
            code_glob: only failures whose code matches.
            include_unsupported: also refusals, although nothing changed for them.
            include_cancelled: also what was cancelled: a rerun that was interrupted goes on where it stopped.
        """
        statuses = [str(Status.FAILED)]
        statuses += [str(Status.UNSUPPORTED)] if include_unsupported else []
        statuses += [str(Status.CANCELLED)] if include_cancelled else []
        with self._database.reading() as connection:
            run_id = None if run is None else resolve_run(connection, run)
            return failed(connection, run_id, statuses, code_glob)
