"""Merge what a file or an override says into a config, checking every key and type against the defaults."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from zooport.export_core.config.coerce import WrongTypeError, coerce, decode_tree
from zooport.export_core.config.own_keys import drop_unused
from zooport.export_core.config.projects import project_of
from zooport.export_core.config.versions import RENAMED
from zooport.export_core.failures import Failure

# A node this close to a known one, holding only keys of that one, is a slip of the pen and no extension.
_MISSPELT_NODE = 0.8


@dataclass
class Merger:
    """A config under construction.

    Attributes:
        tree: the merged values so far, starting from the defaults.
        schema: the defaults: which keys there are and of which type.
        unknown: dotted names of kept nodes and keys that the schema does not know, in order of appearance.
    """

    tree: dict[str, Any]
    schema: Mapping[str, Any]
    unknown: list[str] = field(default_factory=list)

    def merge(self, values: Mapping[str, Any], source: str) -> None:
        """Merge a nested mapping; ``source`` names the file in errors.

        Raises:
            Failure: ``config.invalid`` for an unknown key beside known ones or a value of another type.
        """
        self._node(values, self.tree, self.schema, "", source)

    def set(self, dotted: str, value: Any, source: str) -> None:
        """Merge one override, ``MODEL.RPN.NMS_THRESH`` and its value.

        Raises:
            Failure: ``config.invalid``; an override never makes a new node.
        """
        parts = dotted.split(".")
        node: Any = self.tree
        for depth, part in enumerate(parts):
            if not isinstance(node, Mapping) or part not in node:
                raise self._unknown_key(".".join(parts[: depth + 1]), dotted, source)
            node = node[part]
        nested: Any = value
        for part in reversed(parts):
            nested = {part: nested}
        self.merge(nested, source)

    def _node(
        self,
        values: Mapping[str, Any],
        into: dict[str, Any],
        schema: Mapping[str, Any],
        path: str,
        source: str,
    ) -> None:
        for name, value in values.items():
            key = f"{path}.{name}" if path else name
            if name not in schema:
                self._extra(name, value, into, schema, key, source)
            elif isinstance(schema[name], Mapping):
                if not isinstance(value, Mapping):
                    raise _invalid(source, key, "expected a mapping of keys to values", _found(value))
                self._node(value, into[name], schema[name], key, source)
            elif isinstance(value, Mapping):
                raise _invalid(source, key, "expected one value", "got a mapping")
            else:
                into[name] = self._leaf(value, schema[name], key, source)

    def _leaf(self, value: Any, default: Any, key: str, source: str) -> Any:
        try:
            return coerce(value, default, key)
        except WrongTypeError as error:
            raise _invalid(source, key, str(error)) from error

    def _extra(
        self,
        name: str,
        value: Any,
        into: dict[str, Any],
        schema: Mapping[str, Any],
        key: str,
        source: str,
    ) -> None:
        """Keep a whole unknown node, or a single key of a known project; refuse any other single key."""
        inside_kept = any(key.startswith(f"{node}.") for node in self.unknown)
        if not inside_kept and not (isinstance(value, Mapping) or project_of(key) or key in self.unknown):
            raise self._unknown_key(key, key, source)
        if not inside_kept and isinstance(value, Mapping):
            self._refuse_misspelt(name, value, schema, key, source)
        if not inside_kept and key not in self.unknown:
            self.unknown.append(key)
        if isinstance(value, Mapping) and isinstance(into.get(name), dict):
            self._node(value, into[name], {}, key, source)
        else:
            into[name] = decode_tree(value)

    def _refuse_misspelt(
        self, name: str, value: Mapping[str, Any], schema: Mapping[str, Any], key: str, source: str
    ) -> None:
        nodes = [known for known, default in schema.items() if isinstance(default, Mapping)]
        near = difflib.get_close_matches(name, nodes, n=1, cutoff=_MISSPELT_NODE)
        if near and value and set(value) <= set(schema[near[0]]):
            raise _unknown(source, key, key.removesuffix(name) + near[0])

    def _unknown_key(self, missing: str, asked: str, source: str) -> Failure:
        if asked in RENAMED:
            return _unknown(source, asked, RENAMED[asked], renamed=True)
        return _unknown(source, asked, _nearest(missing, asked, drop_unused(self.tree)))


def all_keys(tree: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """Yield the dotted name of every node and leaf."""
    for name, value in tree.items():
        key = f"{path}.{name}" if path else name
        yield key
        if isinstance(value, Mapping):
            yield from all_keys(value, key)


def _nearest(missing: str, asked: str, tree: Mapping[str, Any]) -> str | None:
    """The known key most like the asked one: a sibling at the place where it went wrong, else anywhere."""
    parent, _, leaf = missing.rpartition(".")
    keys = list(all_keys(tree))
    split = [(key, *key.upper().rpartition(".")) for key in keys]
    siblings = {name: key for key, above, _, name in split if above == parent.upper()}
    near = difflib.get_close_matches(leaf.upper(), list(siblings), n=1, cutoff=0.6)
    if near:
        return siblings[near[0]] + asked.removeprefix(missing)
    same_leaf = [key for key in keys if key.rpartition(".")[2] == asked.rpartition(".")[2]]
    return next(iter(difflib.get_close_matches(asked, same_leaf or keys, n=1, cutoff=0.5)), None)


def _unknown(source: str, key: str, near: str | None, *, renamed: bool = False) -> Failure:
    if renamed:
        hint = f"in version 2 this key is {near}"
    elif near:
        hint = f"did you mean {near}?"
    else:
        hint = "no known key is like it; keys of an extension belong in a node of their own"
    return Failure(
        "config.invalid",
        f"{source}: unknown key {key}",
        hint=hint,
        details={"key": key, "file": source, "nearest": near},
    )


def _invalid(source: str, key: str, *reasons: str) -> Failure:
    return Failure(
        "config.invalid", f"{source}: {key}: {', '.join(reasons)}", details={"key": key, "file": source}
    )


def _found(value: Any) -> str:
    return "got nothing" if value is None else f"got {value!r:.60}"
