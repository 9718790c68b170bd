"""A real Ray cluster on this machine: a head and further nodes, each with a working directory of its own.

A node may live in a mount namespace where some folders are empty and its own, as on another machine.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_START = 120.0  # seconds for a node to be up
_OBJECTS = str(80 << 20)


_given: set[int] = set()


def free_port() -> int:
    """A port that stays free until it is used.

    It is below those that the kernel gives to connections, and above those that Ray gives to its workers.
    """
    while True:
        port = random.randrange(20_000, 32_768)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("", port))
            if port not in _given:
                _given.add(port)
                return port


def can_hide_folders() -> bool:
    """Whether a process here may have mounts of its own."""
    if shutil.which("unshare") is None:
        return False
    return subprocess.run([*_ALONE, "true"], capture_output=True, check=False).returncode == 0


_ALONE = ["unshare", "--mount", *([] if os.getuid() == 0 else ["--map-root-user"])]


@dataclass
class Node:
    process: subprocess.Popen[bytes]
    log: Path

    def wait(self) -> None:
        """Return when it is up."""
        deadline = time.monotonic() + _START
        while b"Ray runtime started" not in self.log.read_bytes():
            if self.process.poll() is not None or time.monotonic() > deadline:
                said = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"the node does not start: {said}")
            time.sleep(0.1)

    def kill(self) -> None:
        """End everything of the node at once, as when its machine loses power."""
        doomed = [psutil.Process(self.process.pid)]
        doomed += doomed[0].children(recursive=True)
        for each in doomed:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait(90)
        psutil.wait_procs(doomed, timeout=10)


@dataclass
class Cluster:
    """Start nodes with :meth:`add`, the head first; :meth:`close` ends them."""

    folder: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    nodes: list[Node] = field(default_factory=list)
    port: int = 0
    dashboard: int = 0
    client: int = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def head(self, cpus: int = 1, *, dashboard: bool = False) -> Node:
        self.port, self.dashboard, self.client = free_port(), free_port(), free_port()
        options = ["--head", f"--port={self.port}", f"--ray-client-server-port={self.client}"]
        options += [f"--include-dashboard={str(dashboard).lower()}", f"--dashboard-port={self.dashboard}"]
        # A socket's path has to be short.
        node = self._start([*options, f"--temp-dir={self.folder / 'r'}"], cpus, {}, ())
        node.wait()
        return node

    def add(
        self,
        cpus: int = 1,
        environment: Mapping[str, str] | None = None,
        hidden: Sequence[Path] = (),
        *,
        wait: bool = True,
    ) -> Node:
        """Start a further node.

        Args:
            cpus: how many it says it has.
            environment: on top of the cluster's.
            hidden: folders that are empty there, and its own.
            wait: return when it is up.
        """
        node = self._start([f"--address={self.address}"], cpus, environment or {}, hidden)
        if wait:
            node.wait()
        return node

    def _start(
        self, options: Sequence[str], cpus: int, environment: Mapping[str, str], hidden: Sequence[Path]
    ) -> Node:
        number = len(self.nodes)
        directory = self.folder / f"node-{number}"
        directory.mkdir()
        log = self.folder / f"node-{number}.log"
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *options, "--block"]
        # Ray's own default is one port for all clusters of a machine, and jobs need it.
        command += [f"--dashboard-agent-listen-port={free_port()}"]
        command += [f"--num-cpus={cpus}", f"--object-store-memory={_OBJECTS}", "--disable-usage-stats"]
        if hidden:
            mounts = " && ".join(f"mount -t tmpfs none '{path}'" for path in hidden)
            command = [*_ALONE, "sh", "-c", f'{mounts} && exec "$0" "$@"', *command]
            # As on a machine of its own: a fork server that two nodes share would see the files of one.
            environment = {"TMPDIR": str(directory), **environment}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        known = {"RAY_memory_monitor_refresh_ms": "0", "RAY_AUTH_MODE": "disabled", "PATH": path}
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env={**os.environ, **known, **self.environment, **environment},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        node = Node(process, log)
        self.nodes.append(node)
        return node

    def close(self) -> None:
        for node in reversed(self.nodes):
            if node.process.poll() is None:
                node.process.send_signal(signal.SIGTERM)
        for node in reversed(self.nodes):
            with suppress(subprocess.TimeoutExpired):
                node.process.wait(5)
            node_is_gone = node.process.poll() is not None
            if not node_is_gone:
                node.kill()
        self._sweep()

    def _sweep(self) -> None:
        """End what a killed node has left running: its processes name this cluster's folder."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.pid != os.getpid() and any(str(self.folder) in word for word in process.cmdline()):
                    process.kill()
