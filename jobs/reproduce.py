"""The command that repeats one attempt alone: ``zooport export`` with everything that the job was given."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zooport.export_core.sources import DatasetSource
from zooport.jobs import memory
from zooport.jobs.dataset_spec import describe
from zooport.jobs.limits import Deadlines
from zooport.jobs.values import ExportJob

#: Where the command writes: below the working directory of whoever types it, so that no artifact of a run
#: is replaced by an experiment.
DIRECTORY = "reproduced"
_DATASET_OPTIONS = ("limit", "panoptic", "panoptic_masks", "semantic_masks")


def command(job: ExportJob, limit: int = 0) -> str:
    """Return what a person types to run this job alone, with no registry and no other job.

    Args:
        job: what was done.
        limit: bytes at which it was stopped; 0 when it was not.
    """
    return shlex.join(["zooport", "export", *_options(job, limit), *_overrides(job.checkpoint.overrides)])


def _options(job: ExportJob, limit: int) -> Iterator[str]:
    yield from ("--name", job.checkpoint.name)
    yield from ("--config-file", str(job.checkpoint.config))
    yield from ("--weights", str(job.checkpoint.weights))
    yield from ("--format", job.format)
    yield from ("--output", str(Path(DIRECTORY, *job.checkpoint.name.split("/"), job.format)))
    for name, value in job.options.items():
        yield from ("--option", f"{name}={_yaml(value)}")
    if job.sample_image is not None:
        yield from ("--sample-image", str(job.sample_image))
    if job.dataset is not None:
        yield from _evaluation(job.dataset, job.tolerance)
    for extension in job.checkpoint.imports:
        yield from ("--import", extension)
    deadlines = str(Deadlines(job.timeout, dict(job.deadlines)))
    if deadlines:
        yield from ("--timeout", deadlines)
    if limit:
        yield from ("--memory", memory.exactly(limit))


def _evaluation(dataset: DatasetSource, tolerance: Mapping[str, float]) -> Iterator[str]:
    yield "--run-eval"
    if dataset.kind != "coco" or dataset.sample is not None:
        yield from ("--dataset", _yaml(describe(dataset)))
    else:
        yield from _parts(dataset)
    for name, points in tolerance.items():
        yield from ("--tolerance", f"{name}={points:.15g}")


def _parts(dataset: DatasetSource) -> Iterator[str]:
    yield from ("--annotations", str(dataset.annotations), "--images", str(dataset.images))
    for name in _DATASET_OPTIONS:
        value = getattr(dataset, name)
        if value is not None:
            yield from (f"--{name.replace('_', '-')}", str(value))


def _overrides(overrides: Mapping[str, Any]) -> Iterator[str]:
    if overrides:
        yield "--"  # a value may begin with a dash
    for key, value in overrides.items():
        yield from (key, _literal(value))


def _yaml(value: Any) -> str:
    """Return a value as YAML on one line; JSON is YAML."""
    return json.dumps(value, ensure_ascii=False)


def _literal(value: Any) -> str:
    """Return a value as a config override is written: text as it is, anything else as a Python literal."""
    return value if isinstance(value, str) else repr(value)
