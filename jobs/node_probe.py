"""What one node of a cluster is asked before work begins. These functions are sent there as they are.

They use the standard library alone: whether zooport is there is what they find out.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import os
from typing import Any


def look(question: dict[str, Any]) -> dict[str, Any]:
    """Return what this node has and sees.

    Args:
        question: ``packages`` to import, ``distributions`` that have to be installed, ``tokens`` (path ->
            text), ``inputs`` (path, bytes, seconds since 1970; -1, -1 for a directory), ``addresses`` that
            have to take a file.

    Returns:
        ``missing`` packages; ``zooport``, its version; ``unseen_tokens`` and ``unseen_inputs``, paths;
        ``refused``, why addresses take nothing.
    """
    missing = [name for name in question["packages"] if not _can_be_imported(name)]
    missing += [name for name in question["distributions"] if not _is_installed(name)]
    return {
        "missing": missing,
        "zooport": "" if "zooport" in missing else importlib.import_module("zooport").__version__,
        "unseen_tokens": [path for path, text in question["tokens"].items() if not _holds(path, text)],
        "unseen_inputs": [path for path, size, moment in question["inputs"] if not _sees(path, size, moment)],
        "refused": [] if missing else _refused(question["addresses"]),
    }


def _can_be_imported(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def _is_installed(name: str) -> bool:
    try:
        return bool(importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return False


def _holds(path: str, text: str) -> bool:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - as few imports as can be
            return file.read() == text
    except OSError:
        return False


def _sees(path: str, size: int, moment: int) -> bool:
    try:
        status = os.stat(path)  # noqa: PTH116
    except OSError:
        return False
    return size < 0 or (status.st_size == size and int(status.st_mtime) == moment)


def _refused(addresses: list[str]) -> list[str]:
    failures = importlib.import_module("zooport.export_core.failures")
    places = importlib.import_module("zooport.export_core.places")
    remote = importlib.import_module("zooport.export_core.remote_artifacts")
    refused = []
    for address in addresses:
        try:
            remote.check_writable(places.RemotePath(address))
        except failures.Failure as failure:
            refused.append(failure.message)
    return refused
