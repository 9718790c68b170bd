"""A disposable process as its caller sees it: messages on one side, its end on the other."""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation import memory
from zooport.export_core.isolation.child import LENGTH, Kind, frame
from zooport.export_core.isolation.server import STATUS, kill_group

_START_TIMEOUT = 180.0  # seconds for the process to begin; the server may still be importing
_TRACE_TIME = 0.2  # seconds a hanging process gets to write its stack trace to the log
_SIGNAL_TIME = 3.0  # seconds more until the signal for it has arrived; a busy machine may take that long
_LOOK = 0.2  # seconds between two looks at the memory that a process holds
_KILL_TIMEOUT = 10.0  # seconds for a killed process to be gone; a disk that hangs takes longer


@dataclass(frozen=True)
class Outcome:
    """The last message of a process, still pickled."""

    kind: Kind
    content: bytes

    def unpack(self) -> Any:
        """Return the value, or raise the failure."""
        try:
            content = pickle.loads(self.content)  # noqa: S301 - from a process that ran our own function
        except Exception as error:
            raise Failure("worker.error", f"the result cannot be read back: {one_line(error)}") from error
        if self.kind is Kind.FAILURE:
            raise content
        return content


@dataclass(frozen=True)
class Limits:
    """What a process may take.

    Attributes:
        timeout: seconds from its start until it is killed, None for no deadline.
        deadlines: stage -> seconds that it may take.
        memory: bytes that it may hold with all that it starts, 0 for no limit.
    """

    timeout: float | None = None
    deadlines: Mapping[str, float] = field(default_factory=dict)
    memory: int = 0


class Cancellation:
    """A wish, from any thread, that the processes which watch it be killed; it stays."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        self._lock = threading.Lock()
        self.is_set = False

    def set(self) -> None:
        """Kill what watches; setting it again changes nothing."""
        with self._lock:
            if not self.is_set:
                self.is_set = True
                os.close(self._writer)  # who polls the reader sees its end

    def fileno(self) -> int:
        """Return the descriptor to poll."""
        return self._reader


class Process:
    """A disposable process as its caller sees it: messages on one side, its end on the other."""

    def __init__(
        self,
        connection: socket.socket,
        status: int,
        on_stage: Callable[[Stage], None] | None,
        cancellation: Cancellation | None,
        stage: Stage | None = None,
    ) -> None:
        self.stage = stage
        self.outcome: Outcome | None = None
        self.exit_status: int | None = None
        self.expired = False  # the whole time is up
        self.late: float | None = None  # the seconds that the stage it is in may take are up
        self.held: int | None = None  # bytes that were too many
        self.cancelled = False
        self._entered = 0.0
        self._connection = connection
        self._status = status
        self._on_stage = on_stage
        self._pid: int | None = None
        self._helpers: list[int] = []  # processes that work for it and do not descend from it
        self._received = bytearray()
        self._poll = select.poll()
        self._poll.register(connection, select.POLLIN)
        self._poll.register(status, select.POLLIN)
        self._status_open = True
        self._cancel = -1 if cancellation is None else cancellation.fileno()
        if cancellation is not None:
            self._poll.register(cancellation, select.POLLIN)

    def send(self, request: bytes) -> None:
        """Send the request; a process that died already is noticed by :meth:`wait`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self._connection.sendall(frame(request))
        self._connection.setblocking(False)

    def wait(self, limits: Limits) -> None:
        """Return when there is an outcome, when the process has ended, or when it is at one of its limits."""
        if not self._until(lambda: self._pid is not None, time.monotonic() + _START_TIMEOUT):
            return
        if self._pid is None:
            return
        self._entered = time.monotonic()
        end = math.inf if limits.timeout is None else self._entered + limits.timeout
        while not self._is_over() and not self._is_at(limits, end):
            stage, look = self.stage, time.monotonic() + _LOOK if limits.memory else math.inf
            self._until(
                lambda stage=stage: self._is_over() or self.stage is not stage,  # type: ignore[misc]
                min(end, self._end_of_stage(limits), look),
            )
        if not self._is_over():  # the log then tells where it was
            self._let_trace(self._pid)

    def _let_trace(self, pid: int) -> None:
        """Have the process write where it is, and give it the time."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGUSR1)
        end = time.monotonic() + _SIGNAL_TIME
        while self._status_open and time.monotonic() < end and _is_on_its_way(pid, signal.SIGUSR1):
            self._until(lambda: False, time.monotonic() + _LOOK / 10)
        self._until(lambda: False, time.monotonic() + _TRACE_TIME)

    def _is_over(self) -> bool:
        return self.outcome is not None or self.cancelled or not self._status_open

    def _is_at(self, limits: Limits, end: float) -> bool:
        """Whether the process is at one of its limits; notes at which."""
        now = time.monotonic()
        if now >= end:
            self.expired = True
        elif now >= self._end_of_stage(limits):
            self.late = limits.deadlines[str(self.stage)]
        elif limits.memory and self._pid is not None:
            held = memory.held(self._pid, *self._helpers)
            self.held = held if held > limits.memory else None
        return self.expired or self.late is not None or self.held is not None

    def _end_of_stage(self, limits: Limits) -> float:
        return self._entered + limits.deadlines.get(str(self.stage), math.inf)

    def end(self) -> None:
        """Kill what is left of the process and its group, wait until it is gone, and close everything."""
        if self._pid is not None and self.exit_status is None:
            kill_group(self._pid)
            self._on_stage = None
            self._until(lambda: False, time.monotonic() + _KILL_TIMEOUT)
        self._connection.close()
        os.close(self._status)

    def _until(self, done: Callable[[], bool], deadline: float) -> bool:
        """Handle messages until ``done`` or the process ended (True), or until the deadline (False)."""
        while not done() and self._status_open:
            left = deadline - time.monotonic()
            if left <= 0:
                return False
            for descriptor, _ in self._poll.poll(None if left == math.inf else left * 1000):
                if descriptor == self._status:
                    self._read_status()
                elif descriptor == self._cancel:
                    self.cancelled = True
                    self._poll.unregister(descriptor)
                else:
                    self._read_messages()
        return True

    def _read_status(self) -> None:
        """Learn the process id, later how the process ended; end of file means that the server is gone."""
        data = os.read(self._status, STATUS.size)
        if data and self._pid is None:
            (self._pid,) = STATUS.unpack(data)
            return
        if data:
            (self.exit_status,) = STATUS.unpack(data)
        self._status_open = False
        self._poll.unregister(self._status)
        self._read_messages()

    def _read_messages(self) -> None:
        while True:
            try:
                data = self._connection.recv(1 << 20)
            except BlockingIOError:
                break
            except ConnectionResetError:
                data = b""
            if not data:
                with contextlib.suppress(KeyError):
                    self._poll.unregister(self._connection)
                break
            self._received += data
        while message := self._next_message():
            self._take(message)

    def _next_message(self) -> bytes | None:
        if len(self._received) < LENGTH.size:
            return None
        (length,) = LENGTH.unpack_from(self._received)
        end = LENGTH.size + length
        if len(self._received) < end:
            return None
        message = bytes(self._received[LENGTH.size : end])
        del self._received[:end]
        return message

    def _take(self, message: bytes) -> None:
        kind, content = pickle.loads(message)  # noqa: S301 - from a process that ran our own function
        if kind is Kind.STAGE:
            stage = Stage(pickle.loads(content))  # noqa: S301
            if stage is not self.stage:
                self.stage, self._entered = stage, time.monotonic()
            if self._on_stage is not None:
                self._on_stage(self.stage)
        elif kind is Kind.HELPER:
            self._helpers = pickle.loads(content)  # noqa: S301
        elif self.outcome is None:
            self.outcome = Outcome(kind, content)


def _is_on_its_way(pid: int, signal_: signal.Signals) -> bool:
    """Whether a signal to a process is not handled yet; False where the kernel does not tell.

    It is pending until the process runs again, and blocked as long as its handler does.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    masks = (int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:", "SigBlk:")))
    return any(mask >> (signal_ - 1) & 1 for mask in masks)


class Forked:
    """A process of a server of another kind, whose connection its caller speaks over itself.

    Args:
        connection: to the process.
        status: read end of its status pipe, as the server gave it.

    Raises:
        ConnectionError: the server gave no process.
    """

    def __init__(self, connection: socket.socket, status: int) -> None:
        self.connection = connection
        self._status: int | None = status
        data = os.read(status, STATUS.size)
        if not data:
            self.kill()
            connection.close()
            raise ConnectionError("the server gave no process")
        (self.pid,) = STATUS.unpack(data)

    def status(self, timeout: float) -> int | None:
        """Wait for its end; return what waitpid said, None if it has not ended or the server is gone."""
        if self._status is None or not select.select([self._status], [], [], timeout)[0]:
            return None
        data = os.read(self._status, STATUS.size)
        return int(STATUS.unpack(data)[0]) if data else None

    def kill(self) -> None:
        """Kill it and what it has started: the server does when nobody waits for the status."""
        if self._status is not None:
            os.close(self._status)
            self._status = None
