"""A model of grey images, from its checkpoint to what is found in a file."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core import demo, formats, pipeline
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.failures import Stage
from zooport.export_core.prediction import Artifact
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.manifest import load_manifest

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

MODEL = "mask_rcnn_fpn"
STEM = "backbone.bottom_up.stem.conv1.weight"
MEAN, DEVIATION = 110.0, 57.0
PICTURES = 12


def ignore(stage: Stage) -> None:
    """Nobody asks which stage begins."""


def of_channels(count: int) -> dict[str, Any]:
    """What the config of a model of grey images says whose network takes so many channels."""
    return {
        "INPUT.FORMAT": "L",
        "MODEL.PIXEL_MEAN": [MEAN] * count,
        "MODEL.PIXEL_STD": [DEVIATION] * count,
    }


@pytest.fixture(scope="module")
def dataset() -> DatasetSource:
    targets = load_manifest(demo.MANIFEST).targets
    found = next(target.dataset for target in targets if target.checkpoint.name == MODEL)
    assert found is not None
    return replace(found, limit=PICTURES)


@pytest.fixture(scope="module")
def three_channels() -> CheckpointSource:
    folder = demo.ZOO / MODEL
    return CheckpointSource(MODEL, folder / "config.yaml", folder / "model_final.pth", of_channels(3))


@pytest.fixture(scope="module")
def one_channel(
    three_channels: CheckpointSource, tmp_path_factory: pytest.TempPathFactory
) -> CheckpointSource:
    """The same numbers: what the stem makes of three equal channels is what the sum of its kernels makes."""
    path = tmp_path_factory.mktemp("grey") / "grey.pth"
    state = {
        name: torch.from_numpy(np.array(value))
        for name, value in read_weights(Path(three_channels.weights)).arrays.items()
    }
    state[STEM] = state[STEM].sum(1, keepdim=True)
    torch.save({"model": state}, path)
    return replace(three_channels, weights=path, overrides=of_channels(1))


@pytest.fixture(scope="module")
def baseline(one_channel: CheckpointSource, dataset: DatasetSource) -> dict[str, float]:
    return without_costs(pipeline.evaluate_eager(one_channel, dataset, ignore))


def test_one_channel_has_the_metrics_of_three_that_are_equal(
    baseline: dict[str, float], three_channels: CheckpointSource, dataset: DatasetSource
) -> None:
    wanted = without_costs(pipeline.evaluate_eager(three_channels, dataset, ignore))

    assert baseline["bbox/AP"] > 10
    assert baseline == pytest.approx(wanted, abs=0.01)


def test_an_artifact_takes_grey_images_and_says_so(
    one_channel: CheckpointSource, dataset: DatasetSource, baseline: dict[str, float], tmp_path: Path
) -> None:
    pipeline.export_stage(one_channel, "onnx", {}, dataset, None, tmp_path, ignore)
    metrics = without_costs(pipeline.verify_stage(tmp_path, dataset, ignore))

    about = json.loads((tmp_path / "model.json").read_text())
    image = about["inputs"][0]
    assert metrics == pytest.approx(baseline, abs=0.01)
    assert image["shape"] == [1, "height", "width"]
    assert image["meaning"].startswith("one image, grey, 0 to 255")
    assert about["preprocessing"]["channel_order"] == "L"
    assert "colours become grey" in about["preprocessing"]["decode"]
    artifact = Artifact.open(tmp_path)
    prepared = artifact.prepare(next(iter(sorted((demo.ZOO / "data" / "val").iterdir()))))
    assert len(prepared.planes) == 1
    assert artifact.find(artifact.load(), prepared, "a picture")


@pytest.mark.parametrize(
    ("format_", "name", "shape"),
    [
        ("torch-export", "image", [1, "height", "width"]),
        ("tensorflow", "image", ["height", "width", 1]),
        ("caffe2", "data", [1, 1, "height", "width"]),
    ],
)
def test_each_format_says_where_the_one_channel_is(format_: str, name: str, shape: list[Any]) -> None:
    image = {"name": "image", "dtype": "float32", "shape": [1, "height", "width"], "meaning": "one image"}

    inputs, _ = formats.get(format_).describe_signature([image], [], {})

    assert (inputs[0]["name"], inputs[0]["shape"]) == (name, shape)
