"""While a run goes on, a terminal shows what is running, and a log gets a line per export."""

from __future__ import annotations

import contextlib
import io
import os
import sys

import pytest
from rich.console import Console
from rich.live import Live

from zooport.export_core.failures import Failure
from zooport.jobs.progress import Display, Finished, Lines, LiveView, Running, Steadfast, display
from zooport.jobs.values import Status

DONE = Finished("mask_rcnn  onnx", Status.SUCCEEDED, "bbox 40.00 → 40.00 (+0.00)", 12.3)
BAD_RECORD = Failure("worker.crashed", "killed by SIGSEGV").record()
BAD = Finished("retinanet  onnx", Status.FAILED, "worker.crashed: killed by SIGSEGV", 0.5)


def rendered(view: LiveView, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    console.print(view._render())
    written = console.file
    assert isinstance(written, io.StringIO)
    return [line.rstrip() for line in written.getvalue().splitlines()]


def test_a_log_gets_a_line_per_export(capsys: pytest.CaptureFixture[str]) -> None:
    with Lines(total=12, cached=2) as lines:
        lines.say("starting Ray")
        lines.finished(DONE)
        lines.finished(BAD)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.splitlines() == [
        "starting Ray",
        "[ 3/12] mask_rcnn  onnx  succeeded  bbox 40.00 → 40.00 (+0.00)  12 s",
        "[ 4/12] retinanet  onnx  failed  worker.crashed: killed by SIGSEGV  0.5 s",
    ]


def test_the_view_shows_counts_and_what_runs() -> None:
    view = LiveView(total=12, cached=2)
    view.finished(DONE)
    view.finished(BAD)
    view.running([Running("a  onnx", "verify", 3.0), Running("b  eager baseline", "", 70.0)])
    bar, head, first, second = rendered(view)
    assert set(bar) <= set("━╸╺ ")
    assert head.startswith("4 of 12 exports  3 succeeded  1 failed")
    assert first.split() == ["b", "eager", "baseline", "starting", "1", "min", "10", "s"]  # the longest first
    assert second.split() == ["a", "onnx", "verify", "3.0", "s"]


def test_a_log_says_when_a_job_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    crash = Failure("worker.crashed", "killed by SIGSEGV").record()
    with Lines(total=2, cached=0) as lines:
        lines.retrying("a  onnx", crash, "try 2 of 3", 1.7)
        lines.finished(DONE)
    said, done = capsys.readouterr().err.splitlines()
    assert said == "a  onnx  worker.crashed: killed by SIGSEGV; retrying in 1.7 s (try 2 of 3)"
    assert done.startswith("[1/2] ")  # what is tried again has not ended


def test_the_view_says_so_above_and_counts_down_below() -> None:
    crash = Failure("worker.crashed", "killed by\x1b[2J SIGSEGV").record()
    output = io.StringIO()
    view = LiveView(total=2, cached=0)
    view._live = Live(console=Console(file=output, width=80, force_terminal=True, color_system=None))
    view.retrying("a  onnx", crash, "try 2 of 3", 1.7)
    assert "retrying  a onnx  worker.crashed: killed by" in output.getvalue()
    assert "\x1b[2J" not in output.getvalue()
    view.running([Running("a  onnx", "retrying in 2 s", 0.0)])
    _, head, row = rendered(view)
    assert head.startswith("0 of 2 exports")
    assert "retrying in 2 s" in row


def test_a_large_cluster_does_not_fill_the_screen() -> None:
    view = LiveView(total=1000, cached=0)
    view.running([Running(f"model-{number}", "export", 1.0) for number in range(200)])
    lines = rendered(view)
    assert len(lines) < 30
    assert lines[-1].split() == ["and", "176", "more"]


def test_what_runs_is_asked_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("zooport.jobs.progress.time.monotonic", lambda: now[0])
    view = LiveView(total=1, cached=0)
    assert view.wants_stages()
    assert not view.wants_stages()
    now[0] += 0.6
    assert view.wants_stages()
    assert not Lines(1, 0).wants_stages()


def test_names_cannot_move_the_cursor() -> None:
    view = LiveView(total=1, cached=0)
    view.running([Running("evil\x1b[2J\nname", "export", 1.0)])
    assert "\x1b[2J" not in "\n".join(rendered(view))


def shown(made: Display) -> Display:
    assert isinstance(made, Steadfast)
    return made.display


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_run_goes_on_when_nobody_can_be_told_any_more(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool
) -> None:
    ours, theirs = os.openpty() if is_terminal else os.pipe()[::-1]
    before = sys.stdout
    with os.fdopen(ours if not is_terminal else theirs, "w") as stream:
        monkeypatch.setattr(sys, "stderr", stream)
        with display(2, 0) as made:
            os.close(theirs if not is_terminal else ours)  # the reader of the pipe, or the terminal, is gone
            for _ in range(3):
                made.finished(DONE)
                made.retrying("a", BAD_RECORD, "try 2 of 3", 1.0)
                made.running([Running("a", "export", 1.0)])
                made.say("more")
        monkeypatch.undo()
        assert type(shown(made)) is Display
        assert sys.stdout is before
        with contextlib.suppress(OSError):
            stream.close()


def test_a_terminal_gets_the_view(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert isinstance(shown(display(1, 0)), LiveView)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: False)
    assert isinstance(shown(display(1, 0)), Lines)
    assert type(display(1, 0, quiet=True)) is Display
