"""Convolutions with their norm and activation, and the norms that a config can name."""

from typing import Any, Union

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from zooport.export_core.modeling.registry import unsupported

GROUPS = 32  # of every GroupNorm in detectron2
BATCH_NORMS = ("BN", "SyncBN", "nnSyncBN", "naiveSyncBN", "naiveSyncBN_N")
NORMS = ("", "FrozenBN", *BATCH_NORMS, "GN", "LN")


class FrozenBatchNorm2d(nn.Module):
    """Batch normalisation whose four vectors are fixed buffers, as in detectron2's checkpoints."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        self.register_buffer("weight", torch.ones(channels))
        self.register_buffer("bias", torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.full((channels,), 1.0 - eps))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W)."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )


class ChannelLayerNorm(nn.Module):
    """Layer normalisation over the channels of each pixel ("LN" in a config)."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W)."""
        centred = x - x.mean(1, keepdim=True)
        scaled = centred / torch.sqrt(centred.pow(2).mean(1, keepdim=True) + self.eps)
        return self.weight[:, None, None] * scaled + self.bias[:, None, None]


class LevelStatistics(nn.Module):
    """What a batch norm counted on one level of a pyramid."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))


class LevelBatchNorm(nn.Module):
    """Batch normalisation with statistics for each level of a pyramid, and weight and bias for all of them.

    The submodules "0", "1" ... are the statistics. detectron2 takes those of the next level whenever its
    module is called; here :meth:`at` gives a module for each level.
    """

    def __init__(self, channels: int, levels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.eps = eps
        for level in range(levels):
            self.add_module(str(level), LevelStatistics(channels))
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def at(self, level: int) -> "NormAtLevel":
        """Return what normalises the maps of a level."""
        statistics: Any = self.get_submodule(str(level))
        return NormAtLevel(self, statistics)


class NormAtLevel(nn.Module):
    """A LevelBatchNorm on one of its levels.

    Args:
        affine: has weight and bias.
        statistics: has mean and variance.
    """

    def __init__(self, affine: LevelBatchNorm, statistics: LevelStatistics) -> None:
        super().__init__()
        self.affine = affine
        self.statistics = statistics

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W)."""
        mean, variance = self.statistics.running_mean, self.statistics.running_var
        weight, bias = self.affine.weight, self.affine.bias
        return F.batch_norm(x, mean, variance, weight, bias, training=False, eps=self.affine.eps)


def known_norm(name: str, key: str) -> str:
    """Return the value of the config key ``key`` if it names a norm.

    Raises:
        Failure: ``unsupported.architecture``.
    """
    if name not in NORMS:
        raise unsupported(key, name, known=NORMS)
    return name


def make_norm(name: str, channels: int, key: str = "NORM") -> nn.Module:
    """Return the norm that a config calls ``name``; an empty name gives the identity.

    Synchronised batch norms differ in training only, so they are plain ones here.

    Raises:
        Failure: ``unsupported.architecture``.
    """
    if name == "":
        return nn.Identity()
    if name == "FrozenBN":
        return FrozenBatchNorm2d(channels)
    if name in BATCH_NORMS:
        return nn.BatchNorm2d(channels)
    if name == "GN":
        return nn.GroupNorm(GROUPS, channels)
    if name == "LN":
        return ChannelLayerNorm(channels)
    raise unsupported(key, name, known=NORMS)


class Conv2d(nn.Conv2d):
    """A convolution, then a norm, then optionally ReLU; the norm's parameters are named ``norm.*``.

    The bias is left out where a norm follows, as detectron2's layers do.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: Union[int, None] = None,
        dilation: int = 1,
        groups: int = 1,
        norm: str = "",
        relu: bool = False,
        bias: Union[bool, None] = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=dilation * (kernel_size // 2) if padding is None else padding,
            dilation=dilation,
            groups=groups,
            bias=(norm == "") if bias is None else bias,
        )
        self.norm = make_norm(norm, out_channels)
        self.activation = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Return (N, out_channels, H', W') for x (N, in_channels, H, W)."""
        x = self._conv_forward(x, self.weight, self.bias)
        return self.activation(self.norm(x))


class ModuleAliases(nn.ModuleList):
    """A second, iterable way to reach modules that their owner already holds under detectron2's names.

    TorchScript iterates over module containers only, and the names in a checkpoint belong to the owner's
    attributes. The aliases stay out of the owner's state dict, so names remain detectron2's.
    """


def alias(owner: nn.Module, attribute: str, modules: list[nn.Module]) -> None:
    """Give ``owner`` an iterable ``attribute`` over submodules that it holds already."""
    setattr(owner, attribute, ModuleAliases(modules))
    prefix = f"{attribute}."

    def drop(module: nn.Module, state: dict[str, Any], parent: str, metadata: object) -> None:
        for name in [name for name in state if name.startswith(parent + prefix)]:
            del state[name]

    def forgive(module: nn.Module, keys: Any) -> None:
        keys.missing_keys[:] = [name for name in keys.missing_keys if f".{prefix}" not in f".{name}"]

    owner.register_state_dict_post_hook(drop)
    owner.register_load_state_dict_post_hook(forgive)
