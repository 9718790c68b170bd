"""What a model costs where it is evaluated: latency, memory, size and time to load.

Costs are recorded like metrics, in a family of their own, and never judged: they tell of the machine as much
as of the model. Eager and exported model are measured in the same way, by the same evaluation.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from zooport.export_core.isolation.child import helpers
from zooport.export_core.isolation.memory import family

FAMILY = "cost"
LATENCY_P50 = "cost/latency_p50_ms"
LATENCY_P95 = "cost/latency_p95_ms"
PEAK_MEMORY = "cost/peak_memory_mb"
SIZE = "cost/size_mb"
LOAD = "cost/load_s"

_MB = 1e6
Value = TypeVar("Value")


def is_cost(name: str) -> bool:
    """Whether a metric tells what a model costs, not how good it is."""
    return name.startswith(f"{FAMILY}/")


def without_costs(metrics: Mapping[str, Value]) -> dict[str, Value]:
    """Return the metrics of accuracy alone."""
    return {name: value for name, value in metrics.items() if not is_cost(name)}


class Stopwatch:
    """A predictor that notes how long each call took, in seconds."""

    def __init__(self, predictor: Any) -> None:
        self._predictor = predictor
        self.in_image_frame = getattr(predictor, "in_image_frame", False)
        self.seconds: list[float] = []

    def __call__(self, image: Any, **more: Any) -> Any:
        """Run one image."""
        begun = time.perf_counter()
        outputs = self._predictor(image, **more)
        self.seconds.append(time.perf_counter() - begun)
        return outputs


@dataclass(frozen=True)
class Costs:
    """What one process measured.

    Attributes:
        seconds: of each call of the model but the first, which pays for what later ones reuse.
        load: seconds from the file to a model that can be called.
        peak: bytes of resident memory of the process and its children at their highest, libraries and
            annotations included.
    """

    seconds: Sequence[float]
    load: float
    peak: int

    @staticmethod
    def of(stopwatch: Stopwatch, load: float) -> Costs:
        """Return what was measured up to now."""
        return Costs(stopwatch.seconds[1:], load, peak_memory())

    def write(self, path: Path) -> None:
        """Write as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @staticmethod
    def read(path: Path) -> Costs:
        """Return what :meth:`write` wrote."""
        return Costs(**json.loads(path.read_text(encoding="utf-8")))

    def to_metrics(self, size: int) -> dict[str, float]:
        """Return the costs by name, in milliseconds, MB (10**6 bytes) and seconds.

        Latencies are left out where the model was called once.

        Args:
            size: bytes of the model's files.
        """
        import numpy as np

        metrics = {}
        if self.seconds:
            p50, p95 = np.percentile(np.asarray(self.seconds) * 1e3, (50, 95)).tolist()
            metrics = {LATENCY_P50: p50, LATENCY_P95: p95}
        return metrics | {PEAK_MEMORY: self.peak / _MB, SIZE: size / _MB, LOAD: self.load}


def joined(parts: Iterable[Costs]) -> Costs:
    """Return the costs of a model that several processes ran: all calls, longest load, highest peak."""
    parts = list(parts)
    seconds = [each for part in parts for each in part.seconds]
    return Costs(seconds, max(part.load for part in parts), max(part.peak for part in parts))


def peak_memory() -> int:
    """Return the bytes of resident memory that this process and those working for it held at their highest.

    A format whose runtime is a process of its own holds the model there. Shared pages are included.
    """
    return sum(_highest(process) for process in {*family(os.getpid()), *helpers()})


def _highest(process: int) -> int:
    """Return the most bytes that a process held; 0 of another one that is gone or cannot be read."""
    with suppress(OSError, ValueError):
        for line in Path(f"/proc/{process}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if process != os.getpid():
        return 0
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def size_of(directory: Path) -> int:
    """Return the bytes of all files of an artifact; hidden ones are no part of it."""
    files = (path for path in directory.rglob("*") if path.is_file())
    return sum(
        path.stat().st_size
        for path in files
        if not any(part.startswith(".") for part in path.relative_to(directory).parts)
    )
