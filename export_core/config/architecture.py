"""Which meta architecture a config names, without building or even checking the rest of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zooport.export_core.config.files import read_chain
from zooport.export_core.failures import Failure

KEY = "MODEL.META_ARCHITECTURE"
DEFAULT = "GeneralizedRCNN"  # detectron2's own


def architecture_of(config: Path, overrides: Mapping[str, Any]) -> str | None:
    """Return the value of MODEL.META_ARCHITECTURE; None for a config that cannot be read."""
    if KEY in overrides:
        return str(overrides[KEY])
    try:
        chain = read_chain(config)
    except Failure:
        return None
    found = DEFAULT
    for file in chain:
        model = file.values.get("MODEL")
        if isinstance(model, Mapping):
            found = str(model.get("META_ARCHITECTURE", found))
    return found
