"""The workers of a run: light Ray actors, each of which does one job at a time in disposable processes.

An actor imports neither torch nor the pipeline. If it dies, its job fails and another one takes its place.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation import PRELOAD, Cancellation, ForkServer
from zooport.jobs.cluster import server_directory
from zooport.jobs.inputs import Courier, Unit, unpack, with_own_paths
from zooport.jobs.registry.drivers import Driver
from zooport.jobs.registry.records import LiveJob, now
from zooport.jobs.shards import run_part
from zooport.jobs.values import BaselineJob, BaselineResult, ExportJob, ExportResult
from zooport.jobs.worker import PIPELINE, Stages, run_baseline, run_export

if TYPE_CHECKING:
    from zooport.jobs.agenda import Task

Job = ExportJob | BaselineJob
Result = ExportResult | BaselineResult
_INPUTS = "inputs"  # folder of files that were sent to this node for a run


@dataclass(frozen=True)
class HostSettings:
    """What every host of a run is given.

    Attributes:
        run_id: the run.
        stages: the functions that do the work.
        preload: modules that the fork server imports.
        driver: the process that records results; without it nothing is published.
    """

    run_id: str
    stages: Stages = PIPELINE
    preload: tuple[str, ...] = PRELOAD
    driver: Driver | None = None

    def server(self) -> ForkServer:
        """Return the way to the fork server that all hosts of a machine share."""
        return ForkServer(server_directory(self.run_id), self.preload)


class Host:
    """One worker. The driver calls its methods, :meth:`stage` and :meth:`cancel` beside :meth:`work`."""

    def __init__(self, settings: HostSettings) -> None:
        self._settings = settings
        self._server = settings.server()
        self._cancellation = Cancellation()
        self._stage = ""
        driver = settings.driver
        # Only a driver that can be seen from here can be seen to be gone: not one on another machine.
        self._watched = driver if driver is not None and driver.is_alive(None) else None

    def ready(self) -> str:
        """Return the worker's name once it can take a job."""
        self._server.wait()
        return f"{socket.gethostname()}/{os.getpid()}"

    def work(self, job: Job, units: tuple[Unit, ...] = ()) -> Result:
        """Do one job; ``units`` are the input files that travel with it."""
        folder = server_directory(self._settings.run_id) / _INPUTS
        try:
            result = self._work(unpack(job, units, folder) if units else job)
        except Failure as failure:
            return _not_begun(job, failure)
        return replace(result, failure=with_own_paths(result.failure, folder))

    def _work(self, job: Job) -> Result:
        common: dict[str, Any] = {
            "server": self._server,
            "on_stage": self._note,
            "cancellation": self._cancellation,
        }
        if job.part is not None:
            return run_part(job, self._settings.stages, **common, permit=self._permit)
        if isinstance(job, BaselineJob):
            return run_baseline(job, self._settings.stages, **common)
        return run_export(job, self._settings.stages, **common, permit=self._permit)

    def stage(self) -> str:
        """Return the stage of the present job."""
        return self._stage

    def cancel(self) -> None:
        """Stop the present job and every later one."""
        self._cancellation.set()

    def _permit(self) -> None:
        # Whoever goes on with the run of a dead driver does this job again, and must be the last to publish.
        if self._watched is not None and not self._watched.is_alive(None):
            raise Failure("run.cancelled", "the driver of this run is gone, so nothing is published")

    def _note(self, stage: Stage) -> None:
        self._stage = str(stage)


class HostHandle:
    """One host as the driver sees it.

    Args:
        settings: what every host of the run is given.
        size: bytes that Ray sets aside for the host and its processes; 0 for none.
        courier: sends input files along that its node may not see.
        placement: options of Ray that say where it may be.
    """

    def __init__(
        self,
        settings: HostSettings,
        size: int = 0,
        courier: Courier | None = None,
        placement: Mapping[str, Any] = MappingProxyType({}),
    ) -> None:
        import ray

        self._courier = courier or Courier()

        # A thread for work, and one to be asked while it works. Attempts are the registry's to count, so Ray
        # repeats nothing by itself.
        actor = ray.remote(Host).options(
            num_cpus=1,
            memory=size or None,
            max_concurrency=2,
            max_restarts=0,
            max_task_retries=0,
            **placement,
        )
        self._actor: Any = actor.remote(settings)
        self._asked: Any = None
        self.size = size
        self.hired = time.monotonic()
        self.name = ""
        self.task: Task | None = None
        self.since = 0.0
        self.started = ""
        self.stage = ""

    def prepare(self) -> Any:
        """Return a reference to the host's name, which is there when the host is ready."""
        return self._actor.ready.remote()

    def start(self, task: Task) -> Any:
        """Give the host a job and return a reference to its result."""
        self.task, self.since, self.started, self.stage = task, time.monotonic(), now(), ""
        return self._actor.work.remote(task.job, self._courier.pack(task.job))

    def live(self) -> LiveJob | None:
        """Return what the host is doing, for whoever asks the registry."""
        if self.task is None:
            return None
        job = self.task.job
        export = job.id if isinstance(job, ExportJob) else None
        return LiveJob(export, job.checkpoint.name, job.what, self.stage, self.started)

    def refresh(self) -> None:
        """Learn the stage of the job, without waiting for an answer."""
        import ray

        if self._asked is None:
            self._asked = self._actor.stage.remote()
        elif ray.wait([self._asked], timeout=0)[0]:
            asked, self._asked = self._asked, None
            try:
                self.stage = ray.get(asked)
            except ray.exceptions.RayError:
                self.stage = ""  # the death of a host is noticed where its result is awaited

    def cancel(self) -> None:
        """Ask the host to stop its job."""
        self._actor.cancel.remote()

    def kill(self) -> None:
        """End the host; processes of its job end with it."""
        import ray

        ray.kill(self._actor)


def _not_begun(job: Job, failure: Failure) -> Result:
    """Return the result of a job that could not begin."""
    if isinstance(job, BaselineJob):
        return BaselineResult(job.key, 0.0, failure=failure.record())
    return ExportResult(job.id, 0.0, failure=failure.record())


def died(job: Job, host: HostHandle, error: Exception) -> Result:
    """Return the result of a job whose host is gone."""
    import ray

    code = "worker.crashed"
    if isinstance(error, ray.exceptions.OutOfMemoryError):
        code = "resource.memory"
    elif isinstance(error, ray.exceptions.RayTaskError):
        code = "worker.error"
    failure = Failure(
        code,
        f"the Ray worker {host.name} ended while it ran this job ({type(error).__name__})",
        stage=Stage(host.stage) if host.stage else None,
        hint="run it again with zooport rerun --failed",
        details={"ray": one_line(error)},
    ).record()
    seconds = time.monotonic() - host.since
    if isinstance(job, BaselineJob):
        return BaselineResult(job.key, seconds, failure=failure)
    return ExportResult(job.id, seconds, failure=failure)


def largest_machine() -> int:
    """Return the bytes that the largest machine of the cluster has for jobs; 0 when it is not known."""
    import ray

    alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return int(max((resources.get("memory", 0.0) for resources in alive), default=0.0))
