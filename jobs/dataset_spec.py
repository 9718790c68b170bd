"""The shape of a dataset in a manifest: which keys each kind has and of which sort their values are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationInfo,
    field_validator,
)

from zooport.export_core import known_datasets
from zooport.export_core.known_datasets import named_dataset
from zooport.export_core.places import expanded
from zooport.export_core.sources import DATASET_PATHS, KINDS, DatasetSource, ImageSample


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


def _kind_of_dataset(kind: str) -> str:
    if kind not in KINDS:
        raise ValueError(f"one of {', '.join(KINDS)}")
    return kind


class SampleSpec(_Strict):
    """``sample: {n: 100, seed: 0}``: so many images from the whole of a dataset."""

    n: Annotated[int, Field(gt=0, strict=True)]
    seed: Annotated[int, Field(strict=True)] = 0


class _Dataset(_Strict):
    """What every dataset has: how many of its images to take."""

    limit: Annotated[int, Field(gt=0, strict=True)] | None = None
    sample: SampleSpec | None = None

    @field_validator("sample")
    @classmethod
    def _is_alone(cls, sample: SampleSpec | None, info: ValidationInfo) -> SampleSpec | None:
        if sample is not None and info.data.get("limit") is not None:
            raise ValueError("either limit or sample")
        return sample

    def source(self, name: str, base: Path) -> DatasetSource:
        """Return the dataset with absolute paths."""
        given = {key: getattr(self, key) for key in type(self).model_fields if getattr(self, key) is not None}
        given |= {key: absolute(base, given[key]) for key in DATASET_PATHS if key in given}
        if self.sample is not None:
            given["sample"] = ImageSample(self.sample.n, self.sample.seed)
        if "classes" in given:
            given["classes"] = tuple(given["classes"])
        return DatasetSource(name, **given)


class NamedDatasetSpec(_Dataset):
    """``datasets: {NAME: {name: coco_2017_val}}``: one that detectron2 knows, below DETECTRON2_DATASETS."""

    name: str

    @field_validator("name")
    @classmethod
    def _is_known(cls, name: str) -> str:
        if named_dataset(name) is None:
            near = get_close_matches(name, known_datasets.names(), n=1)
            meant = f" (did you mean {near[0]!r}?)" if near else " such as coco_2017_val"
            raise ValueError(f"the name of one of detectron2's datasets{meant}")
        return name

    def source(self, name: str, base: Path) -> DatasetSource:
        """Return the dataset where detectron2 would look for it."""
        found = named_dataset(self.name)
        if found is None:
            raise ValueError(f"{self.name} is not known")
        sample = None if self.sample is None else ImageSample(self.sample.n, self.sample.seed)
        return replace(found, name=name, limit=self.limit, sample=sample)


class CocoSpec(_Dataset):
    """``datasets: {NAME: {annotations, images, ...}}``: COCO annotations and their images."""

    kind: Annotated[str, AfterValidator(_kind_of_dataset)] = "coco"
    annotations: str
    images: str
    panoptic: str | None = None
    panoptic_masks: str | None = None
    semantic_masks: str | None = None


class LvisSpec(_Dataset):
    """``datasets: {NAME: {kind: lvis, ...}}``: an LVIS file, and the folder that holds ``val2017``."""

    kind: Literal["lvis"]
    annotations: str
    images: str


class VocSpec(_Dataset):
    """``datasets: {NAME: {kind: voc, ...}}``: folders of XML files and images, and the list of names."""

    kind: Literal["voc"]
    annotations: str
    images: str
    image_list: str
    year: Annotated[int, Field(ge=2005, strict=True)]
    classes: Annotated[list[str], Field(min_length=1)] | None = None


class CityscapesSpec(_Dataset):
    """``datasets: {NAME: {kind: cityscapes, ...}}``: a split's folders of gtFine and leftImg8bit."""

    kind: Literal["cityscapes"]
    annotations: str
    images: str


class SemanticSpec(_Dataset):
    """``datasets: {NAME: {kind: semantic, ...}}``: folders of label maps and images."""

    kind: Literal["semantic"]
    annotations: str
    images: str


DATASETS: Mapping[str, type[_Dataset]] = {
    "name": NamedDatasetSpec,
    "coco": CocoSpec,
    "lvis": LvisSpec,
    "voc": VocSpec,
    "cityscapes": CityscapesSpec,
    "semantic": SemanticSpec,
}


def _dataset_tag(entry: Any) -> str:
    if isinstance(entry, _Dataset):
        return next(tag for tag, spec in DATASETS.items() if isinstance(entry, spec))
    if not isinstance(entry, Mapping):
        return "coco"
    kind = "name" if "name" in entry else entry.get("kind")
    return kind if isinstance(kind, str) and kind in DATASETS else "coco"


DatasetSpec = Annotated[
    Annotated[NamedDatasetSpec, Tag("name")]
    | Annotated[CocoSpec, Tag("coco")]
    | Annotated[LvisSpec, Tag("lvis")]
    | Annotated[VocSpec, Tag("voc")]
    | Annotated[CityscapesSpec, Tag("cityscapes")]
    | Annotated[SemanticSpec, Tag("semantic")],
    Discriminator(_dataset_tag),
]


def describe(dataset: DatasetSource) -> dict[str, Any]:
    """Return the keys with which a manifest describes a dataset: what :func:`read_dataset` reads."""
    given = {
        key: value
        for key in DATASETS[dataset.kind].model_fields
        if (value := getattr(dataset, key)) not in (None, ())
    }
    return {key: asdict(value) if key == "sample" else _plain(value) for key, value in given.items()}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    return list(value) if isinstance(value, tuple) else value


def read_dataset(value: Mapping[str, Any], base: Path) -> DatasetSource:
    """Return the dataset that the keys describe, under the name that it has there or else "dataset".

    Raises:
        ValidationError: pydantic's; each place begins with the kind of dataset.
    """
    adapter: TypeAdapter[DatasetSpec] = TypeAdapter(DatasetSpec)
    return adapter.validate_python(value).source(str(value.get("name", "dataset")), base)


def dataset_fields(place: Sequence[str | int]) -> Mapping[str, object]:
    """Return the known keys beside an unknown one; ``place`` is pydantic's, from the kind of dataset on."""
    return SampleSpec.model_fields if "sample" in place[1:-1] else DATASETS[str(place[0])].model_fields


def absolute(base: Path, path: str) -> Path:
    """Return a path of the manifest, which stands in ``base``, as an absolute one."""
    return (base / expanded(path)).absolute()
