"""The final table of a run, and the tables that people read."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from zooport.export_core.failures import Failure
from zooport.jobs.lines import Lines
from zooport.jobs.notes import note_section
from zooport.jobs.output import cell, duration, size
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import short_id
from zooport.jobs.registry.remarks import Remark
from zooport.jobs.registry.writer import Registry
from zooport.jobs.report import render_run
from zooport.jobs.tables import export_page
from zooport.jobs.values import ExportResult
from zooport.tests.registry_support import begin, fail, run_of, succeed

LONG = "backbone.fpn_lateral2.weight has shape (256, 512, 1, 1), the config asks for (256, 256, 1, 1) " * 2


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Registry]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOOPORT_REGISTRY", raising=False)
    with open_registry() as opened:
        yield opened


def drawn(renderable: RenderableType, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def mixed_run(registry: Registry) -> str:
    good, bad, odd, left = begin(registry, ["good", "bad", "odd", "left"])
    succeed(registry, good, exported=39.9)
    fail(registry, bad, "checkpoint.mismatch", LONG)
    fail(registry, odd, "unsupported.architecture", "MODEL.ROI_HEADS.NAME is OtherHeads")
    run = run_of(good)
    registry.cancel([left.id])
    registry.finish_run(run)
    return run


@pytest.mark.parametrize("width", [60, 80, 120, 10_000])
def test_report_has_verdict_numbers_reasons_and_next_commands(registry: Registry, width: int) -> None:
    run = mixed_run(registry)
    text = drawn(render_run(registry, run), width)
    assert max(len(line) for line in text.splitlines()) <= width
    words = " ".join(text.split())
    for word in ("verified", "39.90", "-0.10", "checkpoint.mismatch", "OtherHeads", "2.5 s"):
        assert word in words
    assert "1 succeeded, 1 failed, 1 unsupported, 1 cancelled" in words
    assert f"zooport show {short_id(registry.exports()[1].id)} " in words
    assert "zooport rerun --failed" in words


def test_long_reason_is_wrapped_and_whole(registry: Registry) -> None:
    text = drawn(render_run(registry, mixed_run(registry)), 80)
    assert " ".join(LONG.split()) in " ".join(text.split())


def test_report_of_a_good_run_asks_for_nothing(registry: Registry) -> None:
    (job,) = begin(registry, ["good"])
    succeed(registry, job)
    registry.finish_run(run_of(job))
    assert "zooport" not in drawn(render_run(registry, run_of(job)))


def test_report_counts_what_was_cached(registry: Registry) -> None:
    (job,) = begin(registry, ["good"])
    succeed(registry, job)
    registry.finish_run(run_of(job))
    (job,) = begin(registry, ["good"], cached=lambda job: registry.find_success(job.key))
    registry.finish_run(run_of(job))
    text = drawn(render_run(registry, run_of(job)))
    assert "1 export: 1 succeeded (1 cached)" in text


def test_report_of_another_registry_names_it_in_its_commands(tmp_path: Path) -> None:
    with open_registry(str(tmp_path / "my registry.db")) as registry:
        run = mixed_run(registry)
        text = " ".join(drawn(render_run(registry, run), 500).split())
    assert f"rerun --failed --registry 'sqlite:///{tmp_path}/my registry.db'" in text


def test_next_commands_do_not_break_on_a_narrow_terminal(tmp_path: Path) -> None:
    with open_registry(str(tmp_path / "r.db")) as registry:
        text = drawn(render_run(registry, mixed_run(registry)), len(str(tmp_path)) + 50)
    command = f"zooport rerun --failed --registry sqlite:///{tmp_path}/r.db"
    assert text.splitlines()[-2:] == ["# try those again", command]


def test_report_of_an_empty_run(registry: Registry) -> None:
    registry.begin_run("/zoo.yaml", "", [], [], run_id="r-1")
    registry.finish_run("r-1")
    assert "0 exports" in drawn(render_run(registry, "r-1"))


def test_optional_column_gives_way_to_a_narrow_terminal() -> None:
    lines = Lines("name", "spare", "last", optional=("spare",))
    lines.add("n" * 20, "s" * 20, "l" * 20)
    assert "s" * 20 in drawn(lines, 80)
    narrow = drawn(lines, 50)
    assert "s" * 20 not in narrow
    assert "l" * 20 in narrow


def test_long_name_goes_above_where_it_does_not_fit_beside() -> None:
    name, kind = "m" * 44, "f" * 20
    lines = Lines("id", "name", "format", above="name")
    for number in "12":
        lines.add(number, name, kind)
    wide = [f"id  {'name':44}  format", *(f"{number}   {name}  {kind}" for number in "12")]
    assert drawn(lines, 80).splitlines() == wide
    narrow = ["name", "  id  format", name, *(f"  {number}   {kind}" for number in "12")]
    assert drawn(lines, 60).splitlines() == narrow


def test_row_that_just_fits_is_followed_by_no_empty_line() -> None:
    lines = Lines("name", remark="why")
    lines.add("n" * 20)
    lines.add("m" * 20, remark="because")
    text = drawn(lines, 20).splitlines()
    assert text == ["name", "n" * 20, "m" * 20, "    because"]


@pytest.mark.parametrize("width", [60, 79, 80, 81, 90, 100])
def test_no_row_of_the_demo_is_broken(registry: Registry, width: int) -> None:
    jobs = begin(registry, ["cascade_mask_rcnn_fpn"], ["torchscript-trace", "torchscript-script"])
    for job in jobs:
        succeed(registry, job)
    registry.finish_run(run_of(jobs[0]))
    text = drawn(render_run(registry, run_of(jobs[0])), width)
    assert len([line for line in text.splitlines() if "torchscript" in line and "2.5 s" in line]) == 2


def test_numbers_are_aligned_to_the_right_by_width_on_screen() -> None:
    lines = Lines("name", "time", right=("time",))
    lines.add("\u6a21\u578b", "1 s")  # each of these two takes two columns
    lines.add("model", "10 s")
    assert drawn(lines).splitlines() == ["name   time", "\u6a21\u578b    1 s", "model  10 s"]


@pytest.mark.parametrize(
    ("text", "shown"),
    [("a\nb", "a b"), ("\x1b[31mred", "[31mred"), ("[red]x[/red]", "[red]x[/red]"), ("a\u202eb", "a b")],
)
def test_cell_cannot_move_the_cursor(text: str, shown: str) -> None:
    assert cell(text) == Text(shown)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, ""), (0.04, "0.0 s"), (9.94, "9.9 s"), (9.97, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (3599.7, "1 h 00 min"), (7800, "2 h 10 min")],
)  # fmt: skip
def test_duration(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 bytes"),
        (999, "999 bytes"),
        (1500, "1.5 kB"),
        (178_200_000, "178.2 MB"),
        (2_500_000_000, "2.5 GB"),
    ],
)
def test_size(count: int, text: str) -> None:
    assert size(count) == text


class TestNotes:
    """Remarks on exports are seen without being asked for, and each only once."""

    def test_equal_remarks_are_one_line_with_their_models(self) -> None:
        remarks = [Remark(model, kind, "empty case not verified") for model in "ab" for kind in ("x", "y")]
        assert section(remarks) == ["notes", "  empty case not verified (a, b)"]

    def test_remarks_on_configs_differ_in_more_than_their_paths(self) -> None:
        remarks = [Remark(name, "x", f"/my zoo/{name}/config.yaml: SEED: later value") for name in "ab"]
        assert section(remarks) == ["notes", "  SEED: later value (a, b)"]

    def test_many_models_are_counted(self) -> None:
        remarks = [Remark(f"m{number}", "x", "noted") for number in range(9)]
        assert section(remarks) == ["notes", "  noted (m0, m1, m2 and 6 more models)"]

    def test_many_kinds_are_counted(self) -> None:
        lines = section([Remark("m", "x", f"remark {number}") for number in range(13)])
        assert len(lines) == 12
        assert lines[-1].startswith("  and 3 more: ")

    def test_long_remark_is_shortened(self) -> None:
        (_, line) = section([Remark("m", "x", "word " * 1000)])
        assert len(line) < 250
        assert line.endswith("\u2026 (m)")

    def test_no_remark_is_no_section(self) -> None:
        assert note_section([]) is None

    def test_end_of_a_run_has_them_also_of_what_was_cached(self, registry: Registry) -> None:
        for cached in (lambda _: None, lambda job: registry.find_success(job.key)):
            (job,) = begin(registry, ["good"], cached=cached)
            if not registry.exports()[-1].cached:
                succeed(registry, job)
            registry.finish_run(run_of(job))
            assert "noted (good)" in drawn(render_run(registry, run_of(job)))

    def test_page_of_an_export_has_a_section_of_them(self, registry: Registry) -> None:
        (job,) = begin(registry, ["good"])
        succeed(registry, job)
        lines = drawn(export_page(registry.export("good"))).splitlines()
        assert lines[lines.index("notes") + 1] == "  noted"
        assert "".join(lines).count("noted") == 1


class TestPage:
    """What ``zooport show`` prints of one export."""

    def test_extensions_and_options_are_named(self, registry: Registry) -> None:
        (job,) = begin(registry, ["good"])
        detail = registry.export("good")
        source = replace(job.checkpoint, imports=("/ext/pocketnet", "more.blocks"))
        page = drawn(export_page(replace(detail, job=replace(job, checkpoint=source))))
        assert "/ext/pocketnet, more.blocks" in page
        assert "batch=1" in page

    def test_what_a_failure_has_said_is_not_said_again(self, registry: Registry) -> None:
        (job,) = begin(registry, ["away"])
        registry.start_attempt(job.id, "w", job.log)
        url, path = "https://host/zoo/a.pth", "/cache/https/host/zoo/a.pth"
        failure = Failure(
            "fetch.failed",
            f"cannot fetch {url}: no answer",
            hint=f"without network, place the file at {path}",
            details={"url": url, "path": path, "tries": 3},
        )
        registry.finish_attempt(job.id, ExportResult(job.id, 1.0, failure=failure.record()))
        page = drawn(export_page(registry.export("away")), 200)
        assert f'"{url}"' not in page
        assert f'"{path}"' not in page
        assert "tries: 3" in page

    def test_each_try_has_its_log(self, registry: Registry) -> None:
        (job,) = begin(registry, ["flaky"])
        crash = Failure("worker.crashed", "SIGSEGV").record()
        registry.start_attempt(job.id, "w", Path("/logs/x.log"))
        registry.finish_attempt(job.id, ExportResult(job.id, 1.0, failure=crash), again=True)
        registry.start_attempt(job.id, "w", Path("/logs/x.2.log"))
        registry.finish_attempt(job.id, ExportResult(job.id, 1.0))
        page = drawn(export_page(registry.export("flaky")), 200)
        assert "/logs/x.log (try 1)" in page
        assert "/logs/x.2.log" in page
        assert "worker.crashed: SIGSEGV" in page


def section(remarks: list[Remark]) -> list[str]:
    made = note_section(remarks)
    assert made is not None
    return [line.rstrip() for line in drawn(made, 10_000).splitlines()]
