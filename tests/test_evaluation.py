"""Evaluation from images to metrics: what the model is shown, what it may answer, and how work is split."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import (
    ImagePrediction,
    compute_metrics,
    evaluate,
    load_dataset,
    predict_images,
    tasks,
)
from zooport.export_core.evaluation.tasks import register
from zooport.export_core.failures import Failure
from zooport.tests.evaluation_support import Oracle, coco_object, demo_source, make_config, write_dataset

Outputs = dict[str, Any]


def test_a_perfect_model_has_ap_100(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    seen: list[tuple[int, int]] = []

    metrics = evaluate(
        Oracle(dataset),
        dataset,
        make_config(MODEL__MASK_ON=True),
        lambda done, total: seen.append((done, total)),
    )

    assert metrics["bbox/AP"] == pytest.approx(100.0)
    assert metrics["segm/AP"] == pytest.approx(100.0)
    assert metrics["bbox/AP-dog"] == pytest.approx(100.0)
    assert seen == [(1, 2), (2, 2)]


def test_a_perfect_model_has_ap_100_on_odd_images(demo_zoo: Path) -> None:
    """Grey, palette, alpha and rotated images among them: a box in the wrong frame would be missed."""
    dataset = load_dataset(demo_source(demo_zoo))
    config = make_config(MODEL__ROI_HEADS__NUM_CLASSES=5, INPUT__MIN_SIZE_TEST=32)

    assert evaluate(Oracle(dataset), dataset, config)["bbox/AP"] == pytest.approx(100.0)


def test_the_model_is_shown_resized_float_planes(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    model = Oracle(dataset)

    evaluate(model, dataset, make_config(INPUT__MIN_SIZE_TEST=20, INPUT__FORMAT="RGB"))

    assert [image.shape for image in model.inputs] == [(3, 20, 30), (3, 33, 20)]
    shown = Image.open(dataset.images[0].path).resize((30, 20), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(model.inputs[0].transpose(1, 2, 0), np.asarray(shown))
    assert model.inputs[0].dtype == np.float32
    assert model.inputs[0].flags["C_CONTIGUOUS"]


def test_parts_joined_in_any_order_give_the_same_metrics(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    config = make_config(MODEL__MASK_ON=True)

    def shifted(outputs: Outputs) -> Outputs:
        return {**outputs, "pred_boxes": outputs["pred_boxes"] + np.float32(1.5)}

    whole = evaluate(Oracle(dataset, shifted), dataset, config)
    # One model sees both images, in two calls, and its answers travel as JSON.
    model = Oracle(dataset, shifted)
    parts = [predict_images(model, dataset, config, images=[image]) for image in dataset.images]
    travelled = [ImagePrediction(**json.loads(json.dumps(asdict(part)))) for part in (*parts[1], *parts[0])]

    assert compute_metrics(travelled, dataset, config) == whole
    assert 0 < whole["bbox/AP"] < 100


def test_no_detections_at_all_is_ap_zero(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    def silent(outputs: Outputs) -> Outputs:
        return {name: value[:0] for name, value in outputs.items()}

    metrics = evaluate(Oracle(dataset, silent), dataset, make_config(MODEL__MASK_ON=True))

    assert metrics["bbox/AP"] == metrics["segm/AP"] == 0.0


def spoil(name: str, value: float) -> Callable[[Outputs], Outputs]:
    def change(outputs: Outputs) -> Outputs:
        spoiled = outputs[name].copy()
        spoiled.flat[-1] = value
        return {**outputs, name: spoiled}

    return change


@pytest.mark.parametrize("name", ["pred_boxes", "scores", "pred_masks"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_outputs_that_are_no_numbers_are_named(tmp_path: Path, name: str, value: float) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    with pytest.raises(Failure, match=rf"output {name} holds NaN or infinity for image first\.png") as caught:
        evaluate(Oracle(dataset, spoil(name, value)), dataset, make_config(MODEL__MASK_ON=True))
    assert caught.value.code == "accuracy.nonfinite"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda outputs: {**outputs, "pred_boxes": outputs["pred_boxes"][:, :3]},
            r"shape \(2, 3\) .* \(N, 4\)",
        ),
        (lambda outputs: {**outputs, "scores": outputs["scores"][:, None]}, r"scores has shape \(2, 1\)"),
        (lambda outputs: {**outputs, "scores": outputs["scores"][:1]}, "differ in length: .*scores 1"),
        (lambda outputs: {**outputs, "pred_masks": outputs["pred_masks"][:, 0]}, r"not \(N, 1, \?, \?\)"),
        (
            lambda outputs: {**outputs, "pred_keypoint_heatmaps": outputs["pred_masks"][:1]},
            "differ in length: .*pred_keypoint_heatmaps 1",
        ),
        (spoil("pred_classes", 2), "pred_classes holds 2 for image first.png; there are 2 classes"),
        (spoil("pred_classes", -1), "pred_classes holds -1"),
        (
            lambda outputs: {**outputs, "pred_classes": outputs["scores"]},
            "pred_classes is float32, not integer",
        ),
        (lambda outputs: {"pred_boxes": outputs["pred_boxes"]}, "has no output scores"),
        (
            lambda outputs: {name: outputs[name] for name in ("pred_boxes", "scores", "pred_classes")},
            "no output pred_masks, which its config promises for segm",
        ),
    ],
)
def test_outputs_of_a_wrong_form_are_named(
    tmp_path: Path, change: Callable[[Outputs], Outputs], message: str
) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    with pytest.raises(Failure, match=message) as caught:
        evaluate(Oracle(dataset, change), dataset, make_config(MODEL__MASK_ON=True))
    assert caught.value.code == "artifact.mismatch"


def never_called(image: Any) -> Any:
    raise AssertionError("the model must not run")


@pytest.mark.parametrize(
    ("settings", "key"),
    [
        ({"MODEL__ROI_HEADS__NUM_CLASSES": 80}, "80 classes (MODEL.ROI_HEADS.NUM_CLASSES)"),
        (
            {"MODEL__META_ARCHITECTURE": "RetinaNet", "MODEL__RETINANET__NUM_CLASSES": 3},
            "3 classes (MODEL.RETINANET.NUM_CLASSES)",
        ),
    ],
)
def test_a_dataset_of_other_classes_is_refused_before_the_model_runs(
    tmp_path: Path, settings: dict[str, Any], key: str
) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    with pytest.raises(Failure) as caught:
        evaluate(never_called, dataset, make_config(**settings))
    assert caught.value.code == "dataset.invalid"
    assert f"defines 2 categories, but the model has {key}" in caught.value.message


def test_models_that_the_dataset_cannot_judge_are_refused(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    with pytest.raises(Failure, match="nothing to evaluate a SemanticSegmentor with") as caught:
        evaluate(never_called, dataset, make_config(MODEL__META_ARCHITECTURE="SemanticSegmentor"))
    assert caught.value.code == "dataset.invalid"


def test_unknown_channel_orders_are_refused_before_the_model_runs(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))

    with pytest.raises(Failure, match=r"INPUT\.FORMAT"):
        evaluate(never_called, dataset, make_config(INPUT__FORMAT="YUV-BT.601"))


def test_images_of_another_size_than_annotated_are_named(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    Image.new("RGB", (40, 60)).save(dataset.images[0].path)

    with pytest.raises(Failure, match=r"first\.png is 40x60 pixels .* annotations say 60x40") as caught:
        evaluate(never_called, dataset, make_config())
    assert caught.value.code == "dataset.invalid"


def test_unreadable_images_are_named(tmp_path: Path) -> None:
    dataset = load_dataset(write_dataset(tmp_path))
    dataset.images[0].path.write_bytes(b"nothing")

    with pytest.raises(Failure, match=r"cannot read image .*first\.png") as caught:
        evaluate(never_called, dataset, make_config())
    assert caught.value.code == "dataset.invalid"


def test_elongated_images_are_named(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["images"] = [{"id": 0, "file_name": "thin.png", "width": 1, "height": 900}]
        document["annotations"] = [coco_object(0, 0, 4, [0, 0, 1, 1])]
        Image.new("RGB", (1, 900)).save(tmp_path / "images" / "thin.png")

    dataset = load_dataset(write_dataset(tmp_path, change))

    with pytest.raises(Failure, match=r"thin\.png: an image of 1x900 pixels is too elongated"):
        evaluate(never_called, dataset, make_config())


def test_a_task_of_ones_own_is_one_registration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Count:
        name = "count"
        outputs = ("scores",)

        def applies(self, config: Any, dataset: Any) -> bool:
            return True

        def check(self, config: Any, dataset: Any) -> None:
            pass

        def collect(self, result: Any, dataset: Any, config: Any) -> int:
            return len(result.outputs["scores"])

        def score(self, values: Any, dataset: Any, config: Any) -> dict[str, float]:
            return {"found": float(sum(values))}

    monkeypatch.setattr(tasks, "TASKS", dict(tasks.TASKS))
    register(Count())
    dataset = load_dataset(write_dataset(tmp_path))

    assert evaluate(Oracle(dataset), dataset, make_config())["count/found"] == 4
    with pytest.raises(ValueError, match="already registered"):
        register(Count())


def test_evaluation_imports_no_torch_and_judging_imports_nothing_heavy() -> None:
    script = (
        "import sys, zooport.export_core.evaluation as e; e.judge({});"
        "heavy = {'numpy', 'PIL', 'pycocotools'};"
        "assert not heavy & sys.modules.keys(), heavy & sys.modules.keys();"
        "assert callable(e.evaluate); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
