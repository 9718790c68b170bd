"""Reads YAML into plain values and remembers the line of each, so that an error can name it.

No tag constructs an object. Depth and the expansion of aliases are bounded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import yaml

Place = tuple[str | int, ...]
"""Where a value is: the keys and indices that lead to it."""

MAX_BYTES = 1 << 26
MAX_DEPTH = 32
MAX_VALUES = 1_000_000  # a model takes some fifteen

# The C scanner is some ten times faster; wheels of PyYAML carry it, source builds may not.
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_PLAIN_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("str", "int", "float", "bool", "null"))
_COLLECTION_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("map", "seq"))
_TEXT_TAGS = frozenset(f"tag:yaml.org,2002:{name}" for name in ("timestamp", "value"))
_MERGE_TAG = "tag:yaml.org,2002:merge"


class YamlError(ValueError):
    """The text is not YAML of plain values; the message is one line, ``line`` is counted from 1."""

    def __init__(self, message: str, line: int | None = None) -> None:
        super().__init__(message)
        self.line = line


@dataclass
class Document:
    """A file's value, and for each place in it the line on which it begins."""

    value: Any = None
    lines: dict[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int | None:
        """Return the line of a place, or of the nearest place around it."""
        while place not in self.lines and place:
            place = place[:-1]
        return self.lines.get(place)


def read_yaml(text: str) -> Document:
    """Read one YAML document made of mappings with text keys, lists, text, numbers, booleans and null.

    Raises:
        YamlError: the syntax is wrong, a key is given twice, a tag would construct an object, or a bound is
            passed.
    """
    if len(text) > MAX_BYTES:
        raise YamlError(f"larger than {MAX_BYTES} bytes")
    try:
        _check_depth(text)
        root = yaml.compose(text, Loader=_LOADER)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise YamlError(str(error.problem or error.context), mark.line + 1 if mark else None) from None
    except yaml.YAMLError as error:
        raise YamlError(" ".join(str(error).split())) from None
    reader = _Reader()
    if root is not None:
        reader.document.value = reader.read(root, ())
    return reader.document


def _check_depth(text: str) -> None:
    """Refuse deep nesting before the parser recurses into it."""
    depth = 0
    for event in yaml.parse(text, Loader=_LOADER):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                raise YamlError(f"nested deeper than {MAX_DEPTH} levels", _line(event))
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1


class _Reader:
    """Turns nodes into values. An alias is read again wherever it stands, and counts each time."""

    def __init__(self) -> None:
        self.document = Document()
        self._values = 0
        self._scalars = yaml.constructor.SafeConstructor()

    def read(self, node: yaml.Node, place: Place) -> Any:
        line = _line(node)
        self._values += 1
        if self._values > MAX_VALUES:
            raise YamlError(f"more than {MAX_VALUES} values, aliases counted in full", line)
        if len(place) > MAX_DEPTH:  # an alias to what contains it
            raise YamlError(f"nested deeper than {MAX_DEPTH} levels", line)
        self.document.lines.setdefault(place, line)
        if not isinstance(node, yaml.ScalarNode) and node.tag not in _COLLECTION_TAGS:
            raise _refused_tag(node)
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, place)
        if isinstance(node, yaml.SequenceNode):
            return [self.read(item, (*place, index)) for index, item in enumerate(node.value)]
        return self._scalar(node)

    def _mapping(self, node: yaml.MappingNode, place: Place) -> dict[str, Any]:
        own: dict[str, Any] = {}
        merged: dict[str, Any] = {}
        for key_node, value_node in node.value:
            line = _line(key_node)
            if key_node.tag == _MERGE_TAG:
                merged = self._merge(value_node, place) | merged
                continue
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else None
            if not isinstance(key, str):
                raise YamlError("a key has to be text", line)
            if key in own:
                raise YamlError(f"key {key!r} is given twice", line)
            self.document.lines[(*place, key)] = line
            own[key] = self.read(value_node, (*place, key))
        return merged | own

    def _merge(self, node: yaml.Node, place: Place) -> dict[str, Any]:
        value = self.read(node, (*place, "<<"))
        parts = value if isinstance(value, list) else [value]
        if not all(isinstance(part, dict) for part in parts):
            raise YamlError("<< merges mappings only", self.document.lines[(*place, "<<")])
        merged: dict[str, Any] = {}
        for part in reversed(parts):
            merged |= part
        return merged

    def _scalar(self, node: yaml.Node) -> Any:
        line = _line(node)
        if "\0" in node.value:
            raise YamlError(f"{node.value[:40]!r} holds a null character", line)
        if node.tag in _TEXT_TAGS:
            return node.value
        if node.tag not in _PLAIN_TAGS:
            raise _refused_tag(node)
        try:
            return self._scalars.construct_object(node)
        except (ValueError, LookupError) as error:
            raise YamlError(f"{node.value[:40]!r}: {error}", line) from None


def _refused_tag(node: yaml.Node) -> YamlError:
    return YamlError(f"tag {node.tag[:80]} is refused: a manifest holds plain values", _line(node))


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1
