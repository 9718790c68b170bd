"""Backbones equal torchvision's where it has them, and what it lacks does what its papers say."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models.regnet import BlockParams
from torchvision.ops import FeaturePyramidNetwork

from zooport.export_core.config import Config, load_config
from zooport.export_core.modeling.backbones import resnet
from zooport.export_core.modeling.backbones.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from zooport.export_core.modeling.backbones.regnet import build_regnet, fit_groups, stage_widths
from zooport.export_core.modeling.backbones.resnet_blocks import (
    BottleneckBlock,
    DeformableBottleneckBlock,
    StageSettings,
    make_stage,
)
from zooport.export_core.modeling.layers import ChannelLayerNorm, FrozenBatchNorm2d, make_norm
from zooport.tests import deterministic_weights

RESNET = "MODEL.RESNETS."
TORCHVISION_RESNET = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)", lambda match: f"res{int(match[1]) + 1}"),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
)
TORCHVISION_REGNET = (
    (r"^stem\.0\.", "stem.conv."),
    (r"^stem\.1\.", "stem.bn."),
    (r"^trunk_output\.block(\d)\.block\d-(\d+)\.", lambda match: f"s{match[1]}.b{int(match[2]) + 1}."),
    (r"\.f\.([abc])\.0\.", r".f.\1."),
    (r"\.f\.([abc])\.1\.", r".f.\1_bn."),
    (r"\.se\.fc1\.", ".se.f_ex.0."),
    (r"\.se\.fc2\.", ".se.f_ex.2."),
    (r"\.proj\.0\.", ".proj."),
    (r"\.proj\.1\.", ".bn."),
)


@pytest.fixture
def make_config(tmp_path: Path) -> Any:
    def make(**overrides: Any) -> Config:
        path = tmp_path / "config.yaml"
        path.write_text("VERSION: 2\n")
        return load_config(path, {key.replace("__", "."): value for key, value in overrides.items()})

    return make


def fill(model: nn.Module) -> Any:
    """Deterministic weights of sane size for any module."""
    state = {
        name: torch.as_tensor(
            deterministic_weights.parameter(name, tuple(value.shape), shallow=True, pixel_std=57.0)
        )
        for name, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    return model.eval().requires_grad_(False)


def renamed(model: nn.Module, rules: Any) -> dict[str, torch.Tensor]:
    state = {}
    for name, value in model.state_dict().items():
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)  # noqa: PLW2901
        if not name.startswith("fc."):
            state[name] = value
    return state


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet18", {"DEPTH": 18, "RES2_OUT_CHANNELS": 64}),
        ("resnet34", {"DEPTH": 34, "RES2_OUT_CHANNELS": 64}),
        ("resnet50", {"DEPTH": 50}),
        ("resnet101", {"DEPTH": 101}),
        ("resnet152", {"DEPTH": 152}),
        ("resnext50_32x4d", {"DEPTH": 50, "NUM_GROUPS": 32, "WIDTH_PER_GROUP": 4}),
    ],
)
def test_resnets_equal_torchvisions(name: str, settings: dict[str, Any], make_config: Any) -> None:
    settings = {"NORM": "BN", "STRIDE_IN_1X1": False, "OUT_FEATURES": ["res2", "res4", "res5"], **settings}
    config = make_config(**{f"MODEL__RESNETS__{key}": value for key, value in settings.items()})
    theirs = fill(getattr(torchvision.models, name)(weights=None))
    ours = resnet.build_resnet(config).eval()
    ours.load_state_dict(renamed(theirs, TORCHVISION_RESNET))
    image = torch.randn(1, 3, 64, 96)

    features = ours(image)

    hidden = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    for stage in ("2", "3", "4", "5"):
        hidden = getattr(theirs, f"layer{int(stage) - 1}")(hidden)
        if f"res{stage}" in features:
            torch.testing.assert_close(features[f"res{stage}"], hidden)
    assert list(features) == ["res2", "res4", "res5"]
    assert ours.strides == {"res2": 4, "res4": 16, "res5": 32}
    assert ours.channels["res5"] == hidden.shape[1]


@pytest.mark.parametrize("norm", ["", "FrozenBN"])
@pytest.mark.parametrize(
    "settings",
    [
        {"DEPTH": 18, "RES2_OUT_CHANNELS": 64},
        {"DEPTH": 50},
        {"DEPTH": 50, "DEFORM_ON_PER_STAGE": [True] * 4},
    ],
    ids=["basic", "bottleneck", "deformable"],
)
def test_no_convolution_but_that_of_the_offsets_has_a_bias(
    settings: dict[str, Any], norm: str, make_config: Any
) -> None:
    settings = {"NORM": norm, "OUT_FEATURES": ["res5"], **settings}
    built = resnet.build_resnet(make_config(**{f"MODEL__RESNETS__{k}": v for k, v in settings.items()}))

    with_bias = {name for name in built.state_dict() if re.search(r"(conv\d\w*|shortcut)\.bias$", name)}

    offsets = {name for name in built.state_dict() if name.endswith("conv2_offset.bias")}
    assert with_bias == offsets
    assert len(offsets) == (16 if "DEFORM_ON_PER_STAGE" in settings else 0)


def test_stages_that_nobody_asks_for_are_not_built(make_config: Any) -> None:
    built = resnet.build_resnet(make_config(MODEL__RESNETS__OUT_FEATURES=["stem", "res3"]))

    assert list(built) == ["stem", "res2", "res3"]
    assert built.strides == {"stem": 4, "res3": 8}


def test_dilated_res5_keeps_the_resolution_of_res4(make_config: Any) -> None:
    settings = {"OUT_FEATURES": ["res4", "res5"], "RES5_DILATION": 2}
    built = resnet.build_resnet(make_config(**{f"MODEL__RESNETS__{k}": v for k, v in settings.items()}))

    features = built.eval()(torch.randn(1, 3, 64, 64))

    assert built.strides == {"res4": 16, "res5": 16}
    assert features["res5"].shape == (1, 2048, 4, 4)
    assert [block.conv2.dilation for block in built["res5"]] == [(2, 2)] * 3
    assert [block.conv2.dilation for block in built["res4"]] == [(1, 1)] * 6


@pytest.mark.parametrize("stride_in_1x1", [True, False])
def test_the_stride_is_in_the_convolution_that_the_config_names(
    stride_in_1x1: bool, make_config: Any
) -> None:
    config = make_config(MODEL__RESNETS__STRIDE_IN_1X1=stride_in_1x1, MODEL__RESNETS__OUT_FEATURES=["res3"])

    first = resnet.build_resnet(config)["res3"][0]

    strides = [first.conv1.stride[0], first.conv2.stride[0]]
    assert strides == ([2, 1] if stride_in_1x1 else [1, 2])
    assert first.shortcut.stride == (2, 2)


@pytest.mark.parametrize("name", ["regnet_x_800mf", "regnet_y_400mf", "regnet_y_1_6gf"])
def test_regnets_equal_torchvisions(name: str, make_config: Any) -> None:
    design = {
        "regnet_x_800mf": (16, 56, 35.73, 2.28, 16, 0.0),
        "regnet_y_400mf": (16, 48, 27.89, 2.09, 8, 0.25),
        "regnet_y_1_6gf": (27, 48, 20.71, 2.65, 24, 0.25),
    }[name]
    keys = ("DEPTH", "W_0", "W_A", "W_M", "GROUP_WIDTH", "SE_RATIO")
    settings = dict(zip(keys, design, strict=True)) | {"NORM": "BN"}
    theirs = fill(getattr(torchvision.models, name)(weights=None))
    ours = build_regnet(
        make_config(
            MODEL__BACKBONE__NAME="build_regnet_fpn_backbone",
            **{f"MODEL__REGNETS__{key}": value for key, value in settings.items()},
        )
    ).eval()
    ours.load_state_dict(renamed(theirs, TORCHVISION_REGNET))
    image = torch.randn(1, 3, 64, 96)

    features = ours(image)

    torch.testing.assert_close(features["s4"], theirs.trunk_output(theirs.stem(image)))
    assert ours.strides == {"s1": 4, "s2": 8, "s3": 16, "s4": 32}


@pytest.mark.parametrize(
    ("design", "group_width"),
    [
        ((13, 24, 36.44, 2.49), 16),
        ((18, 80, 34.01, 2.25), 24),
        ((25, 88, 26.31, 2.25), 48),
        ((23, 80, 49.56, 2.88), 120),
        ((22, 216, 55.59, 2.1), 128),
        ((20, 232, 115.89, 2.53), 232),
    ],
)
def test_regnet_widths_follow_the_quantised_line(design: tuple[Any, ...], group_width: int) -> None:
    widths = [(fit_groups(width, group_width)[0], blocks) for width, blocks in stage_widths(*design)]

    depth, w_0, w_a, w_m = design
    theirs = BlockParams.from_init_params(depth, w_0, w_a, w_m, group_width)
    assert widths == list(zip(theirs.widths, theirs.depths, strict=True))


def test_published_regnets_have_the_published_stages() -> None:
    # Radosavovic et al. 2020, tables of RegNetX-400MF, RegNetX-4.0GF and RegNetY-4.0GF. In these a width is
    # rounded to even multiples of the groups, or further than torchvision's rule of 10% lets it.
    small = [(fit_groups(width, 16)[0], blocks) for width, blocks in stage_widths(22, 24, 24.48, 2.54)]
    four_x = [(fit_groups(width, 40)[0], blocks) for width, blocks in stage_widths(23, 96, 38.65, 2.43)]
    four_y = [(fit_groups(width, 64)[0], blocks) for width, blocks in stage_widths(22, 96, 31.41, 2.24)]

    assert small == [(32, 1), (64, 2), (160, 7), (384, 12)]
    assert four_x == [(80, 2), (240, 5), (560, 14), (1360, 2)]
    assert four_y == [(128, 2), (192, 6), (512, 12), (1088, 2)]


class Pyramid(nn.Module):
    """A bottom-up network that returns what it is given."""

    def __init__(self, channels: dict[str, int]) -> None:
        super().__init__()
        self.channels = channels
        self.strides = {name: 4 * 2**index for index, name in enumerate(channels)}
        self.maps: dict[str, torch.Tensor] = {}

    def forward(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.maps


def test_pyramid_equals_torchvisions() -> None:
    channels = {"res2": 4, "res3": 6, "res4": 8}
    bottom_up = Pyramid(channels)
    bottom_up.maps = {
        name: torch.randn(1, width, 64 // stride, 96 // stride)
        for (name, width), stride in zip(channels.items(), bottom_up.strides.values(), strict=True)
    }
    theirs = fill(FeaturePyramidNetwork(list(channels.values()), 5))
    ours = FPN(bottom_up, list(channels), 5, top_block=LastLevelMaxPool()).eval()
    state: dict[str, torch.Tensor] = {}
    for level in (2, 3, 4):
        for part, blocks in (("lateral", theirs.inner_blocks), ("output", theirs.layer_blocks)):
            layer = blocks[level - 2][0]
            state |= {f"fpn_{part}{level}.weight": layer.weight, f"fpn_{part}{level}.bias": layer.bias}
    ours.load_state_dict(state)

    features = ours(torch.zeros(1, 3, 64, 96))

    for mine, other in zip(("p2", "p3", "p4"), theirs(bottom_up.maps).values(), strict=True):
        torch.testing.assert_close(features[mine], other)
    assert torch.equal(features["p5"], features["p4"][:, :, ::2, ::2])
    assert ours.strides == {"p2": 4, "p3": 8, "p4": 16, "p5": 32}
    assert ours.size_divisibility == 16


def test_averaging_pyramid_halves_the_sum_of_two_maps() -> None:
    bottom_up = Pyramid({"res2": 2, "res3": 2})
    bottom_up.maps = {"res2": torch.randn(1, 2, 8, 8), "res3": torch.randn(1, 2, 4, 4)}
    pyramids: list[Any] = [
        FPN(bottom_up, ["res2", "res3"], 3, fuse=fuse, top_block=LastLevelMaxPool())
        for fuse in ("sum", "avg")
    ]
    for pyramid in pyramids:
        fill(pyramid)
        pyramid.fpn_output2.bias.zero_()

    total, average = (pyramid(torch.zeros(1))["p2"] for pyramid in pyramids)

    torch.testing.assert_close(average, total / 2)


@pytest.mark.parametrize(("source", "channels"), [("res3", 2), ("p3", 3)])
def test_two_more_levels_come_from_the_named_map(source: str, channels: int) -> None:
    bottom_up = Pyramid({"res2": 2, "res3": 2})
    bottom_up.maps = {"res2": torch.randn(1, 2, 8, 8), "res3": torch.randn(1, 2, 4, 4)}
    top: Any = LastLevelP6P7(channels, 3, source=source)
    pyramid = fill(FPN(bottom_up, ["res2", "res3"], 3, top_block=top))

    features = pyramid(torch.zeros(1))

    given = bottom_up.maps["res3"] if source == "res3" else features["p3"]
    torch.testing.assert_close(features["p4"], pyramid.top_block.p6(given))
    torch.testing.assert_close(features["p5"], pyramid.top_block.p7(features["p4"].relu()))


def block_settings(**changes: Any) -> StageSettings:
    defaults: dict[str, Any] = {
        "blocks": 2, "in_channels": 8, "out_channels": 16, "stride": 2, "norm": "BN", "width": 8,
    }  # fmt: skip
    return StageSettings(**{**defaults, **changes})


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("deform_groups", [1, 4])
@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("dilation", [1, 2])
def test_deformable_blocks_without_offsets_are_plain_ones(
    groups: int, deform_groups: int, modulated: bool, dilation: int
) -> None:
    settings = block_settings(
        groups=groups, deform_groups=deform_groups, deform_modulated=modulated, dilation=dilation
    )
    plain = fill(make_stage(BottleneckBlock, settings))
    deformable = make_stage(DeformableBottleneckBlock, settings).eval().requires_grad_(False)
    state = plain.state_dict()
    for name, value in deformable.state_dict().items():
        if "conv2_offset" in name:
            state[name] = torch.zeros_like(value)
        if modulated and name.endswith("conv2.weight"):
            state[name] = state[name] * 2  # every sample weighs sigmoid(0)
    deformable.load_state_dict(state)
    hidden = torch.randn(2, 8, 10, 12)

    torch.testing.assert_close(deformable(hidden), plain(hidden))


@pytest.mark.parametrize("modulated", [False, True])
def test_offsets_are_y_then_x_of_each_kernel_cell_of_each_channel_group(modulated: bool) -> None:
    block = fill(
        DeformableBottleneckBlock(
            block_settings(stride=1, norm="", deform_groups=2, deform_modulated=modulated), 8, 1
        )
    )
    seen: list[torch.Tensor] = []
    block.conv2.register_forward_pre_hook(lambda module, inputs: seen.extend(inputs[:2]))
    hidden = torch.randn(1, 8, 9, 11)
    block(hidden)
    features, offsets = seen
    # Offsets by one whole pixel: the first group of channels one row down, the second two columns right.
    offsets = torch.zeros_like(offsets)
    offsets[:, 0:18:2], offsets[:, 19:36:2] = 1.0, 2.0
    mask = torch.ones(1, 18, 9, 11) if modulated else None

    sampled = block.conv2(features, offsets, mask)

    moved = features.clone()
    moved[:, :4, :-1], moved[:, 4:, :, :-2] = features[:, :4, 1:], features[:, 4:, :, 2:]
    expected = nn.functional.conv2d(moved, block.conv2.weight, padding=1).relu()
    torch.testing.assert_close(sampled[:, :, 2:-2, 2:-3], expected[:, :, 2:-2, 2:-3])


def test_frozen_norm_is_the_affine_map_of_its_statistics() -> None:
    norm = fill(FrozenBatchNorm2d(4))
    x = torch.randn(2, 4, 3, 3)

    scale = norm.weight / (norm.running_var + 1e-5).sqrt()
    expected = (x - norm.running_mean[:, None, None]) * scale[:, None, None] + norm.bias[:, None, None]

    torch.testing.assert_close(norm(x), expected)


def test_layer_norm_is_over_the_channels_of_each_pixel() -> None:
    norm = fill(ChannelLayerNorm(6))
    x = torch.randn(2, 6, 3, 5)

    expected = nn.functional.layer_norm(x.permute(0, 2, 3, 1), (6,), norm.weight, norm.bias, 1e-6)

    torch.testing.assert_close(norm(x), expected.permute(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("", nn.Identity),
        ("FrozenBN", FrozenBatchNorm2d),
        ("BN", nn.BatchNorm2d),
        ("SyncBN", nn.BatchNorm2d),
        ("naiveSyncBN", nn.BatchNorm2d),
        ("GN", nn.GroupNorm),
        ("LN", ChannelLayerNorm),
    ],
)
def test_norms_by_name(name: str, kind: type[nn.Module]) -> None:
    assert type(make_norm(name, 64)) is kind
