"""Runs of fake jobs on a Ray that is there: what they are given, and what is looked at afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zooport.export_core.failures import FailureRecord
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.digests import DigestCache
from zooport.jobs.hosts import HostSettings
from zooport.jobs.plan import Plan, make_plan, place
from zooport.jobs.progress import Display, Finished, Running
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, ExportRow, export_id, new_run_id
from zooport.jobs.registry.writer import Registry
from zooport.jobs.runner import RunOutcome, RunSettings, run_plan
from zooport.jobs.values import ExportTarget
from zooport.tests.fake_stages import FAKE


class Notes(Display):
    """Remembers what a run tells; does not ask what is running unless told to."""

    def __init__(self, *, watch: bool = False) -> None:
        self.ended: list[Finished] = []
        self.retried: list[tuple[str, str, str]] = []
        self.seen: set[tuple[str, str]] = set()
        self._watch = watch

    def finished(self, job: Finished) -> None:
        self.ended.append(job)

    def retrying(self, label: str, failure: FailureRecord, tries: str, seconds: float) -> None:
        self.retried.append((label.split(maxsplit=1)[0], failure.code, tries))

    def wants_stages(self) -> bool:
        return self._watch

    def running(self, jobs: Sequence[Running]) -> None:
        self.seen |= {(job.label, job.stage) for job in jobs}


class Bench:
    """A registry and fake checkpoints in one folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.notes = Notes(watch=True)
        (folder / "config.yaml").write_text("VERSION: 2")

    def target(self, name: str, **changes: Any) -> ExportTarget:
        weights = self.folder / f"{name.replace('/', '_')}.pth"
        if not weights.exists():
            weights.write_text(name)
        values: dict[str, Any] = {
            "checkpoint": CheckpointSource(name, self.folder / "config.yaml", weights),
            "format": "torchscript-trace",
            "timeout": 60.0,
            "retries": 0,
        }
        return ExportTarget(**(values | changes))

    def dataset(self) -> DatasetSource:
        return DatasetSource("shapes", self.folder / "a.json", self.folder / "images")

    def plan(self, registry: Registry, *targets: ExportTarget) -> Plan:
        run_id = new_run_id()
        return make_plan(
            [(target, place(target, self.folder / "out")) for target in targets],
            run_id=run_id,
            export_ids=(export_id(run_id, number) for number in range(1, 1000)),
            history=registry,
            digests=DigestCache(None),
        )

    def run(self, *targets: ExportTarget, **settings: Any) -> tuple[RunOutcome, dict[str, ExportRow]]:
        with open_registry(str(self.folder / "registry.db")) as registry:
            plan = self.plan(registry, *targets)
            registry.begin_run(
                self.folder / "zoo.yaml",
                "",
                plan.jobs,
                plan.baselines,
                cached=plan.cached,
                run_id=plan.run_id,
            )
            hosts = HostSettings(plan.run_id, FAKE, preload=())
            chosen = RunSettings(**({"workers": 4, "pause": 0.01} | settings))
            outcome = run_plan(plan, registry, self.notes, chosen, hosts)
            rows = registry.exports(ExportFilter(run=plan.run_id))
            assert registry.run(plan.run_id).status != "running"
        return outcome, {row.model: row for row in rows}


def leftovers(folder: Path) -> list[Path]:
    return [path for path in (folder / "out").rglob(".*") if path.name.endswith((".staging", ".old"))]
