"""The manifest ``zoo.yaml``: what to export, to which formats, and what to compare with.

Paths are relative to the manifest. An error names the file, the line, the key and what was expected. Only
the manifest itself is checked here: a config or weights file that is not there fails its own exports.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from zooport.export_core import formats, known_datasets, places
from zooport.export_core.checkpoints.fetch import cache_path, is_url
from zooport.export_core.extensions import locate
from zooport.export_core.failures import Failure, FailureRecord, Stage
from zooport.export_core.known_datasets import named_dataset
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.export_core.zoo import CatalogEntry, expand
from zooport.jobs.dataset_spec import absolute
from zooport.jobs.manifest_spec import (
    AnySpec,
    ManifestSpec,
    ModelSpec,
    ScanSpec,
    ZooSpec,
    check_name,
    fields_at,
)
from zooport.jobs.scan import Found, scan
from zooport.jobs.tolerances import assign
from zooport.jobs.values import ExportTarget
from zooport.jobs.yaml_lines import Document, Place, YamlError, read_yaml

_MAX_ERRORS = 3  # how many errors one message names; the rest is counted
_SHOWN = 60  # characters of a wrong value


@dataclass(frozen=True)
class Manifest:
    """A manifest that was read: what to export, and where artifacts go.

    Attributes:
        addresses: where weights come from that are named by address: their place in the cache -> address.
    """

    path: Path
    text: str
    targets: tuple[ExportTarget, ...]
    output: places.Place
    addresses: Mapping[Path, str] = field(default_factory=dict)


def load_manifest(path: Path) -> Manifest:
    """Read and check a manifest.

    Raises:
        Failure: ``manifest.invalid`` with file, line, key path and what was expected; ``extension.invalid``
            for an import that is not there.
    """
    path = places.without_detours(path)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise Failure("manifest.invalid", f"{path}: {reason}", stage=Stage.PLAN) from None
    return _Reading(path, text).manifest()


class _Reading:
    """One manifest while it is read: knows the file and the lines that an error has to name."""

    def __init__(self, path: Path, text: str) -> None:
        self._path = path
        self._text = text
        self._base = path.parent
        self._document = Document()
        self._names: dict[str, Place] = {}
        self._addresses: dict[Path, str] = {}
        self._imports: tuple[str, ...] = ()

    def manifest(self) -> Manifest:
        spec = self._spec()
        self._imports = tuple(self._locate(name, index) for index, name in enumerate(spec.imports))
        datasets = {name: each.source(name, self._base) for name, each in spec.datasets.items()}
        targets: list[ExportTarget] = []
        for index, entry in enumerate(spec.models):
            place: Place = ("models",) if self._is_scan_alone() else ("models", index)
            chosen = self._formats(spec, entry, place)
            dataset = self._dataset(datasets, entry, place)
            for checkpoint, refusal in self._checkpoints(entry, place):
                targets += [
                    ExportTarget(
                        checkpoint=checkpoint,
                        format=name,
                        options=options,
                        dataset=dataset,
                        sample_image=_optional(self._base, entry.sample_image),
                        timeout=spec.timeout.total,
                        deadlines=spec.timeout.stages,
                        retries=spec.retries,
                        shard_images=spec.shard_images,
                        memory=entry.memory or spec.memory,
                        refusal=refusal,
                    )
                    for name, options in chosen.items()
                ]
        targets = assign(spec, targets, self._path.name, self._invalid)
        output = places.output_place(spec.output, self._base)
        return Manifest(self._path, self._text, tuple(targets), output, self._addresses)

    def _spec(self) -> ManifestSpec:
        try:
            self._document = read_yaml(self._text)
        except YamlError as error:
            place = f" line {error.line}" if error.line else ""
            raise Failure("manifest.invalid", f"{self._path}{place}: {error}", stage=Stage.PLAN) from None
        if not isinstance(self._document.value, dict):
            raise self._invalid((), "expected a mapping with the key models")
        try:
            return ManifestSpec.model_validate(self._document.value)
        except ValidationError as error:
            raise self._explain(error) from None

    def _is_scan_alone(self) -> bool:
        return isinstance(self._document.value.get("models"), dict)

    def _checkpoints(
        self, entry: AnySpec, place: Place
    ) -> Iterator[tuple[CheckpointSource, FailureRecord | None]]:
        if isinstance(entry, ModelSpec):
            config = absolute(self._base, entry.config)
            weights = self._weights(entry.weights, (*place, "weights"))
            self._claim(entry.name, (*place, "name"))
            yield CheckpointSource(entry.name, config, weights, entry.overrides, self._imports), None
            return
        if isinstance(entry, ZooSpec):
            place = (*place, "zoo")
            for official in self._official(entry.zoo, place):
                name = self._claim(entry.prefix + official.name, place)
                weights = self._weights(official.weights or "", place)
                source = CheckpointSource(name, official.config, weights, entry.overrides, self._imports)
                yield source, None
            return
        root = absolute(self._base, entry.scan)
        place = (*place, "scan")
        if not root.is_dir():
            raise self._invalid(place, f"expected a folder, and {root} is none")
        models = self._scan(root, entry, place)
        if not models:
            raise self._invalid(place, f"no folder below {root} holds a config and weights")
        for found in models:
            name = self._claim(entry.prefix + found.name, place)
            source = CheckpointSource(name, found.config, found.weights, entry.overrides, self._imports)
            yield source, _refusal(found)

    def _locate(self, name: str, index: int) -> str:
        """Return an extension's name or absolute path; it is not imported here."""
        try:
            return locate(name, self._base)
        except Failure as failure:
            message = f"{self._path}{self._where(('imports', index))}{failure.message}"
            raise Failure(failure.code, message, stage=Stage.PLAN, hint=failure.hint) from None

    def _weights(self, text: str, place: Place) -> Path:
        """Return where weights are, or will be once they are fetched."""
        if not is_url(text):
            return absolute(self._base, text)
        try:
            path = cache_path(text)
        except Failure as failure:
            raise self._invalid(place, failure.message, failure.hint) from None
        self._addresses[path] = text
        return path

    def _official(self, pattern: str, place: Place) -> list[CatalogEntry]:
        try:
            found = expand(pattern)
        except Failure as failure:
            raise self._invalid(place, failure.message, failure.hint) from None
        without = [entry for entry in found if entry.weights is None]
        if without:
            hint = f"name it as a model with weights of your own and config: {without[0].config}"
            raise self._invalid(place, f"the weights of {without[0].name} were never released", hint)
        return found

    def _scan(self, root: Path, entry: ScanSpec, place: Place) -> list[Found]:
        try:
            return list(scan(root, entry.exclude))
        except OSError as error:
            raise self._invalid(place, f"cannot read {error.filename}: {error.strerror}") from None

    def _claim(self, name: str, place: Place) -> str:
        try:
            check_name(name)
        except ValueError as error:
            raise self._invalid(place, f"{name!r} cannot name a model; expected {error}") from None
        if name in self._names:
            first = self._document.line(self._names[name])
            hint = "give each model a name of its own; a scan takes a prefix"
            raise self._invalid(place, f"model {name!r} is already named on line {first}", hint)
        self._names[name] = place
        return name

    def _formats(self, spec: ManifestSpec, entry: AnySpec, place: Place) -> dict[str, dict[str, Any]]:
        """Return each format of a model with the options that are meant for it."""
        place_of_formats = (*place, "formats") if entry.formats is not None else ("formats",)
        chosen = entry.formats if entry.formats is not None else spec.formats
        if not chosen:
            raise self._invalid(
                place_of_formats if chosen is not None else place,
                "expected a list of formats here or at the top of the manifest",
                "zooport formats lists them",
            )
        known = _known_options()
        for index, name in enumerate(chosen):
            if name not in known:
                problem = f"unknown format {name!r}{_suggest(name, known)}"
                raise self._invalid((*place_of_formats, index), problem, "zooport formats lists them")
            if name in chosen[:index]:
                raise self._invalid((*place_of_formats, index), f"format {name!r} is named twice")
        options = {name: self._options(entry, name, known, chosen, place) for name in chosen}
        for name, values in options.items():
            self._check_values(name, values, (*place, "options"))
        return options

    def _check_values(self, name: str, options: Mapping[str, Any], place: Place) -> None:
        try:
            if options:
                formats.get(name).check_options(options)
        except Failure as failure:
            raise self._invalid(place, failure.message, failure.hint) from None

    def _options(
        self,
        entry: AnySpec,
        name: str,
        known: Mapping[str, Sequence[str]],
        chosen: Sequence[str],
        place: Place,
    ) -> dict[str, Any]:
        """Return one format's options: those under its name, and those for every format that has them."""
        options: dict[str, Any] = {}
        for key, value in entry.options.items():
            here = (*place, "options", key)
            if key in known:
                if key not in chosen:
                    raise self._invalid(here, f"this model is not exported to {key}")
                if key == name:
                    options |= self._own_options(name, value, known[name], here)
            elif key in known[name]:
                options.setdefault(key, value)
            elif not any(key in known[each] for each in chosen):
                every = [option for each in chosen for option in known[each]]
                problem = f"no format of this model has an option {key!r}{_suggest(key, every)}"
                raise self._invalid(here, problem)
        return options

    def _own_options(self, name: str, value: Any, known: Sequence[str], place: Place) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise self._invalid(place, f"expected a mapping of options of {name}")
        for key in value:
            if key not in known:
                raise self._invalid((*place, key), f"{name} has no option {key!r}{_suggest(key, known)}")
        return value

    def _dataset(
        self, datasets: Mapping[str, DatasetSource], entry: AnySpec, place: Place
    ) -> DatasetSource | None:
        if entry.dataset is None:
            return None
        found = datasets.get(entry.dataset) or named_dataset(entry.dataset)
        if found is None:
            near = _suggest(entry.dataset, [*datasets, *known_datasets.names()])
            problem = f"expected a key of datasets or a name of detectron2's, got {entry.dataset!r}{near}"
            raise self._invalid((*place, "dataset"), problem)
        return found

    def _explain(self, error: ValidationError) -> Failure:
        errors = error.errors(include_url=False)
        first = [self._where(self._place(each)) + expectation(each) for each in errors[:_MAX_ERRORS]]
        more = f"; and {len(errors) - len(first)} more" if len(errors) > len(first) else ""
        return Failure(
            "manifest.invalid",
            f"{self._path}{'; '.join(first)}{more}",
            stage=Stage.PLAN,
            details={"errors": len(errors)},
        )

    def _place(self, error: ErrorDetails) -> Place:
        """Return where the error is in the file: pydantic's path without the names of alternatives."""
        place = tuple(error["loc"])
        if len(place) > 2 and place[0] in ("models", "datasets"):
            place = (*place[:2], *place[3:])
        if place[:1] == ("models",) and self._is_scan_alone():
            place = (place[0], *place[2:])
        return place[:-1] if place[-1:] == ("[key]",) else place

    def _invalid(self, place: Place, problem: str, hint: str = "") -> Failure:
        message = f"{self._path}{self._where(place)}{problem}"
        return Failure("manifest.invalid", message, stage=Stage.PLAN, hint=hint)

    def _where(self, place: Place) -> str:
        line = self._document.line(place)
        key = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
        shown = key.lstrip(".")
        return (f" line {line}" if line else "") + (f": {shown}: " if shown else ": ")


def _refusal(found: Found) -> FailureRecord | None:
    if not found.problem:
        return None
    hint = "name the model's config and weights in the manifest, and exclude this folder"
    failure = Failure("manifest.invalid", f"{found.folder}: {found.problem}", stage=Stage.PLAN, hint=hint)
    return failure.record()


def expectation(error: ErrorDetails, place: Place = ()) -> str:
    """Return pydantic's error as a phrase; ``place`` is where the value stands that was checked."""
    kind, key = error["type"], str(error["loc"][-1]) if error["loc"] else ""
    if kind == "extra_forbidden":
        known = list(fields_at((*place, *error["loc"])))
        return f"unknown key{_suggest(key, known)}; known here: {', '.join(known)}"
    if kind == "missing":
        return "this key is missing"
    if kind == "value_error":
        return f"expected {error['ctx']['error']!s}, got {_show(error['input'])}"
    expected = error["msg"].replace("Input should be ", "expected ").replace("a valid ", "a ")
    expected = expected.replace("dictionary", "mapping").replace("expected an instance of", "expected")
    return f"{expected}, got {_show(error['input'])}"


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _SHOWN else text[:_SHOWN] + " ..."


def _suggest(name: str, known: Mapping[str, object] | Sequence[str]) -> str:
    near = get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""


def _known_options() -> dict[str, list[str]]:
    """Return the names of every format's options."""
    return {each.name: list(each.options) for each in formats.describe()}


def _optional(base: Path, path: str | None) -> Path | None:
    return None if path is None else absolute(base, path)
