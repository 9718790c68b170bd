"""The server that disposable processes are forked from: it has imported what a job needs and never used it.

Importing torch takes seconds and hundreds of megabytes; a fork of a process that has imported it takes
milliseconds and shares the memory. The server stays single-threaded and runs no operator, so that a fork
of it is a sound process. One server serves every worker of a machine over a Unix socket in a private
directory. It ends when its last client is gone; a job whose client is gone is killed with everything that
it started. Nothing heavy is imported before :func:`main` preloads.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import gc
import importlib
import json
import os
import select
import shutil
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from zooport.export_core.isolation.child import resolve
from zooport.export_core.isolation.huge_pages import HugePages

SOCKET_NAME = "socket"
LOCK_NAME = "lock"
LOG_NAME = "server.log"
HELLO_CLIENT = b"C"  # this connection says that somebody wants the server to live
HELLO_YOUNGER = b"Y"  # start another server; its listening socket comes with the byte, its arguments behind
HELLO_JOB = b"J"  # this connection is a job; the write end of its status pipe comes with the byte
READY = b"R"
STATUS = struct.Struct("=q")  # written twice: the process id, then what waitpid said

Handler = Callable[[socket.socket, Path], object]
SERVE_ONE = "zooport.export_core.isolation.child:serve_one"

# The program of a server: where to import from, then the arguments of main().
BEGIN = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from zooport.export_core.isolation.server import main
main(sys.argv[2:])
"""

_LINGER = 1.0  # seconds without a client before the server ends
_HANDSHAKE = 10.0  # seconds a client may take for its first byte
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36


def prctl(option: int, argument: int) -> None:
    """Call Linux's prctl; other systems have no counterpart and go without."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(option, argument, 0, 0, 0)


def main(arguments: Sequence[str]) -> None:
    """Serve until the last client is gone.

    Args:
        arguments: the listening socket's file descriptor, the private directory, what a forked process does
            (as :data:`SERVE_ONE`), the descriptor of a socket to the server that started this one or "", then
            modules to import. A module that cannot be imported is written to the log: the job that needs it
            will say so.
    """
    listener, directory, handler, elder, *modules = arguments
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception:
            traceback.print_exc()
    gc.collect()
    gc.freeze()  # objects of the imports are not touched by a child's collector, so their pages stay shared
    prctl(_PR_SET_CHILD_SUBREAPER, 1)
    server = _Server(
        socket.socket(fileno=int(listener)),
        Path(directory),
        resolve(handler),
        socket.socket(fileno=int(elder)) if elder else None,
    )
    server.serve()


class _Server:
    """Accepts connections, forks a child for each job, and reports how each child ended."""

    def __init__(
        self, listener: socket.socket, directory: Path, handler: Handler, elder: socket.socket | None
    ) -> None:
        self._listener = listener
        self._directory = directory
        self._handler = handler
        self._elder = elder  # as long as it lives, this server does
        self._younger: dict[int, socket.socket] = {}  # process id -> what tells it that this one lives
        self._clients: dict[int, socket.socket] = {}
        self._jobs: dict[int, int] = {}  # process id -> status pipe
        self._idle_since = time.monotonic()
        self._wake, wake = socket.socketpair()
        self._wake.setblocking(False)
        wake.setblocking(False)
        self._wake_writer = wake
        signal.signal(signal.SIGCHLD, _ignore)
        signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
        self._poll = select.poll()
        self._poll.register(listener, select.POLLIN)
        self._poll.register(self._wake, select.POLLIN)
        if elder is not None:
            self._poll.register(elder, select.POLLIN)

    def serve(self) -> None:
        """Run until nobody needs the server any more."""
        pages = HugePages()
        while not self._may_end():
            wait = 0.0 if pages.step() else _LINGER * 1000
            for descriptor, _ in self._poll.poll(wait):
                self._handle(descriptor)

    def _handle(self, descriptor: int) -> None:
        if descriptor == self._listener.fileno():
            self._accept()
        elif descriptor == self._wake.fileno():
            self._wake.recv(4096)
            self._reap()
        elif self._elder is not None and descriptor == self._elder.fileno():
            self._poll.unregister(descriptor)
            self._elder.close()
            self._elder = None
        elif descriptor in self._clients:
            self._poll.unregister(descriptor)
            self._clients.pop(descriptor).close()
            self._idle_since = time.monotonic()
        else:
            self._abandon(descriptor)

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        try:
            connection.settimeout(_HANDSHAKE)
            hello, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            connection.settimeout(None)
        except OSError:
            connection.close()
            return
        if hello == HELLO_CLIENT:
            self._welcome(connection)
        elif hello == HELLO_YOUNGER and descriptors:
            self._start_younger(connection, descriptors[0])
        elif hello == HELLO_JOB and descriptors:
            self._fork(connection, descriptors[0])
        else:
            connection.close()

    def _welcome(self, connection: socket.socket) -> None:
        try:
            connection.sendall(READY)
        except OSError:
            connection.close()
            return
        self._clients[connection.fileno()] = connection
        self._poll.register(connection, select.POLLIN)

    def _start_younger(self, connection: socket.socket, listener: int) -> None:
        """Start a server with other imports for a job; it outlives the job, and ends with this one."""
        ours, theirs = socket.socketpair()
        younger: int | None = None
        try:
            with connection, connection.makefile("rb") as file:
                connection.settimeout(_HANDSHAKE)
                order = json.loads(file.readline())
                for descriptor in (listener, theirs.fileno()):
                    os.set_inheritable(descriptor, True)
                log = (
                    1,
                    str(Path(order["directory"], LOG_NAME)),
                    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
                    0o600,
                )
                younger = os.posix_spawn(
                    sys.executable,
                    [
                        *(sys.executable, "-c", BEGIN, json.dumps(order["import_path"]), str(listener)),
                        *(order["directory"], order["handler"], str(theirs.fileno()), *order["modules"]),
                    ],
                    order["environment"],
                    file_actions=[(os.POSIX_SPAWN_OPEN, *log), (os.POSIX_SPAWN_DUP2, 1, 2)],
                    setsid=True,
                )
                self._younger[younger] = ours
                connection.sendall(READY)
        except Exception:  # whoever asked reads the end of the connection
            traceback.print_exc()
            if younger is None:
                ours.close()
        finally:
            theirs.close()
            os.close(listener)

    def _fork(self, connection: socket.socket, status: int) -> None:
        server = os.getpid()
        try:
            child = os.fork()
        except OSError:  # no process or memory left: the client reads the end of its status pipe
            traceback.print_exc()
            os.close(status)
            connection.close()
            return
        if child == 0:
            self._become_job(connection, status, server)
        connection.close()
        self._jobs[child] = status
        self._poll.register(status, 0)  # an error is always reported: nobody reads the pipe any more
        with contextlib.suppress(OSError):
            os.write(status, STATUS.pack(child))

    def _become_job(self, connection: socket.socket, status: int, server: int) -> NoReturn:
        try:
            os.setsid()
            prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != server:  # it died before the line above
                os._exit(1)
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.close(status)
            for descriptor in self._jobs.values():
                os.close(descriptor)
            elder = () if self._elder is None else (self._elder,)
            ours = (self._listener, self._wake, self._wake_writer)
            for each in (*self._clients.values(), *self._younger.values(), *elder, *ours):
                each.close()
            self._handler(connection, self._directory)
        except BaseException:  # nothing may return into the server's loop
            traceback.print_exc()
        finally:
            os._exit(1)

    def _reap(self) -> None:
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if ended is None:
                return
            self._bury(ended.si_pid)

    def _bury(self, child: int) -> None:
        # The dead leader still holds its group's number, so this kill cannot hit a stranger.
        status = self._jobs.pop(child, None)
        if status is not None:
            kill_group(child)
        if (younger := self._younger.pop(child, None)) is not None:
            younger.close()
        _, how = os.waitpid(child, 0)
        if status is None:
            return
        self._kill_strays()
        with contextlib.suppress(KeyError):
            self._poll.unregister(status)
        with contextlib.suppress(OSError):
            os.write(status, STATUS.pack(how))
        os.close(status)
        self._idle_since = time.monotonic()

    def _kill_strays(self) -> None:
        """Kill what a job left behind in sessions of its own; as a subreaper, the server is its parent."""
        children = Path(f"/proc/self/task/{os.getpid()}/children")
        try:
            present = {int(each) for each in children.read_text().split()}
        except OSError:
            return
        for stray in present - self._jobs.keys() - self._younger.keys():
            with contextlib.suppress(ProcessLookupError):
                os.kill(stray, signal.SIGKILL)

    def _abandon(self, status: int) -> None:
        for child, descriptor in self._jobs.items():
            if descriptor == status:
                self._poll.unregister(status)  # it would report the same error until the child is buried
                kill_group(child)
                return

    def _may_end(self) -> bool:
        if (
            self._elder is not None
            or self._clients
            or self._jobs
            or time.monotonic() - self._idle_since < _LINGER
        ):
            return False
        # Who starts or joins a server holds this lock, so nobody connects between the decision and the end.
        with (self._directory / LOCK_NAME).open("wb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            if select.select([self._listener], [], [], 0)[0]:
                return False
            remove(self._directory)
        return True


def remove(directory: Path) -> None:
    """Remove the directory of a server that ends.

    The socket goes first, or somebody could join whom nobody would answer; the lock goes last, because who
    finds none locks a new one and starts a server in what is left here.
    """
    with contextlib.suppress(OSError):
        (directory / SOCKET_NAME).unlink(missing_ok=True)
        for entry in [each for each in directory.iterdir() if each.name != LOCK_NAME]:
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)
    shutil.rmtree(directory, ignore_errors=True)


def kill_group(leader: int) -> None:
    """Kill a job and what it started."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:  # just forked: it has not made its group yet, or it is gone
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGKILL)


def _ignore(_signal: int, _frame: FrameType | None) -> None:
    """Let the wake-up descriptor see the signal; the default action would not."""
