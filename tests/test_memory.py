"""Memory is set aside through Ray, is a limit where the work is done, and is doubled once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from zooport.jobs.hosts import largest_machine
from zooport.jobs.memory import size_class
from zooport.jobs.progress import Running
from zooport.jobs.registry import open_registry
from zooport.tests.run_support import Bench, Notes, leftovers

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("stay_joined")]
MIB = 1 << 20


class Counting(Notes):
    """Remembers how many jobs ran at once at most."""

    def __init__(self) -> None:
        super().__init__(watch=True)
        self.most = 0

    def running(self, jobs: Sequence[Running]) -> None:
        super().running(jobs)
        self.most = max(self.most, sum(not job.stage.startswith("retrying") for job in jobs))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    made = Bench(tmp_path)
    made.notes = Counting()
    return made


def test_as_many_run_at_once_as_memory_is_there_for(bench: Bench) -> None:
    """Ray has less than three times what each asks for, and four workers were wanted."""
    share = int(largest_machine() * 0.35)
    targets = [bench.target(f"sleep-{number}-0.4", memory=share) for number in range(4)]
    outcome, _ = bench.run(*targets, workers=4)
    assert outcome.exit_code == 0
    assert isinstance(bench.notes, Counting)
    assert 1 <= bench.notes.most <= largest_machine() // size_class(share, largest_machine()) < 4


def test_what_asks_for_more_than_there_is_runs_alone(bench: Bench) -> None:
    targets = [bench.target(f"sleep-{number}-0.6", memory=100 * largest_machine()) for number in range(3)]
    outcome, rows = bench.run(*targets, workers=3)
    assert outcome.exit_code == 0
    assert isinstance(bench.notes, Counting)
    assert bench.notes.most == 1
    assert {row.status for row in rows.values()} == {"succeeded"}


def test_jobs_of_different_sizes_all_get_their_workers(bench: Bench) -> None:
    sizes = {"good-1": 100 * MIB, "good-2": 1000 * MIB, "good-3": 2000 * MIB, "good-4": 100 * MIB}
    targets = [bench.target(name, memory=size) for name, size in sizes.items()]
    outcome, rows = bench.run(*targets, workers=2)
    assert outcome.exit_code == 0
    assert all(row.attempt == 1 for row in rows.values())


def test_what_was_too_little_is_doubled_once(bench: Bench) -> None:
    names = ("hold-1-200", "leak-1", "good-1")
    targets = [bench.target(name, memory=160 * MIB, retries=2) for name in names]
    outcome, rows = bench.run(*targets, workers=2)
    assert {name: (row.status, row.attempt) for name, row in rows.items()} == {
        "hold-1-200": ("succeeded", 2),
        "leak-1": ("failed", 2),  # not a third time
        "good-1": ("succeeded", 1),
    }
    assert outcome.exit_code == 1
    with open_registry(str(bench.folder / "registry.db")) as registry:
        detail = registry.export("leak-1")
    assert detail.job.reservation == 160 * MIB
    assert [attempt.code for attempt in detail.attempts] == ["resource.memory"] * 2
    for attempt, limit in zip(detail.attempts, ("160 MiB", "320 MiB"), strict=True):
        assert f"its limit is {limit}" in (attempt.message or "")
    assert [" --memory 160MiB" in (attempt.command or "") for attempt in detail.attempts] == [True, False]
    assert " --memory 320MiB" in (detail.command or "")
    assert leftovers(bench.folder) == []
