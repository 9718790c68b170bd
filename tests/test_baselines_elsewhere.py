"""A baseline that two runs want at once is measured by the one that began first."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource
from zooport.jobs.digests import DigestCache
from zooport.jobs.plan import Plan, make_plan, place
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import export_id, new_run_id
from zooport.jobs.registry.writer import Registry
from zooport.jobs.values import BaselineResult
from zooport.tests.evaluation_support import demo_source
from zooport.tests.fake_stages import METRICS
from zooport.tests.run_support import Bench, Notes

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("stay_joined")]

# Its eager model crashes when it is evaluated: where it has a baseline, somebody else measured it.
NAME = "baseline-crash-1"


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def dataset(demo_zoo: Path) -> DatasetSource:
    return demo_source(demo_zoo, limit=3)


def begin(bench: Bench, registry: Registry, name: str, dataset: DatasetSource) -> Plan:
    """Begin a run of another manifest with the same checkpoint, and go no further."""
    target, run_id = bench.target(name, dataset=dataset), new_run_id()
    plan = make_plan(
        [(target, place(target, bench.folder / f"out-{run_id}"))],
        run_id=run_id,
        export_ids=[export_id(run_id, 1)],
        history=registry,
        digests=DigestCache(None),
    )
    registry.begin_run(bench.folder / f"{run_id}.yaml", "", plan.jobs, plan.baselines, run_id=run_id)
    return plan


class OnWaiting(Notes):
    """Does something when the run says that it waits for another."""

    def __init__(self, act: Callable[[], object]) -> None:
        super().__init__()
        self.waited = 0
        self._act = act

    def say(self, text: str) -> None:
        if "another run measures" in text:
            self.waited += 1
            self._act()


def test_a_run_takes_the_baseline_that_another_one_measures(bench: Bench, dataset: DatasetSource) -> None:
    with open_registry(str(bench.folder / "registry.db")) as other:
        plan = begin(bench, other, NAME, dataset)
        result = BaselineResult(plan.baselines[0].key, 1.0, METRICS)
        bench.notes = notes = OnWaiting(lambda: other.record_baseline(result))
        outcome, rows = bench.run(bench.target(NAME, dataset=dataset))
    assert notes.waited == 1
    assert outcome.exit_code == 0
    metric = rows[NAME].metrics["bbox/AP"]
    assert (metric.baseline, metric.delta) == (METRICS["bbox/AP"], 0.0)


def test_a_baseline_that_the_other_run_does_not_measure_after_all_is_measured_here(
    bench: Bench, dataset: DatasetSource
) -> None:
    with open_registry(str(bench.folder / "registry.db")) as other:
        plan = begin(bench, other, "good-1", dataset)
        bench.notes = notes = OnWaiting(lambda: other.finish_run(plan.run_id))
        outcome, rows = bench.run(bench.target("good-1", dataset=dataset))
    assert notes.waited == 1
    assert outcome.exit_code == 0
    assert rows["good-1"].metrics["bbox/AP"].baseline == METRICS["bbox/AP"]


def test_a_registry_that_is_away_for_a_moment_does_not_end_the_waiting(
    bench: Bench, dataset: DatasetSource, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask, asked = Registry.baselines_elsewhere, []

    def away(self: Registry, keys: list[str], run_id: str) -> dict[str, str]:
        asked.append(run_id)
        if len(asked) == 2:  # after the first, in which the run learned that it has to wait
            raise Failure("registry.unavailable", "the server is being restarted")
        return ask(self, keys, run_id)

    with open_registry(str(bench.folder / "registry.db")) as other:
        plan = begin(bench, other, NAME, dataset)
        result = BaselineResult(plan.baselines[0].key, 1.0, METRICS)
        bench.notes = OnWaiting(lambda: other.record_baseline(result))
        monkeypatch.setattr(Registry, "baselines_elsewhere", away)
        outcome, rows = bench.run(bench.target(NAME, dataset=dataset))
    assert outcome.exit_code == 0
    assert rows[NAME].metrics["bbox/AP"].baseline == METRICS["bbox/AP"]
    assert len(asked) > 2


def test_only_the_later_of_two_runs_waits_and_for_no_dead_driver(
    bench: Bench, dataset: DatasetSource
) -> None:
    with open_registry(str(bench.folder / "registry.db")) as registry:
        first, second = (begin(bench, registry, "good-1", dataset) for _ in range(2))
        keys = [first.baselines[0].key]
        assert registry.baselines_elsewhere(keys, first.run_id) == {}
        assert registry.baselines_elsewhere(keys, second.run_id) == {keys[0]: first.run_id}
        assert registry.baselines_elsewhere(["another"], second.run_id) == {}
        with sqlite3.connect(bench.folder / "registry.db") as connection:
            connection.execute("UPDATE runs SET process = 'a number that was used again'")
        assert registry.baselines_elsewhere(keys, second.run_id) == {}
