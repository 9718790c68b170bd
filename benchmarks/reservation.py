"""What jobs hold at most, against what they are given: the estimate of ``zooport.jobs.memory``.

Official models with made-up weights, and models of the demo zoo, go through the parts of a job as a worker
runs them: export, and the eager model on pictures of the config's own size. Held is what counts for a job's
limit (anonymous and shared memory, no mapped files), looked at fifty times a second.
``python benchmarks/reservation.py [MODEL ...]``
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zooport.export_core import demo, formats, zoo
from zooport.export_core.config import load_config
from zooport.export_core.isolation import memory as memory_of_processes
from zooport.export_core.isolation import run_isolated
from zooport.export_core.isolation.child import helpers
from zooport.export_core.sources import CheckpointSource
from zooport.jobs import memory

HERE = "zooport.benchmarks.reservation"  # as disposable processes import it
RESULT = Path(__file__).parent / "reservation.json"
MODELS = (
    "faster_rcnn_fpn",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x",
    "COCO-Detection/faster_rcnn_R_50_C4_3x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x",
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
)
IMAGES = 2


def main() -> None:
    """Measure the named models, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    parser.add_argument("--formats", nargs="+", default=["torchscript-trace"], choices=formats.names())
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    print(f"{'model':54}{'part':20}{'checkpoint':>11}{'held':>7}{'given':>7}{'share':>7}   MiB")
    for name in arguments.models:
        with tempfile.TemporaryDirectory() as scratch:
            for row in measure_model(name, arguments.formats, Path(scratch)):
                rows.append(row)
                sizes = [row[key] / 2**20 for key in ("checkpoint_bytes", "held_bytes", "given_bytes")]
                shown = "".join(f"{size:{width}.0f}" for size, width in zip(sizes, (11, 7, 7), strict=True))
                print(f"{name:54}{row['part']:20}{shown}{row['share']:7.2f}", flush=True)
                RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure_model(name: str, formats_: list[str], scratch: Path) -> Iterator[dict[str, Any]]:
    """Yield one row for each part of the model's jobs."""
    source = _source(name, scratch)
    size = source.weights.stat().st_size
    given = memory.estimate(size, memory.activations(load_config(source.config)))
    parts: dict[str, tuple[Any, ...]] = {format_: (scratch / format_,) for format_ in formats_}
    for part, extra in {**parts, "eager": ()}.items():
        function = f"{HERE}:{'evaluate' if part == 'eager' else 'export'}"
        arguments = (source,) if part == "eager" else (source, part, *extra)
        held = run_isolated(function, *arguments, timeout=None, log=scratch / "log")
        shutil.rmtree(scratch / part, ignore_errors=True)
        yield {
            "model": name,
            "part": part,
            "checkpoint_bytes": size,
            "held_bytes": held,
            "given_bytes": given,
            "share": round(held / given, 2),
        }


def _source(name: str, scratch: Path) -> CheckpointSource:
    folder = demo.ZOO / name
    if folder.is_dir():
        (weights,) = folder.glob("model_final.*")
        return CheckpointSource(name, folder / "config.yaml", weights)
    weights = scratch / "model.pth"
    run_isolated(
        "zooport.benchmarks.memory:write_checkpoint", name, weights, timeout=None, log=scratch / "log"
    )
    return CheckpointSource(name, zoo.find(name).config, weights)


def export(source: CheckpointSource, format_: str, staging: Path, *, report: Callable[..., None]) -> int:
    """Run the export stage; return the most bytes that were held."""
    from zooport.export_core.pipeline import export_stage

    staging.mkdir()
    with _watched() as held:
        export_stage(source, format_, {}, None, None, staging, report)
    return held["most"]


def evaluate(source: CheckpointSource, *, report: Callable[..., None]) -> int:
    """Run the eager model on images of its config's size; return the most bytes that were held."""
    from zooport.export_core.pipeline import eager_predictor, load_checkpoint
    from zooport.export_core.samples import synthetic_picture

    with _watched() as held:
        config = load_config(source.config)
        predictor = eager_predictor(load_checkpoint(source, config)[0])
        for _ in range(IMAGES):
            predictor(synthetic_picture(config))
    return held["most"]


@contextmanager
def _watched() -> Iterator[Mapping[str, int]]:
    found, done = {"most": 0}, threading.Event()

    def look() -> None:
        while not done.wait(0.02):
            found["most"] = max(found["most"], memory_of_processes.held(os.getpid(), *helpers()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield found
    finally:
        done.set()
        thread.join()


if __name__ == "__main__":
    main()
