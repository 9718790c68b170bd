"""Read a config file and the files that its ``_BASE_`` names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from zooport.export_core.config import lazy, yaml_reader
from zooport.export_core.config.repair import repair_text
from zooport.export_core.failures import Failure
from zooport.export_core.places import expanded

BASE_KEY = "_BASE_"
MAX_FILES = 64


@dataclass
class ConfigFile:
    """One file of a chain: its own values without ``_BASE_``, and remarks on it."""

    path: Path
    values: dict[str, Any]
    notes: list[str] = field(default_factory=list)


def read_chain(path: Path) -> list[ConfigFile]:
    """Read a file after all its bases, in the order in which they are merged.

    Args:
        path: a YAML file. ``_BASE_`` in it is one path or a list, relative to the file that holds it.

    Returns:
        The farthest base first, the file itself last.

    Raises:
        Failure: ``config.invalid`` for a file that is missing, not YAML, its own base, or too much of it.
    """
    chain: list[ConfigFile] = []
    _read(path, [], chain)
    return chain


def _read(path: Path, parents: list[Path], chain: list[ConfigFile]) -> None:
    resolved = _resolve(path)
    if resolved in parents:
        loop = " -> ".join(step.name for step in [*parents[parents.index(resolved) :], resolved])
        raise Failure("config.invalid", f"{path}: {BASE_KEY} leads back to the same file: {loop}")
    if len(parents) + len(chain) >= MAX_FILES:
        raise Failure("config.invalid", f"{path}: {BASE_KEY} leads to more than {MAX_FILES} files")
    file = _parse(path, parents)
    for base in _bases(file):
        _read(base, [*parents, resolved], chain)
    chain.append(file)


def _resolve(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # links in a circle, a NUL in the name
        raise Failure("config.invalid", f"{str(path)!r:.200}: no usable path: {error}") from error


def _parse(path: Path, parents: list[Path]) -> ConfigFile:
    text, notes = repair_text(_text(path, parents))
    try:
        document = yaml_reader.parse(text)
    except yaml_reader.YamlRefusedError as error:
        if lazy.is_dump(text):
            raise lazy.dump_refusal(path, text) from error
        raise Failure("config.invalid", f"{path}: {error}", details={"file": str(path)}) from error
    if any("_target_" in node for node in document.values.values() if isinstance(node, dict)):
        raise lazy.dump_refusal(path, text)
    return ConfigFile(path, document.values, notes + document.notes)


def _text(path: Path, parents: list[Path]) -> str:
    origin = f", the {BASE_KEY} of {parents[-1]}" if parents else ""
    if path.suffix == ".py":
        raise lazy.python_refusal(path, origin)
    try:
        # Only a regular file: a device or a pipe named as a base could block or never end.
        if path.exists() and not path.is_file():
            raise Failure("config.invalid", f"{path}{origin}: not a file")
        with path.open("rb") as stream:
            data = stream.read(yaml_reader.MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise Failure("config.invalid", f"{path}{origin}: cannot be read: {reason}") from error
    if len(data) > yaml_reader.MAX_BYTES:
        limit = yaml_reader.MAX_BYTES
        raise Failure("config.invalid", f"{path}{origin}: larger than {limit} bytes, too much for a config")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise Failure("config.invalid", f"{path}{origin}: not UTF-8 text") from error


def _bases(file: ConfigFile) -> list[Path]:
    value = file.values.pop(BASE_KEY, [])
    names = value if isinstance(value, list) else [value]
    bases = []
    for name in names:
        if not isinstance(name, str) or not name:
            raise Failure("config.invalid", f"{file.path}: {BASE_KEY} must be a path or a list of paths")
        if "://" in name:
            raise Failure(
                "config.invalid",
                f"{file.path}: {BASE_KEY} {name} is an address; configs are read from this machine only",
                hint="save that file beside this one and name it by its path",
            )
        bases.append(file.path.parent / expanded(name))
    return bases
