"""Who is hired and who makes room: workers of several sizes, with no Ray behind them."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import crew as crews
from zooport.jobs.agenda import Agenda, Task
from zooport.jobs.book import Book
from zooport.jobs.crew import Crew
from zooport.jobs.hosts import HostSettings
from zooport.jobs.plan import Plan
from zooport.jobs.progress import Display
from zooport.jobs.values import BaselineJob, ExportJob, Part, PartKind, Status

SMALL, LARGE = 1, 8
SOURCE = CheckpointSource("m", Path("/c.yaml"), Path("/w.pth"))


class FakeHost:
    """Remembers what was asked of it."""

    def __init__(self, _: object, size: int, *more: object) -> None:
        self.size = size
        self.hired = time.monotonic()
        self.task: Task | None = None
        self.name = "host"
        self.killed = False

    def prepare(self) -> object:
        return object()

    def start(self, task: Task) -> object:
        self.task = task
        return object()

    def kill(self) -> None:
        self.killed = True


class FakeRegistry:
    def start_attempt(self, *_: object) -> None:
        """Nothing is written."""


def task(size: int, number: int = 1) -> Task:
    job = ExportJob("r.1", "k", SOURCE, "torchscript-trace", Path("/out"), Path("/log"), reservation=size)
    return Task(job, size, number)


@pytest.fixture
def crew(monkeypatch: pytest.MonkeyPatch) -> Crew:
    monkeypatch.setattr(crews, "largest_machine", lambda: 10)
    monkeypatch.setattr(crews, "HostHandle", FakeHost)
    registry: Any = FakeRegistry()
    plan = Plan("r", ())
    made = Crew(
        plan,
        Book(plan, registry, Display()),
        Display(),
        HostSettings("r"),
        lambda: 0,
        fail_fast=False,
        pause=1.0,
    )
    made._workers = 3
    return made


def hosts(crew: Crew) -> list[Any]:
    return list(crew._hosts.values())


def at_work(crew: Crew, size: int) -> Any:
    """A host of this size that has a task."""
    host: Any = FakeHost(None, size)
    crew._hosts[host.start(task(size))] = host
    return host


def becomes_free(crew: Crew, host: Any) -> None:
    crew._hosts = {reference: other for reference, other in crew._hosts.items() if other is not host}
    crew._give(host)


def test_large_ones_are_hired_first_and_no_more_than_there_is_work_for(crew: Crew) -> None:
    crew._agenda = Agenda([task(SMALL), task(LARGE)])
    crew._staff()
    assert [host.size for host in hosts(crew)] == [LARGE, SMALL]
    crew._staff()
    assert len(hosts(crew)) == 2


def test_no_more_are_hired_than_workers_were_asked_for(crew: Crew) -> None:
    crew._agenda = Agenda([task(SMALL) for _ in range(9)])
    crew._staff()
    assert len(hosts(crew)) == 3


def test_whom_nothing_waits_for_any_more_is_dismissed(crew: Crew) -> None:
    crew._agenda = Agenda([task(LARGE), task(LARGE)])
    crew._staff()
    first, second = hosts(crew)
    crew._agenda.clear()
    crew._staff()
    assert hosts(crew) == []
    assert first.killed
    assert second.killed


def test_what_stops_at_a_failure_ends_what_it_has_begun(crew: Crew) -> None:
    crew._fail_fast = True
    crew._book.counts[Status.FAILED] = 1
    awaited, other = (
        Task(BaselineJob(key, SOURCE, DatasetSource("d", SOURCE.config, SOURCE.config), SOURCE.config), SMALL)
        for key in ("k", "other")
    )
    follow_up = replace(task(SMALL), job=replace(task(SMALL).job, part=Part(PartKind.LOCATE, ())))
    crew._agenda = Agenda([task(SMALL), other, follow_up, awaited])
    busy = at_work(crew, LARGE)
    busy.task = replace(busy.task, job=replace(busy.task.job, baseline="k"))
    crew._agenda.wait(task(SMALL), 0.0)
    becomes_free(crew, at_work(crew, SMALL))
    assert [crew._agenda.take(SMALL), crew._agenda.take(SMALL)] == [awaited, None]
    assert follow_up in [host.task for host in hosts(crew)]


def test_a_free_one_goes_on_with_its_size_and_then_makes_room_for_another(crew: Crew) -> None:
    crew._agenda = Agenda([task(LARGE), task(SMALL)])
    host = at_work(crew, SMALL)
    becomes_free(crew, host)
    assert hosts(crew) == [host]
    becomes_free(crew, host)
    assert host.killed
    crew._staff()
    assert [other.size for other in hosts(crew)] == [LARGE]


def test_what_is_tried_again_with_more_memory_gets_a_place_at_once(crew: Crew) -> None:
    crew._workers = 2
    crew._agenda = Agenda([task(SMALL) for _ in range(9)])
    first, second = at_work(crew, SMALL), at_work(crew, SMALL)
    crew._agenda.wait(task(LARGE, number=2), 0)
    crew._agenda.promote()
    becomes_free(crew, first)
    assert first.killed
    crew._staff()
    assert [host.size for host in hosts(crew)] == [SMALL, LARGE]
    becomes_free(crew, second)  # one place is enough
    assert not second.killed


class TestStarved:
    """Ray has no memory for a large host as long as small ones hold it."""

    @pytest.fixture
    def starved(self, crew: Crew) -> Any:
        crew._agenda = Agenda([task(LARGE), *(task(SMALL) for _ in range(9))])
        host: Any = FakeHost(None, LARGE)
        host.hired -= 60
        crew._hosts[host.prepare()] = host
        return host

    def test_small_ones_make_room_until_one_is_left(self, crew: Crew, starved: Any) -> None:
        first, second = at_work(crew, SMALL), at_work(crew, SMALL)
        becomes_free(crew, first)
        assert first.killed
        crew._staff()
        assert hosts(crew) == [starved, second]  # none is hired in its place
        becomes_free(crew, second)
        assert not second.killed  # or nothing would be done any more

    def test_once_it_has_come_small_ones_come_back(self, crew: Crew, starved: Any) -> None:
        at_work(crew, SMALL)
        becomes_free(crew, starved)
        assert starved.task is not None
        crew._staff()
        assert sorted(host.size for host in hosts(crew)) == [SMALL, SMALL, LARGE]
