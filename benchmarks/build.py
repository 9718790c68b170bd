"""How long building a model from a cached config and weights takes, against reading and copying the file.

Reading is what no program can save: the whole file into memory, from the page cache; copying is the one that
gives a model weights of its own. Building is everything that zooport does beside it: the skeleton, the
unpickling, matching names and shapes, looking for NaN. ``python benchmarks/build.py [MODEL ...]``.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from zooport.export_core.isolation import run_isolated

HERE = "zooport.benchmarks.build"  # as disposable processes import it
RESULT = Path(__file__).parent / "build.json"
MODELS = (
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/fcos_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x",
    "Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv",
)
ALLOWED = 1.2
REPEATS = 15


def main() -> None:
    """Measure the named models, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("models", nargs="*", default=MODELS)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.models:
            weights, log = Path(scratch, "model.pth"), Path(scratch, "log")
            run_isolated("zooport.benchmarks.memory:write_checkpoint", name, weights, timeout=None, log=log)
            rows.append(run_isolated(f"{HERE}:measure", name, weights, timeout=None, log=log))
            print_row(rows[-1])
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


def measure(name: str, weights: Path, *, report: Any) -> dict[str, Any]:
    """Return the best times of one model, in seconds: other work on the machine only ever adds to them."""
    from zooport.export_core import zoo
    from zooport.export_core.checkpoints import read_weights
    from zooport.export_core.config import load_config
    from zooport.export_core.modeling.build import build_skeleton, load_model

    config = load_config(zoo.find(name).config)

    def read_and_copy() -> object:
        data = weights.read_bytes()
        return bytearray(data)

    def build() -> object:
        return load_model(config, read_weights(weights), str(weights))

    tasks: dict[str, Callable[[], object]] = {
        "read_and_copy": read_and_copy,
        "build": build,
        "skeleton": lambda: build_skeleton(config),
    }
    best = dict.fromkeys(tasks, float("inf"))
    for _ in range(REPEATS):  # in turns, so that all meet the same moments of a busy machine
        for task, function in tasks.items():
            began = time.perf_counter()
            made = function()
            best[task] = min(best[task], time.perf_counter() - began)
            del made
    ratio = best["build"] / best["read_and_copy"]
    size = weights.stat().st_size
    return {"model": name, "bytes": size, **best, "ratio": round(ratio, 3), "within": ratio <= ALLOWED}


def print_row(row: dict[str, Any]) -> None:
    """Print one line: sizes in MiB, times in milliseconds."""
    times = "".join(f"  {task} {row[task] * 1000:6.0f} ms" for task in ("read_and_copy", "build", "skeleton"))
    print(f"{row['model']:60}{row['bytes'] / 2**20:6.0f} MiB{times}  ratio {row['ratio']:.2f}", flush=True)


if __name__ == "__main__":
    main()
