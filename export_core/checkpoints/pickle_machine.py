"""A reader of pickles that can build plain data and nothing else.

Python's own unpickler looks names up and calls what it finds. This one has no way to do either: a global is
a key of a table that the caller gives, whose values are functions of this package that take plain data; any
other name ends the reading. Lengths are checked against the bytes that are there before anything is made of
them; integers, the number of operations and what calls may copy are bounded, and nothing recurses, so neither
declared sizes nor nesting nor repetition cost more than a small multiple of the file. Protocols 0 to 5.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping, MutableSet
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from zooport.export_core.checkpoints.errors import CheckpointError, CorruptError, UnsafeError, shorten

MAX_OPERATIONS = 1_000_000
MAX_INTEGER_BYTES = 256
MAX_LINE = 1 << 16
MAX_KEY_BITS = 60
MAX_NAME = 1024
MIN_COPIES = 1 << 20
COST_OF_ITEM = 64

Builder = Callable[..., Any]


@dataclass(frozen=True)
class Symbol:
    """A global that the table allows: its dotted name, and what calling it builds."""

    name: str
    build: Builder


@runtime_checkable
class Stateful(Protocol):
    """An object under construction that a BUILD operation completes."""

    def set_state(self, state: Any) -> None:
        """Take over the state that the pickle holds for it."""


class Budget:
    """What the pickles of one file may still do, all together.

    Args:
        size: bytes of the file. Calls may copy twice as much: of an honest file each byte is copied once.
    """

    def __init__(self, size: int) -> None:
        self.operations = MAX_OPERATIONS
        self.copies = 2 * size + MIN_COPIES

    def copy(self, parts: tuple[Any, ...]) -> None:
        """Count what a call may copy of its arguments, so that one value is not multiplied by reference.

        Raises:
            CorruptError: it is more than the file could need.
        """
        for part in parts:
            if isinstance(part, (str, bytes, memoryview)):
                self.copies -= len(part)
            elif isinstance(part, (list, tuple, dict)):
                self.copies -= COST_OF_ITEM * len(part)
        if self.copies < 0:
            raise CorruptError("its pickle repeats the same data over and over")

    def spend(self, amount: int = 1) -> None:
        """Count operations.

        Raises:
            CorruptError: there are more than any checkpoint has.
        """
        self.operations -= amount
        if self.operations < 0:
            raise CorruptError(f"its pickle has more than {MAX_OPERATIONS} operations")


def as_text(value: Any) -> Any:
    """Turn the bytes of a Python 2 string, some name, into text (latin-1); leave anything else alone.

    Raises:
        CorruptError: it is too long for a name.
    """
    if not isinstance(value, (memoryview, bytes)):
        return value
    if len(value) > MAX_NAME:
        raise CorruptError(f"a name of {len(value)} bytes")
    return bytes(value).decode("latin-1")


@dataclass(frozen=True, eq=False, slots=True)
class Member:
    """A float or tuple in a set, told apart by identity: what their own hash is, a file could choose."""

    value: Any


def as_key(value: Any) -> Any:
    """Return a key with a cheap hash: crafted integers, floats or nested tuples could make a dict crawl.

    Raises:
        CorruptError: it is no text, None or integer of at most MAX_KEY_BITS bits.
    """
    value = as_text(value)
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int) and value.bit_length() <= MAX_KEY_BITS:
        return value
    raise CorruptError(f"a dictionary or set holds a key of type {type(value).__name__}")


def as_member(value: Any) -> Any:
    """Return what a set may hold: a key, or a float or tuple as a :class:`Member`.

    Raises:
        CorruptError: it is anything else.
    """
    return Member(value) if type(value) in (float, tuple) else as_key(value)


_MARK = object()

# Behind a backslash Python 2 wrote only these.
_OTHER_ESCAPE = re.compile(rb"\\[^'\"nrtx]")


class PickleMachine:
    """Reads one pickle out of a buffer.

    Args:
        data: the buffer. Byte strings in the result are views of it, not copies.
        symbols: dotted name -> function that builds the value from the pickled arguments.
        persistent: resolves persistent ids, as torch's files use for storages; None refuses them.
        budget: shared when a file holds several pickles.
    """

    def __init__(
        self,
        data: memoryview,
        symbols: Mapping[str, Builder],
        persistent: Callable[[Any], Any] | None = None,
        budget: Budget | None = None,
    ) -> None:
        self._data = data
        self._symbols = symbols
        self._persistent = persistent
        self._budget = budget or Budget(len(data))
        self._position = 0
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self, start: int = 0) -> tuple[Any, int]:
        """Read the pickle that begins at ``start``.

        Returns:
            The value and the position behind the pickle. Byte strings are memoryviews, Python 2 strings too.

        Raises:
            UnsafeError: a global outside the table, or an operation that needs one.
            CorruptError: the bytes are no complete pickle.
        """
        self._position, self._stack, self._memo = start, [], {}
        while True:
            code = self._take(1)[0]
            if code == _STOP:
                return self._pop(), self._position
            operation = _OPERATIONS.get(code)
            if operation is None:
                raise CorruptError(f"byte {self._position - 1} is no pickle operation ({code:#04x})")
            self._budget.spend()
            operation(self)

    # Bytes and the stack

    def _take(self, count: int) -> memoryview:
        end = self._position + count
        if end > len(self._data):
            raise CorruptError(
                f"truncated: {count} bytes are declared at position {self._position}, "
                f"{len(self._data) - self._position} are there"
            )
        part = self._data[self._position : end]
        self._position = end
        return part

    def _unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self._take(struct.calcsize(layout)))[0]

    def _line(self) -> bytes:
        """A line of the text protocols; long ones only occur in byte strings, read elsewhere."""
        return self._long_line(MAX_LINE)

    def _long_line(self, limit: int) -> bytes:
        step, start = 1 << 12, self._position
        while self._position - start <= limit:
            part = bytes(self._data[self._position : self._position + step])
            end = part.find(b"\n")
            if end >= 0:
                self._position += end + 1
                return bytes(self._data[start : self._position - 1])
            if not part:
                break
            self._position += len(part)
        raise CorruptError(f"truncated: the line at position {start} does not end")

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise CorruptError(f"the pickle takes from an empty stack at position {self._position}")
        return self._stack.pop()

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise CorruptError(f"the pickle looks at an empty stack at position {self._position}")
        return self._stack[-1]

    def _pop_mark(self) -> list[Any]:
        for index in range(len(self._stack) - 1, -1, -1):
            if self._stack[index] is _MARK:
                items = self._stack[index + 1 :]
                del self._stack[index:]
                return items
        raise CorruptError(f"the pickle has no mark at position {self._position}")

    # Numbers and text

    def _number(self, layout: str) -> None:
        self._push(self._unpack(layout))

    def _integer(self, count: int) -> None:
        if not 0 <= count <= MAX_INTEGER_BYTES:
            raise CorruptError(f"it declares an integer of {count} bytes")
        self._push(int.from_bytes(self._take(count), "little", signed=True))

    def _text_number(self, convert: Callable[[bytes], Any]) -> None:
        line = self._line()
        if len(line) > MAX_INTEGER_BYTES:
            raise CorruptError(f"it writes a number of {len(line)} characters")
        try:
            self._push(convert(line))
        except ValueError as error:
            raise CorruptError(f"{shorten(line)} is no number") from error

    def _unicode(self, count: int) -> None:
        try:
            self._push(str(self._take(count), "utf-8", "surrogatepass"))
        except UnicodeDecodeError as error:
            raise CorruptError(f"text before position {self._position} is not UTF-8") from error

    def _unicode_line(self) -> None:
        try:
            self._push(self._long_line(len(self._data)).decode("raw-unicode-escape"))
        except UnicodeDecodeError as error:
            raise CorruptError(f"text before position {self._position} has a broken escape") from error

    def _quoted_line(self) -> None:
        """A Python 2 string of protocol 0: quoted, with escapes, always on one line."""
        line = self._long_line(len(self._data)).strip()
        if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in b"'\"":
            raise CorruptError(f"the string before position {self._position} is not quoted")
        if _OTHER_ESCAPE.search(line.replace(b"\\\\", b"")):
            raise CorruptError(f"the string before position {self._position} has an unknown escape")
        try:
            self._push(memoryview(line[1:-1].decode("unicode-escape").encode("latin-1")))
        except UnicodeError as error:
            raise CorruptError(f"the string before position {self._position} has a broken escape") from error

    # Containers

    def _set_items(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, dict) or len(items) % 2:
            raise CorruptError(f"the pickle sets items of no dictionary at position {self._position}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[as_key(key)] = value

    def _append(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, list):
            raise CorruptError(f"the pickle appends to no list at position {self._position}")
        target.extend(items)

    def _add(self, items: list[Any]) -> None:
        target = self._top()
        if not isinstance(target, MutableSet):
            raise CorruptError(f"the pickle adds to no set at position {self._position}")
        target.update(map(as_member, items))  # type: ignore[attr-defined]

    def _dict(self) -> None:
        items = self._pop_mark()
        self._push({})
        self._set_items(items)

    def _frozenset(self) -> None:
        self._push(frozenset(map(as_member, self._pop_mark())))

    def _empty_set(self) -> None:
        self._budget.spend(3)  # as large as four other containers
        self._push(set())

    def _tuple(self, count: int) -> None:
        items = [self._pop() for _ in range(count)]
        self._push(tuple(reversed(items)))

    # The memo

    def _get(self, index: int) -> None:
        if index not in self._memo:
            raise CorruptError(f"the pickle refers to value {index}, which it does not have")
        self._push(self._memo[index])

    def _put(self, index: int) -> None:
        self._memo[index] = self._top()

    def _line_index(self) -> int:
        line = self._line()
        if not line.isdigit() or len(line) > 12:
            raise CorruptError(f"{shorten(line)} is no index")
        return int(line)

    # Globals and what is made of them

    def _global(self, module: Any, name: Any) -> None:
        module, name = as_text(module), as_text(name)
        if not isinstance(module, str) or not isinstance(name, str) or len(module) + len(name) > MAX_NAME:
            raise CorruptError(f"the pickle names no global at position {self._position}")
        dotted = f"{module}.{name}"
        builder = self._symbols.get(dotted)
        if builder is None:
            raise UnsafeError(
                f"it asks for the global {shorten(dotted)[1:-1]}, which no weights need",
                hint="ask its author for the weights alone: names and arrays, or a .safetensors file",
            )
        self._push(Symbol(dotted, builder))

    def _line_global(self) -> None:
        module = self._line()
        self._global(module, self._line())

    def _stack_global(self) -> None:
        name = self._pop()
        self._global(self._pop(), name)

    def _instance(self) -> None:
        self._line_global()
        symbol = self._pop()
        self._call(symbol, tuple(self._pop_mark()))

    def _object(self) -> None:
        items = self._pop_mark()
        if not items:
            raise CorruptError(f"the pickle makes an object of nothing at position {self._position}")
        self._call(items[0], tuple(items[1:]))

    def _reduce(self) -> None:
        arguments = self._pop()
        self._call(self._pop(), arguments)

    def _new_with_keywords(self) -> None:
        keywords, arguments = self._pop(), self._pop()
        if keywords != {}:
            raise UnsafeError("it passes keywords to a constructor, which no weights need")
        self._call(self._pop(), arguments)

    def _call(self, symbol: Any, arguments: Any) -> None:
        if not isinstance(symbol, Symbol) or not isinstance(arguments, tuple):
            raise CorruptError(f"the pickle calls a {type(symbol).__name__} at position {self._position}")
        self._budget.copy(arguments)
        try:
            self._push(symbol.build(*arguments))
        except CheckpointError:
            raise
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise CorruptError(f"{symbol.name} is given arguments that do not fit it") from error

    def _build(self) -> None:
        state, target = self._pop(), self._top()
        if isinstance(target, dict):
            return  # attributes of an OrderedDict, such as torch's _metadata: no part of the weights
        if not isinstance(target, Stateful):
            raise UnsafeError(f"it sets the state of a {type(target).__name__}, which no weights need")
        try:
            target.set_state(state)
        except CheckpointError:
            raise
        except (TypeError, ValueError, OverflowError, AttributeError) as error:
            raise CorruptError(f"a {type(target).__name__} is given a state that does not fit it") from error

    def _resolve(self, identifier: Any) -> None:
        if self._persistent is None:
            raise CorruptError("it refers to storages outside the file (persistent ids)")
        self._push(self._persistent(identifier))

    def _extension(self) -> None:
        raise UnsafeError("it uses the extension registry of copyreg, which no weights need")

    def _out_of_band(self) -> None:
        raise CorruptError("it refers to buffers outside the file (protocol 5, out of band)")

    def _protocol(self) -> None:
        version = self._unpack("<B")
        if version > 5:
            raise CorruptError(f"pickle protocol {version} does not exist")

    def _frame(self) -> None:
        length, left = self._unpack("<Q"), len(self._data) - self._position
        if length > left:
            raise CorruptError(f"truncated: a frame of {length} bytes is declared, {left} are there")


def _truth(line: bytes) -> Any:
    return line == b"01" if line in (b"00", b"01") else int(line)


_STOP = ord(".")
_Operation = Callable[[PickleMachine], None]

_OPERATIONS: dict[int, _Operation] = {
    code[0]: operation
    for code, operation in (
        (b"\x80", lambda m: m._protocol()),
        (b"\x95", lambda m: m._frame()),
        (b"(", lambda m: m._push(_MARK)),
        (b"0", lambda m: m._stack and m._stack.pop()),
        (b"1", lambda m: m._pop_mark()),
        (b"2", lambda m: m._push(m._top())),
        # Constants and numbers
        (b"N", lambda m: m._push(None)),
        (b"\x88", lambda m: m._push(True)),
        (b"\x89", lambda m: m._push(False)),
        (b"K", lambda m: m._number("<B")),
        (b"M", lambda m: m._number("<H")),
        (b"J", lambda m: m._number("<i")),
        (b"G", lambda m: m._number(">d")),
        (b"\x8a", lambda m: m._integer(m._unpack("<B"))),
        (b"\x8b", lambda m: m._integer(m._unpack("<i"))),
        (b"I", lambda m: m._text_number(_truth)),
        (b"L", lambda m: m._text_number(lambda line: int(line.removesuffix(b"L")))),
        (b"F", lambda m: m._text_number(float)),
        # Text and bytes
        (b"X", lambda m: m._unicode(m._unpack("<I"))),
        (b"\x8c", lambda m: m._unicode(m._unpack("<B"))),
        (b"\x8d", lambda m: m._unicode(m._unpack("<Q"))),
        (b"V", lambda m: m._unicode_line()),
        (b"S", lambda m: m._quoted_line()),
        (b"T", lambda m: m._push(m._take(m._unpack("<I")))),
        (b"U", lambda m: m._push(m._take(m._unpack("<B")))),
        (b"C", lambda m: m._push(m._take(m._unpack("<B")))),
        (b"B", lambda m: m._push(m._take(m._unpack("<I")))),
        (b"\x8e", lambda m: m._push(m._take(m._unpack("<Q")))),
        (b"\x96", lambda m: m._push(m._take(m._unpack("<Q")))),
        # Containers
        (b")", lambda m: m._push(())),
        (b"]", lambda m: m._push([])),
        (b"}", lambda m: m._push({})),
        (b"\x8f", lambda m: m._empty_set()),
        (b"t", lambda m: m._push(tuple(m._pop_mark()))),
        (b"\x85", lambda m: m._tuple(1)),
        (b"\x86", lambda m: m._tuple(2)),
        (b"\x87", lambda m: m._tuple(3)),
        (b"l", lambda m: m._push(m._pop_mark())),
        (b"d", lambda m: m._dict()),
        (b"\x91", lambda m: m._frozenset()),
        (b"a", lambda m: m._append([m._pop()])),
        (b"e", lambda m: m._append(m._pop_mark())),
        (b"s", lambda m: m._set_items([m._pop(), m._pop()][::-1])),
        (b"u", lambda m: m._set_items(m._pop_mark())),
        (b"\x90", lambda m: m._add(m._pop_mark())),
        # Memo
        (b"p", lambda m: m._put(m._line_index())),
        (b"q", lambda m: m._put(m._unpack("<B"))),
        (b"r", lambda m: m._put(m._unpack("<I"))),
        (b"\x94", lambda m: m._put(len(m._memo))),
        (b"g", lambda m: m._get(m._line_index())),
        (b"h", lambda m: m._get(m._unpack("<B"))),
        (b"j", lambda m: m._get(m._unpack("<I"))),
        # Globals, calls, references
        (b"c", lambda m: m._line_global()),
        (b"\x93", lambda m: m._stack_global()),
        (b"i", lambda m: m._instance()),
        (b"o", lambda m: m._object()),
        (b"R", lambda m: m._reduce()),
        (b"\x81", lambda m: m._reduce()),
        (b"\x92", lambda m: m._new_with_keywords()),
        (b"b", lambda m: m._build()),
        (b"P", lambda m: m._resolve(m._line())),
        (b"Q", lambda m: m._resolve(m._pop())),
        (b"\x82", lambda m: m._extension()),
        (b"\x83", lambda m: m._extension()),
        (b"\x84", lambda m: m._extension()),
        (b"\x97", lambda m: m._out_of_band()),
        (b"\x98", lambda m: m._out_of_band()),
    )
}
