"""One checkpoint through all stages, on the demo zoo: export, verify, evaluate, and artifacts gone wrong."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core import demo, pipeline
from zooport.export_core.checkpoints import file_digest
from zooport.export_core.config import load_config
from zooport.export_core.evaluation import load_dataset, load_network_input
from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.isolation import ForkServer, run_isolated
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.manifest import load_manifest
from zooport.jobs.values import ExportTarget
from zooport.tests.artifact_processes import SCRIPT, TRACE

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

MODELS = sorted(path.parent.name for path in demo.ZOO.glob("*/config.yaml"))
FORMATS = (TRACE, SCRIPT)
REFERENCE_POINTS, EXPORTED_POINTS = 0.02, 0.01
TIMEOUT = 600.0

MEANINGS = {"pred_boxes", "pred_classes", "pred_masks", "scores"}
# A consumer that has torch, and an image that is read already.
CONSUMER = """
import json, sys, torch, torchvision
folder = sys.argv[1]
about = json.load(open(f"{folder}/model.json"))
model = torch.jit.load(f"{folder}/{about['main_file']}")
image = torch.load(sys.argv[2], weights_only=True)
if about["format"] == "torchscript-trace":
    outputs = dict(zip([entry["name"] for entry in about["outputs"]], model(image)))
else:
    outputs = model([{"image": image}])[0]
assert not [name for name in sys.modules if name.startswith("zooport")]
torch.save(outputs, sys.argv[3])
"""


def ignore(stage: Stage) -> None:
    """Nobody asks which stage begins."""


def target_of(model: str) -> ExportTarget:
    targets = load_manifest(demo.MANIFEST).targets
    return next(target for target in targets if target.checkpoint.name == model)


def source_of(model: str, limit: int | None = None) -> tuple[CheckpointSource, DatasetSource]:
    target = target_of(model)
    assert target.dataset is not None
    return target.checkpoint, replace(target.dataset, limit=limit)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Format -> what the export stage leaves of the demo's Mask R-CNN."""
    folders = {}
    for format_ in FORMATS:
        folders[format_] = tmp_path_factory.mktemp(format_)
        checkpoint, dataset = source_of("mask_rcnn_fpn", limit=12)
        pipeline.export_stage(checkpoint, format_, {}, dataset, None, folders[format_], ignore)
    return folders


@pytest.fixture(params=FORMATS)
def staging(request: pytest.FixtureRequest, staged: dict[str, Path], tmp_path: Path) -> Path:
    """A copy of a staged artifact, to be spoiled."""
    return shutil.copytree(staged[request.param], tmp_path / "staging")


@pytest.fixture(scope="module")
def strangers() -> Iterator[ForkServer]:
    """Where processes come from that have nothing but torch and torchvision."""
    server = ForkServer(preload=("torch", "torchvision"))
    yield server
    server.close()


def test_stages_are_reported_in_their_order(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("faster_rcnn_fpn", limit=3)
    seen: list[Stage] = []

    pipeline.export_stage(checkpoint, SCRIPT, {}, dataset, None, tmp_path, seen.append)
    pipeline.verify_stage(tmp_path, dataset, seen.append)

    assert seen == [Stage.LOAD, Stage.EXPORT, Stage.VERIFY, Stage.EVALUATE]


def test_an_artifact_has_the_eager_models_metrics(staging: Path, strangers: ForkServer) -> None:
    checkpoint, dataset = source_of("mask_rcnn_fpn", limit=12)

    baseline = pipeline.evaluate_eager(checkpoint, dataset, ignore)
    metrics = run_isolated(
        "zooport.tests.artifact_processes:verify_without_models",
        staging,
        dataset,
        timeout=TIMEOUT,
        log=staging.parent / "log",
        server=strangers,
    )

    assert {"bbox/AP", "segm/AP"} <= set(metrics) == set(baseline)
    assert baseline["bbox/AP"] > 20
    assert largest_difference(metrics, baseline) <= EXPORTED_POINTS


def test_a_manifest_without_dataset_gives_a_verified_artifact_without_metrics(tmp_path: Path) -> None:
    checkpoint, _ = source_of("faster_rcnn_fpn")
    picture = demo.ZOO / "data" / "val" / "000000100026.png"

    pipeline.export_stage(checkpoint, TRACE, {}, None, picture, tmp_path, ignore)
    metrics = pipeline.verify_stage(tmp_path, None, ignore)

    about = json.loads((tmp_path / "model.json").read_text())
    assert metrics == {}
    assert about["classes"] is None
    assert about["verification"]["samples"][0]["name"] == picture.name


def test_a_traced_batch_goes_through_all_stages(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("faster_rcnn_fpn", limit=4)

    pipeline.export_stage(checkpoint, TRACE, {"batch": 3}, dataset, None, tmp_path, ignore)
    metrics = pipeline.verify_stage(tmp_path, dataset, ignore)

    about = json.loads((tmp_path / "model.json").read_text())
    assert (
        largest_difference(metrics, pipeline.evaluate_eager(checkpoint, dataset, ignore)) <= EXPORTED_POINTS
    )
    assert about["options"] == {"batch": 3}
    assert about["inputs"][0]["shape"] == [3, 3, "height", "width"]
    assert about["outputs"][-1]["container"] == "a tuple of 3 tuples, one for each image"


def test_outputs_that_the_dataset_cannot_judge_are_remarked(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("mask_rcnn_fpn", limit=2)
    document = json.loads(dataset.annotations.read_text())
    for annotation in document["annotations"]:
        del annotation["segmentation"]
    boxes = tmp_path / "boxes.json"
    boxes.write_text(json.dumps(document))
    remarks = []
    for number, given in enumerate((dataset, replace(dataset, annotations=boxes))):
        staging = tmp_path / str(number)
        staging.mkdir()
        notes = pipeline.export_stage(checkpoint, SCRIPT, {}, given, None, staging, ignore)
        remarks.append([note for note in notes if "no metric tells" in note])

    assert remarks == [[], ["no metric tells of pred_masks: the dataset has nothing to compare with"]]


def test_samples_are_two_sizes_and_an_empty_image(staging: Path) -> None:
    pipeline.verify_stage(staging, None, ignore)

    about = json.loads((staging / "model.json").read_text())["verification"]
    sizes = [(sample["height"], sample["width"]) for sample in about["samples"]]
    counts = [sample["detections"] for sample in about["samples"]]
    assert len(sizes) == 3
    assert sizes[0] != sizes[1]
    assert counts[0] > 0 < counts[1]
    assert counts[2] == 0
    deviations = about["largest_deviation_from_eager"]
    assert set(deviations) == MEANINGS
    assert max(deviations.values()) < 0.01


@pytest.mark.parametrize("format_", FORMATS)
def test_the_description_says_all_that_a_consumer_needs(format_: str, staged: dict[str, Path]) -> None:
    checkpoint, dataset = source_of("mask_rcnn_fpn")
    about = json.loads((staged[format_] / "model.json").read_text())

    config = load_config(checkpoint.config)
    assert (about["name"], about["format"], about["main_file"]) == ("mask_rcnn_fpn", format_, "model.ts")
    assert about["meta_architecture"] == "GeneralizedRCNN"
    (image,) = about["inputs"]
    assert (image["name"], image["dtype"], image["shape"]) == ("image", "float32", [3, "height", "width"])
    assert config.INPUT.FORMAT in image["meaning"]
    names = [entry["name"] for entry in about["outputs"]]
    assert names == sorted(MEANINGS) + (["image_size"] if format_ == TRACE else [])
    assert all(entry["meaning"] and entry["dtype"] and entry["shape"] for entry in about["outputs"])
    frames = {entry["name"]: entry.get("frame", "") for entry in about["outputs"]}
    assert "pixels of the given image" in frames["pred_boxes"]
    assert "own box" in frames["pred_masks"]
    assert all(("container" in entry) == (format_ == SCRIPT) for entry in about["inputs"] + about["outputs"])
    steps = about["preprocessing"]
    assert steps["channel_order"] == config.INPUT.FORMAT
    assert steps["resize"]["shortest_edge"] == config.INPUT.MIN_SIZE_TEST
    assert steps["resize"]["longest_edge"] == config.INPUT.MAX_SIZE_TEST
    assert steps["inside_the_model"]["pixel_mean"] == config.MODEL.PIXEL_MEAN
    loaded = load_dataset(dataset)
    assert about["classes"] == [
        {"index": index, "name": name, "dataset_id": loaded.category_ids[index]}
        for index, name in enumerate(loaded.class_names)
    ]
    assert [entry["dataset_id"] for entry in about["classes"]] == [1, 3, 7, 18, 44]
    source = about["source"]
    assert source["weights_sha256"] == file_digest(checkpoint.weights)
    assert source["config_sha256"] == config.digest()
    assert Path(source["weights"]) == checkpoint.weights
    assert about["versions"]["torch"] == version("torch")
    assert about["versions"]["zooport"] == version("zooport")


@pytest.mark.parametrize("format_", FORMATS)
def test_a_consumer_with_torch_alone_gets_the_same_detections(
    format_: str, staged: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint, dataset = source_of("mask_rcnn_fpn")
    entry = load_dataset(dataset).images[20]
    image, _ = load_network_input(entry, load_config(checkpoint.config))
    torch.save(torch.from_numpy(image), tmp_path / "image.pt")

    arguments = [staged[format_], tmp_path / "image.pt", tmp_path / "outputs.pt"]
    subprocess.run([sys.executable, "-c", CONSUMER, *arguments], check=True, cwd=tmp_path, timeout=TIMEOUT)

    found = torch.load(tmp_path / "outputs.pt", weights_only=True)
    wanted = eager(checkpoint)(image)
    assert len(wanted["scores"]) > 0
    assert found["pred_masks"].shape[1:] == (1, 28, 28)
    for name, value in wanted.items():
        np.testing.assert_allclose(found[name].numpy(), value, rtol=0, atol=1e-3, err_msg=name)
    if format_ == TRACE:
        assert list(found)[-1] == "image_size"
        assert found["image_size"].tolist() == list(image.shape[1:])


def eager(checkpoint: CheckpointSource) -> Any:
    config = load_config(checkpoint.config, checkpoint.overrides)
    return pipeline.eager_predictor(pipeline.load_checkpoint(checkpoint, config)[0])


def test_other_weights_are_a_mismatch_that_says_where_and_by_how_much(staging: Path) -> None:
    """Slightly other weights: each output is still plausible."""
    path = staging / "model.ts"
    module = torch.jit.load(path)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "bbox_pred" in name:
                value.mul_(1.05)
    module.save(path)

    with pytest.raises(Failure, match=r"output pred_boxes differs by [\d.]+ px, allowed 0\.01 px") as caught:
        pipeline.verify_stage(staging, None, ignore)

    assert (caught.value.code, caught.value.stage) == ("artifact.mismatch", Stage.VERIFY)
    assert caught.value.details["output"] == "pred_boxes"
    assert "for sample " in caught.value.message


def test_weights_of_another_model_are_a_mismatch(staging: Path) -> None:
    path = staging / "model.ts"
    module = torch.jit.load(path)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for value in module.parameters():
            value.copy_(value[torch.randperm(len(value), generator=generator)])
    module.save(path)

    with pytest.raises(Failure) as caught:
        pipeline.verify_stage(staging, None, ignore)

    assert caught.value.code == "artifact.mismatch"
    assert caught.value.message.startswith("output scores has ")


def test_weights_that_are_no_numbers_are_a_mismatch(staging: Path) -> None:
    path = staging / "model.ts"
    module = torch.jit.load(path)
    with torch.no_grad():
        for name, value in module.named_parameters():
            if "mask_head" in name and "predictor" in name:
                value.fill_(float("nan"))
    module.save(path)

    with pytest.raises(Failure, match="output pred_masks differs by nan") as caught:
        pipeline.verify_stage(staging, None, ignore)

    assert caught.value.code == "artifact.mismatch"


@pytest.mark.parametrize("left", [0, 0.3, 0.99])
def test_a_truncated_artifact_is_unloadable(left: float, staging: Path) -> None:
    path = staging / "model.ts"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * left)])

    with pytest.raises(Failure, match=r"torch\.jit\.load cannot read .*model\.ts") as caught:
        pipeline.verify_stage(staging, None, ignore)

    assert (caught.value.code, caught.value.stage) == ("artifact.unloadable", Stage.VERIFY)
    assert "\n" not in caught.value.message


def test_an_artifact_without_its_code_is_unloadable(staging: Path) -> None:
    path, kept = staging / "model.ts", staging / "kept.ts"
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(kept, "w") as stripped:
        for name in archive.namelist():
            if "/code/" not in name:
                stripped.writestr(name, archive.read(name))
    kept.replace(path)

    with pytest.raises(Failure) as caught:
        pipeline.verify_stage(staging, None, ignore)

    assert caught.value.code == "artifact.unloadable"


def test_a_model_that_finds_nothing_is_not_exported(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("faster_rcnn_fpn", limit=3)
    blind = replace(checkpoint, overrides={"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 1.0})

    with pytest.raises(Failure) as caught:
        pipeline.export_stage(blind, SCRIPT, {}, dataset, None, tmp_path, ignore)

    assert (caught.value.code, caught.value.stage) == ("sample.no_detections", Stage.EXPORT)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("order", ["YUV-BT.601", "GBR"])
def test_a_channel_order_that_cannot_be_read_is_refused_where_no_image_is_read(
    order: str, tmp_path: Path
) -> None:
    checkpoint, _ = source_of("faster_rcnn_fpn")
    odd = replace(checkpoint, overrides={"INPUT.FORMAT": order})

    with pytest.raises(Failure, match=rf"INPUT\.FORMAT is {order!r}") as caught:
        pipeline.export_stage(odd, SCRIPT, {}, None, None, tmp_path, ignore)

    assert caught.value.code == "unsupported.architecture"
    assert list(tmp_path.iterdir()) == []


def test_what_the_user_overrides_holds_in_the_artifact(tmp_path: Path) -> None:
    checkpoint, dataset = source_of("faster_rcnn_fpn", limit=3)
    few = replace(checkpoint, overrides={"TEST.DETECTIONS_PER_IMAGE": 2})

    pipeline.export_stage(few, TRACE, {}, dataset, None, tmp_path, ignore)

    about = json.loads((tmp_path / "model.json").read_text())
    assert about["source"]["overrides"] == {"TEST.DETECTIONS_PER_IMAGE": 2}
    image, _ = load_network_input(load_dataset(dataset).images[0], load_config(few.config))
    assert len(torch.jit.load(tmp_path / "model.ts")(torch.from_numpy(image))[1]) == 2


def test_nothing_but_the_artifact_is_left_beside_the_handover(staged: dict[str, Path]) -> None:
    for folder in staged.values():
        assert sorted(path.name for path in folder.iterdir()) == [pipeline.HANDOVER, "model.json", "model.ts"]


def test_one_demo_model_has_detectron2s_metrics() -> None:
    checkpoint, dataset = source_of("retinanet_fpn")

    metrics = pipeline.evaluate_eager(checkpoint, dataset, ignore)

    assert largest_difference(metrics, reference("retinanet_fpn")) <= REFERENCE_POINTS


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_every_demo_model_has_detectron2s_metrics_in_every_format(model: str, tmp_path: Path) -> None:
    checkpoint, dataset = source_of(model)
    setting: Any = {"timeout": TIMEOUT, "log": tmp_path / "log"}

    baseline = run_isolated(pipeline.evaluate_eager, checkpoint, dataset, **setting)

    wanted = reference(model)
    assert wanted.keys() <= baseline.keys()
    assert largest_difference({name: baseline[name] for name in wanted}, wanted) <= REFERENCE_POINTS
    for format_ in FORMATS:
        folder = tmp_path / format_
        folder.mkdir()
        run_isolated(pipeline.export_stage, checkpoint, format_, {}, dataset, None, folder, **setting)
        metrics = run_isolated(pipeline.verify_stage, folder, dataset, **setting)
        assert largest_difference(metrics, baseline) <= EXPORTED_POINTS


def reference(model: str) -> dict[str, float]:
    """detectron2's own metrics of a demo model that zooport computes too, under zooport's names."""
    measured = json.loads((demo.ZOO / model / "metrics.json").read_text())["metrics"]
    return {
        f"{task}/{name}": points
        for task, values in measured.items()
        for name, points in values.items()
        if "BoundaryIoU" not in name and "B-Iou" not in name
    }


def largest_difference(one: dict[str, float], other: dict[str, float]) -> float:
    one, other = without_costs(one), without_costs(other)
    assert one.keys() == other.keys()
    return max(abs(one[name] - other[name]) for name in one)
