"""An object store for tests, ``bucket://NAME/key``, in the folder that ZOOPORT_TEST_BUCKET names.

Like the large ones it has no directories and no rename, and an object appears when it is complete. A file
``deny`` in the folder forbids writing, ``cut`` loses the last byte of every object written, ``hang`` keeps
who writes one that is no log.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
from fsspec import AbstractFileSystem

FOLDER = "ZOOPORT_TEST_BUCKET"


class Bucket(AbstractFileSystem):
    protocol = "bucket"
    cachable = False

    def __init__(self, **options: Any) -> None:
        super().__init__(**options, use_listings_cache=False, skip_instance_cache=True)
        self.folder = Path(os.environ[FOLDER])

    def _file(self, key: str) -> Path:
        return Path(self.folder, "objects", self._strip_protocol(key))

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path)
        entries = [self._about(each) for each in self._objects(path)]
        if not entries:
            raise FileNotFoundError(path)
        found: dict[str, dict[str, Any]] = {}
        for entry in entries:
            rest = entry["name"].removeprefix(path).lstrip("/")
            first, slash, _more = rest.partition("/")
            name = f"{path}/{first}" if rest else path
            found[name] = {"name": name, "size": 0, "type": "directory"} if slash else entry
        return list(found.values()) if detail else list(found)

    def _objects(self, path: str) -> list[Path]:
        place = self._file(path)
        if place.is_file():
            return [place]
        return sorted(each for each in place.rglob("*") if each.is_file()) if place.is_dir() else []

    def _about(self, file: Path) -> dict[str, Any]:
        return {
            "name": file.relative_to(self.folder / "objects").as_posix(),
            "size": file.stat().st_size,
            "type": "file",
            "ETag": hashlib.md5(file.read_bytes()).hexdigest(),
            "LastModified": file.stat().st_mtime,
        }

    def _open(self, path: str, mode: str = "rb", **_: Any) -> Any:
        if "r" in mode:
            return self._file(path).open("rb")
        return _Upload(self, path)

    def pipe_file(self, path: str, value: bytes, **_: Any) -> None:
        if (self.folder / "deny").exists():
            raise PermissionError("AccessDenied")
        if (self.folder / "hang").exists() and not path.endswith(".log"):
            time.sleep(600)
        if (self.folder / "cut").exists():
            value = value[:-1]
        target = self._file(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = self.folder / f"part-{uuid4().hex}"
        part.write_bytes(value)
        part.replace(target)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cp_file(self, path1: str, path2: str, **_: Any) -> None:
        self.pipe_file(path2, self._file(path1).read_bytes())

    def rm_file(self, path: str) -> None:
        if (self.folder / "deny").exists():
            raise PermissionError("AccessDenied")
        self._file(path).unlink()

    def rm(self, path: str, recursive: bool = False, maxdepth: int | None = None) -> None:
        for key in self.find(path) if recursive else [path]:
            self.rm_file(key)

    def makedirs(self, path: str, exist_ok: bool = False) -> None:
        """There are no directories."""

    def created(self, path: str) -> None:
        raise NotImplementedError


class _Upload:
    """An object while it is written."""

    def __init__(self, bucket: Bucket, path: str) -> None:
        self._bucket, self._path, self._parts = bucket, path, bytearray()

    def write(self, data: bytes) -> int:
        self._parts += data
        return len(data)

    def __enter__(self) -> _Upload:
        return self

    def __exit__(self, *_: object) -> None:
        self._bucket.pipe_file(self._path, bytes(self._parts))


def install(folder: Path) -> dict[str, str]:
    """Return the environment in which processes know ``bucket://``: it is found as a plug-in of fsspec."""
    about = folder / "plugin" / "zooport_test_bucket-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: zooport-test-bucket\nVersion: 1\n")
    (about / "entry_points.txt").write_text("[fsspec.specs]\nbucket = zooport.tests.bucket:Bucket\n")
    (folder / "objects").mkdir()
    path = os.pathsep.join([str(about.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    return {FOLDER: str(folder), "PYTHONPATH": path}


def register(plugin: Path) -> None:
    """Let this process, and the processes that it starts, know ``bucket://``."""
    sys.path.insert(0, str(plugin))
    fsspec.register_implementation("bucket", Bucket, clobber=True)
