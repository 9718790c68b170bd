"""Every official network in every format: a stranger reads what the eager model says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zooport.export_core import formats
from zooport.export_core.formats import Tolerance
from zooport.export_core.isolation import ForkServer, run_isolated
from zooport.export_core.samples import Sample
from zooport.export_core.verification import compare_outputs
from zooport.tests.artifact_processes import SIZES
from zooport.tests.official_zoo import inputs_of, networks

PROCESSES = "zooport.tests.artifact_processes"
TIMEOUT = 900.0
# Fused operators and batches add up in another order, and each make of processor has orders of its own.
RELATIVE = 1e-4
# ONNX Runtime has kernels of its own, and made-up weights amplify rounding more than trained ones do: eager
# results of full networks are themselves up to 0.04 pixels and 0.005 of score away from those in float64.
ONNX_OF_FULL_NETWORKS = Tolerance(pixels=0.1, score=0.01, mask=0.01, relative=1e-3)

ONE_OF_EACH_KIND = [
    "COCO-Detection/fast_rcnn_R_50_FPN_1x",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/fcos_R_50_FPN_1x",
    "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-Detection/rpn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_DC5_1x",
    "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "Misc/semantic_R_50_FPN_1x",
]


# At their full size, a minute each on a busy machine; the others differ from these in depth, width, number of
# classes or normalisation, or are among the tiny ones above.
FULL_SIZE = [
    "COCO-Detection/faster_rcnn_R_50_C4_1x",
    "COCO-Detection/faster_rcnn_R_50_FPN_1x",
    "COCO-Detection/fcos_R_50_FPN_1x",
    "COCO-Detection/retinanet_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x",
    "COCO-InstanceSegmentation/mask_rcnn_regnetx_4gf_dds_fpn_1x",
    "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x",
    "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x",
    "Misc/cascade_mask_rcnn_R_50_FPN_1x",
    "Misc/mask_rcnn_R_50_FPN_1x_dconv_c3-c5",
    "Misc/mask_rcnn_R_50_FPN_3x_gn",
]


def chosen() -> list[str]:
    """Networks to convert at full size: with ZOOPORT_ALL_NETWORKS=1 all, half an hour on two cores."""
    return networks() if os.environ.get("ZOOPORT_ALL_NETWORKS") == "1" else FULL_SIZE


@pytest.fixture(scope="module")
def strangers() -> Iterator[ForkServer]:
    """Where processes come from that have nothing but torch, torchvision and ONNX Runtime."""
    server = ForkServer(preload=("torch", "torchvision", "onnxruntime"))
    yield server
    server.close()


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory that is removed at once: pytest would keep gigabytes."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("name", ONE_OF_EACH_KIND)
def test_artifacts_of_every_kind_equal_eager(name: str, directory: Path, strangers: ForkServer) -> None:
    check(name, directory, strangers, tiny=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", chosen())
def test_artifacts_of_full_networks_equal_eager(name: str, directory: Path, strangers: ForkServer) -> None:
    check(name, directory, strangers, tiny=False)


def check(name: str, directory: Path, strangers: ForkServer, *, tiny: bool) -> None:
    inputs = [{key: value.numpy() for key, value in inputs_of(name, *size).items()} for size in SIZES]
    setting: Any = {"timeout": TIMEOUT, "log": directory / "log"}

    eager = run_isolated(f"{PROCESSES}:export_official", name, directory, tiny, **setting)
    fields = sorted(eager["single"][0])
    found = run_isolated(f"{PROCESSES}:use_official", inputs, fields, directory, server=strangers, **setting)

    assert all(len(value) for value in eager["single"][0].values()), "a comparison of nothing"
    for index, wanted in enumerate(eager["single"]):
        assert_equal(found["traced"][index], wanted)
        assert_equal(found["scripted"][index], wanted)
        sample = Sample(name, inputs[index], wanted)
        tolerance = formats.get("onnx").info.tolerance if tiny else ONNX_OF_FULL_NETWORKS
        compare_outputs(sample, found["onnx"][index], tolerance)
    for index, wanted in enumerate(eager["batch"]):
        assert_equal(found["batch"][index], wanted)


def assert_equal(found: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sorted(found) == sorted(wanted)
    for field, value in wanted.items():
        assert found[field].dtype == value.dtype
        scale = float(np.abs(value).max(initial=0))
        np.testing.assert_allclose(found[field], value, rtol=0, atol=RELATIVE * scale, err_msg=field)
