"""``zooport status``, ``logs`` and ``cancel``: look at a run from another process, and stop it."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from zooport.export_core.failures import Failure
from zooport.export_core.places import RemotePath, stored_place
from zooport.jobs.output import OutputFormat, console, print_value, printable
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import LIVE, ExportFilter, ExportRow, RunState

if TYPE_CHECKING:
    from zooport.jobs.registry.reader import Reader
    from zooport.jobs.registry.writer import Registry

_REFRESH = 1.0  # seconds between two looks at a run or at a log
_STOPPED_WITHIN = 60.0  # seconds for a driver to stop what runs and to close its run
_FAILURES_SHOWN = 5
_LOG_LIMIT = 256 << 20  # bytes of a log that are fetched from an address


def print_status(url: str | None, run: str, output: OutputFormat, *, watch: bool = False) -> None:
    """Print how a run stands; with ``watch`` again and again until it is over.

    Raises:
        Failure: ``registry.unknown`` when not exactly one run answers to the name.
    """
    from zooport.jobs.status_page import status_page

    with open_registry(url, create=False) as registry:
        state = registry.state(run)
        if watch and state.is_going:
            state = _watch(registry, state.run.id)
        failures = _newest_failures(registry, state)
        print_value(state.to_dict(), output, lambda _: status_page(state, failures))


def _newest_failures(registry: Reader, state: RunState) -> list[str]:
    wanted = ExportFilter(run=state.run.id, statuses=("failed",), limit=_FAILURES_SHOWN)
    return [f"{row.model}  {row.format}  {row.code}: {row.message}" for row in registry.exports(wanted)]


def _watch(registry: Reader, run_id: str) -> RunState:
    """Show the run until it is over or its driver is dead; on a terminal in place, elsewhere line by line."""
    from rich.live import Live

    from zooport.jobs.status_page import status_line, status_page

    screen = console()
    state = registry.state(run_id)
    if not screen.is_terminal:
        said = ""
        while state.is_going and state.driver_alive:
            line = status_line(state)
            if line != said:
                said = line
                sys.stdout.write(line + "\n")
                sys.stdout.flush()
            time.sleep(_REFRESH)
            state = registry.state(run_id)
        return state
    with Live(console=screen, transient=True, auto_refresh=False) as live:
        while state.is_going and state.driver_alive:
            live.update(status_page(state, _newest_failures(registry, state), screen.height), refresh=True)
            time.sleep(_REFRESH)
            state = registry.state(run_id)
    return state


def print_log(url: str | None, name: str, *, follow: bool = False) -> None:
    """Print the log of an export's newest attempt.

    With ``follow`` as it grows until the export is over, that of another attempt after the one before it.

    Raises:
        Failure: ``registry.unknown``; ``log.missing`` when it is not on this machine.
    """
    with open_registry(url, create=False) as registry:
        row = registry.export(name).row
        follow = follow and row.status in LIVE
        if follow:
            row = _follow_log(registry, row)
        elif row.log is None:
            raise Failure(
                "log.missing", f"{row.id} has no log: it is {row.status}", hint="a log begins with an attempt"
            )
        log = None if row.log is None else stored_place(row.log)
        if isinstance(log, RemotePath):
            _print_remote(log)
        elif log is not None and not follow:
            if not log.exists():
                hint = "a job that was refused before it began writes none; another machine's lies there"
                raise Failure("log.missing", f"there is no log {log}", hint=hint)
            _print_from(log, 0)


def _follow_log(registry: Reader, row: ExportRow) -> ExportRow:
    """Print an export's logs on this machine as they grow, until it is over or its driver is dead."""
    log, position = row.log, 0
    while True:
        is_over = row.status not in LIVE
        if log is not None and isinstance(path := stored_place(log), Path):
            position = _print_from(path, position)
        if row.log != log:  # of another attempt; that of the one before is complete
            log, position = row.log, 0
            continue
        if is_over:
            return row
        state = registry.state(row.run)
        if state.is_going and not state.driver_alive:
            sys.stderr.write(f"zooport: the driver of {row.run} is dead; nothing will be added\n")
            return row
        time.sleep(_REFRESH / 2)
        row = registry.export(row.id).row


def _print_remote(log: RemotePath) -> None:
    """Print a log behind an address, which is stored there when its attempt is over."""
    from zooport.export_core.remote_artifacts import read_text

    try:
        content = read_text(log, _LOG_LIMIT)
    except OSError as error:
        hint = "it is stored when the attempt is over; one that was killed with its machine leaves none"
        raise Failure("log.missing", f"cannot read {log}: {error.strerror}", hint=hint) from None
    sys.stdout.write(printable(content))
    sys.stdout.flush()


def _print_from(path: Path, position: int) -> int:
    """Print what a file holds from a position on, and return where it ends now."""
    try:
        with path.open("rb") as file:
            if position > os.fstat(file.fileno()).st_size:
                position = 0  # begun anew by another attempt
            file.seek(position)
            # A log holds what models and libraries have said: nothing in it may command the terminal.
            sys.stdout.write(printable(file.read().decode("utf-8", "backslashreplace")))
            position = file.tell()
    except FileNotFoundError:
        return 0
    sys.stdout.flush()
    return position


def cancel(url: str | None, run: str, *, wait: bool = True) -> int:
    """Stop a run that another process drives, and wait until the registry says so.

    The driver is asked through the registry, which it looks at every second; on this machine it gets SIGTERM,
    too. A dead driver's run is closed.

    Args:
        url: the registry.
        run: the run.
        wait: return only when the run is over.

    Returns:
        The exit code: 0, also when the run was over before.

    Raises:
        Failure: ``registry.unknown``; ``run.conflict`` when the driver does not stop.
    """
    with open_registry(url, create=False) as registry:
        run_id = registry.run(run).id
        if not registry.request_cancel(run_id):
            sys.stdout.write(f"{run_id} is over: {registry.run(run_id).status}\n")
            return 0
        _signal(registry.driver(run_id))
        if not wait:
            sys.stdout.write(f"{run_id} was asked to stop\n")
            return 0
        state = _wait_for_end(registry, run_id)
        counts = ", ".join(f"{count} {status}" for status, count in state.run.counts.items() if count)
        sys.stdout.write(f"{run_id} is {state.run.status}: {counts}\n")
    return 0


def _signal(driver: Driver) -> None:
    if driver.host == Driver.current().host and driver.is_alive(None):
        try:
            os.kill(driver.pid, signal.SIGTERM)
        except ProcessLookupError:
            return  # it has ended meanwhile
        except PermissionError:
            return  # another user's: it finds the request in the registry


def _wait_for_end(registry: Registry, run_id: str) -> RunState:
    deadline = time.monotonic() + _STOPPED_WITHIN
    while (state := registry.state(run_id)).is_going:
        if not state.driver_alive:
            registry.recover_stale_runs()
        elif time.monotonic() > deadline:
            driver = registry.driver(run_id)
            raise Failure(
                "run.conflict",
                f"{run_id} was asked to stop, but its driver (process {driver.pid} on {driver.host}) goes on",
                hint="it may be on another machine or hang: look again with zooport status",
            )
        time.sleep(_REFRESH / 4)
    return state
