"""Heads of one-stage detectors: which numbers each level of a pyramid is normalised with."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from zooport.export_core.checkpoints.weights import Weights
from zooport.export_core.failures import Failure
from zooport.export_core.modeling.build import build_skeleton, load_model
from zooport.tests.official_zoo import TINY, config_of, weights_for

RETINANET = "COCO-Detection/retinanet_R_50_FPN_1x"
FCOS = "COCO-Detection/fcos_R_50_FPN_1x"
KEYS = {RETINANET: "MODEL.RETINANET.NORM", FCOS: "MODEL.FCOS.NORM"}
LEVELS = 5
STATISTICS = ["running_mean", "running_var", "num_batches_tracked"]


def weights_of(name: str, norm: str) -> tuple[Any, dict[str, np.ndarray[Any, Any]]]:
    """A tiny config with a norm in its head, and made-up weights that fit it."""
    config = config_of(name, {**TINY, KEYS[name]: norm})
    weights = weights_for(build_skeleton(config), name, config)
    return config, {key: value.numpy() for key, value in weights.items()}


@pytest.mark.parametrize("name", [RETINANET, FCOS])
@pytest.mark.parametrize("norm", ["BN", "SyncBN"])
def test_the_names_of_batch_norms_are_those_of_detectron2(name: str, norm: str) -> None:
    model = build_skeleton(config_of(name, {**TINY, KEYS[name]: norm}))
    for tower in ("cls_subnet", "bbox_subnet"):
        found = {
            key.removeprefix(f"head.{tower}."): tuple(value.shape)
            for key, value in model.state_dict().items()
            if key.startswith(f"head.{tower}.")
        }
        wanted: dict[str, tuple[int, ...]] = {}
        for conv in (0, 3, 6, 9):
            wanted |= {f"{conv}.weight": (64, 64, 3, 3), f"{conv}.bias": (64,)}
            wanted |= {f"{conv + 1}.weight": (64,), f"{conv + 1}.bias": (64,)}
            for level in range(LEVELS):
                wanted |= {f"{conv + 1}.{level}.{one}": (64,) for one in STATISTICS[:2]}
                wanted |= {f"{conv + 1}.{level}.num_batches_tracked": ()}
        assert found == wanted


@pytest.mark.parametrize("norm", ["FrozenBN", "nnSyncBN", "naiveSyncBN", "GN", "LN"])
def test_other_norms_are_the_same_on_every_level(norm: str) -> None:
    model = build_skeleton(config_of(RETINANET, {**TINY, KEYS[RETINANET]: norm}))

    names = {key for key in model.state_dict() if key.startswith("head.cls_subnet.1.")}

    assert {"head.cls_subnet.1.weight", "head.cls_subnet.1.bias"} <= names
    assert not [name for name in names if name.split(".")[3].isdigit()]


@pytest.mark.parametrize("name", [RETINANET, FCOS])
@torch.no_grad()
def test_each_level_is_normalised_with_its_own_statistics(name: str) -> None:
    config, arrays = weights_of(name, "SyncBN")
    model: Any = load_model(config, Weights(arrays), "weights.pth")
    maps = [torch.randn(2, 64, 9 - level, 7) for level in range(LEVELS)]

    for tower in ("cls_subnet", "bbox_subnet"):
        found = getattr(model.head, tower)(maps)
        weights = {key: torch.from_numpy(value) for key, value in arrays.items() if f".{tower}." in key}
        for level, x in enumerate(maps):
            for conv in (0, 3, 6, 9):
                at, norm = f"head.{tower}.{conv}", f"head.{tower}.{conv + 1}"
                x = nn.functional.conv2d(x, weights[f"{at}.weight"], weights[f"{at}.bias"], padding=1)  # noqa: PLW2901
                mean, variance = (weights[f"{norm}.{level}.{one}"][:, None, None] for one in STATISTICS[:2])
                scale, shift = (weights[f"{norm}.{one}"][:, None, None] for one in ("weight", "bias"))
                x = ((x - mean) / (variance + 1e-5).sqrt() * scale + shift).relu()  # noqa: PLW2901
            torch.testing.assert_close(found[level], x)


@torch.no_grad()
def test_the_order_of_calls_does_not_matter() -> None:
    config, arrays = weights_of(RETINANET, "BN")
    model: Any = load_model(config, Weights(arrays), "weights.pth")
    image = {"image": torch.full((3, 64, 96), 90.0)}
    (first,) = model([image])
    model.head.cls_subnet([torch.zeros(1, 64, 2, 2)] * LEVELS)

    (second,) = model([image])

    assert torch.equal(first["scores"], second["scores"])


def test_statistics_for_all_levels_at_once_do_not_fit() -> None:
    config, arrays = weights_of(RETINANET, "BN")
    shared = {
        key.replace(".0.running_", ".running_"): value
        for key, value in arrays.items()
        if not any(f".{level}.{one}" in key for level in range(1, LEVELS) for one in STATISTICS)
    }

    with pytest.raises(Failure, match=r"head\.cls_subnet\.1\.0\.running_mean") as caught:
        load_model(config, Weights(shared), "weights.pth")

    assert caught.value.code == "checkpoint.mismatch"
