"""Runs a function in a disposable process, which may crash, hang or leak without harm to anything else.

The process is forked from a server that has imported torch (:mod:`zooport.export_core.isolation.server`), so
it costs milliseconds. It has its own session and process group, no standard input, a log instead of standard
output and error, and one compute thread. At its deadline, or when its caller goes away, it is killed with
everything that it started.
"""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zooport.export_core.diagnosis import diagnose_exit, disk_failure, out_of_memory_kills, tail
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation.child import Request
from zooport.export_core.isolation.client import PRELOAD, ForkServer, default_server
from zooport.export_core.isolation.process import Cancellation, Process

__all__ = ["PRELOAD", "Cancellation", "ForkServer", "default_server", "run_isolated"]


def run_isolated(
    function: Callable[..., Any] | str,
    *args: Any,
    timeout: float | None,
    log: Path,
    on_stage: Callable[[Stage], None] | None = None,
    server: ForkServer | None = None,
    cancellation: Cancellation | None = None,
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
    process = Process(connection, status, on_stage, cancellation)
    try:
        process.send(pickle.dumps(request))
        process.wait(timeout)
    finally:
        process.end()
    if process.cancelled:
        raise Failure(
            "run.cancelled", "the job was stopped because its run was cancelled", stage=process.stage
        )
    if process.expired:
        doing = f" in stage {process.stage}" if process.stage else ""
        raise Failure(
            "resource.timeout",
            f"stopped at the deadline of {timeout:g} s{doing}",
            stage=process.stage,
            hint=f"raise the timeout, or see where it was in {log}",
            details={"log_tail": tail(log)},
        )
    if process.outcome is not None:
        return process.outcome.unpack()
    if process.exit_status is None:
        raise Failure(
            "worker.crashed", "the server of worker processes gave no process, or ended", stage=process.stage
        )
    starved = out_of_memory_kills() > kills_before
    raise diagnose_exit(process.exit_status, process.stage, log, starved=starved)
