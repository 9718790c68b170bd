"""What follows an evaluation: deltas get confidence intervals, and the beginning of a drift is looked for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from zooport.cli import run
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportDetail
from zooport.tests.run_support import Bench

pytestmark = pytest.mark.alone

NAMES = ("sure-1", "sure-lost", "noisy-1", "vague-1", "noisy-alone", "drift-1", "good-1")


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, one_ray: None) -> Iterator[Bench]:
    """One run of everything."""

    @contextmanager
    def joined(address: str | None, workers: int | None, server: object) -> Iterator[int]:
        yield workers or 4

    bench = Bench(tmp_path_factory.mktemp("run"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zooport.jobs.runner.joined", joined)
        outcome, _ = bench.run(*(bench.target(name, dataset=bench.dataset()) for name in NAMES))
        assert outcome.exit_code == 1
        yield bench


def detail(bench: Bench, name: str) -> ExportDetail:
    with open_registry(str(bench.folder / "registry.db")) as registry:
        return registry.export(name)


def notes(bench: Bench, name: str) -> list[str]:
    return [note for note in detail(bench, name).attempts[-1].notes if not note.startswith("a remark on")]


def test_a_drift_beyond_chance_fails_and_says_where_it_begins(bench: Bench) -> None:
    one = detail(bench, "sure-1")
    assert one.row.code == "accuracy.drift"
    assert "95% interval -7.000 to -3.000" in (one.row.message or "")
    metric = one.row.metrics["bbox/AP"]
    assert (metric.delta, metric.low, metric.high, metric.tolerance) == (-5.0, -7.0, -3.0, 0.1)
    assert one.drift is not None
    assert (one.drift["stage"], one.drift["tensor"]) == ("proposals", "proposal_boxes")
    assert Path(one.drift["images"][0]["picture"]).read_bytes() == b"PNG"
    assert notes(bench, "sure-1") == []
    assert len(one.attempts) == 1


def test_a_difference_that_chance_explains_passes_with_a_remark(bench: Bench) -> None:
    one = detail(bench, "noisy-1")
    assert (one.row.status, one.row.code) == ("succeeded", None)
    assert one.row.metrics["bbox/AP"].low == -9.0
    (said,) = notes(bench, "noisy-1")
    assert "inconclusive" in said
    assert one.drift is None


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("vague-1", "worker.error: ValueError"),
        ("noisy-alone", "the eager model's values of single images are not in this output"),
        ("drift-1", "the exported model's values of single images were not kept"),
    ],
)
def test_without_an_interval_the_tolerance_decides_alone_and_that_is_said(
    bench: Bench, name: str, why: str
) -> None:
    one = detail(bench, name)
    assert one.row.code == "accuracy.drift"
    assert one.row.metrics["bbox/AP"].low is None
    (said,) = notes(bench, name)
    assert said.startswith("no confidence interval of the deltas, the tolerances decided alone: ")
    assert why in said
    assert one.drift is not None


def test_a_search_that_fails_is_a_remark_and_the_verdict_stays(bench: Bench) -> None:
    one = detail(bench, "sure-lost")
    assert (one.row.status, one.row.code) == ("failed", "accuracy.drift")
    assert one.drift is None
    (said,) = notes(bench, "sure-lost")
    assert said.startswith(
        "where the drift begins was not found: worker.error: ValueError: nothing to be seen"
    )


def test_values_of_exports_go_when_they_are_compared_and_those_of_eager_models_stay(bench: Bench) -> None:
    assert not list(bench.folder.rglob("*.log.values.npz"))
    kept = list((bench.folder / "out" / ".baselines").glob("*.npz"))
    assert len(kept) == len(NAMES) - 1  # but that of noisy-alone


def test_a_second_run_uses_the_values_of_the_first(bench: Bench) -> None:
    target = bench.target("noisy-1", dataset=bench.dataset(), format="torchscript-script")
    _, rows = bench.run(target)
    assert rows["noisy-1"].status == "succeeded"
    assert rows["noisy-1"].metrics["bbox/AP"].low == -9.0


def test_show_prints_where_it_drifts(bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
    registry = ["--registry", str(bench.folder / "registry.db")]
    assert run(["show", "sure-1", *registry]) == 0
    _, _, shown = capsys.readouterr().out.partition("where it drifts\n")
    first, *lines = [line.split() for line in shown.splitlines() if line]
    assert " ".join(first) == ("first at proposals: proposal_boxes differs: 1.5 pixels (7 images compared)")
    assert ["bbox/cat", "40.00", "20.00", "-20.00"] in lines
    (picture,) = [line for line in lines if line[0] == "a.jpg"]
    assert picture[1] == "0.25"
    assert Path(picture[2]).name == "1.png"
    assert run(["show", "sure-1", "-o", "json", *registry]) == 0
    value = json.loads(capsys.readouterr().out)
    assert value["drift"]["categories"] == [{"name": "bbox/cat", "eager": 40.0, "exported": 20.0}]
    assert value["metrics"]["bbox/AP"]["low"] == -7.0
    assert value["metrics"]["bbox/AP"]["origin"].startswith("default: ")
    assert run(["show", "good-1", "-o", "json", *registry]) == 0
    assert json.loads(capsys.readouterr().out)["drift"] is None


def test_a_run_that_stops_at_the_first_failure_ends_what_it_has_begun(tmp_path: Path, bench: Bench) -> None:
    stopped = Bench(tmp_path)
    target = stopped.target("sure-1", dataset=stopped.dataset())
    outcome, rows = stopped.run(target, stopped.target("last-1"), fail_fast=True, workers=1)
    assert outcome.exit_code == 1
    assert detail(stopped, "sure-1").drift is not None
    assert rows["last-1"].status == "cancelled"
