"""What a run costs around its work: ten thousand exports, from the manifest to the report.

``nothing``: a job's work is a no-op in the worker; what is left is the manifest, the plan, Ray, the registry
and the report. ``processes``: everything is as always, but the stages do nothing: each job forks its two
processes from the server that has imported torch, and publishes two small files, flushed to the disk. The
processors' seconds, of all processes of the run, tell what a busy machine adds to the wall's.
``python benchmarks/overhead.py [--jobs N] [--processes N] [--workers N]``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil

from zooport.benchmarks.no_op import IdleHost
from zooport.jobs import hosts
from zooport.jobs.output import OutputFormat
from zooport.jobs.runner import RunSettings
from zooport.jobs.submission import Request, submit
from zooport.jobs.worker import Stages

RESULT = Path(__file__).parent / "overhead.json"
WANTED_RATE, WANTED_MEMORY = 150.0, 400 << 20
FORMATS = ("torchscript-trace", "torchscript-script")
STAGES = Stages(*(f"zooport.benchmarks.no_op_stages:{stage}" for stage in ("export", "verify", "baseline")))


def main() -> None:
    """Run the jobs, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--jobs", type=int, default=10_000, help="whose work is nothing")
    parser.add_argument("--processes", type=int, default=1_000, help="jobs with processes and artifacts")
    parser.add_argument("--workers", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    results = {}
    for work, jobs in (("nothing", arguments.jobs), ("processes", arguments.processes)):
        if jobs:
            with tempfile.TemporaryDirectory() as folder:
                results[work] = measure(Path(folder), work, jobs, arguments.workers)
            print_result(work, results[work])
    RESULT.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, work: str, jobs: int, workers: int) -> dict[str, Any]:
    """Run so many jobs and return what they took."""
    os.environ["ZOOPORT_CACHE"] = str(folder / "cache")
    manifest, registry = write_zoo(folder, jobs // len(FORMATS)), folder / "registry.db"
    time.sleep(2.5)  # digests of files that were written just now are not remembered
    settings = hosts.HostSettings("", STAGES)
    with contextlib.ExitStack() as stack:
        if work == "nothing":
            settings = hosts.HostSettings("", STAGES, preload=())
            stack.callback(setattr, hosts, "Host", hosts.Host)
            hosts.Host = IdleHost  # type: ignore[misc]
        nothing = stack.enter_context(Path(os.devnull).open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(nothing))
        stack.enter_context(contextlib.redirect_stderr(nothing))
        watch = stack.enter_context(Watch())
        began = time.monotonic()
        request = Request(
            registry=str(registry),
            settings=RunSettings(workers=workers),
            hosts=settings,
            result=OutputFormat.JSON,
        )
        exit_code = submit(manifest, request)
        wall = time.monotonic() - began
    done, first, last = recorded(registry)
    if exit_code or done != jobs:
        raise SystemExit(f"{done} of {jobs} jobs were done; exit code {exit_code}")
    return {
        "jobs": jobs,
        "workers": workers,
        "wall_s": wall,
        "jobs_per_s": jobs / wall,
        "jobs_per_s_between_first_and_last": jobs / (last - first),
        "cpu_s": watch.cpu,
        "cpu_ms_per_job": {name: 1000 * seconds / jobs for name, seconds in watch.cpu.items()},
        "driver_memory_bytes": {"halfway": watch.memory_at(0.5), "most": watch.memory_at(1.0)},
        "load": os.getloadavg()[0],
        "within": jobs / wall >= WANTED_RATE and watch.memory_at(1.0) <= WANTED_MEMORY,
    }


def print_result(work: str, result: Mapping[str, Any]) -> None:
    """Print one row of the table."""
    memory = {name: f"{size >> 20} MiB" for name, size in result["driver_memory_bytes"].items()}
    cpu = {name: f"{each:.1f} ms" for name, each in result["cpu_ms_per_job"].items()}
    print(f"{work}: {result['jobs']} jobs, {result['workers']} at once: {result['wall_s']:.1f} s,", end=" ")
    print(f"{result['jobs_per_s']:.0f} jobs/s (wanted: {WANTED_RATE:.0f});", end=" ")
    print(f"{result['jobs_per_s_between_first_and_last']:.0f} jobs/s between the first and the last")
    print(f"  processors' time per job: {', '.join(f'{name} {each}' for name, each in cpu.items())}")
    print(f"  the driver's memory: {', '.join(f'{name} {each}' for name, each in memory.items())}", end=" ")
    print(f"(wanted: {WANTED_MEMORY >> 20} MiB); load {result['load']:.1f} on {os.cpu_count()} CPUs")


def write_zoo(folder: Path, models: int) -> Path:
    """Write a manifest of so many checkpoints, each with a weights file of its own."""
    (folder / "config.yaml").write_text("VERSION: 2\n", encoding="utf-8")
    (folder / "weights").mkdir()
    lines = [f"formats: [{', '.join(FORMATS)}]", "models:"]
    for number in range(models):
        (folder / "weights" / f"{number}.pth").write_text(str(number), encoding="utf-8")
        lines.append(f"  - {{name: m{number}, config: config.yaml, weights: weights/{number}.pth}}")
    manifest = folder / "zoo.yaml"
    manifest.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return manifest


def recorded(registry: Path) -> tuple[int, float, float]:
    """Return how many exports succeeded, and when the first attempt began and the last one ended."""
    query = "SELECT count(*), min(started_at), max(finished_at) FROM attempts WHERE status = 'succeeded'"
    with contextlib.closing(sqlite3.connect(registry)) as connection:
        count, first, last = connection.execute(query).fetchone()
    return count, *(datetime.fromisoformat(moment).timestamp() for moment in (first, last))


class Watch:
    """Looks at the run twice a second, from a thread: the driver's memory, and every process's time."""

    def __init__(self) -> None:
        self.cpu: dict[str, float] = {}
        self._memory: list[int] = []
        self._last: dict[tuple[int, float], tuple[str, float]] = {}
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Watch:
        self._before = own_seconds(psutil.Process())
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()
        self._last[0, 0.0] = ("driver", own_seconds(psutil.Process()) - self._before)
        for kind, seconds in self._last.values():
            self.cpu[kind] = self.cpu.get(kind, 0.0) + seconds
        self.cpu["all"] = sum(self.cpu.values())

    def memory_at(self, part: float) -> int:
        """Return the most that the driver has held until this part of the time had passed."""
        return max(self._memory[: max(1, int(part * len(self._memory)))])

    def _run(self) -> None:
        while not self._ended.wait(0.5):
            me = psutil.Process()
            self._memory.append(me.memory_info().rss)
            servers = fork_servers()
            for process in [*me.children(recursive=True), *servers]:
                with contextlib.suppress(psutil.Error):
                    kind = "jobs" if process in servers else kind_of(process.name())
                    self._last[process.pid, process.create_time()] = kind, all_seconds(process)


def fork_servers() -> list[psutil.Process]:
    """Return the servers of this run; what they have forked looks like them, and is counted with them."""
    alike = {each.pid: each for each in psutil.process_iter(["cmdline", "ppid"]) if is_fork_server(each)}
    return [
        each
        for each in alike.values()
        if (parent := alike.get(each.info["ppid"])) is None or parent.info["cmdline"] != each.info["cmdline"]
    ]


def is_fork_server(process: psutil.Process) -> bool:
    """Whether this is a server that forks the processes of this run's jobs, or one of those."""
    if not any("zooport.export_core.isolation.server" in word for word in process.info["cmdline"] or ()):
        return False
    with contextlib.suppress(psutil.Error):
        return process.environ().get("ZOOPORT_CACHE") == os.environ["ZOOPORT_CACHE"]
    return False


def kind_of(name: str) -> str:
    """Return what a process below the driver is."""
    return "hosts" if name.startswith("ray::") and "Host" in name else "Ray"


def own_seconds(process: psutil.Process) -> float:
    """Return the processors' seconds of a process itself."""
    times = process.cpu_times()
    return float(times.user + times.system)


def all_seconds(process: psutil.Process) -> float:
    """Return the processors' seconds of a process and of its children that have ended."""
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


if __name__ == "__main__":
    main()
