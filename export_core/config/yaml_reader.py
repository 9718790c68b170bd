"""Read YAML text into plain values. No tag ever constructs an object or runs code.

PyYAML only splits the text into events here; the values are built by this file, with bounds on size, depth
and the expansion of aliases, so a hostile file costs no more than an honest one. Two Python tags are
understood because detectron2's own configs carry them: ``!!python/tuple`` (a list) and
``!!python/object/apply:eval``, whose one string must be plain arithmetic (see
:mod:`zooport.export_core.config.arithmetic`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import yaml

from zooport.export_core.config.arithmetic import ArithmeticRefusedError, evaluate

MAX_BYTES = 2**20
MAX_DEPTH = 48
MAX_VALUES = 200_000
MAX_NUMBER_LENGTH = 64
MAX_INTEGER = 2**63

_TAG = "tag:yaml.org,2002:"
_SEQUENCE_TAGS = {_TAG + "seq", _TAG + "python/tuple", "!"}
_MAPPING_TAGS = {_TAG + "map", "!"}
_NUMBER_TAGS = {_TAG + "int", _TAG + "float"}
_EVAL_TAG = _TAG + "python/object/apply:eval"
_MERGE_KEY = "<<"

# The C scanner is some ten times faster; wheels of PyYAML carry it, source builds may not.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_CONSTRUCTOR = yaml.constructor.SafeConstructor()
_SCALARS: dict[str, Callable[[yaml.ScalarNode], Any]] = {
    "int": _CONSTRUCTOR.construct_yaml_int,
    "float": _CONSTRUCTOR.construct_yaml_float,
    "bool": _CONSTRUCTOR.construct_yaml_bool,
    "null": _CONSTRUCTOR.construct_yaml_null,
}
_RESOLVER = yaml.resolver.Resolver()


class YamlRefusedError(ValueError):
    """The text is not YAML that a config may hold; the message is one line and names the place."""


@dataclass
class Document:
    """A parsed file: its mapping and remarks such as a key that is given twice."""

    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def parse(text: str) -> Document:
    """Parse one YAML document whose top is a mapping with text keys.

    Args:
        text: the file's contents.

    Returns:
        The mapping, made of dict, list, str, int, float, bool and None.

    Raises:
        YamlRefusedError: a syntax error, more than one document, a tag that would construct an object, or a
            size beyond the bounds above.
    """
    if len(text) > MAX_BYTES:
        raise YamlRefusedError(f"it is larger than {MAX_BYTES} bytes, too much for a config")
    try:
        return _Builder().document(text)
    except yaml.MarkedYAMLError as error:
        raise YamlRefusedError(_one_line(error)) from error
    except yaml.YAMLError as error:
        raise YamlRefusedError(f"it is not YAML text: {' '.join(str(error).split())}") from error


@dataclass
class _Open:
    """A collection under construction."""

    value: dict[str, Any] | list[Any]
    event: Any
    key: str | None = None
    own_keys: set[str] = field(default_factory=set)
    size: int = 1


class _Builder:
    """Turns events into values with an explicit stack, so nesting never meets Python's recursion limit."""

    def __init__(self) -> None:
        self._stack: list[_Open] = []
        self._anchors: dict[str, tuple[Any, int]] = {}
        self._total = 0
        self._root: Any = None
        self.notes: list[str] = []

    def document(self, text: str) -> Document:
        documents = 0
        for event in yaml.parse(text, Loader=_LOADER):
            match event:
                case yaml.DocumentStartEvent():
                    documents += 1
                    if documents > 1:
                        raise YamlRefusedError(f"line {_line(event)}: a second document; a config is one")
                case yaml.ScalarEvent():
                    self._add(_scalar(event), 1, event)
                case yaml.AliasEvent():
                    self._alias(event)
                case yaml.SequenceStartEvent() | yaml.MappingStartEvent():
                    self._open(event)
                case yaml.SequenceEndEvent() | yaml.MappingEndEvent():
                    self._close()
        if not isinstance(self._root, dict):
            what = "empty" if self._root is None else "not a mapping of keys to values"
            raise YamlRefusedError(f"it is {what}")
        return Document(self._root, self.notes)

    def _open(self, event: Any) -> None:
        is_mapping = isinstance(event, yaml.MappingStartEvent)
        allowed = _MAPPING_TAGS if is_mapping else _SEQUENCE_TAGS | {_EVAL_TAG}
        if event.tag is not None and event.tag not in allowed:
            raise YamlRefusedError(self._at(event, _refusal(event.tag)))
        if self._stack and isinstance(self._stack[-1].value, dict) and self._stack[-1].key is None:
            raise YamlRefusedError(self._at(event, "a key must be plain text"))
        if len(self._stack) >= MAX_DEPTH:
            raise YamlRefusedError(self._at(event, f"nested deeper than {MAX_DEPTH} levels"))
        self._stack.append(_Open({} if is_mapping else [], event))

    def _close(self) -> None:
        done = self._stack.pop()
        value: Any = done.value
        if done.event.tag == _EVAL_TAG:
            value = self._evaluate(done)
        if done.event.anchor is not None:
            self._anchors[done.event.anchor] = (value, done.size)
        self._add(value, done.size, done.event)

    def _evaluate(self, done: _Open) -> Any:
        if len(done.value) != 1 or not isinstance(done.value, list) or not isinstance(done.value[0], str):
            raise YamlRefusedError(self._at(done.event, "an eval tag takes one string"))
        try:
            return evaluate(done.value[0])
        except ArithmeticRefusedError as error:
            reason = f"the eval tag is refused, only arithmetic is read: {error}"
            raise YamlRefusedError(self._at(done.event, reason)) from error

    def _alias(self, event: Any) -> None:
        # An anchor whose collection is still open is not in the table: a value cannot contain itself.
        if event.anchor not in self._anchors:
            raise YamlRefusedError(self._at(event, f"alias *{event.anchor} has no anchor before it"))
        value, size = self._anchors[event.anchor]
        self._add(value, size, event)

    def _add(self, value: Any, size: int, event: Any) -> None:
        """Put a finished value where it belongs; an alias counts with everything that it repeats."""
        self._total += size if isinstance(event, yaml.AliasEvent) else 1
        if self._total > MAX_VALUES:
            raise YamlRefusedError(self._at(event, f"more than {MAX_VALUES} values, aliases counted in full"))
        if isinstance(event, yaml.ScalarEvent) and event.anchor is not None:
            self._anchors[event.anchor] = (value, 1)
        if not self._stack:
            self._root = value
            return
        top = self._stack[-1]
        top.size += size
        if isinstance(top.value, list):
            top.value.append(value)
        elif top.key is None:
            top.key = self._key(value, event)
        else:
            self._set(top, top.key, value, event)
            top.key = None

    def _key(self, value: Any, event: Any) -> str:
        if not isinstance(value, str):
            raise YamlRefusedError(self._at(event, f"key {value!r:.60} must be text"))
        return value

    def _set(self, top: _Open, key: str, value: Any, event: Any) -> None:
        assert isinstance(top.value, dict)  # noqa: S101 - narrows the type; only mappings have keys
        if key == _MERGE_KEY:
            parts = value if isinstance(value, list) else [value]
            if not all(isinstance(part, dict) for part in parts):
                raise YamlRefusedError(self._at(event, "<< merges mappings only"))
            for part in parts:
                top.value.update({k: v for k, v in part.items() if k not in top.value})
            return
        if key in top.own_keys:
            self.notes.append(f"{self._at(event, 'the key is given twice; the later value is used')}")
        top.own_keys.add(key)
        top.value[key] = value

    def _at(self, event: Any, problem: str) -> str:
        path = ".".join(part.key for part in self._stack if part.key is not None)
        return f"line {_line(event)}{', ' + path if path else ''}: {problem}"


def _scalar(event: Any) -> Any:
    """The value of a scalar under YAML 1.1's rules as PyYAML applies them; dates stay text."""
    tag = event.tag
    if tag is None or tag == "!":
        tag = _RESOLVER.resolve(yaml.ScalarNode, event.value, event.implicit)
    elif not tag.startswith(_TAG) or tag.startswith(_TAG + "python/"):
        raise YamlRefusedError(f"line {_line(event)}: {_refusal(tag)}")
    kind = tag.removeprefix(_TAG)
    if kind in ("str", "timestamp", "merge", "value"):
        return event.value
    if kind not in _SCALARS:
        raise YamlRefusedError(f"line {_line(event)}: {_refusal(tag)}")
    return _plain(tag, kind, event)


def _plain(tag: str, kind: str, event: Any) -> Any:
    if kind in ("int", "float") and len(event.value) > MAX_NUMBER_LENGTH:
        raise YamlRefusedError(f"line {_line(event)}: a number of {len(event.value)} characters")
    try:
        value = _SCALARS[kind](yaml.ScalarNode(tag, event.value))
    except (ValueError, LookupError, OverflowError) as error:
        raise YamlRefusedError(f"line {_line(event)}: {event.value[:40]!r} is no {kind}") from error
    if (type(value) is int and abs(value) >= MAX_INTEGER) or (type(value) is float and math.isnan(value)):
        raise YamlRefusedError(f"line {_line(event)}: {event.value[:40]} is out of bounds")
    return value


def _refusal(tag: str) -> str:
    shown = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
    return f"tag {shown[:80]} would construct an object; configs are plain values"


def _line(event: Any) -> int:
    return int(event.start_mark.line) + 1


def _one_line(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark is not None else ""
    return f"{place}{' '.join(str(error.problem or error.context).split())}"
