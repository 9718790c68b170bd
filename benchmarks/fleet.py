"""How near a run of the demo zoo comes to the time that its models alone need.

The ideal is what is spent inside forward passes and inside the converters themselves, summed and shared out
over the cores; the run is taken after its start-up, from the first job to the last verdict. Both are walls of
one run, so that a busy machine stretches both. Beside it stands what a loop of detectron2's own export with
evaluation takes: one process for each model and format, and one for each eager baseline.
``python benchmarks/fleet.py [--formats NAME ...] [--repeats N] [--result FILE]``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from zooport.benchmarks.overhead import Watch, recorded
from zooport.benchmarks.timed_stages import VARIABLE
from zooport.export_core import demo, formats
from zooport.jobs.hosts import HostSettings
from zooport.jobs.output import OutputFormat
from zooport.jobs.submission import Request, submit
from zooport.jobs.worker import Stages

RESULT = Path(__file__).parent / "fleet.json"
ALLOWED = 1.25
DETECTRON2 = 7.7  # seconds of one process of export_model.py --run-eval on two idle cores, tiny models
WANTED_SPEEDUP = 4.0
STAGES = Stages(*(f"zooport.benchmarks.timed_stages:{stage}" for stage in ("export", "verify", "baseline")))


def main() -> None:
    """Run the fleet, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--formats", nargs="+", default=formats.names())
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result", type=Path, default=RESULT, help="where it is written")
    arguments = parser.parse_args()
    runs = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as folder:
            runs.append(measure(Path(folder), arguments.formats))
        print_run(runs[-1])
    best = min(runs, key=lambda run: float(run["ratio"]))
    within = best["ratio"] <= ALLOWED and best["times_faster_than_detectron2"] >= WANTED_SPEEDUP
    print(f"best of {len(runs)}: {best['ratio']:.2f} times the ideal (wanted: {ALLOWED}),", end=" ")
    print(f"{best['times_faster_than_detectron2']:.1f} times faster than detectron2's loop", end=" ")
    print(f"(wanted: {WANTED_SPEEDUP:.0f})")
    report = {"formats": arguments.formats, "best": best, "runs": runs, "within": within}
    arguments.result.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


def measure(folder: Path, names: Sequence[str]) -> dict[str, Any]:
    """Run the demo zoo once and return what it took, in seconds."""
    os.environ["ZOOPORT_CACHE"] = str(folder / "cache")
    os.environ[VARIABLE] = str(folder / "seconds")
    manifest, registry = write_manifest(folder, names), folder / "registry.db"
    cores = len(os.sched_getaffinity(0))
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((folder / "log").open("w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        watch = stack.enter_context(Watch())
        began = time.time()
        request = Request(str(registry), hosts=HostSettings("", STAGES), result=OutputFormat.JSON)
        submit(manifest, request)
        wall = time.time() - began
    done, first, last = recorded(registry)
    models = len(list(demo.ZOO.glob("*/config.yaml")))
    if done < models * len(names):
        sys.stderr.write(f"{done} of {models * len(names)} exports succeeded\n")
    inside: Counter[str] = Counter()
    for line in (folder / "seconds").read_text(encoding="utf-8").splitlines():
        inside.update(json.loads(line))
    ideal = sum(inside.values()) / cores
    # The first baseline begins with, or right before, the first export.
    return {
        "models": models,
        "exports": done,
        "cores": cores,
        "wall_s": wall,
        "start_s": first - began,
        "after_start_s": last - first,
        "inside_s": dict(inside),
        "ideal_s": ideal,
        "ratio": (last - first) / ideal,
        "cpu_s": watch.cpu,
        # What the same work would take at best on cores that do nothing else.
        "cpu_s_per_core": watch.cpu["all"] / cores,
        "detectron2_s": DETECTRON2 * (models * len(names) + models),
        "times_faster_than_detectron2": DETECTRON2 * (models * len(names) + models) / wall,
        "load": os.getloadavg()[0],
    }


def print_run(run: Mapping[str, Any]) -> None:
    """Print one row."""
    inside = ", ".join(f"{seconds:.1f} s in {kind}" for kind, seconds in run["inside_s"].items())
    print(f"{run['exports']} exports of {run['models']} models: {run['wall_s']:.1f} s,", end=" ")
    print(f"{run['after_start_s']:.1f} s after {run['start_s']:.1f} s of start-up;", end=" ")
    print(f"ideal {run['ideal_s']:.1f} s on {run['cores']} cores ({inside}): {run['ratio']:.2f};", end=" ")
    print(f"processors {run['cpu_s']['all']:.0f} s, load {run['load']:.1f};", end=" ")
    print(f"detectron2's loop: {run['detectron2_s']:.0f} s on idle cores")


def write_manifest(folder: Path, names: Sequence[str]) -> Path:
    """Write the demo's manifest with these formats, its paths made absolute."""
    document = yaml.safe_load(demo.MANIFEST.read_text(encoding="utf-8"))
    for entry in [*document["datasets"].values(), *document["models"]]:
        for key, value in entry.items():
            if key not in {"name", "dataset", "limit"}:
                entry[key] = str(demo.MANIFEST.parent / value)
    document["formats"] = list(names)
    manifest = folder / "zoo.yaml"
    manifest.write_text(yaml.safe_dump(document), encoding="utf-8")
    return manifest


if __name__ == "__main__":
    main()
