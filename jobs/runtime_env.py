"""``--runtime-env FILE``: what Ray is to bring to the nodes of a cluster, in Ray's own words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from zooport.export_core.failures import Failure
from zooport.jobs.yaml_lines import YamlError, read_yaml


def read_runtime_env(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML or JSON file holds; Ray checks what is in it.

    Raises:
        Failure: ``export.option`` for a file that cannot be read or holds something else.
    """
    try:
        value = read_yaml(path.read_text(encoding="utf-8")).value
    except (OSError, UnicodeDecodeError, YamlError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise Failure("export.option", f"--runtime-env {path}: {reason}") from None
    if not isinstance(value, dict):
        hint = "such as {pip: [zooport]}, or {py_modules: [./zooport]}"
        raise Failure("export.option", f"--runtime-env {path}: expected a mapping", hint=hint)
    return value
