"""Peak memory of an export, by stage, against the size of its checkpoint.

The models have made-up weights (those of the parity tests), saved as detectron2 saves a checkpoint, and go
through the export stage as a job does: loaded, run on samples at the config's own image size, converted,
written. Memory is what the process holds at most (VmHWM): Python, torch and the mapped file included.
``python benchmarks/memory.py [MODEL ...]``, by default the largest of the official zoo.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zooport.export_core import formats, zoo
from zooport.export_core.failures import Stage
from zooport.export_core.isolation import run_isolated
from zooport.export_core.sources import CheckpointSource

HERE = "zooport.benchmarks.memory"  # as disposable processes import it
RESULT = Path(__file__).parent / "memory.json"
LARGEST = "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv"
ALLOWED_FACTOR, ALLOWED_REST = 3.5, 1 << 30  # of the checkpoint's size, and bytes beside it
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def main() -> None:
    """Measure the named models in every format, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="*", default=[LARGEST])
    parser.add_argument("--formats", nargs="+", default=formats.names(), choices=formats.names())
    parser.add_argument("--scratch", type=Path, help="where gigabytes may lie for a while")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        for name in arguments.models:
            rows += measure_model(name, arguments.formats, Path(scratch))
    print_table(rows)
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure_model(name: str, formats_: list[str], scratch: Path) -> list[dict[str, Any]]:
    """Return one row for each format."""
    weights, log = scratch / "model.pth", scratch / "log"
    run_isolated(f"{HERE}:write_checkpoint", name, weights, timeout=None, log=log)
    source = CheckpointSource(name, zoo.find(name).config, weights)
    rows = []
    for format_ in formats_:
        staging = scratch / format_
        staging.mkdir()
        began = time.monotonic()
        peaks = run_isolated(f"{HERE}:export", source, format_, staging, timeout=None, log=log)
        size = weights.stat().st_size
        allowed = ALLOWED_FACTOR * size + ALLOWED_REST
        rows.append(
            {
                "model": name,
                "format": format_,
                "checkpoint_bytes": size,
                "artifact_bytes": (staging / "model.ts").stat().st_size,
                "peak_bytes": max(peaks.values()),
                "allowed_bytes": round(allowed),
                "within": max(peaks.values()) <= allowed,
                "peak_bytes_by_stage": peaks,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
        shutil.rmtree(staging)
    weights.unlink()
    return rows


def write_checkpoint(name: str, path: Path, *, report: Callable[[Stage], None]) -> None:
    """Save the model's made-up weights."""
    import torch

    from zooport.export_core.modeling.build import build_skeleton
    from zooport.tests import official_zoo

    config = official_zoo.config_of(name)
    weights = official_zoo.weights_for(build_skeleton(config), name, config)
    torch.save({"model": weights}, path)


def export(
    source: CheckpointSource, format_: str, staging: Path, *, report: Callable[[Stage], None]
) -> dict[str, int]:
    """Run the export stage; return the peak of this process in bytes for each part of it."""
    from zooport.export_core.pipeline import export_stage

    stages = ["start"]
    peaks: dict[str, int] = {}

    def note(stage: Stage) -> None:
        peaks[stages[-1]] = peak()
        stages.append(str(stage))

    export_stage(source, format_, {}, None, None, staging, note)
    peaks[stages[-1]] = peak()
    return peaks


def peak() -> int:
    """Return the most memory held since the last call, in bytes, and start counting anew."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM:"))
    CLEAR.write_text("5")
    return int(line.split()[1]) * 1024


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print one line for each model and format, in MiB."""
    print(f"{'model':56}{'format':20}{'checkpoint':>12}{'peak':>8}{'allowed':>9}{'s':>7}   by stage")
    for row in rows:
        sizes = [row[key] / 2**20 for key in ("checkpoint_bytes", "peak_bytes", "allowed_bytes")]
        stages = ", ".join(
            f"{stage} {value / 2**20:.0f}" for stage, value in row["peak_bytes_by_stage"].items()
        )
        print(
            f"{row['model']:56}{row['format']:20}{sizes[0]:12.0f}{sizes[1]:8.0f}{sizes[2]:9.0f}"
            f"{row['seconds']:7.0f}   {stages}"
        )


if __name__ == "__main__":
    main()
