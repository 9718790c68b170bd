"""Exported nets say on Caffe2 itself what the eager model says, image by image and in AP."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core import formats
from zooport.export_core.caffe2.net_files import read_nets
from zooport.export_core.caffe2.reference.executor import ReferenceExecutor
from zooport.export_core.caffe2.runtime import RealRuntime
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import load_config
from zooport.export_core.evaluation import compute_metrics, load_dataset, predict_images
from zooport.export_core.evaluation.images import read_image, resize_shortest_edge
from zooport.export_core.failures import Failure
from zooport.export_core.formats.caffe2_results import Caffe2Predictor, padded
from zooport.export_core.modeling.build import load_model
from zooport.export_core.pipeline import eager_predictor
from zooport.export_core.samples import Sample
from zooport.export_core.sources import DatasetSource
from zooport.export_core.verification import compare_outputs
from zooport.tests.artifact_processes import arrays
from zooport.tests.official_zoo import TINY, build_for_export, config_of, inputs_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.alone,
    pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning"),
]

MODELS = [
    "cascade_mask_rcnn_fpn",
    "faster_rcnn_c4",
    "faster_rcnn_fpn",
    "keypoint_rcnn_fpn",
    "mask_rcnn_fpn",
    "panoptic_fpn",
    "retinanet_fpn",
]
PICTURES = 4
EVALUATED = 20
KEYPOINTS = "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"


@pytest.fixture(scope="module")
def exported(demo_zoo: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Any]:
    """From the name of a demo model to the model, its config and the directory of its nets."""
    done: dict[str, Any] = {}

    def export(name: str) -> Any:
        if name not in done:
            config = load_config(demo_zoo / name / "config.yaml")
            (weights,) = (demo_zoo / name).glob("model_final.*")
            model = load_model(config, read_weights(weights), name)
            exporter, directory = formats.get("caffe2"), tmp_path_factory.mktemp(name)
            exporter.requires(config, {})
            exporter.export(model, {"image": torch.zeros(3, 64, 64)}, [], directory, {})
            done[name] = model, config, directory
        return done[name]

    return export


def pictures(folder: Path, config: Any) -> list[np.ndarray[Any, Any]]:
    found = []
    for path in sorted((folder / "data" / "val").iterdir())[:PICTURES]:
        picture = read_image(path, config.INPUT.FORMAT)
        picture = resize_shortest_edge(picture, config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)
        found.append(np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32))
    return found


@pytest.mark.parametrize("name", MODELS)
def test_trained_models_are_the_same_on_caffe2(
    name: str, exported: Any, demo_zoo: Path, caffe2_runtime: RealRuntime
) -> None:
    model, config, directory = exported(name)
    nets = read_nets(directory)
    loaded = caffe2_runtime.load(nets)
    compared = 0
    for image in [*pictures(demo_zoo, config), np.full((3, 64, 64), 114.0, np.float32)]:
        with torch.no_grad():
            wanted = arrays(model([{"image": torch.from_numpy(image)}])[0])
        found = Caffe2Predictor(loaded, nets.predict, sorted(wanted))(image)
        compare_outputs(
            Sample("a picture", {"image": image}, wanted), found, formats.get("caffe2").tolerance({})
        )
        compared += len(wanted["scores"])
    assert compared > PICTURES
    loaded.drop()


def test_both_executors_agree_on_a_net(exported: Any, demo_zoo: Path, caffe2_runtime: RealRuntime) -> None:
    _, config, directory = exported("panoptic_fpn")
    nets = read_nets(directory)
    real, reference = caffe2_runtime.load(nets), ReferenceExecutor().load(nets)
    for image in pictures(demo_zoo, config)[:2]:
        _, height, width = image.shape
        inputs = {"data": padded(image, 32), "im_info": np.array([[height, width, 1.0]], np.float32)}
        wanted, found = real.run(inputs), reference.run(inputs)
        for name in nets.outputs:
            np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-4, err_msg=name)
    real.drop()


@pytest.mark.parametrize(
    ("name", "setting", "value", "options"),
    [
        (KEYPOINTS, "score_thresh", 1.5, {}),
        (KEYPOINTS, "min_size", 1e6, {}),
        (KEYPOINTS, "score_thresh", 1.5, {"heatmap_max": True}),
        (PANOPTIC, "score_thresh", 1.5, {}),
        (PANOPTIC, "min_size", 1e6, {}),
    ],
)
def test_an_image_without_detections_or_even_proposals_is_no_trouble(
    name: str,
    setting: str,
    value: float,
    options: dict[str, Any],
    tmp_path: Path,
    caffe2_runtime: RealRuntime,
) -> None:
    """The runtime's operators do other things than torch's where there is nothing to compute on."""
    model: Any = build_for_export(name, tiny=True)
    (part,) = [module for module in model.modules() if hasattr(module, setting)]
    setattr(part, setting, value)
    exporter = formats.get("caffe2")
    exporter.requires(config_of(name, TINY), options)
    exporter.export(model, {"image": torch.zeros(3, 64, 64)}, [], tmp_path, options)
    image = inputs_of(name, 96, 128)["image"]
    inputs = {"image": image.numpy()}
    _, wanted = exporter.expected(inputs, eager_predictor(model)(**inputs), options)
    assert len(wanted["scores"]) == 0
    nets = read_nets(tmp_path)
    for executor in (caffe2_runtime, ReferenceExecutor()):
        found = Caffe2Predictor(executor.load(nets), nets.predict, sorted(wanted))(image.numpy())
        compare_outputs(Sample("a picture", inputs, wanted), found, exporter.tolerance(options))


def test_keypoints_that_a_net_finds_are_the_same_on_both_executors(
    exported: Any, demo_zoo: Path, caffe2_runtime: RealRuntime, tmp_path: Path
) -> None:
    """What the operator finds in the eager model's heatmaps is what the whole net finds."""
    model, config, _ = exported("keypoint_rcnn_fpn")
    exporter, options = formats.get("caffe2"), {"heatmap_max": True}
    exporter.requires(config, options)
    exporter.export(model, {"image": torch.zeros(3, 64, 64)}, [], tmp_path, options)
    nets = read_nets(tmp_path)
    for executor in (caffe2_runtime, ReferenceExecutor()):
        loaded = executor.load(nets)
        for image in pictures(demo_zoo, config):
            inputs = {"image": image}
            _, wanted = exporter.expected(inputs, eager_predictor(model)(image), options)
            assert wanted["pred_keypoints"].size
            found = Caffe2Predictor(loaded, nets.predict, sorted(wanted))(image)
            compare_outputs(Sample("a picture", inputs, wanted), found, exporter.tolerance(options))


def test_both_executors_have_the_eager_models_ap(
    exported: Any, demo_zoo: Path, caffe2_runtime: RealRuntime
) -> None:
    """On some images; all of the demo zoo on all images are in docs/caffe2.md."""
    model, config, directory = exported("keypoint_rcnn_fpn")
    annotations = demo_zoo / "data" / "annotations" / "keypoints_val.json"
    dataset = load_dataset(DatasetSource("val", annotations, demo_zoo / "data" / "val", EVALUATED))
    nets = read_nets(directory)
    fields = ["pred_boxes", "pred_classes", "pred_keypoint_heatmaps", "pred_keypoints", "scores"]
    predictors: list[Any] = [
        eager_predictor(model),
        *(
            Caffe2Predictor(executor.load(nets), nets.predict, fields)
            for executor in (caffe2_runtime, ReferenceExecutor())
        ),
    ]
    eager, real, reference = (
        compute_metrics(predict_images(predictor, dataset, config), dataset, config)
        for predictor in predictors
    )
    for name in ("bbox/AP", "keypoints/AP"):
        assert eager[name] > 10
        assert abs(real[name] - eager[name]) <= 0.02
        assert abs(reference[name] - real[name]) <= 0.01


def test_an_image_that_was_not_padded_is_refused_by_both_executors(
    exported: Any, caffe2_runtime: RealRuntime
) -> None:
    """Feature maps of such a size do not fit together; zooport's own loader pads."""
    _, _, directory = exported("mask_rcnn_fpn")
    nets = read_nets(directory)
    data = np.full((1, 3, 75, 133), 114.0, np.float32)
    inputs = {"data": data, "im_info": np.array([[75, 133, 1]], np.float32)}
    for executor in (caffe2_runtime, ReferenceExecutor()):
        with pytest.raises(Failure) as caught:
            executor.load(nets).run(inputs)
        assert caught.value.code == "artifact.unloadable"
        assert caught.value.details["operator"] == "Add"


def test_a_runtime_that_dies_in_the_middle_of_an_evaluation_is_told(
    exported: Any, demo_zoo: Path, caffe2_python: Path
) -> None:
    _, config, directory = exported("retinanet_fpn")
    annotations = demo_zoo / "data" / "annotations" / "instances_val.json"
    dataset = load_dataset(DatasetSource("val", annotations, demo_zoo / "data" / "val", 4))
    nets = read_nets(directory)
    with RealRuntime(caffe2_python) as runtime:
        predictor = Caffe2Predictor(
            runtime.load(nets), nets.predict, ["pred_boxes", "pred_classes", "scores"]
        )
        done: list[Any] = []

        def dying(image: np.ndarray[Any, Any]) -> Any:
            if len(done) == 2:
                os.kill(runtime.pid, signal.SIGSEGV)
            done.append(predictor(image))
            return done[-1]

        with pytest.raises(Failure, match=r"Caffe2 runtime: .*SIGSEGV") as caught:
            predict_images(dying, dataset, config)
    assert len(done) == 2
    assert caught.value.code == "worker.crashed"
    assert "it said: " in caught.value.message
