"""What tests of extensions run in disposable processes, where registries and sys.path may be changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from zooport.export_core import extensions
from zooport.export_core.config import load_config
from zooport.export_core.failures import Stage
from zooport.export_core.modeling.build import build_skeleton
from zooport.export_core.modeling.registry import BACKBONES, BOX_HEADS, META_ARCHITECTURES

Report = Callable[[Stage], None]


def registered(imports: Sequence[str], report: Report) -> dict[str, list[str]]:
    """Load extensions and return the names that registries then know."""
    extensions.load(imports)
    extensions.load(imports)  # once more changes nothing
    return {each.key: list(each) for each in (BACKBONES, BOX_HEADS, META_ARCHITECTURES)}


def write_weights(
    config: Path, overrides: Mapping[str, Any], imports: Sequence[str], path: Path, report: Report
) -> None:
    """Write weights from a seed for a model of extensions."""
    extensions.load(imports)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, value in build_skeleton(load_config(config, overrides)).state_dict().items():
        small = 0.1 if any(part in name for part in ("anchor_deltas", "bbox_pred", "cls_score")) else 1.0
        scale = small * math.sqrt(2.0 / max(value[0].numel(), 1)) if value.ndim > 1 else 0.0
        ones = float(name.endswith(("norm.weight", "running_var")))
        state[name] = torch.randn(value.shape, generator=generator) * scale + ones
    torch.save({"model": state}, path)
