"""The messages of Caffe2's nets as classes of ``protobuf``, made from ``netdef.proto`` on import.

The classes live in a pool of their own, so that another package's idea of the same messages does no harm.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PROTO = Path(__file__).with_name("netdef.proto")

_TOKEN = re.compile(r'"[^"]*"|[\w.]+|[{}=;\[\],]')
_SCALARS = {"float", "double", "int32", "int64", "uint32", "bool", "string", "bytes"}
_Descriptor = descriptor_pb2.FieldDescriptorProto


def parse_proto(text: str) -> Any:
    """Return the FileDescriptorProto of a file in the part of proto2's language that ours is written in.

    That is: messages, enumerations, nested enumerations, labelled fields, ``default`` and ``packed``.

    Raises:
        ValueError: something else stands there.
    """
    parser = _Parser(_TOKEN.findall(re.sub(r"//[^\n]*", "", text)))
    return parser.file()


class _Parser:
    """Goes through the tokens of a file once."""

    def __init__(self, tokens: list[str]) -> None:
        self._tokens = tokens[::-1]
        self._enums: set[str] = set()

    def file(self) -> Any:
        made = descriptor_pb2.FileDescriptorProto(name=PROTO.name, syntax="proto2")
        while self._tokens:
            word = self._next()
            if word == "syntax":
                self._expect("=", '"proto2"', ";")
            elif word == "package":
                made.package = self._next()
                self._expect(";")
            elif word == "enum":
                self._enum(made.enum_type.add(), f".{made.package}")
            elif word == "message":
                self._message(made.message_type.add(), f".{made.package}")
            else:
                raise ValueError(f"{word!r} is not expected at the top of {PROTO.name}")
        for message in made.message_type:
            for field in message.field:
                self._resolve(field, f".{made.package}", message.name)
        return made

    def _message(self, made: Any, scope: str) -> None:
        made.name = self._next()
        self._expect("{")
        while (word := self._next()) != "}":
            if word == "enum":
                self._enum(made.enum_type.add(), f"{scope}.{made.name}")
            else:
                self._field(made.field.add(), word)

    def _enum(self, made: Any, scope: str) -> None:
        made.name = self._next()
        self._enums.add(f"{scope}.{made.name}")
        self._expect("{")
        while (word := self._next()) != "}":
            self._expect("=")
            made.value.add(name=word, number=int(self._next()))
            self._expect(";")

    def _field(self, made: Any, label: str) -> None:
        made.label = _Descriptor.Label.Value(f"LABEL_{label.upper()}")
        made.type_name = self._next()
        made.name = self._next()
        self._expect("=")
        made.number = int(self._next())
        while (word := self._next()) != ";":
            if word == "packed":
                self._expect("=", "true")
                made.options.packed = True
            elif word == "default":
                self._expect("=")
                made.default_value = self._next()

    def _resolve(self, field: Any, scope: str, message: str) -> None:
        """Tell scalars, enumerations and messages apart, once all names are known."""
        name = field.type_name
        if name in _SCALARS:
            field.ClearField("type_name")
            field.type = _Descriptor.Type.Value(f"TYPE_{name.upper()}")
            return
        nested = f"{scope}.{message}.{name}"
        field.type_name = nested if nested in self._enums else f"{scope}.{name}"
        is_enum = field.type_name in self._enums
        field.type = _Descriptor.TYPE_ENUM if is_enum else _Descriptor.TYPE_MESSAGE

    def _next(self) -> str:
        if not self._tokens:
            raise ValueError(f"{PROTO.name} ends too early")
        return self._tokens.pop()

    def _expect(self, *words: str) -> None:
        for word in words:
            if (found := self._next()) != word:
                raise ValueError(f"{PROTO.name}: expected {word!r}, found {found!r}")


def _classes() -> dict[str, Any]:
    pool = descriptor_pool.DescriptorPool()
    file = parse_proto(PROTO.read_text(encoding="utf-8"))
    pool.Add(file)
    return {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{message.name}")
        )
        for message in file.message_type
    }


_MADE = _classes()

Argument: Any = _MADE["Argument"]
DeviceOption: Any = _MADE["DeviceOption"]
NetDef: Any = _MADE["NetDef"]
OperatorDef: Any = _MADE["OperatorDef"]
QTensorProto: Any = _MADE["QTensorProto"]
TensorProto: Any = _MADE["TensorProto"]
TensorProtos: Any = _MADE["TensorProtos"]
