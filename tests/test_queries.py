"""Questions to the registry: filters, names that people type, what is to be run again."""

from __future__ import annotations

from collections.abc import Iterator
from fnmatch import fnmatchcase

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sqlalchemy import Column, MetaData, String, Table, create_engine, insert, select

from zooport.export_core.failures import Failure
from zooport.jobs.registry import globs, open_registry
from zooport.jobs.registry.records import ExportFilter, primary_metrics, short_id
from zooport.jobs.registry.writer import Registry
from zooport.tests.registry_support import begin, fail, make_job, run_of, succeed

SCRIPT = "torchscript-script"
TRACE = "torchscript-trace"


@pytest.fixture
def registry(registry_url: str) -> Iterator[Registry]:
    with open_registry(registry_url) as opened:
        yield opened


@pytest.fixture
def zoo(registry: Registry) -> Registry:
    """One finished run: two models verified, one failed, one unsupported, each in two formats."""
    jobs = begin(registry, ["mask/r50", "mask/r101", "retina", "fcos"], [TRACE, SCRIPT])
    for job in jobs:
        if job.checkpoint.name == "retina":
            fail(registry, job, "checkpoint.mismatch")
        elif job.checkpoint.name == "fcos":
            fail(registry, job, "unsupported.architecture")
        else:
            succeed(registry, job)
    registry.finish_run(run_of(jobs[0]))
    return registry


def listed(registry: Registry, wanted: ExportFilter) -> set[tuple[str, str]]:
    return {(row.model, row.format) for row in registry.exports(wanted)}


def both(*models: str) -> set[tuple[str, str]]:
    return {(model, export_format) for model in models for export_format in (TRACE, SCRIPT)}


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (ExportFilter(), both("mask/r50", "mask/r101", "retina", "fcos")),
        (ExportFilter(statuses=("failed",)), both("retina")),
        (ExportFilter(statuses=("failed", "unsupported")), both("retina", "fcos")),
        (ExportFilter(model="mask/*"), both("mask/r50", "mask/r101")),
        (ExportFilter(model="mask/r5?"), both("mask/r50")),
        (ExportFilter(model="*[05]1"), both("mask/r101")),
        (ExportFilter(model="MASK/*"), set()),
        (ExportFilter(model="mask%"), set()),
        (ExportFilter(model="retina"), both("retina")),
        (ExportFilter(format=SCRIPT, model="r*"), {("retina", SCRIPT)}),
        (ExportFilter(format="*-trace", statuses=("failed",)), {("retina", TRACE)}),
        (ExportFilter(code="checkpoint.*"), both("retina")),
        (ExportFilter(code="*"), both("retina", "fcos")),
        (ExportFilter(code="unsupported.architecture"), both("fcos")),
        (ExportFilter(run="latest", model="fcos"), both("fcos")),
        (ExportFilter(limit=2), both("fcos")),
        (ExportFilter(limit=1, model="*retina*"), {("retina", SCRIPT)}),
    ],
)
def test_filters(zoo: Registry, wanted: ExportFilter, expected: set[tuple[str, str]]) -> None:
    assert listed(zoo, wanted) == expected


def test_repaired_failure_leaves_the_present_state(zoo: Registry) -> None:
    (job,) = begin(zoo, ["retina"])
    succeed(zoo, job)
    first = zoo.runs()[1].id
    assert listed(zoo, ExportFilter(statuses=("failed",))) == {("retina", SCRIPT)}
    assert listed(zoo, ExportFilter(run=first, statuses=("failed",))) == both("retina")
    assert len(zoo.exports(ExportFilter(everything=True, model="retina"))) == 3


def test_run_is_named_by_its_ending_or_beginning(zoo: Registry) -> None:
    run = zoo.run("latest").id
    assert zoo.run(run[-4:]).id == run
    assert zoo.run(run[:15]).id == run
    assert len(zoo.exports(ExportFilter(run=run[-4:]))) == 8


@pytest.mark.parametrize("name", ["nope", "", "%", "_" * 22])
def test_unknown_run(zoo: Registry, name: str) -> None:
    with pytest.raises(Failure) as caught:
        zoo.run(name)
    assert caught.value.code == "registry.unknown"


def test_no_run_is_latest_in_an_empty_registry(registry: Registry) -> None:
    assert registry.runs() == []
    assert registry.exports() == []
    with pytest.raises(Failure, match="no run yet"):
        registry.run("latest")


def test_export_is_named_in_many_ways(zoo: Registry) -> None:
    wanted = zoo.exports(ExportFilter(model="retina", format=SCRIPT))[0].id
    for name in (wanted, short_id(wanted), f"retina/{SCRIPT}"):
        assert zoo.export(name).row.id == wanted
    slashed = zoo.export(f"mask/r50/{TRACE}").row
    assert (slashed.model, slashed.format) == ("mask/r50", TRACE)


def test_model_alone_names_its_only_export(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    assert registry.export("a").row.id == job.id


def test_one_number_is_not_the_beginning_of_another(registry: Registry) -> None:
    jobs = begin(registry, [f"m{number}" for number in range(12)])
    assert registry.export(jobs[0].id).row.id == jobs[0].id
    assert registry.export(short_id(jobs[0].id)).row.id == jobs[0].id


@pytest.mark.parametrize("name", ["retina", "r-20"])
def test_name_of_several_exports_is_refused_with_their_ids(zoo: Registry, name: str) -> None:
    with pytest.raises(Failure, match="more than one export") as caught:
        zoo.export(name)
    assert zoo.exports()[-3].id in caught.value.message or name == "r-20"


def test_unknown_export_is_answered_with_the_nearest(zoo: Registry) -> None:
    with pytest.raises(Failure) as caught:
        zoo.export(f"retnia/{SCRIPT}")
    assert caught.value.code == "registry.unknown"
    assert f"retina/{SCRIPT}" in caught.value.hint


def test_failed_exports_are_what_rerun_runs(zoo: Registry) -> None:
    assert {failed.model for failed in zoo.failed_exports()} == {"retina"}
    everything = zoo.failed_exports(include_unsupported=True)
    assert {failed.model for failed in everything} == {"retina", "fcos"}
    assert zoo.failed_exports(code_glob="export.*") == []
    assert len(zoo.failed_exports(code_glob="checkpoint.mis*")) == 2
    (first, _) = zoo.failed_exports()
    assert first.job == make_job(first.run, 5, "retina", TRACE)


def test_failure_of_a_run_that_has_been_repaired_is_not_run_again(zoo: Registry) -> None:
    first = zoo.run("latest").id
    (job,) = begin(zoo, ["retina"])
    succeed(zoo, job)
    zoo.finish_run(run_of(job))
    assert [failed.format for failed in zoo.failed_exports()] == [SCRIPT]
    assert [failed.format for failed in zoo.failed_exports(run=first)] == [SCRIPT]


def test_failure_of_a_run_that_failed_again_is_run_again(zoo: Registry) -> None:
    first = zoo.run("latest").id
    (job,) = begin(zoo, ["retina"])
    fail(zoo, job)
    zoo.finish_run(run_of(job))
    assert len(zoo.failed_exports(run=first)) == 2
    assert len(zoo.failed_exports(run=run_of(job))) == 1


def test_cancelled_exports_are_run_again_unless_left_out(registry: Registry) -> None:
    (job,) = begin(registry, ["a"])
    registry.finish_run(run_of(job))
    assert [failed.code for failed in registry.failed_exports()] == ["run.cancelled"]
    assert registry.failed_exports(include_cancelled=False) == []


def test_main_metric_of_each_task_is_shown(zoo: Registry) -> None:
    row = zoo.exports()[0]
    assert list(primary_metrics(row.metrics)) == ["bbox"]


@given(
    glob=st.text(alphabet="ab[]!^-*?%_\\", max_size=8),
    values=st.lists(st.text(alphabet="ab]!^-%_\\", max_size=5), max_size=8),
)
@example(glob="[!a]", values=["a", "b", "!"])
@example(glob="[]a]*", values=["]b", "a", "b"])
@example(glob="a[", values=["a[", "a"])
def test_sql_lets_every_match_through(glob: str, values: list[str]) -> None:
    table = Table("names", MetaData(), Column("name", String))
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        table.create(connection)
        if values:
            connection.execute(insert(table), [{"name": value} for value in values])
        query = select(table.c.name).where(globs.condition(table.c.name, glob))
        found = set(connection.execute(query).scalars())
    assert {value for value in values if fnmatchcase(value, glob)} <= found
