"""The query commands: what they print, in which form, and with which exit code."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from zooport.cli import run
from zooport.export_core.failures import Failure
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import short_id
from zooport.jobs.values import ExportResult
from zooport.tests.registry_support import LOCKER, Moved, begin, fail, python, run_of, succeed, wait_for_line

ODD = (
    'quote " comma, [bold]markup[/bold] \x1b[31mred\x1b[0m \u202etfel\n line \u2028 \U0001f600 </script> \\ '
)
KEYS = {
    "id", "run", "model", "format", "status", "code", "message", "retryable", "cached", "artifact", "metrics",
    "attempt", "seconds", "log", "stage", "hint", "created", "started", "finished",
}  # fmt: skip


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "zooport.db"
    monkeypatch.setenv("ZOOPORT_REGISTRY", str(file))
    monkeypatch.delenv("COLUMNS", raising=False)
    return file


@pytest.fixture
def zoo(place: Path) -> Path:
    with open_registry() as registry:
        good, bad, odd = begin(registry, ["good", "bad", "odd"])
        succeed(registry, good, exported=39.9)
        fail(registry, bad, "checkpoint.mismatch", "12 parameters are missing: backbone.x")
        fail(registry, odd, "unsupported.architecture", ODD)
        registry.finish_run(run_of(good))
    return place


def ask(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert run(arguments) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    return captured.out


def rows_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(ask(capsys, *arguments, "-o", "json"), parse_constant=pytest.fail)


def test_list_as_json_has_all_keys(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = rows_of(capsys, "list")
    assert len(rows) == 3
    assert all(set(row) == KEYS for row in rows)
    good, bad, _ = rows
    assert good["metrics"]["bbox/AP"] == pytest.approx({"baseline": 40.0, "exported": 39.9, "delta": -0.1})
    assert (good["code"], good["retryable"], good["cached"]) == (None, False, False)
    assert (bad["code"], bad["hint"], bad["artifact"]) == ("checkpoint.mismatch", "mend it", None)
    assert good["created"].endswith("Z")


def test_list_filters(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert [row["model"] for row in rows_of(capsys, "list", "--status", "failed")] == ["bad"]
    assert [row["model"] for row in rows_of(capsys, "list", "--code", "unsupported.*")] == ["odd"]
    assert [row["model"] for row in rows_of(capsys, "list", "--model", "g*d")] == ["good"]
    both = rows_of(capsys, "list", "--status", "failed", "--status", "unsupported")
    assert [row["model"] for row in both] == ["bad", "odd"]
    assert rows_of(capsys, "list", "--format", "onnx") == []
    assert len(rows_of(capsys, "list", "--run", "latest", "-n", "1")) == 1


def test_json_survives_odd_text(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = ask(capsys, "list", "-o", "json")
    assert text.isascii()
    assert json.loads(text)[2]["message"] == ODD


def test_json_has_no_nan(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_registry() as registry:
        (job,) = begin(registry, ["a"])
        nan = float("nan")
        failure = Failure("accuracy.nonfinite", "AP is NaN", details={"value": nan}).record()
        registry.finish_attempt(
            job.id, ExportResult(job.id, 1.0), {"bbox/AP": Moved(40.0, nan, nan)}, failure
        )
    (row,) = rows_of(capsys, "list")
    assert row["metrics"]["bbox/AP"] == {"baseline": 40.0, "exported": None, "delta": None}
    assert rows_of(capsys, "show", "a")["details"] == {"value": None}
    assert "nan" in ask(capsys, "show", "a")


def test_csv_is_flat_and_complete(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = list(csv.DictReader(io.StringIO(ask(capsys, "list", "-o", "csv"))))
    assert len(rows) == 3
    assert float(rows[0]["metrics.bbox/AP.exported"]) == 39.9
    assert rows[1]["metrics.bbox/AP.exported"] == ""
    assert rows[2]["message"] == ODD
    assert rows[0]["cached"] == "false"


@pytest.mark.parametrize("command", ["list", "runs"])
def test_empty_registry(place: Path, command: str, capsys: pytest.CaptureFixture[str]) -> None:
    open_registry().close()
    assert ask(capsys, command, "-o", "json").strip() == "[]"
    assert len(ask(capsys, command, "-o", "csv").splitlines()) == 1
    assert "no " in ask(capsys, command)


@pytest.mark.parametrize("command", ["list", "runs"])
def test_registry_that_is_not_there_yet_holds_nothing(
    place: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([command, "-o", "json"]) == 0
    captured = capsys.readouterr()
    assert captured.out.strip() == "[]"
    assert str(place) in captured.err
    assert not place.exists()


def test_table_in_a_pipe_keeps_one_line_per_export(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ask(capsys, "list").splitlines()
    assert len(lines) == 4
    assert "12 parameters are missing: backbone.x" in lines[2]
    assert "39.90 (-0.10)" in lines[1]
    assert "\x1b" not in lines[3]
    assert "\u202e" not in lines[3]
    assert "[bold]markup[/bold]" in lines[3]


def test_narrow_table_loses_nothing(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "70")
    text = ask(capsys, "list")
    assert max(len(line) for line in text.splitlines()) <= 70
    words = " ".join(text.split())
    for word in (
        "good",
        "torchscript-trace",
        "unsupported",
        "12 parameters are missing: backbone.x",
        "39.90",
    ):
        assert word in words


def test_show_has_everything_about_an_export(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detail = rows_of(capsys, "show", "good")
    assert detail["artifact_files"]["main_file"] == "model.ts"
    assert detail["attempts"][0]["status"] == "succeeded"
    page = ask(capsys, "show", short_id(detail["id"]))
    for word in (detail["artifact"], "ab" * 32, "bbox/AP50", detail["log"], "config.yaml", "load 0.5 s"):
        assert word in page
    page = ask(capsys, "show", "bad")
    for word in ("checkpoint.mismatch", "12 parameters", "mend it", '["a", "b"]'):
        assert word in page
    (row,) = csv.DictReader(io.StringIO(ask(capsys, "show", "bad", "-o", "csv")))
    assert row["code"] == "checkpoint.mismatch"


def test_show_after_a_rerun_has_the_attempts_of_both_runs(
    zoo: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_registry() as registry:
        (job,) = begin(registry, ["bad"])
        succeed(registry, job)
    detail = rows_of(capsys, "show", "bad")
    assert [attempt["status"] for attempt in detail["attempts"]] == ["failed", "succeeded"]
    assert detail["attempts"][0]["run"] != detail["attempts"][1]["run"]


def test_runs_count_their_exports(zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = rows_of(capsys, "runs")
    assert row["counts"] == {
        "pending": 0,
        "running": 0,
        "succeeded": 1,
        "failed": 1,
        "unsupported": 1,
        "cancelled": 0,
    }
    assert row["status"] == "failed"
    assert "1 succeeded, 1 failed, 1 unsupported" in ask(capsys, "runs")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["show", "nosuch"], ["registry.unknown", "nosuch"]),
        (["show", "god"], ["nearest", "good"]),
        (["list", "--run", "nosuch"], ["registry.unknown"]),
        (["list", "--status", "broken"], ["broken", "succeeded"]),
        (["list", "-o", "xml"], ["xml", "json"]),
        (["list", "-n", "0"], ["--limit"]),
        (["list", "--registry", "nosuch://x"], ["registry.invalid"]),
        (["show"], ["ID"]),
        (["lst"], ["lst"]),
    ],
)
def test_wrong_usage_is_one_line_and_exit_code_2(
    zoo: Path, arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert len(captured.err.splitlines()) == 1
    assert captured.err.startswith("zooport: ")
    for word in words:
        assert word in captured.err


def test_locked_registry_is_one_line_that_names_the_file(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_REGISTRY_TIMEOUT", "0.1")
    with python(LOCKER, zoo, "journal") as locker:
        assert wait_for_line(locker) == "locked"
        assert run(["list"]) == 1
        locker.communicate("\n")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"zooport: registry.locked: {zoo} is locked")


def test_unforeseen_error_is_one_line_and_exit_code_1(
    zoo: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def explode(*_: object) -> None:
        raise ValueError("first\nsecond")

    monkeypatch.setattr("zooport.jobs.queries.print_runs", explode)
    assert run(["runs"]) == 1
    assert capsys.readouterr().err.splitlines()[0].startswith("zooport: ValueError: first second")


def test_interrupt_is_exit_code_130(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("zooport.jobs.queries.print_runs", interrupt)
    assert run(["runs"]) == 130


def test_reader_that_leaves_early_is_no_error(zoo: Path) -> None:
    with open_registry() as registry:
        begin(registry, [f"m{number}" for number in range(3000)])
    command = [sys.executable, "-m", "zooport.cli", "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.parametrize(
    ("arguments", "unneeded"),
    [
        (
            ["list", "-o", "json"],
            {"alembic", "rich", "torch", "ray", "numpy", "yaml", "sqlalchemy.orm"},
        ),
        (["list"], {"alembic", "torch", "ray", "numpy", "yaml", "sqlalchemy.orm"}),
        (["--help"], {"sqlalchemy", "alembic", "rich", "pydantic", "torch", "ray", "numpy"}),
        (["formats", "-o", "json"], {"sqlalchemy", "torch", "ray"}),
    ],
)
def test_commands_import_only_what_they_need(zoo: Path, arguments: list[str], unneeded: set[str]) -> None:
    program = (
        "import sys; from zooport.cli import run; code = run(sys.argv[1:]);"
        f"print(*({unneeded!r} & set(sys.modules)), file=sys.stderr); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.split() == []


@pytest.mark.parametrize("output", ["table", "csv", "json"])
def test_terminal_that_knows_only_ascii(zoo: Path, output: str) -> None:
    command = [sys.executable, "-m", "zooport.cli", "list", "-o", output]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, env=environment, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert b"checkpoint.mismatch" in done.stdout


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(capsys, "--version").startswith("zooport ")
