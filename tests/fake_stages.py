"""Stages that take no time and end as a checkpoint's name says: "crash-1" crashes, "hang-2" hangs.

They can be imported in disposable processes as zooport.tests.fake_stages.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zooport.export_core.artifacts import HANDOVER, VALUES
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.worker import Stages

Report = Callable[[Stage], None]

_HERE = "zooport.tests.fake_stages"
FAKE = Stages(
    f"{_HERE}:export",
    f"{_HERE}:verify",
    f"{_HERE}:baseline",
    compare=f"{_HERE}:compare",
    locate=f"{_HERE}:locate",
)
# What a model's bbox/AP moves by, and its confidence interval, as values of single images say.
MOVED = {"sure": (-5.0, "-7 -3"), "noisy": (-5.0, "-9 2"), "vague": (-5.0, "?")}
METRICS = {"bbox/AP": 40.0, "bbox/AP50": 60.0}


def misbehave(name: str, stage: str, staging: Path) -> None:
    """End as the name says; "verify-crash-1" does it in the stage named first."""
    words = name.rpartition("/")[2].split("-")
    at, kind = (words[0], words[1]) if words[0] in {"verify", "baseline"} else ("export", words[0])
    if at != stage:
        return
    behaviours: dict[str, Callable[[], object]] = {
        "crash": lambda: ctypes.string_at(0),
        "exit": lambda: os._exit(3),
        "hang": lambda: time.sleep(600),
        "sleep": lambda: time.sleep(float(words[-1])),
        "deadlock": lambda: ctypes.PyDLL(None).sleep(600),  # native code that keeps the interpreter's lock
        "leak": leak,
        "raise": lambda: fail(ValueError("this checkpoint\nis strange")),
        "unsupported": lambda: fail(Failure("unsupported.architecture", f"MODEL.META_ARCHITECTURE: {name}")),
        "fill": lambda: (staging / "large").write_bytes(b"x" * 10_000_000),
        "swallow": lambda: fill_as_a_library(staging / "large"),
    }
    behaviours.get(kind, bool)()


def fail(error: Exception) -> None:
    raise error


def leave_children(checkpoint: CheckpointSource) -> None:
    """Start a process in this session and one in its own, write down their numbers, and crash."""
    started = [subprocess.Popen(["sleep", "600"], start_new_session=own) for own in (False, True)]
    checkpoint.weights.with_suffix(".children").write_text(" ".join(str(each.pid) for each in started))
    ctypes.string_at(0)


def wait_at_gate(checkpoint: CheckpointSource) -> None:
    """Wait until somebody makes the file that opens the gate."""
    while not checkpoint.weights.with_suffix(".open").exists():
        time.sleep(0.02)


def crash_at_first(checkpoint: CheckpointSource) -> None:
    """Crash in the first tries; "flaky-2" in two."""
    tries = checkpoint.weights.with_suffix(".tries")
    with tries.open("a") as file:
        file.write("x")
    if tries.stat().st_size <= int(checkpoint.name.split("-")[-1]):
        ctypes.string_at(0)


def hold(checkpoint: CheckpointSource) -> None:
    """Hold so much memory: "hold-1-200" 200 MiB, in the first try until somebody ends it."""
    tries = checkpoint.weights.with_suffix(".tries")
    is_first = not tries.exists()
    tries.touch()
    held = b"x" * (int(checkpoint.name.split("-")[-1]) << 20)
    time.sleep(600 if is_first else 0.6)
    del held


def leak() -> None:
    """Hold more and more memory, up to 600 MiB, until somebody ends this."""
    held = []
    for _ in range(300):
        held.append(b"x" * (2 << 20))
        time.sleep(0.01)
    time.sleep(600)


def fill_as_a_library(path: Path) -> None:
    """Write until the disk is full, and tell it as a library does that writes through its own stream."""
    with path.open("wb") as file:
        try:
            while True:
                file.write(b"x" * 65536)
                file.flush()
        except OSError:
            raise RuntimeError("[enforce fail at inline_container.cc:603] unexpected pos 64") from None


def export(
    checkpoint: CheckpointSource,
    format: str,  # noqa: A002
    options: Mapping[str, Any],
    dataset: DatasetSource | None,
    sample_image: Path | None,
    staging: Path,
    report: Report,
) -> list[str]:
    report(Stage.LOAD)
    report(Stage.EXPORT)
    if os.environ.get("FAKE_STAGES_TRACE"):
        with Path(os.environ["FAKE_STAGES_TRACE"]).open("a") as trace:
            trace.write(f"{checkpoint.name} {format}\n")
    if checkpoint.weights.exists():
        checkpoint.weights.with_suffix(".event").touch()  # its time is that of what happens now
    misbehave(checkpoint.name, "export", staging)
    if checkpoint.name.startswith("gate"):
        wait_at_gate(checkpoint)
    if checkpoint.name.startswith("children"):
        leave_children(checkpoint)
    if checkpoint.name.startswith("hold"):
        hold(checkpoint)
    if checkpoint.name.startswith("flaky"):
        crash_at_first(checkpoint)
    (staging / "model.ts").write_text(f"{checkpoint.name} {format} {dict(options)}")
    (staging / "model.json").write_text('{"versions": {"zooport": "fake"}}')
    (staging / ".name").write_text(checkpoint.name)
    return [f"a remark on {checkpoint.name}"]


def verify(staging: Path, dataset: DatasetSource | None, report: Report) -> dict[str, float]:
    report(Stage.VERIFY)
    name = (staging / ".name").read_text()
    misbehave(name, "verify", staging)
    if dataset is None:
        return {}
    report(Stage.EVALUATE)
    moved, interval = MOVED.get(name.partition("-")[0], (0.0, ""))
    if interval:
        (staging / HANDOVER).mkdir()
        (staging / HANDOVER / VALUES).write_text(interval)
    drift = 5.0 if name.startswith("drift") else -moved
    nan = float("nan") if name.startswith("nan") else 0.0
    return {key: value - drift + nan for key, value in METRICS.items()}


def baseline(
    checkpoint: CheckpointSource, dataset: DatasetSource, values: Path | None, report: Report
) -> dict[str, float]:
    report(Stage.LOAD)
    misbehave(checkpoint.name, "baseline", Path())
    if checkpoint.name.startswith("unsure"):  # as flaky, but for baselines
        crash_at_first(checkpoint)
    report(Stage.EVALUATE)
    if values is not None and not checkpoint.name.endswith("-alone"):
        values.parent.mkdir(parents=True, exist_ok=True)
        values.write_text("eager")
    return METRICS


def compare(baseline: Path, exported: Path, report: Report) -> dict[str, tuple[float, float]]:
    report(Stage.EVALUATE)
    assert baseline.read_text() == "eager"
    low, high = map(float, exported.read_text().split())
    return {"bbox/AP": (low, high)}


class FakeReport:
    """What the true search for a drift returns, as far as runs read it."""

    def __init__(self, picture: Path) -> None:
        self._picture = picture

    def to_dict(self) -> dict[str, Any]:
        return {
            "stage": "proposals",
            "tensor": "proposal_boxes",
            "difference": 1.5,
            "unit": "pixels",
            "categories": (("bbox/cat", 40.0, 20.0),),
            "images": (("a.jpg", str(self._picture), 0.25),),
            "images_seen": 7,
            "remark": "",
        }


def locate(
    checkpoint: CheckpointSource, directory: Path, dataset: DatasetSource, folder: Path, report: Report
) -> FakeReport:
    report(Stage.EVALUATE)
    if "lost" in checkpoint.name:
        raise ValueError("nothing to be seen")
    assert (directory / "model.ts").is_file()
    picture = folder / "1.png"
    picture.write_bytes(b"PNG")
    return FakeReport(picture)
