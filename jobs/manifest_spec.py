"""The shape of a manifest: which keys it has and of which kind their values are."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

from zooport.export_core.evaluation.metric_names import EVERY
from zooport.export_core.shards import SHARD_IMAGES
from zooport.jobs import memory
from zooport.jobs.dataset_spec import DatasetSpec, dataset_fields
from zooport.jobs.values import DEFAULT_RETRIES

DEFAULT_OUTPUT = "artifacts"
DEFAULT_TIMEOUT = 24 * 3600.0  # seconds; a job that hangs must not keep a run from ending


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


def _bytes(value: Any) -> int | None:
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(memory.EXPECTED)
    return memory.parse(value)


Memory = Annotated[int | None, BeforeValidator(_bytes)]


class TimeoutSpec(_Strict):
    """``timeout: {STAGE: SECONDS, total: SECONDS}``; a number alone is the total."""

    load: Seconds | None = None
    export: Seconds | None = None
    verify: Seconds | None = None
    evaluate: Seconds | None = None
    publish: Seconds | None = None
    total: Seconds = DEFAULT_TIMEOUT

    @property
    def stages(self) -> dict[str, float]:
        """Stage -> seconds, for the stages that have a deadline."""
        return self.model_dump(exclude={"total"}, exclude_none=True)


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # YAML's yes and on are true
        raise ValueError("points, 0 or more")
    return value


Points = Annotated[float, Field(ge=0, allow_inf_nan=False), BeforeValidator(_number)]


def _tolerance(value: Any) -> Any:
    """A number alone is for every metric that is judged by default."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not 0 <= value < math.inf:
            raise ValueError("points, 0 or more")
        return {EVERY: value}
    if isinstance(value, Mapping):
        return value
    raise ValueError("points, or a mapping such as {AP: 0.1, bbox/AP: 0.05}")


class ToleranceSpec(_Strict):
    """``tolerances: [{format, architecture, metric, points}]``: a tolerance for some exports."""

    points: Points
    metric: str = EVERY
    format: str | None = None
    architecture: str | None = None


def _timeout(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and value > 0:
        return {"total": value}
    if isinstance(value, Mapping | TimeoutSpec):
        return value
    raise ValueError("seconds above 0, or a mapping such as {export: 300, total: 900}")


class _Common(_Strict):
    """What a model and a scanned folder have in common."""

    formats: list[str] | None = None
    dataset: str | None = None
    overrides: dict[str, Any] = {}
    options: dict[str, Any] = {}
    sample_image: str | None = None
    memory: Memory = None


class ModelSpec(_Common):
    """``models: [{name, config, weights, ...}]``: one checkpoint."""

    name: str
    config: str
    weights: str

    @field_validator("name")
    @classmethod
    def _is_a_path(cls, name: str) -> str:
        return check_name(name)


class ScanSpec(_Common):
    """``models: [{scan: DIR, ...}]``: every model below a folder, but what ``exclude`` matches."""

    scan: str
    exclude: list[str] = []
    prefix: str = ""


class ZooSpec(_Common):
    """``models: [{zoo: PATTERN, ...}]``: models of the official zoo, with their released weights."""

    zoo: str
    prefix: str = ""


AnySpec = ModelSpec | ScanSpec | ZooSpec


def _kind(entry: Any) -> str:
    fields = entry if isinstance(entry, Mapping) else type(entry).model_fields
    return next((kind for kind in ("scan", "zoo") if kind in fields), "model")


ModelEntry = Annotated[
    Annotated[ModelSpec, Tag("model")] | Annotated[ScanSpec, Tag("scan")] | Annotated[ZooSpec, Tag("zoo")],
    Discriminator(_kind),
]
_ENTRIES: Mapping[str, type[_Strict]] = {"model": ModelSpec, "scan": ScanSpec, "zoo": ZooSpec}


class ManifestSpec(_Strict):
    """The whole file."""

    imports: list[str] = []
    datasets: dict[str, DatasetSpec] = {}
    models: Annotated[list[ModelEntry], Field(min_length=1)]
    formats: list[str] | None = None
    tolerance: Annotated[dict[str, Points], BeforeValidator(_tolerance)] = {}
    tolerances: list[ToleranceSpec] = []
    timeout: Annotated[TimeoutSpec, BeforeValidator(_timeout)] = TimeoutSpec()
    memory: Memory = None
    retries: Annotated[int, Field(ge=0, strict=True)] = DEFAULT_RETRIES
    shard_images: Annotated[int, Field(gt=0, strict=True)] = SHARD_IMAGES
    output: str = DEFAULT_OUTPUT

    @model_validator(mode="before")
    @classmethod
    def _scan_alone(cls, values: Any) -> Any:
        """``models: {scan: DIR}`` means a list of that one entry."""
        if isinstance(values, Mapping) and isinstance(values.get("models"), Mapping):
            return {**values, "models": [values["models"]]}
        return values


def check_name(name: str) -> str:
    """Return the model's name; ValueError unless it can be a relative path below the output directory."""
    parts = name.split("/")
    if any(part.strip() in {"", ".", ".."} or part.startswith(".") for part in parts):
        raise ValueError("a name such as 'mask_rcnn' or 'team/mask_rcnn', no part starting with a dot")
    if re.search(r"[\x00-\x1f\x7f\\]", name):
        raise ValueError("a name without control characters and backslashes")
    return name


def fields_at(place: Sequence[str | int]) -> Mapping[str, object]:
    """Return the known keys beside an unknown one; ``place`` is where pydantic found it."""
    if place[0] == "models" and len(place) > 2:
        return _ENTRIES[str(place[2])].model_fields
    if place[0] == "tolerances":
        return ToleranceSpec.model_fields
    if place[0] == "timeout":
        return TimeoutSpec.model_fields
    if place[0] == "datasets" and len(place) > 2:
        return dataset_fields(place[2:])
    return ManifestSpec.model_fields
