"""The merged config as an immutable value."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import yaml

_MISSING = object()


class ConfigNode(Mapping[str, Any]):
    """A read-only view of one node, by attribute (``cfg.MODEL.RPN``) or item (``cfg["MODEL"]``).

    Leaves are str, int, float, bool, None or lists of these; a list is handed out as a copy, so a config
    stays what it was. Every tuple of detectron2's defaults is a list here.
    """

    _tree: Mapping[str, Any]
    _path: str

    def __init__(self, tree: Mapping[str, Any], path: str = "") -> None:
        self.__dict__.update(_tree=tree, _path=path)

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a config is immutable; give {self._dotted(name)} as an override")

    def __getitem__(self, key: str) -> Any:
        return self._wrap(key, self._tree[key])

    def __getattr__(self, name: str) -> Any:
        # Private names are looked up here only before __init__ ran, as copying and unpickling do.
        if name.startswith("_") or name not in self._tree:
            raise AttributeError(f"the config has no key {self._dotted(name)}" if self._ready else name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tree)

    def __len__(self) -> int:
        return len(self._tree)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ConfigNode) and _canonical(self._tree) == _canonical(other._tree)

    def __hash__(self) -> int:
        return hash(_canonical(self._tree))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self._path or 'root'}: {', '.join(self._tree)})"

    @property
    def _ready(self) -> bool:
        return "_tree" in self.__dict__

    def _dotted(self, name: str) -> str:
        return f"{self._path}.{name}" if self._path else name

    def _wrap(self, key: str, value: Any) -> Any:
        if isinstance(value, Mapping):
            return ConfigNode(value, self._dotted(key))
        return thaw(value)

    def lookup(self, dotted: str, default: Any = _MISSING) -> Any:
        """Return the value of a dotted key, for example ``lookup("MODEL.RPN.NMS_THRESH")``.

        Raises:
            KeyError: the key is not there and no default is given.
        """
        value: Any = self._tree
        for part in dotted.split("."):
            if not isinstance(value, Mapping) or part not in value:
                if default is _MISSING:
                    raise KeyError(self._dotted(dotted))
                return default
            value = value[part]
        return ConfigNode(value, self._dotted(dotted)) if isinstance(value, Mapping) else thaw(value)

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts and lists, independent of this config."""
        plain: dict[str, Any] = thaw(self._tree)
        return plain

    def dump(self) -> str:
        """Return YAML text that detectron2 and :func:`load_config` read back."""
        return yaml.dump(self.to_dict(), Dumper=_PlainDumper, sort_keys=True)


class Config(ConfigNode):
    """A whole merged config.

    Attributes:
        unknown: dotted names of nodes that detectron2 does not know, kept as they were found: those of an
            extension or of one of detectron2's projects.
        notes: one-line remarks on what was repaired or converted while loading.
    """

    unknown: tuple[str, ...]
    notes: tuple[str, ...]

    def __init__(
        self, tree: Mapping[str, Any], unknown: tuple[str, ...] = (), notes: tuple[str, ...] = ()
    ) -> None:
        super().__init__(tree)
        self.__dict__.update(unknown=unknown, notes=notes)

    @cached_property
    def _digest(self) -> str:
        return hashlib.sha256(_canonical(self._tree).encode()).hexdigest()

    def digest(self) -> str:
        """Return the sha256 (hex) of the merged values; how they were written, and notes, do not count."""
        return self._digest


class _PlainDumper(yaml.SafeDumper):
    """Writes a repeated list twice rather than as an alias, so text tools can edit the dump safely."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def thaw(value: Any) -> Any:
    """Return a deep copy made of dicts and lists."""
    if isinstance(value, Mapping):
        return {key: thaw(item) for key, item in value.items()}
    return [thaw(item) for item in value] if isinstance(value, (list, tuple)) else value


def _canonical(tree: Mapping[str, Any]) -> str:
    return json.dumps(_one_spelling(tree), sort_keys=True, separators=(",", ":"))


def _one_spelling(value: Any) -> Any:
    """Spell equal numbers alike: 1.0 and 1 mean the same in every place where detectron2 takes a number."""
    if isinstance(value, Mapping):
        return {key: _one_spelling(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_one_spelling(item) for item in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
