"""Run recorded Caffe2 nets in both executors: how far from what was recorded, and how long a run takes.

Usage: python benchmarks/caffe2_nets.py DIR...

Each DIR holds ``model.pb``, ``model_init.pb`` and ``io.npz`` with ``0/in/data``, ``0/in/im_info`` and
``0/out/NAME`` for each output, then ``1/in/data`` and so on, as in ``tests/data/caffe2/faster_rcnn_fpn``.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zooport.export_core.caffe2.executors import Executor, choose_executor
from zooport.export_core.caffe2.net_files import read_nets

RUNS = 10

Arrays = dict[str, NDArray[Any]]


def recorded(directory: Path) -> Iterator[tuple[Arrays, Arrays]]:
    """Yield inputs and outputs of each image."""
    with np.load(directory / "io.npz") as file:
        arrays = {name: file[name] for name in file.files}
    for number in sorted({name.split("/")[0] for name in arrays}):
        inputs, outputs = (
            {name.rpartition("/")[2]: arrays[name] for name in arrays if name.startswith(f"{number}/{side}/")}
            for side in ("in", "out")
        )
        yield {name: array.astype(np.float32) for name, array in inputs.items()}, outputs


def measure(executor: Executor, directory: Path) -> str:
    """Return one line: the largest difference from what was recorded, and milliseconds per run."""
    nets = executor.load(read_nets(directory))
    worst, seconds = 0.0, []
    for inputs, expected in recorded(directory):
        found = nets.run(inputs)
        for name, array in expected.items():
            if found[name].shape != array.shape:
                return f"{name}: shape {found[name].shape}, recorded {array.shape}"
            worst = max(worst, float(np.abs(found[name] - array).max(initial=0)))
        for _ in range(RUNS):
            start = time.perf_counter()
            nets.run(inputs)
            seconds.append(time.perf_counter() - start)
    return f"largest difference {worst:.1e}, {1000 * statistics.median(seconds):.1f} ms"


def main() -> None:
    """Measure every net in both executors."""
    for name in ("caffe2", "reference"):
        executor = choose_executor(name)
        for directory in map(Path, sys.argv[1:]):
            print(f"{name:10} {directory.name:20} {measure(executor, directory)}")
        executor.close()


if __name__ == "__main__":
    main()
