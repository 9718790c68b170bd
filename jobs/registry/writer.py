"""Changes to the registry: one transaction each, nothing overwritten that somebody may ask for.

Only the driver of a run writes. What a job comes to is written as it happens, so that a killed driver leaves
a registry that says what was running; :meth:`Registry.recover_stale_runs` closes such runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zooport.export_core.failures import FailureRecord
from zooport.export_core.places import Place, identity
from zooport.jobs.registry import beginnings, outcomes
from zooport.jobs.registry.database import Database
from zooport.jobs.registry.inventory import live_runs, named_paths, named_values, outputs_of
from zooport.jobs.registry.reader import Reader
from zooport.jobs.registry.records import LIVE, Delta, LiveJob, Success, chunks, new_run_id, text
from zooport.jobs.registry.schema import exports
from zooport.jobs.values import BaselineJob, BaselineResult, ExportJob, ExportResult, Status


class Registry(Reader):
    """The registry as a driver uses it: all questions of :class:`Reader`, and all changes."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._run: str | None = None

    def be_patient(self, seconds: float) -> None:
        """Try for this long to write when the database is locked or away, instead of failing at once."""
        self._database.patience = seconds

    def begin_run(
        self,
        manifest_path: str | Path,
        manifest_text: str,
        jobs: Sequence[ExportJob],
        baseline_jobs: Sequence[BaselineJob],
        *,
        kind: str = "submit",
        parent: str | None = None,
        cached: Mapping[str, Success] | None = None,
        run_id: str | None = None,
        replaces: Mapping[str, str] | None = None,
        refused: Mapping[str, FailureRecord] | None = None,
    ) -> str:
        """Record a run with all its exports, pending, or succeeded where an earlier success serves them.

        Runs whose driver is dead are closed first (:meth:`recover_stale_runs`).

        Args:
            manifest_path: whose models these are; with a model's name and a format it says of which earlier
                exports these are the successors.
            manifest_text: its content, for whoever asks later what was asked for.
            jobs: every export of the run; their ids are new (:func:`export_id`).
            baseline_jobs: the baselines that this run measures.
            kind: "submit", "rerun" or "resume".
            parent: the run that this one repeats or continues in part.
            cached: job id -> the success that makes running it needless.
            run_id: as :func:`new_run_id` makes it; None makes one.
            replaces: job id -> id of the export that it repeats, for a rerun over several manifests.
            refused: job id -> why it cannot even be tried; recorded with the run, so that nobody who takes
                over from a dead driver tries it.

        Returns:
            The run's id.

        Raises:
            Failure: ``run.conflict`` when a living driver runs the same manifest, or one of these exports.
        """
        beginning = beginnings.Beginning(
            run_id=run_id or new_run_id(),
            parent=parent,
            kind=kind,
            manifest_path=text(Path(manifest_path).absolute()),
            manifest_text=text(manifest_text),
            jobs=jobs,
            baselines=baseline_jobs,
            cached=cached or {},
            replaces=replaces or {},
        )
        with self._database.writing(alone=True) as connection:
            outcomes.close_stale_runs(connection)
            beginnings.insert_run(connection, beginning)
            for export_id, failure in (refused or {}).items():
                outcomes.refuse(connection, export_id, failure)
        self._run = beginning.run_id
        return beginning.run_id

    def start_attempt(self, export_id: str, worker: str = "", log: Place | None = None) -> int:
        """Record that an export is running; return the number of this attempt.

        Raises:
            LookupError: no such export, or it is neither pending nor failed in this run.
        """
        with self._database.writing() as connection:
            return outcomes.start(connection, outcomes.find(connection, export_id), worker, log)

    def finish_attempt(
        self,
        export_id: str,
        result: ExportResult,
        deltas: Mapping[str, Delta] | None = None,
        failure: FailureRecord | None = None,
        *,
        again: bool = False,
    ) -> Status:
        """Record what the running attempt came to, with artifact, metrics and failure, and return the status.

        A job that never started (refused while planning) gets its attempt here. A result that comes after the
        export was cancelled changes nothing.

        Args:
            export_id: the export.
            result: what the worker returned; its failure counts when ``failure`` is None.
            deltas: metric name -> baseline, exported and delta; metrics only in ``result`` are kept without.
            failure: the verdict on the deltas, or any other failure that the driver found.
            again: the attempt failed and another one will follow: the export is pending until then.
        """
        reason = failure or result.failure
        with self._database.writing() as connection:
            export = outcomes.find(connection, export_id)
            if export.status not in LIVE:
                return Status(export.status)
            number = export.attempt
            if export.status == str(Status.PENDING):
                number = outcomes.start(connection, export, "", None)
            return outcomes.finish(connection, export, number, result, deltas or {}, reason, again=again)

    def record_drift(self, export_id: str, report: Mapping[str, Any] | None, remark: str = "") -> None:
        """Record where the newest attempt at an export begins to drift, or remark why that is not known."""
        with self._database.writing() as connection:
            outcomes.keep_drift(connection, outcomes.find(connection, export_id), report, remark)

    def record_baseline(
        self,
        result: BaselineResult,
        run_id: str | None = None,
        *,
        log: Place | None = None,
        again: bool = False,
    ) -> None:
        """Record what evaluating an eager model came to, for all formats and runs that ask for its key.

        Args:
            result: metrics or failure.
            run_id: the run that measured it; None takes the one begun through this object.
            log: what was printed meanwhile.
            again: it failed, and will be tried again: only this try is over.

        Raises:
            LookupError: the run has no such baseline.
        """
        run = run_id or self._run
        with self._database.writing() as connection:
            if run is None or not outcomes.keep_baseline(connection, run, result, log, again=again):
                raise LookupError(f"run {run} has no baseline {result.key}")

    def cancel(self, target: str | Sequence[str]) -> int:
        """Cancel what is pending or running: of a whole run (its id) or these exports; return how many."""
        with self._database.writing() as connection:
            if isinstance(target, str):
                return outcomes.cancel(connection, exports.c.run_id == target)
            return sum(outcomes.cancel(connection, exports.c.id.in_(chunk)) for chunk in chunks(target))

    def finish_run(self, run_id: str, status: Status | None = None) -> Status:
        """Close a run; what is still open in it is cancelled.

        Args:
            run_id: the run.
            status: how it ended; None says cancelled if any export was, else failed if any, else succeeded.
        """
        with self._database.writing() as connection:
            return outcomes.close_run(connection, run_id, status)

    def heartbeat(self, run_id: str) -> None:
        """Say that the driver lives: other machines believe it for a quarter of an hour."""
        with self._database.writing() as connection:
            outcomes.beat(connection, run_id)

    def pulse(self, run_id: str, running: Sequence[LiveJob]) -> None:
        """Say that the driver lives, and what is running just now."""
        with self._database.writing() as connection:
            outcomes.pulse(connection, run_id, [job.to_dict() for job in running])

    def request_cancel(self, run_id: str) -> bool:
        """Ask the driver of a run to cancel it; return False if the run is over.

        This is the one change that somebody else than the driver makes to its run.
        """
        with self._database.writing() as connection:
            return outcomes.request_cancel(connection, run_id)

    @contextmanager
    def unnamed(self, paths: Sequence[Place]) -> Iterator[set[Place]]:
        """Yield which of these paths no artifact has and no export needs; no run begins within the block."""
        with self._database.writing(alone=True) as connection:
            taken = named_paths(connection) | outputs_of(connection, live_runs(connection))
            known = {identity(path) for path in taken | named_values(connection)} - {None}
            yield {path for path in paths if path not in taken and identity(path) not in known}

    def recover_stale_runs(self) -> list[str]:
        """Close runs whose driver is dead, and return their ids.

        What was running is failed as ``worker.crashed``, what was pending is cancelled: both may run again.
        Staging directories of their jobs are removed.
        """
        with self._database.writing(alone=True) as connection:
            return outcomes.close_stale_runs(connection)
