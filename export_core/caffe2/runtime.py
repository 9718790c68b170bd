"""The real Caffe2 runtime as a child process: nets and arrays go through a socket, last words are kept.

The child never shares a process with the torch that zooport itself uses: its interpreter is that of the
environment which ``zooport runtime install caffe2`` makes.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import re
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from zooport.export_core.caffe2 import runtime_child
from zooport.export_core.caffe2.net_files import Nets, check_inputs, without_large
from zooport.export_core.caffe2.runtime_environment import runtime_python
from zooport.export_core.caffe2.schema import NetDef
from zooport.export_core.diagnosis import diagnose_exit, out_of_memory_kills, tail
from zooport.export_core.failures import Failure

START_TIMEOUT = 180.0  # seconds; a cold disk has to read 200 MB of libraries
CALL_TIMEOUT = 600.0  # seconds for one call
_END_TIMEOUT = 10.0  # seconds for a killed process to be gone
_PART = 64 << 20  # bytes of an init net that are sent at a time, unless one operator has more
_BUFFER = 4 << 20  # bytes of the socket, as far as the system allows
_WORDS_AT_MOST = 400
# From the most to the least telling; a stack trace of dozens of frames follows the first.
_TELLING = (
    re.compile(r"what\(\)|enforce fail"),
    re.compile(r"^\w*(?:Error|Exception)\b|cannot open shared object"),
    re.compile(r"Fatal Python error"),
)
_NOISE = "init_intrinsics_check"  # that the processor could do more
_LOG_END = 64 << 10  # bytes of the log that are searched
_OPERATOR = re.compile(r'type: "(\w+)"')
_UNKNOWN = re.compile(r"Cannot (?:create|find) operator(?: of type '| schema for )(\w+)")


class RealRuntime:
    """The runtime in a process of its own; an executor.

    Args:
        python: the interpreter of the runtime's environment; None takes the installed one.
        threads: compute threads.
        timeout: seconds that one call may take; afterwards the process is killed.
        log: what the process prints; None keeps it in a file that goes with it.

    Raises:
        Failure: ``dependency.missing`` where no runtime is installed, ``worker.crashed`` with its last words
            if it does not start.
    """

    name = "caffe2"

    def __init__(
        self,
        python: Path | None = None,
        threads: int = 1,
        timeout: float = CALL_TIMEOUT,
        log: Path | None = None,
    ) -> None:
        self._python = python or runtime_python()
        self._timeout = timeout
        self._directory: tempfile.TemporaryDirectory[str] | None = None
        if log is None:
            self._directory = tempfile.TemporaryDirectory(prefix="zooport-caffe2-")
            log = Path(self._directory.name) / "runtime.log"
        self.log = log
        self._numbers = itertools.count()
        self._end: Failure | None = None  # why it cannot be called any more
        self._lock = threading.Lock()  # one call at a time
        self._kills = out_of_memory_kills()
        self._connection, self._process = self._start(threads)
        self._answer(time.monotonic() + START_TIMEOUT)

    @property
    def pid(self) -> int:
        """The process id."""
        return self._process.pid

    def operators(self) -> tuple[str, ...]:
        """Return the names of all operators that the runtime has."""
        value, _ = self._call({"call": "operators"})
        return tuple(value)

    def load(self, nets: Nets) -> RuntimeNets:
        """Make the parameters and create the predict net.

        Raises:
            Failure: ``unsupported.operator`` naming an operator that the runtime lacks,
                ``artifact.unloadable`` for what else it refuses, ``worker.crashed``, ``resource.timeout``.
        """
        key = f"net{next(self._numbers)}"
        for part in _parts(without_large(nets)):
            self._call({"call": "fill", "net": key}, {"init": _serialised(part)})
        for name, array in nets.large.items():
            self._call({"call": "feed", "net": key}, {name: array})
        self._call({"call": "load", "net": key}, {"predict": _serialised(nets.predict)})
        return RuntimeNets(self, key, Nets(nets.predict, NetDef(), nets.inputs))

    def run(
        self, key: str, inputs: Mapping[str, NDArray[Any]], fetch: Sequence[str]
    ) -> dict[str, NDArray[Any]]:
        """Run the net of this key; :meth:`RuntimeNets.run` is the way to call it."""
        _, arrays = self._call({"call": "run", "net": key, "fetch": list(fetch)}, inputs)
        return arrays

    def drop(self, key: str) -> None:
        """Forget a net."""
        self._call({"call": "drop", "net": key})

    def close(self) -> None:
        """End the process; closing twice does no harm."""
        self._connection.close()
        if self._process.poll() is None:
            self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_TIMEOUT)
        if self._directory is not None:
            self._directory.cleanup()

    def _start(self, threads: int) -> tuple[socket.socket, subprocess.Popen[bytes]]:
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
        # -I: neither PYTHONPATH nor the script's folder; what is importable is the environment's.
        command = [str(self._python), "-I", runtime_child.__file__, str(theirs.fileno())]
        with theirs, self.log.open("ab") as log:
            try:
                process = subprocess.Popen(  # noqa: S603 - the interpreter of our own environment
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | variables,
                    pass_fds=(theirs.fileno(),),
                )
            except OSError as error:
                ours.close()
                raise Failure(
                    "dependency.missing",
                    f"the Caffe2 runtime's interpreter {self._python} cannot be started: {error.strerror}",
                    hint="zooport runtime install caffe2",
                ) from error
        return ours, process

    def _call(
        self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]] | None = None
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        with self._lock:
            if self._end is not None:
                raise self._end
            return self._exchange(header, arrays or {})

    def _exchange(
        self, header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
    ) -> tuple[Any, dict[str, NDArray[Any]]]:
        deadline = time.monotonic() + self._timeout
        whole = {name: np.asarray(array, order="C") for name, array in arrays.items()}
        encoded = json.dumps({**header, "arrays": runtime_child.describe(whole)}).encode()
        try:
            self._send(runtime_child.LENGTH.pack(len(encoded)) + encoded, deadline)
            for array in whole.values():
                self._send(array.reshape(-1).view(np.uint8).data, deadline)
        except TimeoutError:
            raise self._late() from None
        except OSError as error:
            raise self._dead() from error
        return self._answer(deadline)

    def _answer(self, deadline: float) -> tuple[Any, dict[str, NDArray[Any]]]:
        try:
            (size,) = runtime_child.LENGTH.unpack(self._read(runtime_child.LENGTH.size, deadline))
            header = json.loads(self._read(size, deadline))
            arrays = {}
            for one in header["arrays"]:
                array = np.empty(one["shape"], one["dtype"])
                self._read_into(array.reshape(-1).view(np.uint8).data, deadline)
                arrays[one["name"]] = array
        except TimeoutError:
            raise self._late() from None
        except (OSError, EOFError) as error:
            raise self._dead() from error
        if not header["ok"]:
            raise _refusal(header["error"], tail(self.log))
        return header["value"], arrays

    def _send(self, data: bytes | memoryview, deadline: float) -> None:
        self._connection.settimeout(_left(deadline))
        self._connection.sendall(data)

    def _read(self, size: int, deadline: float) -> bytes:
        buffer = bytearray(size)
        self._read_into(memoryview(buffer), deadline)
        return bytes(buffer)

    def _read_into(self, view: memoryview, deadline: float) -> None:
        while view:
            self._connection.settimeout(_left(deadline))
            count = self._connection.recv_into(view)
            if not count:
                raise EOFError
            view = view[count:]

    def _late(self) -> Failure:
        details = {"log_tail": tail(self.log)}
        self.close()
        message = f"the Caffe2 runtime gave no answer in {self._timeout:.0f} s and was stopped"
        self._end = Failure("resource.timeout", message, details=details)
        return self._end

    def _dead(self) -> Failure:
        """Return why the process ended, with its last words."""
        if self._process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(_END_TIMEOUT)
        if self._process.returncode is None:
            self._process.kill()
            self._process.wait(_END_TIMEOUT)
        code = self._process.returncode
        status = -code if code < 0 else code << 8  # as waitpid would say
        starved = out_of_memory_kills() > self._kills
        failure = diagnose_exit(status, None, self.log, starved=starved)
        message = f"Caffe2 runtime: {failure.message}; {_last_words(self.log)}"
        hint = failure.hint if self._directory is None else ""  # its own log goes with it
        self.close()
        self._end = Failure(failure.code, message, hint=hint, details=failure.details)
        return self._end

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class RuntimeNets:
    """Nets that the real runtime holds."""

    def __init__(self, runtime: RealRuntime, key: str, nets: Nets) -> None:
        self._runtime = runtime
        self._key = key
        self._nets = nets

    def run(
        self, inputs: Mapping[str, NDArray[Any]], fetch: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run the predict net once; see :class:`~zooport.export_core.caffe2.executors.LoadedNets`.

        Raises:
            Failure: ``artifact.unloadable``, ``worker.crashed`` with the process's last words,
                ``resource.timeout``.
        """
        wanted = self._nets.outputs if fetch is None else tuple(fetch)
        check_inputs(self._nets, inputs)
        return self._runtime.run(self._key, inputs, wanted)

    def drop(self) -> None:
        """Forget the nets and their blobs."""
        self._runtime.drop(self._key)


def _parts(init: Any) -> Iterator[Any]:
    """Cut an init net into nets of some operators each: both processes hold only one of them at a time."""
    part, size = NetDef(name=init.name), 0
    for operator in init.op:
        part.op.append(operator)
        size += operator.ByteSize()
        if size > _PART:
            yield part
            part, size = NetDef(name=init.name), 0
    if part.op:
        yield part


def _serialised(net: Any) -> NDArray[np.uint8]:
    return np.frombuffer(net.SerializeToString(), np.uint8)


def _last_words(log: Path) -> str:
    """Return what a log says of the end: the words of an exception rather than the stack below them."""
    lines = [line.strip() for line in tail(log, 1000, _LOG_END) if line.strip() and _NOISE not in line]
    for telling in _TELLING:
        found = [line for line in lines if telling.search(line)]
        if found:
            return f"it said: {_brief(found[-1])}"
    return f"it said: {_brief(lines[-1])}" if lines else "it said nothing"


def _brief(words: str) -> str:
    """Return an error of Caffe2 without its stack and the text of the operator."""
    for end in ("Error from operator:", "frame #"):
        words = words.partition(end)[0]
    return words.strip().removesuffix("(").strip()[:_WORDS_AT_MOST]


def _left(deadline: float) -> float:
    """Seconds until then; TimeoutError when there are none, as 0 would mean no waiting at all."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _refusal(error: str, log_tail: list[str]) -> Failure:
    """From what Caffe2 raised to a typed failure that names the operator."""
    words = " ".join(error.split())
    unknown = _UNKNOWN.search(words)
    if unknown:
        message = f"the Caffe2 runtime has no operator {unknown[1]}"
        return Failure("unsupported.operator", message, details={"operator": unknown[1]})
    operator = _OPERATOR.search(words)
    who = f"{operator[1]}: " if operator else ""
    return Failure(
        "artifact.unloadable",
        f"the Caffe2 runtime refuses the net: {who}{_brief(words)}",
        details={"operator": operator[1] if operator else "", "log_tail": log_tail},
    )
