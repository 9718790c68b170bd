"""From a config and weights to a model in evaluation mode."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

from zooport.export_core.checkpoints import match_weights
from zooport.export_core.config import project_of, projects_of, refusal_hint
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.registry import META_ARCHITECTURES

if TYPE_CHECKING:
    from zooport.export_core.checkpoints import Weights
    from zooport.export_core.config import Config

for _package in ("anchors", "backbones", "proposals", "roi_heads", "semantic_head", "meta_architectures"):
    importlib.import_module(f"zooport.export_core.modeling.{_package}")  # registers what it brings


def build_skeleton(config: Config) -> nn.Module:
    """Return the model that a config describes, its parameters without memory (on the meta device).

    Raises:
        Failure: ``unsupported.architecture`` or ``config.invalid``, naming the config key and value.
    """
    try:
        with torch.device("meta"):
            return _build(config)
    except Failure as failure:
        raise _with_project(failure, config) from None
    except (RuntimeError, NotImplementedError):
        return _build(config)  # a module of an extension may compute with values when it is built


def load_model(
    config: Config,
    weights: Weights,
    source: str,
    notes: list[str] | None = None,
    skeleton: nn.Module | None = None,
) -> nn.Module:
    """Return the model with its weights, in evaluation mode, float32, gradients off.

    Args:
        config: merged detectron2 config.
        weights: what :func:`zooport.export_core.checkpoints.read_weights` returned.
        source: the weights' name in messages.
        notes: gets one line for each thing that was translated or filled in.
        skeleton: of :func:`build_skeleton`, which becomes the model; None builds one.

    Raises:
        Failure: ``unsupported.architecture``, ``config.invalid``, ``checkpoint.mismatch`` or
            ``checkpoint.nonfinite``.
    """
    model = build_skeleton(config) if skeleton is None else skeleton
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    arrays = match_weights(expected, weights, source=source, notes=notes)
    if _keeps_values(model, expected):
        model = _build(config)
    counters = {
        name: torch.zeros(shape, dtype=torch.int64) for name, shape in expected.items() if name not in arrays
    }
    state = {name: torch.from_numpy(array) for name, array in arrays.items()}
    model.load_state_dict({**state, **counters}, assign=True)
    return model.requires_grad_(False)


def _build(config: Config) -> nn.Module:
    model: nn.Module = META_ARCHITECTURES.get(config.MODEL.META_ARCHITECTURE).from_config(config)
    return model.eval()


def _with_project(failure: Failure, config: Config) -> Failure:
    """Name the project that a refused config is of, where only its keys tell."""
    projects = projects_of(config.unknown)
    if failure.code == "unsupported.architecture" and projects and "project" not in failure.details:
        keys = ", ".join(key for key in config.unknown if project_of(key) == projects[0])
        failure.hint = f"the config has keys of {projects[0]} ({keys}); {refusal_hint(projects[0])}"
        failure.details["project"] = projects[0]
    return failure


def _keeps_values(model: nn.Module, expected: Mapping[str, object]) -> bool:
    """Whether a skeleton has tensors that no checkpoint fills, so that it has to be built with memory.

    Modules of an extension compute such buffers and attributes when they are built.
    """
    kept = [buffer for name, buffer in model.named_buffers() if name not in expected]
    for module in model.modules():
        for value in vars(module).values():
            several = value if isinstance(value, (list, tuple)) else [value]
            kept += [each for each in several if _is_plain(each)]
    return any(each.is_meta for each in kept)


def _is_plain(value: object) -> bool:
    return isinstance(value, torch.Tensor) and not isinstance(value, nn.Parameter)
