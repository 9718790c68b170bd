"""The way to a fork server: start it when it is not there, join it when it is, and ask it for processes."""

from __future__ import annotations

import atexit
import contextlib
import fcntl
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

from zooport.export_core.diagnosis import tail
from zooport.export_core.failures import Failure
from zooport.export_core.isolation import server as protocol

PRELOAD = (
    "torch",
    "torchvision",
    "PIL.JpegImagePlugin",
    "PIL.PngImagePlugin",
    "zooport.export_core.pipeline",
    "zooport.export_core.checkpoints",
    "zooport.export_core.evaluation.predict",
    "zooport.export_core.evaluation.resampling",
    "zooport.export_core.modeling.build",
    "zooport.export_core.formats.torchscript_trace",
    "zooport.export_core.formats.torchscript_script",
    "zooport.export_core.formats.onnx_export",  # and onnx; onnxruntime starts a thread, so never here
    "zooport.export_core.formats.onnx_frame",
    "numpy.ma",  # numpy.unique imports it when it is called
)
"""What a job imports, in the order in which a server imports it; a module that is absent is passed over."""

# One process per core with one compute thread each. Read by the libraries when the server imports them.
_ONE_THREAD = dict.fromkeys(
    ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS"), "1"
)
# The second fork leaves the server without a parent that could take it along or would have to wait for it.
_START = "import os\nif os.fork():\n    os._exit(0)\n" + protocol.BEGIN
_IMPORT_TIMEOUT = 180.0  # seconds for the server's imports on a slow or busy machine
_START_TIMEOUT = 30.0  # seconds for a server to start another one
_MAX_SOCKET_PATH = 100  # bytes; Linux takes 107


class ForkServer:
    """The way to one fork server: starts it when it is not there, joins it when it is.

    Args:
        directory: a private directory that every client of the server names; None makes one of its own.
        preload: modules that the server imports before it serves.
        handler: what a process does that it forks, "package.module:name" of a function that is given the
            connection and the server's directory.
        environment: variables of the server beside this process's own.
        elder: the server that starts this one, which then lives as long as that does.
    """

    def __init__(
        self,
        directory: Path | None = None,
        preload: tuple[str, ...] = PRELOAD,
        *,
        handler: str = protocol.SERVE_ONE,
        environment: Mapping[str, str] = MappingProxyType({}),
        elder: ForkServer | None = None,
    ) -> None:
        self.directory = directory or Path(tempfile.mkdtemp(prefix="zooport-"))
        self._preload = preload
        self._handler = handler
        self._environment = environment
        self._elder = elder
        self._client: socket.socket | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start or join the server; its imports go on in the background."""
        with self._lock:
            if self._client is None:
                self._client = self._join_or_launch()

    def wait(self) -> None:
        """Return when the server has finished its imports."""
        self.start()
        assert self._client is not None  # noqa: S101 - start() has set it
        self._client.settimeout(_IMPORT_TIMEOUT)
        try:
            ready = self._client.recv(1, socket.MSG_PEEK)
        except OSError:
            ready = b""
        if not ready:
            raise self._dead()

    def fork(self) -> tuple[socket.socket, int]:
        """Ask for a process and return (connection to it, read end of its status pipe)."""
        for attempt in (1, 2):
            self.start()
            try:
                return self._request()
            except OSError:
                self._forget()
                if attempt == 2:
                    raise self._dead() from None
        raise AssertionError

    def close(self) -> None:
        """Leave the server, which ends with its last client."""
        self._forget()

    def _forget(self) -> None:
        with self._lock:
            if self._client is not None:
                self._client.close()
                self._client = None

    def _dead(self) -> Failure:
        said = " | ".join(tail(self.directory / protocol.LOG_NAME, lines=3))
        return Failure(
            "worker.crashed", f"the server of worker processes has ended: {said or 'no last words'}"
        )

    def _request(self) -> tuple[socket.socket, int]:
        connection = self._connect()
        reader, writer = os.pipe()
        try:
            socket.send_fds(connection, [protocol.HELLO_JOB], [writer])
        except OSError:
            os.close(reader)
            connection.close()
            raise
        finally:
            os.close(writer)
        return connection, reader

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(str(self.directory / protocol.SOCKET_NAME))
        except OSError:
            connection.close()
            raise
        return connection

    def _join_or_launch(self) -> socket.socket:
        with self._locked_directory():
            try:
                client = self._connect()
            except OSError:
                self._launch()
                client = self._connect()
            client.sendall(protocol.HELLO_CLIENT)
            return client

    @contextlib.contextmanager
    def _locked_directory(self) -> Iterator[None]:
        """Hold the directory's lock, so that one client starts the server and the server does not end."""
        path = self.directory / protocol.LOCK_NAME
        while True:
            self._make_private_directory()
            with contextlib.suppress(FileNotFoundError), path.open("wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                # A server that ended meanwhile has removed the directory with the file that is locked here.
                if os.fstat(lock.fileno()).st_ino == path.stat().st_ino:
                    yield
                    return

    def _make_private_directory(self) -> None:
        if not has_room_for_a_socket(self.directory):
            raise Failure("worker.error", f"{self.directory}: this path is too long for a socket, set TMPDIR")
        while True:
            with contextlib.suppress(FileExistsError):
                self.directory.mkdir(mode=0o700)
            with contextlib.suppress(FileNotFoundError):  # it was that of a server which is ending
                found = self.directory.lstat()
                break
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise Failure("worker.error", f"{self.directory} is not a private directory of this user")

    def _launch(self) -> None:
        path = self.directory / protocol.SOCKET_NAME
        path.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
            listener.bind(str(path))
            listener.listen(512)
            environment = {**os.environ, **_ONE_THREAD, **self._environment}
            if self._elder is not None:
                self._elder._start_younger(self, listener, environment)
                return
            listener.set_inheritable(True)
            command = [sys.executable, "-c", _START, json.dumps(sys.path)]
            command += [str(listener.fileno()), str(self.directory), self._handler, "", *self._preload]
            with (self.directory / protocol.LOG_NAME).open("ab") as log:
                subprocess.run(  # noqa: S603 - our own interpreter and file names
                    command,
                    check=True,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    pass_fds=[listener.fileno()],
                    env=environment,
                    start_new_session=True,
                )

    def _start_younger(
        self, younger: ForkServer, listener: socket.socket, environment: Mapping[str, str]
    ) -> None:
        """Have this server start another one: what a job starts itself would end with the job.

        Raises:
            OSError: there is no server.
        """
        order = {
            "import_path": sys.path,
            "directory": str(younger.directory),
            "handler": younger._handler,
            "modules": younger._preload,
            "environment": dict(environment),
        }
        with self._connect() as connection:
            connection.settimeout(_START_TIMEOUT)
            socket.send_fds(connection, [protocol.HELLO_YOUNGER], [listener.fileno()])
            connection.sendall(json.dumps(order).encode() + b"\n")
            if connection.recv(1) != protocol.READY:
                raise ConnectionError("the server that should start another one has ended")


def has_room_for_a_socket(directory: Path) -> bool:
    """Whether a directory's path is short enough for a socket in it."""
    return len(os.fsencode(directory / protocol.SOCKET_NAME)) <= _MAX_SOCKET_PATH


_default: ForkServer | None = None
_default_lock = threading.Lock()


def default_server() -> ForkServer:
    """Return this process's own fork server, made at the first call."""
    global _default  # noqa: PLW0603
    with _default_lock:
        if _default is None:
            _default = ForkServer()
            atexit.register(_discard, _default)
        return _default


def _discard(server: ForkServer) -> None:
    started = server._client is not None
    server.close()
    if not started:
        shutil.rmtree(server.directory, ignore_errors=True)
