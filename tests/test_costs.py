"""Latency, memory, size and load time of the eager and the exported model stand beside their metrics."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zooport.cli import run
from zooport.export_core import pipeline
from zooport.export_core.evaluation import compare, judge
from zooport.export_core.evaluation.costs import Costs, Stopwatch, is_cost, joined, peak_memory, size_of
from zooport.jobs.registry import open_registry
from zooport.jobs.values import ExportResult
from zooport.tests.artifact_processes import TRACE
from zooport.tests.registry_support import begin
from zooport.tests.test_pipeline import ignore, source_of

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

NAMES = {
    "cost/latency_p50_ms",
    "cost/latency_p95_ms",
    "cost/peak_memory_mb",
    "cost/size_mb",
    "cost/load_s",
}


def test_percentiles_are_of_all_calls_but_the_first() -> None:
    times = iter([9.0, *(number / 1000 for number in range(1, 102))])
    stopwatch = Stopwatch(lambda image: image)
    stopwatch.seconds.extend(times)
    metrics = Costs.of(stopwatch, 0.25).to_metrics(12_500_000)
    assert metrics["cost/latency_p50_ms"] == pytest.approx(51.0)
    assert metrics["cost/latency_p95_ms"] == pytest.approx(96.0)
    assert metrics["cost/size_mb"] == 12.5
    assert metrics["cost/load_s"] == 0.25


def test_the_time_of_the_model_alone_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([10.0, 10.5, 70.0, 70.25])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    stopwatch = Stopwatch(lambda image, **more: {"image": image, **more})
    assert stopwatch(1, height=2) == {"image": 1, "height": 2}
    stopwatch(1)
    assert stopwatch.seconds == [0.5, 0.25]


def test_a_model_that_wants_the_images_frame_still_gets_it() -> None:
    class Framed:
        in_image_frame = True

    assert Stopwatch(Framed()).in_image_frame
    assert not Stopwatch(len).in_image_frame


def test_peak_memory_is_in_bytes_and_does_not_fall() -> None:
    before = peak_memory()
    held = np.ones(200 << 20, dtype=np.uint8)
    during = peak_memory()
    assert held.all()
    del held
    allowance = 4 << 20  # the kernel counts pages per core and sums them up now and then
    assert 10 << 20 < before < during + allowance < peak_memory() + 2 * allowance < 1 << 40
    assert during > 200 << 20


def test_peak_memory_counts_the_process_of_a_runtime() -> None:
    program = "kept = b'x' * (200 << 20); print('here', flush=True); input()"
    before = peak_memory()
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with_runtime = peak_memory()
        process.kill()
    assert with_runtime - before > 200 << 20
    assert peak_memory() - before < 100 << 20


def test_the_parts_of_an_evaluation_have_the_costs_of_one_model(tmp_path: Path) -> None:
    parts = [Costs([0.1, 0.2], 1.0, 500), Costs([0.3], 2.0, 300)]
    for number, part in enumerate(parts):
        part.write(tmp_path / str(number))
    read = [Costs.read(tmp_path / str(number)) for number in range(2)]
    assert joined(read) == Costs([0.1, 0.2, 0.3], 2.0, 500)


def test_hidden_files_are_no_part_of_an_artifacts_size(tmp_path: Path) -> None:
    for name, size in (("model.ts", 100), ("more/table", 10), (".handover/samples", 1000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * size)
    assert size_of(tmp_path) == 110


def test_costs_are_never_judged() -> None:
    eager = {"bbox/AP": 40.0, "cost/latency_p50_ms": 10.0, "cost/load_s": 1.0}
    exported = {"bbox/AP": 40.0, "cost/latency_p50_ms": 90.0, "cost/size_mb": float("nan")}
    assert judge(compare(eager, exported), {"load_s": 0.0, "latency_p50_ms": 0.0}) is None


def test_eager_model_and_artifact_are_measured_in_the_same_way(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("retinanet_fpn", limit=3)
    pipeline.export_stage(checkpoint, TRACE, {}, dataset, None, tmp_path, ignore)
    exported = pipeline.verify_stage(tmp_path, dataset, ignore)
    eager = pipeline.evaluate_eager(checkpoint, dataset, ignore)
    for metrics in (eager, exported):
        found = {name: value for name, value in metrics.items() if is_cost(name)}
        assert found.keys() == NAMES
        assert all(value > 0 for value in found.values())
        assert found["cost/latency_p50_ms"] <= found["cost/latency_p95_ms"]
    assert eager["cost/size_mb"] == checkpoint.weights.stat().st_size / 1e6
    files = (tmp_path / "model.ts", tmp_path / "model.json")
    assert exported["cost/size_mb"] == sum(file.stat().st_size for file in files) / 1e6


@pytest.fixture
def registry_file(tmp_path: Path) -> Path:
    """One export whose p50 fell from 20 to 8 ms."""
    file = tmp_path / "zooport.db"
    with open_registry(str(file)) as registry:
        (job,) = begin(registry, ["mask_rcnn"])
        eager = {"bbox/AP": 40.0, "cost/latency_p50_ms": 20.0, "cost/load_s": 2.0}
        exported = {"bbox/AP": 40.0, "cost/latency_p50_ms": 8.0, "cost/load_s": 0.5, "cost/size_mb": 3.25}
        registry.start_attempt(job.id, "worker", job.log)
        registry.finish_attempt(job.id, ExportResult(job.id, 1.0, metrics=exported), compare(eager, exported))
    return file


def test_a_wide_list_shows_costs_and_a_narrow_one_does_not(
    registry_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert run(["list", "-o", "wide", "--registry", str(registry_file)]) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert [name for name in ("p50 ms", "p95 ms", "memory MB", "size MB", "load s") if name in head] == [
        "p50 ms",
        "p95 ms",
        "memory MB",
        "size MB",
        "load s",
    ]
    assert "20.0 → 8.0" in row
    assert "2.0 → 0.5" in row
    assert run(["list", "--registry", str(registry_file)]) == 0
    shown = capsys.readouterr().out
    assert "p50" not in shown
    assert "20.0" not in shown


def test_show_sets_costs_apart_from_metrics(registry_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["show", "mask_rcnn", "--registry", str(registry_file)]) == 0
    metrics, _, costs = capsys.readouterr().out.partition("\ncosts\n")
    assert "latency_p50_ms" not in metrics
    (line,) = [line for line in costs.splitlines() if "latency_p50_ms" in line]
    assert line.split() == ["latency_p50_ms", "20.00", "8.00", "0.40"]
    (line,) = [line for line in costs.splitlines() if "size_mb" in line]
    assert line.split() == ["size_mb", "3.25"]


def test_json_holds_costs_like_metrics(registry_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["list", "-o", "json", "--registry", str(registry_file)]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    measured: dict[str, Any] = row["metrics"]["cost/latency_p50_ms"]
    assert (measured["baseline"], measured["exported"], measured["delta"]) == (20.0, 8.0, -12.0)
