"""What a disposable process does: take one request from its connection, call the function, answer, end.

Everything it prints, in Python or below, goes to the log of its request. A crash leaves a stack trace there.
"""

from __future__ import annotations

import contextlib
import faulthandler
import importlib
import io
import os
import pickle
import signal
import socket
import struct
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, NoReturn

from zooport.export_core.diagnosis import diagnose, disk_failure
from zooport.export_core.failures import Failure, Stage

LENGTH = struct.Struct("!Q")
_CHUNK = 1 << 20


class Kind(Enum):
    """What a message from the process holds."""

    STAGE = "stage"
    HELPER = "helper"
    VALUE = "value"
    FAILURE = "failure"


@dataclass(frozen=True)
class Request:
    """One call: where to import from, where to write, and the pickled (function, arguments)."""

    import_path: tuple[str, ...]
    directory: str
    log: str
    call: bytes


@dataclass
class Job:
    """What this process was forked for.

    Attributes:
        log: the file that gets what it prints.
        server: directory of the server that forked it.
        helpers: processes that work for it and do not descend from it.
    """

    log: Path
    server: Path
    answer: _Answer
    helpers: set[int] = field(default_factory=set)

    def helped(self, process: int, *, begins: bool) -> None:
        """Have a process counted with this one, or no longer."""
        (self.helpers.add if begins else self.helpers.discard)(process)
        self.answer.send(Kind.HELPER, sorted(self.helpers))


_job: Job | None = None


def current_job() -> Job | None:
    """Return what this process was forked for, None in a process that is nobody's job."""
    return _job


def helpers() -> frozenset[int]:
    """Return the processes that work for this one's job and do not descend from it."""
    return frozenset() if _job is None else frozenset(_job.helpers)


def frame(message: bytes) -> bytes:
    """Return the message behind its length, as it travels."""
    return LENGTH.pack(len(message)) + message


def serve_one(connection: socket.socket, server: Path) -> NoReturn:
    """Answer the one request of this connection and end the process.

    Args:
        connection: to who asks.
        server: directory of the server that this process was forked from.
    """
    global _job  # noqa: PLW0603
    request: Request = pickle.loads(_receive(connection))  # noqa: S301 - from the process that started this one
    answer = _Answer(connection)
    _job = Job(Path(request.log), server, answer)
    try:
        redirect(Path(request.log))
    except OSError as error:
        answer.send(Kind.FAILURE, disk_failure(error, place=Path(request.log)))
        os._exit(0)
    _settle(request)
    answer.run(request.call)
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(0)


class _Answer:
    """The way back to the caller: stages as they begin, then the value or the failure."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self._stage: Stage | None = None

    def report(self, stage: Stage) -> None:
        """Tell the caller that a stage begins."""
        self._stage = stage
        sys.stderr.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} {stage}\n")
        self.send(Kind.STAGE, str(stage))

    def run(self, call: bytes) -> None:
        """Call the function and send what came of it; nothing is raised."""
        try:
            function, arguments = pickle.loads(call)  # noqa: S301 - from the process that started this one
            value = resolve(function)(*arguments, report=self.report)
            self.send(Kind.VALUE, value)
        except BaseException as error:
            traceback.print_exc()
            failure = error if isinstance(error, Failure) else diagnose(error, self._stage)
            if self._stage is not None:
                failure.at(self._stage)
            self.send(Kind.FAILURE, failure)

    def send(self, kind: Kind, content: object) -> None:
        """Send one message; a content that cannot be pickled raises before a byte is sent."""
        message = frame(pickle.dumps((kind, pickle.dumps(content))))
        with self._lock:
            self._connection.sendall(message)


def resolve(function: Callable[..., Any] | str) -> Callable[..., Any]:
    """Return the function that "package.module:name" names, or the one that was given."""
    if callable(function):
        return function
    module, _, name = function.partition(":")
    found: Any = importlib.import_module(module)
    for part in name.split("."):
        found = getattr(found, part)
    return found  # type: ignore[no-any-return]


def _receive(connection: socket.socket) -> bytes:
    (length,) = LENGTH.unpack(_read(connection, LENGTH.size))
    return _read(connection, length)


def _read(connection: socket.socket, size: int) -> bytes:
    parts = io.BytesIO()
    while parts.tell() < size:
        part = connection.recv(min(_CHUNK, size - parts.tell()))
        if not part:
            raise EOFError("the caller went away")
        parts.write(part)
    return parts.getvalue()


def redirect(log: Path) -> None:
    """Let everything that this process prints go to the log, and read nothing."""
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    with log.open("ab", buffering=0) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    # Streams of the server may be buffered or replaced; these write through.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = open(1, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115
    sys.stderr = open(2, "w", buffering=1, closefd=False, errors="backslashreplace")  # noqa: SIM115


def settle(import_path: Sequence[str], directory: str) -> None:
    """Look where the caller looks, and be the one that ends if anything goes wrong."""
    faulthandler.enable(file=2, all_threads=True)
    # The caller sends it at the deadline: the log then tells where the process hung, even in native code.
    faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
    sys.path[:] = import_path
    os.chdir(directory)
    with contextlib.suppress(OSError):  # who counts the jobs should not end where memory runs out
        Path("/proc/self/oom_score_adj").write_text("1000")


def _settle(request: Request) -> None:
    settle(request.import_path, request.directory)
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.set_num_interop_threads(1)
