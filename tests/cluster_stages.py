"""Stages that tell what they have seen: "read-1-0.5" takes half a second, "gate-1-0" until a gate is open.

The gate is the file ``open`` in the folder of the test's bucket, which all nodes see.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from zooport.export_core.config.files import read_chain
from zooport.export_core.failures import Stage
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.worker import Stages
from zooport.tests.bucket import FOLDER

_HERE = "zooport.tests.cluster_stages"
METRICS = {"bbox/AP": 40.0}
SEEING = Stages(f"{_HERE}:export", f"{_HERE}:verify", f"{_HERE}:baseline")


def export(
    checkpoint: CheckpointSource,
    format: str,  # noqa: A002
    options: Mapping[str, Any],
    dataset: DatasetSource | None,
    sample_image: Path | None,
    staging: Path,
    report: Callable[[Stage], None],
) -> list[str]:
    report(Stage.EXPORT)
    time.sleep(float(checkpoint.name.rpartition("-")[2]))
    while checkpoint.name.startswith("gate") and not Path(os.environ[FOLDER], "open").exists():
        time.sleep(0.05)
    found = [] if dataset is None else [path for path in dataset.images.rglob("*") if path.is_file()]
    images = [] if dataset is None else [path.relative_to(dataset.images).as_posix() for path in found]
    seen = {
        "config": str(checkpoint.config),
        "chain": [file.values for file in read_chain(checkpoint.config)],
        "weights": checkpoint.weights.read_text(),
        "images": sorted(images),
    }
    (staging / "model.ts").write_text(json.dumps(seen))
    (staging / "model.json").write_text('{"versions": {"zooport": "fake"}}')
    return []


def verify(staging: Path, dataset: DatasetSource | None, report: Callable[[Stage], None]) -> dict[str, float]:
    report(Stage.VERIFY)
    return {} if dataset is None else METRICS


def baseline(
    checkpoint: CheckpointSource,
    dataset: DatasetSource,
    values: Path | None,
    report: Callable[[Stage], None],
) -> dict[str, float]:
    report(Stage.EVALUATE)
    assert dataset.annotations.read_text() == "{}"
    return METRICS
