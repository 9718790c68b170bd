"""submit, rerun and export: what a user types, sees, and gets as an exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from zooport import cli
from zooport.export_core import demo
from zooport.export_core.failures import Failure
from zooport.jobs import submission
from zooport.jobs.cluster import server_directory
from zooport.jobs.hosts import HostSettings
from zooport.jobs.output import OutputFormat
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, ExportRow, RunRow
from zooport.jobs.runner import RunSettings
from zooport.jobs.single import Order, export_one
from zooport.jobs.submission import Request
from zooport.tests.fake_stages import FAKE, METRICS
from zooport.tests.patience import wait_until

pytestmark = pytest.mark.alone

HOSTS = HostSettings("", FAKE, preload=())
REQUEST = Request("registry.db", hosts=HOSTS, settings=RunSettings(workers=4), retries=0)


@pytest.fixture
def zoo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a manifest of three models; the working directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.delenv("ZOOPORT_REGISTRY", raising=False)
    folder = tmp_path / "zoo"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_manifest(folder, "good-1", "raise-1", "unsupported-1")
    return folder


def write_manifest(folder: Path, *names: str, extra: str = "") -> Path:
    models = []
    for name in names:
        (folder / f"{name}.pth").write_text(name)
        models.append(f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}")
    (folder / "config.yaml").write_text("VERSION: 2")
    manifest = folder / "zoo.yaml"
    manifest.write_text("\n".join(["models:", *models, "formats: [torchscript-trace]", extra]))
    return manifest


def rows(folder: Path, run: str | None = None) -> dict[str, ExportRow]:
    with open_registry(str(folder / "registry.db"), create=False) as registry:
        return {row.model: row for row in registry.exports(ExportFilter(run=run))}


def newest_run(folder: Path) -> RunRow:
    with open_registry(str(folder / "registry.db"), create=False) as registry:
        return registry.runs(1)[0]


@pytest.mark.usefixtures("stay_joined")
class TestSubmit:
    """A manifest becomes a run."""

    def test_the_table_says_what_happened(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert submission.submit(Path("zoo.yaml"), REQUEST) == 1
        printed = capsys.readouterr()
        for words in ("good-1", "verified", "export.failed", "unsupported.architecture", "rerun --failed"):
            assert words in printed.out
        for count in ("[1/3]", "[2/3]", "[3/3]"):
            assert count in printed.err
        assert (zoo / "artifacts" / "good-1" / "torchscript-trace" / "model.ts").is_file()

    def test_the_result_can_be_json(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        submission.submit(Path("zoo.yaml"), replace(REQUEST, result=OutputFormat.JSON))
        printed = json.loads(capsys.readouterr().out)
        assert {row["model"]: row["status"] for row in printed} == {
            "good-1": "succeeded",
            "raise-1": "failed",
            "unsupported-1": "unsupported",
        }

    def test_again_only_what_failed_is_run(self, zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        submission.submit(Path("zoo.yaml"), REQUEST)
        submission.submit(Path("zoo.yaml"), REQUEST)
        found = rows(zoo)
        assert found["good-1"].cached
        assert not found["raise-1"].cached
        assert found["raise-1"].attempt == 2

    def test_equal_models_and_outputs_do_not_take_each_others_place(self, zoo: Path) -> None:
        write_manifest(zoo, "good-1", "good-2")
        (zoo / "good-2.pth").write_text("good-1")
        for output in (None, Path("../elsewhere")):
            submission.submit(Path("zoo.yaml"), REQUEST, output=output)
            assert not any(row.cached for row in rows(zoo).values())
        for output in (None, Path("../elsewhere")):
            submission.submit(Path("zoo.yaml"), REQUEST, output=output)
            assert all(row.cached for row in rows(zoo).values())

    def test_artifacts_can_go_elsewhere(self, zoo: Path) -> None:
        submission.submit(Path("zoo.yaml"), REQUEST, output=Path("../elsewhere"))
        assert (zoo.parent / "elsewhere" / "good-1" / "torchscript-trace" / "model.ts").is_file()

    def test_a_timeout_is_for_every_job(self, zoo: Path) -> None:
        write_manifest(zoo, "good-1", "hang-1")
        assert submission.submit(Path("zoo.yaml"), replace(REQUEST, timeout=1.0)) == 1
        assert rows(zoo)["hang-1"].code == "resource.timeout"

    def test_a_stage_can_have_a_timeout(self, zoo: Path) -> None:
        write_manifest(zoo, "hang-1", extra="timeout: {export: 900, total: 800}")
        assert submission.submit(Path("zoo.yaml"), replace(REQUEST, deadlines={"export": 0.5})) == 1
        assert "deadline of 0.5 s for stage export" in (rows(zoo)["hang-1"].message or "")

    def test_a_crash_is_tried_again_and_said_so(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        write_manifest(zoo, "flaky-1", extra="retries: 0")
        settings = RunSettings(workers=1, pause=0.1)
        assert submission.submit(Path("zoo.yaml"), replace(REQUEST, settings=settings, retries=1)) == 0
        said = capsys.readouterr().err
        assert "flaky-1  torchscript-trace  worker.crashed: the process was killed by SIGSEGV" in said
        assert "retrying in " in said
        assert "(try 2 of 2)" in said

    def test_an_output_that_cannot_be_written_fails_typed(self, zoo: Path) -> None:
        (zoo / "artifacts").write_text("a file where the directory belongs")
        assert submission.submit(Path("zoo.yaml"), REQUEST) == 1
        failed = rows(zoo)["good-1"]
        assert failed.code == "resource.disk"
        assert str(zoo / "artifacts") in (failed.message or "")

    def test_a_dry_run_does_nothing(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        request = replace(REQUEST, dry_run=True, result=OutputFormat.JSON)
        assert submission.submit(Path("zoo.yaml"), request) == 0
        assert [row["action"] for row in json.loads(capsys.readouterr().out)] == ["run"] * 3
        assert not (zoo / "registry.db").exists()
        assert not (zoo / "artifacts").exists()
        submission.submit(Path("zoo.yaml"), REQUEST)
        capsys.readouterr()
        submission.submit(Path("zoo.yaml"), request)
        actions = {row["model"]: row["action"] for row in json.loads(capsys.readouterr().out)}
        assert actions == {"good-1": "cached", "raise-1": "run", "unsupported-1": "run"}

    @pytest.mark.slow
    def test_the_same_manifest_twice_at_once_is_refused_by_name(self, zoo: Path) -> None:
        write_manifest(zoo, "gate-1")
        first = subprocess.Popen(driver(workers=1))
        try:
            wait_until(lambda: (zoo / "registry.db").exists() and "running" in statuses(zoo))
            with pytest.raises(Failure) as caught:
                submission.submit(Path("zoo.yaml"), REQUEST)
        finally:
            (zoo / "gate-1.open").touch()
        assert caught.value.code == "run.conflict"
        assert str(zoo / "zoo.yaml") in caught.value.message
        assert first.wait(120) == 0
        assert submission.submit(Path("zoo.yaml"), REQUEST) == 0


@pytest.mark.usefixtures("stay_joined")
class TestRerun:
    """What failed is run again, and nothing else."""

    def test_it_is_a_new_run_linked_to_the_old(self, zoo: Path) -> None:
        submission.submit(Path("zoo.yaml"), REQUEST)
        first = newest_run(zoo)
        assert submission.rerun(REQUEST, None, None, include_unsupported=False) == 1
        second = newest_run(zoo)
        assert (second.kind, second.parent) == ("rerun", first.id)
        assert set(rows(zoo, second.id)) == {"raise-1"}
        assert rows(zoo)["raise-1"].attempt == 2
        assert set(rows(zoo)) == {"good-1", "raise-1", "unsupported-1"}

    def test_what_was_repaired_succeeds_and_is_done(
        self, zoo: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        weights = zoo / "artifacts"
        weights.write_text("in the way")
        submission.submit(Path("zoo.yaml"), REQUEST)
        weights.unlink()
        assert submission.rerun(REQUEST, None, "resource.*", include_unsupported=False) == 1
        assert rows(zoo)["good-1"].status == "succeeded"
        capsys.readouterr()
        assert submission.rerun(REQUEST, None, "resource.*", include_unsupported=False) == 0
        assert "nothing failed" in capsys.readouterr().err

    def test_of_two_exports_into_one_directory_the_newest_is_run(
        self, zoo: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        manifest = write_manifest(zoo, "raise-1")
        submission.submit(manifest, REQUEST)
        manifest.rename(zoo / "fleet.yaml")
        submission.submit(zoo / "fleet.yaml", REQUEST)
        newest = newest_run(zoo).id
        dry = replace(REQUEST, dry_run=True, result=OutputFormat.JSON)
        capsys.readouterr()
        assert submission.rerun(dry, None, None, include_unsupported=False) == 0
        printed = capsys.readouterr()
        (row,) = json.loads(printed.out)
        assert newest in row["reason"]
        assert "1 older ones write the same directories" in printed.err

    def test_what_the_manifest_was_refused_for_is_not_run_again(
        self, zoo: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for name in ("a.pth", "b.pth", "config.yaml"):
            (zoo / "scanned" / "unclear").mkdir(parents=True, exist_ok=True)
            (zoo / "scanned" / "unclear" / name).write_text("VERSION: 2")
        (zoo / "zoo.yaml").write_text("models: [{scan: scanned}]\nformats: [torchscript-trace]")
        assert submission.submit(Path("zoo.yaml"), REQUEST) == 1
        refused = rows(zoo)["unclear"]
        capsys.readouterr()
        assert submission.rerun(REQUEST, None, None, include_unsupported=False) == 0
        assert "1 refused for what the manifest says" in capsys.readouterr().err
        assert rows(zoo)["unclear"].message == refused.message

    def test_a_dry_run_says_why_each_is_run_again(
        self, zoo: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        submission.submit(Path("zoo.yaml"), REQUEST)
        export = rows(zoo)["raise-1"].id
        capsys.readouterr()
        dry = replace(REQUEST, dry_run=True, result=OutputFormat.JSON)
        assert submission.rerun(dry, None, None, include_unsupported=False) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert row["reason"] == f"failed as {export}: export.failed: ValueError: this checkpoint is strange"

    def test_code_run_and_unsupported_choose(self, zoo: Path, capsys: pytest.CaptureFixture[str]) -> None:
        submission.submit(Path("zoo.yaml"), REQUEST)
        dry = replace(REQUEST, dry_run=True, result=OutputFormat.JSON)
        run = newest_run(zoo).id

        def chosen(code: str | None, *, unsupported: bool = False) -> list[str]:
            capsys.readouterr()
            assert submission.rerun(dry, run, code, include_unsupported=unsupported) == 0
            return [row["model"] for row in json.loads(capsys.readouterr().out)]

        assert chosen(None) == ["raise-1"]
        assert chosen("resource.*") == []
        assert chosen(None, unsupported=True) == ["raise-1", "unsupported-1"]
        assert chosen("unsupported.*", unsupported=True) == ["unsupported-1"]
        assert newest_run(zoo).id == run


_SCRIPT = """
from pathlib import Path
from zooport.jobs import submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.runner import RunSettings
from zooport.tests.fake_stages import FAKE

hosts = HostSettings("", FAKE, preload=())
settings = RunSettings({address!r}, workers={workers})
request = submission.Request("registry.db", settings, hosts=hosts)
raise SystemExit(submission.submit(Path("zoo.yaml"), request))
"""


def driver(workers: int, address: str | None = None) -> list[str]:
    """Return the command of a driver in a process of its own."""
    return [sys.executable, "-c", _SCRIPT.format(address=address, workers=workers)]


def statuses(folder: Path) -> set[str]:
    with sqlite3.connect(folder / "registry.db", timeout=60) as connection:
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master")}
        if "exports" not in tables:
            return set()
        return {status for (status,) in connection.execute("SELECT status FROM exports")}


@pytest.mark.slow
def test_ctrl_c_on_a_local_ray_stops_all_its_processes(zoo: Path) -> None:
    """The whole process group gets the signal, as from a terminal."""
    write_manifest(zoo, "hang-1", "hang-2", "good-1")
    run = subprocess.Popen(
        driver(workers=2),
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until(lambda: (zoo / "registry.db").exists() and "running" in statuses(zoo))
    wait_until(lambda: all((zoo / "artifacts" / name).is_dir() for name in ("hang-1", "hang-2")))
    below = psutil.Process(run.pid).children(recursive=True)
    os.killpg(run.pid, signal.SIGINT)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 130, err
    assert "cancelled" in out
    assert {row.status for row in rows(zoo).values()} <= {"cancelled", "succeeded"}
    assert newest_run(zoo).status == "cancelled"
    _, alive = psutil.wait_procs(below, timeout=90)
    assert alive == []
    assert not list((zoo / "artifacts").rglob(".*.staging"))


@pytest.mark.slow
@pytest.mark.usefixtures("stay_joined")
def test_after_a_killed_driver_the_next_run_goes_on(zoo: Path) -> None:
    write_manifest(zoo, "sleep-600", "good-1")
    run = subprocess.Popen(driver(workers=2), start_new_session=True)
    wait_until(lambda: (zoo / "registry.db").exists() and "succeeded" in statuses(zoo))
    wait_until(lambda: list((zoo / "artifacts" / "sleep-600").glob(".*.staging")) != [])
    server = server_directory(newest_run(zoo).id)
    assert server.is_dir()
    run.kill()
    run.wait()
    wait_until(lambda: not server.exists())  # the fork server ends with its clients, and its jobs with it
    request = replace(REQUEST, timeout=1.0)
    assert submission.submit(Path("zoo.yaml"), request) == 1
    found = rows(zoo)
    assert found["good-1"].cached
    assert (found["sleep-600"].code, found["sleep-600"].attempt) == ("resource.timeout", 2)
    assert not list((zoo / "artifacts").rglob(".*.staging"))


def test_a_locked_registry_is_named(zoo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_registry("registry.db"):
        pass
    monkeypatch.setenv("ZOOPORT_REGISTRY_TIMEOUT", "0.2")
    holder = sqlite3.connect("registry.db", isolation_level=None)
    holder.execute("BEGIN EXCLUSIVE")
    with pytest.raises(Failure) as caught:
        submission.submit(Path("zoo.yaml"), REQUEST)
    holder.close()
    assert caught.value.code == "registry.locked"
    assert "registry.db" in caught.value.message


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit"], 2, "MANIFEST"),
        (["submit", "nowhere.yaml"], 2, "nowhere.yaml: No such file"),
        (["submit", "bad.yaml"], 2, "line 1: modles: unknown key, did you mean 'models'?"),
        (["submit", "zoo.yaml", "--jobs", "0"], 2, "--jobs"),
        (["submit", "zoo.yaml", "--timeout", "0"], 2, "--timeout: '0' is no number of seconds above 0"),
        (["submit", "zoo.yaml", "--timeout", "exprot=3"], 2, "--timeout: no stage 'exprot'"),
        (["submit", "zoo.yaml", "--retries", "-1"], 2, "--retries"),
        (["submit", "zoo.yaml", "-o", "xml"], 2, "xml"),
        (["rerun"], 2, "--failed"),
        (["rerun", "--failed"], 2, "registry"),
        (["export", "--format", "torchscript-trace"], 2, "--config-file"),
    ],
)
def test_wrong_usage_is_one_line_and_code_2(
    zoo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, said: str
) -> None:
    (zoo / "bad.yaml").write_text("modles: []")
    assert cli.run(arguments) == code
    printed = capsys.readouterr()
    assert said in printed.err
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.out == ""


def test_an_address_that_nothing_answers_is_one_line(zoo: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "zooport.cli", "submit", "zoo.yaml", "--address", "127.0.0.1:1"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 1
    last = result.stderr.splitlines()[-1]
    assert last.startswith("zooport: cluster.unavailable: cannot join the Ray cluster at 127.0.0.1:1: ")
    assert {row.status for row in rows_of_default(zoo).values()} == {"cancelled"}


@pytest.mark.usefixtures("one_ray")
def test_a_running_cluster_can_be_joined(zoo: Path) -> None:
    import ray

    address = ray.get_runtime_context().gcs_address
    script = _SCRIPT.format(address=address, workers=2)
    run = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.returncode == 1, run.stderr
    assert f"joining Ray at {address}" in run.stderr
    assert {name: row.status for name, row in rows(zoo).items()} == {
        "good-1": "succeeded",
        "raise-1": "failed",
        "unsupported-1": "unsupported",
    }


def rows_of_default(folder: Path) -> dict[str, ExportRow]:
    with open_registry(str(folder / "zooport.db"), create=False) as registry:
        return {row.model: row for row in registry.exports()}


class TestExport:
    """One checkpoint, as detectron2's export_model.py does it."""

    @pytest.fixture
    def order(self, zoo: Path) -> Order:
        return Order(
            config=zoo / "config.yaml",
            weights=str(zoo / "good-1.pth"),
            format="torchscript-trace",
            output=zoo / "exported",
        )

    @pytest.fixture
    def named(self, zoo: Path) -> Callable[[str], None]:
        """Let the fake stages see this name: it is that of the config's folder."""

        def rename(name: str) -> None:
            (zoo / name).mkdir()
            shutil.copy(zoo / "config.yaml", zoo / name)

        return rename

    def test_it_prints_where_the_artifact_is(
        self, zoo: Path, order: Order, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert export_one(order, OutputFormat.TABLE, FAKE, ()) == 0
        printed = capsys.readouterr().out
        assert "verified" in printed
        assert str(zoo / "exported" / "model.ts") in printed
        assert (zoo / "exported" / "model.ts").is_file()

    def test_with_evaluation_the_metrics_are_compared(
        self, zoo: Path, order: Order, capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluated = replace(order, run_eval=True, annotations=zoo / "a.json", images=zoo)
        assert export_one(evaluated, OutputFormat.JSON, FAKE, ()) == 0
        printed: dict[str, Any] = json.loads(capsys.readouterr().out)
        compared = printed["metrics"]["bbox/AP"]
        assert (compared["baseline"], compared["exported"]) == (METRICS["bbox/AP"], METRICS["bbox/AP"])
        assert (compared["delta"], compared["tolerance"]) == (0.0, 0.1)
        assert printed["status"] == "succeeded"
        assert export_one(evaluated, OutputFormat.TABLE, FAKE, ()) == 0
        assert "+0.00" in capsys.readouterr().out

    def test_drift_is_told_from_chance_and_searched_as_in_a_run(
        self, zoo: Path, order: Order, named: Callable[[str], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        evaluated = replace(order, run_eval=True, annotations=zoo / "a.json", images=zoo)
        for name, code in (("noisy-1", 0), ("sure-1", 1), ("sure-lost", 1)):
            named(name)
            one = replace(evaluated, config=zoo / name / "config.yaml", output=zoo / name / "exported")
            assert export_one(one, OutputFormat.JSON, FAKE, ()) == code
            printed = json.loads(capsys.readouterr().out)
            told = " ".join(printed["notes"])
            assert ("inconclusive" in told) == (name == "noisy-1")
            assert ("nothing to be seen" in told) == (name == "sure-lost")
            assert (printed["drift"] or {}).get("stage") == ("proposals" if name == "sure-1" else None)
            assert not list((zoo / name).glob(".*"))
        assert (
            export_one(replace(one, config=zoo / "sure-1" / "config.yaml"), OutputFormat.TABLE, FAKE, ()) == 1
        )
        assert "first at proposals: proposal_boxes differs" in capsys.readouterr().out

    def test_a_failure_is_typed_and_keeps_its_log(
        self, zoo: Path, order: Order, named: Callable[[str], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        named("crash-1")
        crashing = replace(order, config=zoo / "crash-1" / "config.yaml")
        assert export_one(crashing, OutputFormat.TABLE, FAKE, ()) == 1
        printed = capsys.readouterr().out
        assert "worker.crashed" in printed
        assert str(zoo / "exported.log") in printed
        assert not (zoo / "exported").exists()

    def test_a_folder_with_other_files_is_left_alone(
        self, zoo: Path, order: Order, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (zoo / "exported").mkdir()
        (zoo / "exported" / "thesis.txt").write_text("precious")
        assert export_one(order, OutputFormat.JSON, FAKE, ()) == 1
        assert json.loads(capsys.readouterr().out)["code"] == "output.occupied"
        assert (zoo / "exported" / "thesis.txt").read_text() == "precious"

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"format": "torchscript-trac"}, "export.option"),
            ({"run_eval": True}, "dataset.invalid"),
            ({"images": Path("x")}, "dataset.invalid"),
            ({"overrides": ("MODEL.MASK_ON",)}, "config.invalid"),
            ({"overrides": ("--frobnicate", "1")}, "export.option"),
        ],
    )
    def test_what_does_not_fit_together_is_refused(
        self, order: Order, changes: dict[str, Any], code: str
    ) -> None:
        with pytest.raises(Failure) as caught:
            export_one(replace(order, **changes), OutputFormat.TABLE, FAKE, ())
        assert caught.value.code == code

    @pytest.mark.parametrize(
        ("wrong", "code", "said"),
        [
            (["--config-file", "nowhere.yaml"], 2, "config.invalid"),
            (["--weights", "nowhere.pth"], 2, "checkpoint.missing"),
            (["MODEL.MASK_ONN", "True"], 2, "did you mean MODEL.MASK_ON?"),
            (["--weights", "bad.pth"], 1, "checkpoint.corrupt"),
        ],
    )
    def test_wrong_input_is_told_from_a_failed_export(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], wrong: list[str], code: int, said: str
    ) -> None:
        (zoo / "bad.pth").write_bytes(b"PK\x03\x04")
        given = {"--config-file": str(demo.ZOO / "retinanet_fpn" / "config.yaml"), "--weights": "good-1.pth"}
        arguments = [word for pair in given.items() if pair[0] != wrong[0] for word in pair]
        arguments += ["--format", "torchscript-trace", "--output", "exported", *wrong]
        assert cli.run(["export", *arguments]) == code
        assert said in capsys.readouterr().out
        assert not (zoo / "exported").exists()

    @pytest.mark.slow
    def test_the_command_exports_a_real_checkpoint(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """As detectron2's own script is called."""
        folder = demo.ZOO / "faster_rcnn_fpn"
        arguments = ["--config-file", str(folder / "config.yaml"), "--output", str(tmp_path / "out")]
        arguments += ["--export-method", "scripting", "--format", "torchscript", "-o", "json"]
        arguments += ["MODEL.WEIGHTS", str(folder / "model_final.pkl")]
        overrides = ["TEST.DETECTIONS_PER_IMAGE", "7", "SEED", "-1"]
        assert cli.run(["export", *arguments, *overrides]) == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["artifact"] == str(tmp_path / "out")
        assert Path(printed["artifact"], printed["main_file"]).is_file()
        assert printed["format"] == "torchscript-script"

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--format", "onnx"], "the weights are missing (--weights FILE, or MODEL.WEIGHTS FILE)"),
            (["--format", "onnx", "--export-method", "scripting"], "methods of --format onnx: tracing"),
            (["--format", "tensorflow", "--export-method", "tracing"], "--format tensorflow: none"),
            (["--format", "torch", "MODEL.WEIGHTS", "w.pth"], "torch"),
            (["--format", "onnx", "--weights", "w", "--option", "batch=-3"], "batch"),
        ],
    )
    def test_what_is_missing_or_does_not_exist_is_said(
        self, zoo: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
    ) -> None:
        assert cli.run(["export", "--config-file", "config.yaml", "--output", "out", *arguments]) == 2
        assert said in capsys.readouterr().err


def test_importing_the_commands_stays_light(zoo: Path) -> None:
    code = (
        "import sys, zooport.cli; print(sorted({'torch', 'ray', 'sqlalchemy', 'numpy'} & set(sys.modules)))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert printed.stdout.strip() == "[]"
