"""Runs a function in a disposable process, which may crash, hang or leak without harm to anything else.

The process is forked from a server that has imported torch (:mod:`zooport.export_core.isolation.server`), so
it costs milliseconds. It has its own session and process group, no standard input, a log instead of standard
output and error, and one compute thread. At a deadline, at its limit of memory, or when its caller goes away,
it is killed with everything that it started.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zooport.export_core.diagnosis import diagnose_exit, disk_failure, out_of_memory_kills, tail
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation.child import Request
from zooport.export_core.isolation.client import PRELOAD, ForkServer, default_server
from zooport.export_core.isolation.process import Cancellation, Forked, Limits, Process

__all__ = ["PRELOAD", "Cancellation", "ForkServer", "Forked", "Limits", "default_server", "run_isolated"]


def run_isolated(
    function: Callable[..., Any] | str,
    *args: Any,
    timeout: float | None,
    log: Path,
    on_stage: Callable[[Stage], None] | None = None,
    server: ForkServer | None = None,
    cancellation: Cancellation | None = None,
    deadlines: Mapping[str, float] | None = None,
    stage: Stage | None = None,
    memory: int = 0,
) -> Any:
    """Run ``function(*args, report=report)`` in a disposable process and return what it returns.

    Args:
        function: a function of a module's top level; or "package.module:name", imported only in the process.
        *args: its positional arguments; they and the value it returns can be pickled.
        timeout: seconds from the start of the process until it is killed, None for no deadline.
        log: the file that gets everything the process prints; it is appended to.
        on_stage: called with each :class:`Stage` that the function passes to ``report``, as it begins.
        server: where the process is forked; this process's own server when None.
        cancellation: kills the process when it is set.
        deadlines: stage -> seconds that it may take, counted from when the function reports it.
        stage: the one in which the process begins.
        memory: bytes that the process may hold with all that it starts
            (:func:`zooport.export_core.isolation.memory.held`), 0 for no limit.

    Raises:
        Failure: the one that the function raised; or ``worker.crashed`` with the signal or exit code,
            ``resource.timeout``, ``resource.memory``, ``resource.disk``, ``run.cancelled``, and for an
            exception of another kind ``export.failed`` in the export stage, ``worker.error`` in any other.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_failure(error, place=log.parent) from None
    request = Request(tuple(sys.path), str(Path.cwd()), str(log), pickle.dumps((function, args)))
    kills_before = out_of_memory_kills()
    connection, status = (server or default_server()).fork()
    process = Process(connection, status, on_stage, cancellation, stage)
    limits = Limits(timeout, deadlines or {}, memory)
    try:
        process.send(pickle.dumps(request))
        process.wait(limits)
    finally:
        process.end()
    if process.cancelled:
        raise Failure(
            "run.cancelled", "the job was stopped because its run was cancelled", stage=process.stage
        )
    stopped = _at_limit(process, limits, log)
    if stopped is not None:
        raise stopped
    if process.outcome is not None:
        return process.outcome.unpack()
    if process.exit_status is None:
        raise Failure(
            "worker.crashed", "the server of worker processes gave no process, or ended", stage=process.stage
        )
    starved = out_of_memory_kills() > kills_before
    raise diagnose_exit(process.exit_status, process.stage, log, starved=starved)


def _at_limit(process: Process, limits: Limits, log: Path) -> Failure | None:
    """Return the failure of a process that was stopped at a limit, None for one that was not."""
    doing = f" in stage {process.stage}" if process.stage else ""
    see = f"or see where it was in {log}"
    details: dict[str, Any] = {"log_tail": tail(log)}
    if process.expired:
        message, hint = f"stopped at the deadline of {limits.timeout:g} s{doing}", f"raise the timeout, {see}"
        return Failure("resource.timeout", message, stage=process.stage, hint=hint, details=details)
    if process.late is not None:
        message = f"stopped at the deadline of {process.late:g} s for stage {process.stage}"
        hint = f"raise the timeout of {process.stage}, {see}"
        details["stage_deadline"] = process.late
        return Failure("resource.timeout", message, stage=process.stage, hint=hint, details=details)
    if process.held is not None:
        message = f"stopped{doing} when it held {_mebibytes(process.held)}: its limit is"
        message += f" {_mebibytes(limits.memory)}"
        hint = f"give it more (memory: in the manifest), {see}"
        details |= {"held_bytes": process.held, "limit_bytes": limits.memory}
        return Failure("resource.memory", message, stage=process.stage, hint=hint, details=details)
    return None


def _mebibytes(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"
