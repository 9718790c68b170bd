"""The stages of an export, with the seconds counted that are spent inside forward passes and converters.

Each process leaves one line of JSON in the file named by ZOOPORT_BENCHMARK_SECONDS: kind -> wall seconds.
"""

from __future__ import annotations

import json
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zooport.export_core import formats, pipeline

VARIABLE = "ZOOPORT_BENCHMARK_SECONDS"

_seconds: dict[str, float] = defaultdict(float)
_inside = 0


def export(*arguments: Any, report: Any) -> Any:
    """Run the export stage."""
    stage: Any = pipeline.export_stage
    with _counted():
        return stage(*arguments, report=report)


def verify(*arguments: Any, report: Any) -> Any:
    """Run the stage of verification and evaluation."""
    stage: Any = pipeline.verify_stage
    with _counted():
        return stage(*arguments, report=report)


def baseline(*arguments: Any, report: Any) -> Any:
    """Evaluate the eager model."""
    stage: Any = pipeline.measure_eager
    with _counted():
        return stage(*arguments, report=report)


@contextmanager
def _counted() -> Iterator[None]:
    """Put clocks around what a disposable process will call, and write down what they say."""
    get, eager_predictor = formats.get, pipeline.eager_predictor

    def get_timed(name: str) -> Any:
        exporter: Any = get(name)
        load = exporter.load
        exporter.export = _timed("converters", exporter.export)
        exporter.load = lambda *arguments: _timed("forward passes", load(*arguments))
        return exporter

    formats.get = get_timed
    pipeline.eager_predictor = lambda model: _timed("forward passes", eager_predictor(model))
    try:
        yield
    finally:
        with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as file:
            file.write(json.dumps(_seconds) + "\n")


def _timed(kind: str, function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        global _inside  # noqa: PLW0603 - a forward pass inside a converter is not counted twice
        _inside += 1
        began = time.perf_counter()
        try:
            return function(*arguments, **named)
        finally:
            _inside -= 1
            if not _inside:
                _seconds[kind] += time.perf_counter() - began

    return call
