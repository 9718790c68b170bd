"""A manifest with the small files that it names, as a folder that travels to a cluster.

Files keep their own paths below ``files/``, so that configs find their bases beside them, and the manifest
names them there. What is large, or is not here, keeps its absolute path: it has to be on the cluster.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from zooport.export_core.checkpoints.fetch import is_url
from zooport.export_core.extensions import locate
from zooport.export_core.sources import DATASET_PATHS
from zooport.jobs.dataset_spec import absolute
from zooport.jobs.inputs import config_chain, extension_source
from zooport.jobs.yaml_lines import read_yaml

MANIFEST = "zoo.yaml"
_FILES = "files"
_ORIGIN = ".zooport-job.json"
_SMALL = 100 << 20  # bytes of a path that travels
_TOTAL = 400 << 20  # bytes of a package; Ray takes no more than 512 MiB
_MODEL_PATHS = ("config", "weights", "sample_image", "scan")


@dataclass
class Package:
    """What was packed.

    Attributes:
        folder: the package.
        bytes: of all files in it.
        left: paths that stay where they are, with their bytes; None for those that are not on this machine.
        imports: extensions of the command line, as they are named in the package.
    """

    folder: Path
    bytes: int = 0
    left: dict[Path, int | None] = field(default_factory=dict)
    imports: tuple[str, ...] = ()


@dataclass(frozen=True)
class Origin:
    """What a package was made of: the run that it is for, and the manifest as it was."""

    run_id: str
    manifest: Path
    text: str


def write_origin(origin: Origin, folder: Path) -> None:
    """Leave in a package what it was made of."""
    values = {"run": origin.run_id, "manifest": str(origin.manifest), "text": origin.text}
    (folder / _ORIGIN).write_text(json.dumps(values), encoding="utf-8")


def read_origin(folder: Path) -> Origin | None:
    """Return what the package in this folder was made of; None where there is no package."""
    try:
        values = json.loads((folder / _ORIGIN).read_text(encoding="utf-8"))
        return Origin(values["run"], Path(values["manifest"]), values["text"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def pack(manifest: Path, text: str, folder: Path, imports: Sequence[str] = ()) -> Package:
    """Copy a manifest and the small files that it names into a folder.

    Args:
        manifest: where it lies; its paths are relative to that.
        text: of the manifest, which has been checked.
        folder: an empty directory.
        imports: extensions of the command line; paths are relative to the current directory.

    Raises:
        Failure: ``extension.invalid`` for an extension that is not there.
    """
    return _Packing(manifest.parent, folder).pack(read_yaml(text).value, imports)


class _Packing:
    def __init__(self, base: Path, folder: Path) -> None:
        self._base = base
        self._package = Package(folder)
        self._taken: set[Path] = set()

    def pack(self, spec: dict[str, Any], imports: Sequence[str]) -> Package:
        if isinstance(spec["models"], dict):
            spec["models"] = [spec["models"]]
        models, datasets = spec["models"], spec.get("datasets", {})
        places: list[tuple[dict[str, Any], str]] = [
            *((model, key) for model in models for key in _MODEL_PATHS if model.get(key)),
            *((each, key) for each in datasets.values() for key in DATASET_PATHS if each.get(key)),
        ]
        sizes = [self._size(owner[key]) for owner, key in places]
        for number in sorted(range(len(places)), key=lambda each: sizes[each]):  # small ones first
            owner, key = places[number]
            owner[key] = self._take(owner[key], sizes[number], is_config=key == "config")
        spec["imports"] = [self._extension(name, self._base) for name in spec.get("imports", [])]
        self._package.imports = tuple(self._extension(name, Path.cwd()) for name in imports)
        text = yaml.safe_dump(spec, sort_keys=False, allow_unicode=True)
        (self._package.folder / MANIFEST).write_text(text, encoding="utf-8")
        return self._package

    def _size(self, text: str) -> int:
        return 0 if is_url(text) else _size(absolute(self._base, text)) or 0

    def _take(self, text: str, size: int, *, is_config: bool) -> str:
        """Copy what a path names, if it is small; return how the package's manifest names it."""
        if is_url(text):
            return text
        path = absolute(self._base, text)
        if not path.exists():
            self._package.left[path] = None
            return str(path)
        for each in config_chain(path) if is_config else (path,):
            if each in self._taken:
                continue
            if size > _SMALL or self._package.bytes + size > _TOTAL:
                self._package.left[path] = size
                return str(path)
            self._copy(each)
        return self._inside(path)

    def _copy(self, path: Path) -> None:
        target = self._package.folder / self._inside(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(path, target)
        self._taken.add(path)
        self._package.bytes += _size(path) or 0

    def _inside(self, path: Path) -> str:
        # ".." is resolved here: a package has no outside.
        return Path(_FILES, *Path(os.path.normpath(path)).parts[1:]).as_posix()

    def _extension(self, name: str, base: Path) -> str:
        located = locate(name, base)
        source = extension_source(located)
        if source is None:
            return name
        if source not in self._taken:
            self._copy(source)
        return f"./{Path(self._inside(source)).with_name(Path(located).name).as_posix()}"


def _size(path: Path) -> int | None:
    """Return the bytes of a file or of all files below a directory; None when it is not there."""
    try:
        if not path.is_dir():
            return path.stat().st_size
    except OSError:
        return None
    total = 0
    for file in _below(path):
        total += file.stat().st_size if file.exists() else 0
        if total > _TOTAL:
            break
    return total


def _below(path: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            yield Path(folder, name)


def describe_left(left: Mapping[Path, int | None]) -> Iterator[str]:
    """Yield a line for each path that has to be on the cluster already."""
    from zooport.jobs.output import size

    for path, count in left.items():
        why = "it is not on this machine" if count is None else f"{size(count)} are too much to send"
        yield f"{path} stays where it is ({why}): the cluster has to see it under this path"
