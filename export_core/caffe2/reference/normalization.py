"""Normalisation layers, in test mode. Features are float32 (N, C, H, W)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from zooport.export_core.caffe2.reference.registry import Call, NotImplementedHere, operator, refuse_unless


def _per_channel(values: Tensor, x: Tensor) -> Tensor:
    refuse_unless(values.numel() == x.shape[1], f"{values.numel()} values for {x.shape[1]} channels")
    return values.reshape(1, -1, *[1] * (x.dim() - 2))


@operator("SpatialBN")
def batch_norm(call: Call) -> Tensor:
    """Batch normalisation with the statistics that are given: inputs x, scale, bias, mean, variance."""
    call.only("order", "NCHW")
    if not call.flag("is_test", False):
        raise NotImplementedHere("in training mode")
    x, scale, bias, mean, variance = call.inputs
    factor = scale / torch.sqrt(variance + call.number("epsilon", 1e-5))
    return x * _per_channel(factor, x) + _per_channel(bias - mean * factor, x)


@operator("AffineChannel")
def affine_channel(call: Call) -> Tensor:
    """A factor and a summand for each channel."""
    call.only("order", "NCHW")
    x, scale, bias = call.inputs
    return x * _per_channel(scale, x) + _per_channel(bias, x)


@operator("GroupNorm")
def group_norm(call: Call) -> Tensor:
    """Normalisation over groups of channels."""
    call.only("order", "NCHW")
    x, scale, bias = call.inputs
    groups = call.integer("group", 32)
    refuse_unless(x.shape[1] % groups == 0, f"{x.shape[1]} channels are not {groups} groups")
    # torch takes no batch of nothing.
    return (
        functional.group_norm(x, groups, scale, bias, call.number("epsilon", 1e-5)) if len(x) else x.clone()
    )


@operator("InstanceNorm")
def instance_norm(call: Call) -> Tensor:
    """Normalisation of each channel of each image."""
    call.only("order", "NCHW")
    x, scale, bias = call.inputs
    return functional.group_norm(x, x.shape[1], scale, bias, call.number("epsilon", 1e-5))
