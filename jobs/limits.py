"""Deadlines as people write them: ``600``, or by stage ``load=60,export=300,total=900``."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from zooport.export_core.failures import Stage

#: Stages that may have a deadline of their own. Planning is no job's work.
STAGES = (Stage.LOAD, Stage.EXPORT, Stage.VERIFY, Stage.EVALUATE, Stage.PUBLISH)
TOTAL = "total"
EXPECTED = f"seconds, or some of {', '.join(STAGES)} and {TOTAL} with their seconds"


@dataclass(frozen=True)
class Deadlines:
    """Seconds for a whole job, None where they are not set, and for its stages."""

    total: float | None = None
    stages: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.stages:
            return "" if self.total is None else f"{self.total:.15g}"
        total = {} if self.total is None else {TOTAL: self.total}
        return ",".join(f"{name}={seconds:.15g}" for name, seconds in (self.stages | total).items())


def parse(text: str) -> Deadlines:
    """Return what ``600`` or ``export=300,total=900`` means; ValueError for anything else."""
    if "=" not in text:
        return Deadlines(_seconds(text))
    stages = dict(_pairs(text))
    total = stages.pop(TOTAL, None)
    return Deadlines(total, stages)


def _pairs(text: str) -> Iterator[tuple[str, float]]:
    for part in text.split(","):
        name, _, seconds = part.partition("=")
        if name.strip() not in {*STAGES, TOTAL}:
            raise ValueError(f"no stage {name.strip()!r}; expected {EXPECTED}")
        yield name.strip(), _seconds(seconds)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"{text.strip()!r} is no number of seconds above 0; expected {EXPECTED}")
    return seconds
