"""Ray as a run needs it: a local one that nobody notices, or one that is already there."""

from __future__ import annotations

import _thread
import json
import logging
import os
import re
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure
from zooport.export_core.isolation import ForkServer
from zooport.jobs.registry.drivers import Driver

_KNOCK = 5.0  # seconds for a cluster to take a connection
_OBJECT_STORE = 80 << 20  # bytes; jobs and results are small, artifacts do not travel through Ray


_PORTS = {"http": 80, "https": 443, "ray": 10001}
_LEAVE_OUT = "check the address with ray status, or leave --address out to use this machine alone"
# Ray's own words where versions differ: those of the cluster, then those of this process.
_VERSIONS = re.compile(r"Ray: (\S+)\s+Python: (\S+)\s.*?Ray: (\S+)\s+Python: (\S+)", re.DOTALL)
_GO_ON = "zooport resume latest goes on where it stopped"
_UNAUTHORISED = "InvalidAuthToken"
_FOLDER = "zp-"  # short: sockets have their paths below it
_OWNER = "driver.json"
_SERVERS = ("gcs_server", "raylet")
_AUTOSCALER = "ray/autoscaler/_private/monitor.py"
_QUICK_START = {
    # A raylet looks for its object store, which is not there yet, and would look again a second later.
    # A driver looks for its raylet as often, and nothing can interrupt it should the raylet have died.
    "RAY_raylet_client_connect_timeout_milliseconds": "20",
    "RAY_raylet_client_num_connect_attempts": "250",
    # Seconds in which nothing can interrupt the wait for a raylet, which may have died.
    "RAY_raylet_start_wait_time_s": "1",
    # The same for the control server, which nobody starts again; a minute otherwise.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "5",
}
_LOOK = 0.25  # seconds between two looks at servers that are starting
_REST_AGE = 60.0  # seconds in which an owner is written, and Ray's servers have noticed that it is gone
_REMOVALS = 3  # tries to remove a folder into which somebody may still write
_own: list[psutil.Process] = []  # the servers of the Ray that this process has started


def check_alive() -> None:
    """Raise if the Ray that this process started has died: Ray itself would wait for it for ever.

    Raises:
        Failure: ``cluster.unavailable``.
    """
    for server in _own:
        if _is_dead(server):
            raise _died(server)


def _is_dead(server: psutil.Process) -> bool:
    try:
        return bool(server.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


def _died(server: psutil.Process) -> Failure:
    return Failure(
        "cluster.unavailable",
        f"the local Ray has died (its process {server.pid} was killed)",
        hint=_GO_ON,
    )


def server_directory(run_id: str) -> Path:
    """Return where the fork server of a run listens, the same for all workers of a machine."""
    return Path(tempfile.gettempdir()) / f"zooport-{os.getuid()}-{run_id}"


@contextmanager
def joined(
    address: str | None,
    workers: int | None,
    server: ForkServer,
    runtime_env: Mapping[str, Any] | None = None,
) -> Iterator[int]:
    """Start or join Ray for as long as the block lasts; yield how many workers to use.

    Args:
        address: of a running cluster, as ``ray.init`` takes it; None starts one on this machine.
        workers: how many jobs run at once; None takes the number of CPUs.
        server: the fork server of a local run: it starts here, to import torch while Ray starts.
        runtime_env: what Ray brings to the nodes of a cluster, as Ray documents it.

    Raises:
        Failure: ``cluster.unavailable``.
    """
    # Ray reports usage to its makers unless it is told not to; a user's own choice stands.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would end a light actor where memory is short, and not the process that takes it; the kernel does.
    os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
    with _local(workers, server) if address is None else _remote(address, workers, runtime_env) as count:
        yield count


@contextmanager
def _local(workers: int | None, server: ForkServer) -> Iterator[int]:
    import ray

    _check_free(ray.is_initialized())
    count = workers or len(os.sched_getaffinity(0))
    server.start()
    _sweep()
    folder = Path(tempfile.mkdtemp(prefix=_FOLDER))
    (folder / _OWNER).write_text(json.dumps(astuple(Driver.current())), encoding="utf-8")
    before = _servers()  # of a Ray that this process has just shut down
    for name, value in _QUICK_START.items():
        os.environ.setdefault(name, value)
    try:
        try:
            with _watched_start(before):
                ray.init(
                    address="local",
                    num_cpus=count,
                    include_dashboard=False,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                    object_store_memory=_OBJECT_STORE,
                    _temp_dir=str(folder),
                )
        except Failure:
            raise
        except Exception as error:
            raise Failure("cluster.unavailable", f"Ray does not start: {one_line(error)}") from error
        _own[:] = _present(before)
        yield count
    finally:
        _own.clear()
        _end_autoscaler()
        ray.shutdown()
        server.close()
        _remove(folder)


@contextmanager
def _watched_start(before: set[psutil.Process]) -> Iterator[None]:
    """Raise within seconds if a server dies that is being started here: Ray would wait for it for long.

    Ray waits in the main thread, where the watching thread raises what SIGTERM would: Ray's own handler ends
    what it has started.
    """
    done = threading.Event()
    dead: list[psutil.Process] = []

    def watch() -> None:
        started: set[psutil.Process] = set()
        while not done.wait(_LOOK):
            present = _servers() - before
            started |= present
            dead.extend(server for server in started if server not in present or _is_dead(server))
            if dead:
                _thread.interrupt_main(signal.SIGTERM)
                return

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        done.set()
        thread.join()
    except BaseException:
        done.set()
        if dead:
            raise _died(dead[0]) from None
        raise


def _check_free(is_taken: bool) -> None:
    """Refuse a process that has joined a Ray already: a run would end it for its owner."""
    if is_taken:
        raise Failure(
            "cluster.unavailable",
            "this process has joined a Ray of its own, and a run starts or joins one itself",
            hint="call ray.shutdown() before, or run zooport in a process of its own",
        )


def _servers() -> set[psutil.Process]:
    """Return the Ray servers that this process has started, those that wait to be reaped included.

    Those directly below it: a child of a raylet has a raylet's name, too, until it becomes what it is for.
    """
    found = set()
    for process in psutil.Process().children():
        with suppress(psutil.NoSuchProcess):
            if process.name() in _SERVERS:
                found.add(process)
    return found


def _present(before: set[psutil.Process]) -> list[psutil.Process]:
    """Return the servers of the Ray that has been started; one that has been reaped already is missed here.

    Raises:
        Failure: ``cluster.unavailable``.
    """
    started = list(_servers() - before)
    missing = set(_SERVERS) - {server.name() for server in started}
    if missing:
        raise Failure(
            "cluster.unavailable",
            f"the local Ray has died (its {', '.join(sorted(missing))} ended as it started)",
            hint=_GO_ON,
        )
    return started


def _end_autoscaler() -> None:
    """Kill what adds machines to a cluster: there are none, and shutting down would wait for it."""
    for process in psutil.Process().children():
        with suppress(psutil.Error):
            if any(_AUTOSCALER in word for word in process.cmdline()):
                process.kill()


def _sweep() -> None:
    """Remove the folders of local Rays whose drivers were killed before they could do it themselves."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*"):
        if _is_abandoned(folder):
            _remove(folder)


def _is_abandoned(folder: Path) -> bool:
    try:
        owner = Driver(*json.loads((folder / _OWNER).read_text(encoding="utf-8")))
        return owner.host == Driver.current().host and not owner.is_alive(None)
    except FileNotFoundError:
        return _is_rest(folder)
    except (OSError, ValueError, TypeError):
        return False  # somebody else's


def _is_rest(folder: Path) -> bool:
    """Whether a folder without an owner is what a dying server of Ray wrote when it had been removed."""
    with suppress(OSError):
        about = folder.stat()
        names = [path.name for path in folder.iterdir()]
        is_old = time.time() - about.st_mtime > _REST_AGE
        return is_old and about.st_uid == os.getuid() and all(name.startswith("session_") for name in names)
    return False


def _remove(folder: Path) -> None:
    """Remove the folder of a local Ray, the name of its owner last.

    Ray's servers may still be dying and write into it: who comes next has to know whose the rest is.
    """
    for _ in range(_REMOVALS):
        with suppress(OSError):
            for path in folder.iterdir():
                if path.name != _OWNER:
                    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            shutil.rmtree(folder)
            return
        time.sleep(_LOOK / 2)


@contextmanager
def _remote(address: str, workers: int | None, runtime_env: Mapping[str, Any] | None) -> Iterator[int]:
    knock(address)
    import ray

    _check_free(ray.is_initialized())
    try:
        ray.init(
            address=address,
            log_to_driver=False,
            logging_level=logging.ERROR,
            runtime_env=dict(runtime_env) if runtime_env else None,
        )
    except Exception as error:
        raise _refused(address, error) from error
    try:
        yield workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
    finally:
        ray.shutdown()


def knock(address: str) -> None:
    """Fail within seconds where nothing listens; Ray itself tries for minutes.

    Raises:
        Failure: ``cluster.unavailable``.
    """
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise unavailable(address, str(error)) from error
    port = port or _PORTS.get(parts.scheme)
    if host is None or port is None:  # "auto", or a kind of address that only Ray knows
        return
    try:
        socket.create_connection((host, port), timeout=_KNOCK).close()
    except OSError as error:
        raise unavailable(address, error.strerror or str(error)) from error


def _refused(address: str, error: Exception) -> Failure:
    """Return why Ray does not join a cluster; where it is for versions, with those of both sides."""
    said = str(error)
    versions = _VERSIONS.search(said)
    if versions is not None:
        ray, python, our_ray, our_python = versions.groups()
        reason = f"it runs Ray {ray} with Python {python}, and this is Ray {our_ray} with Python {our_python}"
        hint = "use the cluster's versions here, or submit through its dashboard: --address http://HEAD:8265"
        return unavailable(address, reason, hint)
    if _UNAUTHORISED in said or type(error).__name__ == "AuthenticationError":
        hint = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, as on the head node"
        return unavailable(address, "it asks for a token, and this one is missing or another", hint)
    if "raylet" in said:
        hint = "this machine is no node of the cluster: use --address ray://HEAD:10001 or http://HEAD:8265"
        return unavailable(address, one_line(error), hint)
    return unavailable(address, one_line(error))


def unavailable(address: str, reason: str, hint: str = _LEAVE_OUT) -> Failure:
    """Return the failure of not reaching the cluster at an address."""
    return Failure("cluster.unavailable", f"cannot join the Ray cluster at {address}: {reason}", hint=hint)
