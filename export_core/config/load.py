"""From a file and overrides to one merged, checked config."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from zooport.export_core.config.coerce import decode
from zooport.export_core.config.files import ConfigFile, read_chain
from zooport.export_core.config.merge import Merger
from zooport.export_core.config.own_keys import OWN_KEYS, drop_unused
from zooport.export_core.config.repair import repair_values
from zooport.export_core.config.tree import Config, thaw
from zooport.export_core.config.versions import CURRENT, guess_version, upgrade
from zooport.export_core.failures import Failure

_declared: dict[str, Any] = {}


def default_config() -> Config:
    """Return detectron2's defaults (version 2), without what extensions declared."""
    return Config(_defaults())


def declare_defaults(values: Mapping[str, Any]) -> None:
    """Make keys of an extension known, with their defaults; call it when the extension is imported.

    Args:
        values: nested keys, for example ``{"MODEL": {"MY_NECK": {"WIDTH": 128}}}``. They may stand beside
            detectron2's own. Declaring the same again changes nothing.

    Raises:
        ValueError: a key already has another default.
    """
    _declare(values, _overlay(_defaults(), OWN_KEYS), _declared, "")


def load_config(path: Path, overrides: Mapping[str, Any] | Sequence[str] = ()) -> Config:
    """Return the merged config of a file, its bases and overrides.

    Args:
        path: a full dump, or a file that says only what differs, with or without ``_BASE_``.
        overrides: dotted keys with values (text is decoded as detectron2 does), or the flat list
            ``["KEY", "VALUE", ...]`` of detectron2's command lines.

    Returns:
        detectron2's defaults with everything merged, each value in its default's type.

    Raises:
        Failure: ``config.invalid``, naming the file and the key.
    """
    path = Path(path)
    chain = read_chain(path)
    defaults = schema()
    merger = Merger(thaw(defaults), defaults)
    notes: list[str] = []
    for file in _current(chain):
        values, repaired = repair_values(file.values, defaults)
        notes += [f"{file.path}: {note}" for note in file.notes + repaired]
        merger.merge(values, str(file.path))
    source = f"{path}, overrides"
    for key, value in _pairs(overrides, source):
        merger.set(key, value, source)
    if merger.unknown:
        kept = ", ".join(merger.unknown)
        notes.append(f"{path}: {kept}: no part of detectron2's config; kept for extensions, else ignored")
    return Config(drop_unused(merger.tree), tuple(merger.unknown), tuple(notes))


def schema() -> Mapping[str, Any]:
    """Return the known keys with their defaults: detectron2's, zooport's own and those of extensions."""
    return _overlay(_overlay(_defaults(), OWN_KEYS), _declared)


@cache
def _defaults() -> Mapping[str, Any]:
    text = resources.files("zooport.export_core.config").joinpath("defaults.json").read_text("utf-8")
    values: dict[str, Any] = json.loads(text)
    return values


def _overlay(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        inside = merged.get(key)
        merged[key] = _overlay(inside, value) if isinstance(inside, Mapping) else value
    return merged


def _declare(values: Mapping[str, Any], known: Any, into: dict[str, Any], path: str) -> None:
    for name, value in values.items():
        key = f"{path}.{name}" if path else name
        default = known.get(name) if isinstance(known, Mapping) else None
        if isinstance(value, Mapping) and not isinstance(into.get(name, {}), Mapping):
            raise ValueError(f"config key {key} is already declared as one value")
        if isinstance(value, Mapping) and (default is None or isinstance(default, Mapping)):
            _declare(value, default, into.setdefault(name, {}), key)
        elif default is not None or into.get(name, value) != value:
            raise ValueError(f"config key {key} already has the default {into.get(name, default)!r}")
        else:
            into[name] = thaw(value)


def _current(chain: list[ConfigFile]) -> list[ConfigFile]:
    """Return the chain under the current version's key names."""
    stated = [(file, file.values["VERSION"]) for file in chain if "VERSION" in file.values]
    for file, version in stated:
        if type(version) is not int or not 0 <= version <= CURRENT:
            raise Failure(
                "config.invalid",
                f"{file.path}: VERSION: expected an integer from 0 to {CURRENT}, got {version!r:.40}",
                details={"key": "VERSION", "file": str(file.path)},
            )
    version = stated[-1][1] if stated else guess_version([file.values for file in chain])
    if version is None or version == CURRENT:
        return chain
    meta_architecture = _defaults()["MODEL"]["META_ARCHITECTURE"]
    for file in chain:
        model = file.values.get("MODEL")
        if isinstance(model, Mapping):
            meta_architecture = model.get("META_ARCHITECTURE", meta_architecture)
    renamed = []
    for file in chain:
        values, notes = upgrade(file.values, str(meta_architecture))
        renamed.append(ConfigFile(file.path, values, file.notes + notes))
    return renamed


def _pairs(overrides: Mapping[str, Any] | Sequence[str], source: str) -> list[tuple[str, Any]]:
    if isinstance(overrides, Mapping):
        pairs: list[tuple[Any, Any]] = list(overrides.items())
    else:
        if isinstance(overrides, str) or len(overrides) % 2:
            raise Failure(
                "config.invalid",
                f"{source}: expected KEY VALUE pairs, got {overrides!r:.80}",
                hint="each dotted key is followed by its value",
            )
        pairs = list(zip(overrides[::2], overrides[1::2], strict=True))
    for key, _ in pairs:
        if not isinstance(key, str) or not all(key.split(".")):
            raise Failure("config.invalid", f"{source}: {key!r:.80} is not a dotted key")
    return [(key, value if isinstance(value, (str, Mapping)) else decode(value)) for key, value in pairs]
