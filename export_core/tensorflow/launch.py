"""How a process with TensorFlow is started: its import takes as long as a small export, so jobs share one.

A job asks a server that has imported TensorFlow and nothing of torch for a fork. The server is started by the
one that the job itself was forked from, and lives as long.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Protocol

from zooport.export_core.failures import Failure
from zooport.export_core.isolation import Forked, ForkServer
from zooport.export_core.isolation.child import Job, current_job
from zooport.export_core.isolation.client import has_room_for_a_socket
from zooport.export_core.tensorflow.settings import VARIABLES, environment

_START = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from zooport.export_core.tensorflow.child import main
main(int(sys.argv[2]), int(sys.argv[3]))
"""
_END_TIMEOUT = 10.0  # seconds for a process that was told to end
# TensorFlow's own server, beside the one that jobs are forked from.
_SERVER = "tf"
_PRELOAD = (
    "tensorflow",
    "zooport.export_core.tensorflow.child",
    "zooport.export_core.tensorflow.conversion",
    "zooport.export_core.tensorflow.running",
)
_HANDLER = "zooport.export_core.tensorflow.child:serve_forked"


class Handle(Protocol):
    """A process with TensorFlow."""

    pid: int

    def status(self) -> int | None:
        """Wait a while for its end; return what waitpid said, None if it has not ended."""

    def end(self) -> None:
        """Kill it; ending it twice does no harm."""


def start(threads: int) -> tuple[Connection, Handle]:
    """Start a process: in a job as a fork of a server that has imported TensorFlow, elsewhere by itself.

    Args:
        threads: compute threads; servers have one.
    """
    job = current_job()
    if job is not None and threads == 1 and has_room_for_a_socket(job.server / _SERVER):
        try:
            return _fork(job)
        except (OSError, Failure):
            traceback.print_exc()  # into the job's log; a process of its own tells better what is wrong
    return _spawn(threads)


def _fork(job: Job) -> tuple[Connection, Handle]:
    server = ForkServer(
        job.server / _SERVER,
        _PRELOAD,
        handler=_HANDLER,
        environment=VARIABLES,
        elder=ForkServer(job.server),
    )
    try:
        process = Forked(*server.fork())
    finally:
        server.close()
    connection = Connection(process.connection.detach())
    connection.send((str(job.log), sys.path, str(Path.cwd())))
    return connection, _Helper(job, process)


class _Helper:
    """A fork of TensorFlow's server, which is counted with the job that it works for."""

    def __init__(self, job: Job, process: Forked) -> None:
        self._job = job
        self._process = process
        self.pid = process.pid
        job.helped(self.pid, begins=True)

    def status(self) -> int | None:
        return self._process.status(_END_TIMEOUT)

    def end(self) -> None:
        self._process.kill()
        self._job.helped(self.pid, begins=False)


def _spawn(threads: int) -> tuple[Connection, Handle]:
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", _START, json.dumps(sys.path), str(theirs.fileno()), str(threads)],
            stdin=subprocess.DEVNULL,
            env=environment(threads),
            pass_fds=(theirs.fileno(),),
        )
    return Connection(ours.detach()), _Child(process)


class _Child:
    """A process that this one has started."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.pid = process.pid

    def status(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = self._process.wait(_END_TIMEOUT)
            return -code if code < 0 else code << 8
        return None

    def end(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self.status()
