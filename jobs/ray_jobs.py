"""A run as a Ray job: submitted through a cluster's dashboard, followed, looked at and stopped from there.

The job's id is the run's id. Its driver is ``zooport submit --address auto`` on the head node, with the
package of :mod:`zooport.jobs.packing` as working directory; registry and output are named from there.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure
from zooport.export_core.places import RemotePath, is_address, output_place
from zooport.jobs.cluster import knock, unavailable
from zooport.jobs.exit_codes import FAILED
from zooport.jobs.manifest import load_manifest
from zooport.jobs.output import OutputFormat, print_value, printable, size
from zooport.jobs.packing import MANIFEST, Origin, describe_left, pack, write_origin
from zooport.jobs.registry.records import new_run_id, now, seconds_between

if TYPE_CHECKING:
    from rich.console import RenderableType

INTERRUPTED = 130
_LOOK = 1.0  # seconds between two looks at a job
_STOP_WITHIN = "60"  # seconds for a driver to stop what runs before Ray kills it
_MARK = "zooport"  # key of a job's metadata that says whose it is
_OVER = {"SUCCEEDED", "FAILED", "STOPPED"}
_RAY_NAMES = ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS")
_NO_AGENT = "No available agent"
_AGENT_WITHIN = 30.0  # seconds for the head node of a new cluster to take jobs
_TAIL = 4000  # characters of a log in which its last line is looked for


@dataclass(frozen=True)
class Order:
    """A manifest that is to be run as a job.

    Attributes:
        address: of the dashboard, ``http://head:8265``.
        output, registry: as the driver on the head node finds them.
        imports: extensions of the command line.
        options: of ``zooport submit``, as they are to be passed on.
        runtime_env: what Ray brings to the nodes, as Ray documents it.
        wait: follow the job's log until it is over.
    """

    manifest: Path
    address: str
    output: str | None = None
    registry: str | None = None
    imports: Sequence[str] = ()
    options: Sequence[str] = ()
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    wait: bool = True


def is_dashboard(address: str | None) -> bool:
    """Return whether an address is that of a cluster's dashboard, where jobs are submitted."""
    return address is not None and address.startswith(("http://", "https://"))


def submit(order: Order, result: OutputFormat) -> int:
    """Send a manifest and what it names to a cluster, and follow its run there.

    Returns:
        The exit code of the driver; 0 at once if nobody waits, 130 when following was interrupted.

    Raises:
        Failure: ``manifest.invalid``; ``registry.missing`` and ``output.unwritable`` for places that would be
            gone with the job; ``cluster.unavailable``, ``dependency.missing``.
    """
    manifest = load_manifest(order.manifest)
    registry = _lasting_registry(order.registry)
    output = _lasting_output(order.output, manifest.output, manifest.path.parent)
    client = _client(order.address)
    job = new_run_id()
    with tempfile.TemporaryDirectory(prefix="zooport-") as folder:
        package = pack(manifest.path, manifest.text, Path(folder), order.imports)
        write_origin(Origin(job, manifest.path, manifest.text), Path(folder))
        for line in describe_left(package.left):
            _say(line)
        _say(f"sending {size(package.bytes)} to {order.address}")
        extensions = [word for name in package.imports for word in ("--import", name)]
        command = ["python", "-m", "zooport.cli", "submit", MANIFEST, "--address", "auto"]
        command += ["--output", output, *extensions]
        what = {
            "entrypoint": shlex.join([*command, *order.options]),
            "submission_id": job,
            "runtime_env": _runtime_env(order.runtime_env, folder, registry),
            "metadata": {_MARK: str(manifest.path)},
        }
        with _typed(order.address):
            _submit(client, what)
    if not order.wait:
        _print(client, order.address, job, result)
        return 0
    _say(f"{job} began; Ctrl-C only stops following, zooport cancel {job} --address {order.address} stops it")
    return _follow_to_the_end(client, order.address, job, result)


def _submit(client: Any, what: Mapping[str, Any]) -> None:
    """Submit a job; a cluster that has just been started is not ready for it at once."""
    deadline = time.monotonic() + _AGENT_WITHIN
    while True:
        try:
            client.submit_job(**what)
        except RuntimeError as error:
            if _NO_AGENT not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK)
        else:
            return


def print_status(address: str, name: str, result: OutputFormat, *, watch: bool = False) -> None:
    """Print how a job stands; with ``watch`` a line whenever that changes, until it is over.

    Raises:
        Failure: ``registry.unknown`` when no job answers to the name, ``cluster.unavailable``.
    """
    client = _client(address)
    job = _find(client, address, name)
    said = ""
    while watch and (row := _row(client, address, job))["status"] not in _OVER:
        line = f"{job} {row['status'].lower()}  {row['last_line']}".rstrip()
        if line != said:
            said = line
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        time.sleep(_LOOK)
    _print(client, address, job, result)


def print_log(address: str, name: str, *, follow: bool = False) -> None:
    """Print the log of a job's driver; with ``follow`` as it grows.

    Raises:
        Failure: ``registry.unknown``, ``cluster.unavailable``.
    """
    client = _client(address)
    job = _find(client, address, name)
    if follow:
        _follow(client, address, job)
        return
    with _typed(address):
        sys.stdout.write(printable(client.get_job_logs(job)))
    sys.stdout.flush()


def cancel(address: str, name: str, *, wait: bool = True) -> int:
    """Stop a job: its driver stops what runs, and closes its run in the registry.

    Raises:
        Failure: ``registry.unknown``, ``cluster.unavailable``.
    """
    client = _client(address)
    job = _find(client, address, name)
    with _typed(address):
        stopped = client.stop_job(job)
    if stopped and wait:
        while _status(client, address, job) not in _OVER:
            time.sleep(_LOOK / 4)
    state = _status(client, address, job).lower()
    sys.stdout.write(f"{job} is {state}\n" if wait or not stopped else f"{job} was asked to stop\n")
    return 0


def _lasting_registry(registry: str | None) -> str:
    """Return the registry if it outlives the job."""
    hint = "give --registry postgresql+psycopg://user@host/zoo, or /a/file.db of the head node"
    if registry is None:
        problem = "a run on a cluster needs --registry: its driver works in a folder that Ray removes"
        raise Failure("registry.missing", problem, hint=hint)
    path = registry.removeprefix("sqlite:///") if registry.startswith("sqlite:///") else registry
    if not is_address(path) and not path.startswith("/"):
        problem = f"the registry {registry} would lie in the job's own folder, which Ray removes"
        raise Failure("registry.missing", problem, hint=hint)
    return registry


def _lasting_output(named: str | None, of_manifest: Path | RemotePath, base: Path) -> str:
    """Return where artifacts go if that outlives the job: an address, or an absolute path of the cluster."""
    if named is not None and (is_address(named) or named.startswith("/")):
        return str(output_place(named, base))
    if named is None and (isinstance(of_manifest, RemotePath) or not of_manifest.is_relative_to(base)):
        return str(of_manifest)
    raise Failure(
        "output.unwritable",
        f"the output {named or of_manifest.name} would lie in the job's own folder, which Ray removes",
        hint="give --output an address such as s3://bucket/zoo, or an absolute path that every node mounts",
    )


def _runtime_env(given: Mapping[str, Any], folder: str, registry: str) -> dict[str, Any]:
    if "working_dir" in given:
        problem = "--runtime-env: working_dir is where zooport puts the manifest and its files"
        raise Failure("export.option", problem, hint="use py_modules or pip for code of your own")
    # The registry is no argument: a command line is seen by everybody.
    own = {"ZOOPORT_REGISTRY": registry, "RAY_JOB_STOP_WAIT_TIME_S": _STOP_WITHIN, "PYTHONUNBUFFERED": "1"}
    return {**given, "working_dir": folder, "env_vars": {**own, **given.get("env_vars", {})}}


def _client(address: str) -> Any:
    knock(address)
    import logging

    from ray.job_submission import JobSubmissionClient

    for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
        logging.getLogger(name).setLevel(logging.ERROR)  # they tell of uploads and connections
    hidden = {name: os.environ.pop(name) for name in _RAY_NAMES if name in os.environ}
    try:  # Ray would take these for the address, whatever it is given
        with _typed(address):
            return JobSubmissionClient(address.rstrip("/"))
    finally:
        os.environ.update(hidden)


@contextmanager
def _typed(address: str) -> Iterator[None]:
    try:
        yield
    except Failure:
        raise
    except Exception as error:  # requests, aiohttp and Ray each raise their own
        raise unavailable(address, one_line(error), "is this the address of the Ray dashboard?") from error


def _find(client: Any, address: str, name: str) -> str:
    """Return the id of the job that a person means: an id, its ending, or "latest"."""
    with _typed(address):
        jobs = [each for each in client.list_jobs() if each.submission_id]
    ours = sorted((each for each in jobs if _MARK in (each.metadata or {})), key=lambda each: each.start_time)
    exact = [each.submission_id for each in jobs if each.submission_id == name]
    if name == "latest":
        exact = [each.submission_id for each in ours[-1:]]
    found = exact or [each.submission_id for each in ours if each.submission_id.endswith(name)]
    if len(found) == 1:
        return str(found[0])
    problem = (
        f"no job at {address} is called {name!r}" if not found else f"{name!r} could be {', '.join(found)}"
    )
    raise Failure("registry.unknown", problem, hint=f"ray job list --address {address} lists them")


def _status(client: Any, address: str, job: str) -> str:
    with _typed(address):
        return str(client.get_job_status(job).value)


def _row(client: Any, address: str, job: str) -> dict[str, Any]:
    """Return what is known of a job as JSON-ready values."""
    with _typed(address):
        info = client.get_job_info(job)
        log = client.get_job_logs(job) if info.status.value != "PENDING" else ""
    lines = [line for line in printable(log[-_TAIL:]).splitlines() if line.strip()]
    started, finished = _moment(info.start_time), _moment(info.end_time)
    return {
        "job": job,
        "status": info.status.value,
        "message": info.message or "",
        "manifest": (info.metadata or {}).get(_MARK),
        "started": started,
        "finished": finished,
        "seconds": None if started is None else seconds_between(started, finished or now()),
        "exit_code": info.driver_exit_code,
        "last_line": lines[-1] if lines else "",
        "address": address,
    }


def _moment(milliseconds: int | None) -> str | None:
    from datetime import UTC, datetime

    if not milliseconds:
        return None
    return datetime.fromtimestamp(milliseconds / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _print(client: Any, address: str, job: str, result: OutputFormat) -> None:
    row = _row(client, address, job)
    print_value(row, result, lambda _: _page(row))


def _page(row: Mapping[str, Any]) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from zooport.jobs.output import cell, duration

    styles = {"SUCCEEDED": "green", "FAILED": "bold red", "STOPPED": "magenta"}
    state = cell(row["status"].lower(), styles.get(row["status"], "cyan"))
    parts = [Text.assemble((row["job"], "bold"), "  ", state, "  ", duration(row["seconds"]))]
    parts += [cell(row[key], "dim") for key in ("manifest", "message", "last_line") if row[key]]
    parts.append(cell(f"zooport logs {row['job']} --address {row['address']} --follow", "dim"))
    return Group(*parts)


def _follow_to_the_end(client: Any, address: str, job: str, result: OutputFormat) -> int:
    try:
        # Rows for programs go to standard output alone.
        _follow(client, address, job, sys.stdout if result is OutputFormat.TABLE else sys.stderr)
        while _status(client, address, job) not in _OVER:
            time.sleep(_LOOK / 2)
    except KeyboardInterrupt:
        _say(f"{job} goes on: zooport logs {job} --address {address} --follow")
        return INTERRUPTED
    row = _row(client, address, job)
    if result is not OutputFormat.TABLE:
        print_value(row, result, lambda _: _page(row))
    return _exit_code(client, address, row)


def _exit_code(client: Any, address: str, row: Mapping[str, Any]) -> int:
    if row["status"] == "SUCCEEDED":
        return 0
    if row["status"] == "STOPPED":
        return INTERRUPTED
    if row["exit_code"] is None:
        raise unavailable(address, f"the job {row['job']} did not begin: {' '.join(row['message'].split())}")
    with _typed(address):
        end = client.get_job_logs(row["job"])[-_TAIL:]
    if "No module named" in end and "zooport" in end.rpartition("No module named")[2]:
        raise Failure(
            "dependency.missing",
            f"the head node of {address} lacks the package zooport",
            hint="install on every node what is installed here, or send it along with --runtime-env",
        )
    return row["exit_code"] if row["exit_code"] in {1, 2, INTERRUPTED} else FAILED


def _follow(client: Any, address: str, job: str, target: Any = None) -> None:
    """Print the log as it grows until the job is over; a connection that breaks is opened again."""
    import asyncio

    printer = _Printer(target or sys.stdout)
    while True:
        try:
            asyncio.run(_tail(client, job, printer))
        except RuntimeError:  # the server closed the connection
            if _status(client, address, job) in _OVER:
                return
            time.sleep(_LOOK)
            continue
        except OSError as error:
            raise unavailable(address, one_line(error)) from error
        return


async def _tail(client: Any, job: str, printer: _Printer) -> None:
    printer.begin()
    async for text in client.tail_job_logs(job):
        printer.take(text)


class _Printer:
    """Prints a log that may come from its beginning more than once."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._printed = self._seen = 0

    def begin(self) -> None:
        """The log comes from its beginning."""
        self._seen = 0

    def take(self, text: str) -> None:
        """Print what of this has not been printed yet."""
        fresh = text[max(0, self._printed - self._seen) :]
        self._seen += len(text)
        self._printed = max(self._printed, self._seen)
        self._stream.write(printable(fresh))
        self._stream.flush()


def _say(line: str) -> None:
    sys.stderr.write(f"zooport: {line}\n")
    sys.stderr.flush()
