"""The TensorFlow format: what goes in, what comes out, options, and what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zooport.export_core import formats
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.config import load_config
from zooport.export_core.evaluation import read_image
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.base import Format
from zooport.export_core.modeling.backbones.resnet_blocks import DeformableBottleneckBlock, StageSettings
from zooport.export_core.modeling.build import build_skeleton, load_model
from zooport.export_core.modeling.layers import Conv2d
from zooport.export_core.modeling.stages import named_tensors, recording
from zooport.export_core.samples import Sample
from zooport.export_core.tensorflow import installation
from zooport.export_core.tensorflow.blueprint import of_model, read_blueprint, write_blueprint
from zooport.export_core.tensorflow.process import TensorFlowProcess
from zooport.export_core.verification import compare_outputs
from zooport.tests.artifact_processes import arrays
from zooport.tests.official_zoo import build_for_export, config_of, inputs_of

PICTURE = "000000100026.png"
THRESHOLDS = {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.5, "MODEL.RETINANET.SCORE_THRESH_TEST": 0.3}
MASK = "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x"
PANOPTIC = "COCO-PanopticSegmentation/panoptic_fpn_R_50_1x"
FAST = "COCO-Detection/fast_rcnn_R_50_FPN_1x"
# What the demo zoo does not have: backbones, norms, heads.
ARCHITECTURES = [
    "COCO-Detection/fcos_R_50_FPN_1x",
    "COCO-Detection/faster_rcnn_R_50_DC5_1x",
    "COCO-Detection/rpn_R_50_C4_1x",
    FAST,
    "COCO-InstanceSegmentation/mask_rcnn_R_50_C4_1x",
    "COCO-InstanceSegmentation/mask_rcnn_regnety_4gf_dds_fpn_1x",
    "Misc/mask_rcnn_R_50_FPN_1x_cls_agnostic",
    "Misc/semantic_R_50_FPN_1x",
]
SIZES = [(96, 128), (110, 90), (75, 133)]

# A process that has nothing but TensorFlow and numpy reads the artifact and an image.
STRANGER = """
import sys, numpy, tensorflow as tf
run = tf.saved_model.load(sys.argv[1] + "/saved_model").signatures["serving_default"]
found = run(image=tf.constant(numpy.load(sys.argv[2])))
numpy.savez(sys.argv[3], **{name: value.numpy() for name, value in found.items()})
assert not [name for name in sys.modules if name.split(".")[0] in ("zooport", "torch", "torchvision")]
"""

Fields = dict[str, np.ndarray[Any, Any]]


def exporter() -> Format:
    return formats.get("tensorflow")


@torch.no_grad()
def run(model: Any, inputs: dict[str, torch.Tensor]) -> Fields:
    return arrays(model([inputs])[0])


def export(
    model: Any, inputs: dict[str, torch.Tensor], directory: Path, options: dict[str, Any] | None = None
) -> list[str]:
    made = exporter()
    made.export(model, inputs, sorted(run(model, inputs)), directory, options or {})
    return made.remarks


def check(predict: Any, model: Any, inputs: dict[str, torch.Tensor], options: dict[str, Any]) -> Fields:
    """Compare an artifact with the eager model as verification does; return what it found."""
    wanted, given = run(model, inputs), arrays(inputs)
    found: Fields = predict(**given)
    compare_outputs(Sample("sample", given, wanted), found, exporter().tolerance(options))
    return found


Demo = Callable[[str], tuple[Any, torch.Tensor]]


@pytest.fixture(scope="module")
def demo(demo_zoo: Path) -> Demo:
    """From the name of a demo model to the model and an image."""

    def load(name: str) -> tuple[Any, torch.Tensor]:
        config = load_config(demo_zoo / name / "config.yaml", THRESHOLDS)
        (weights,) = (demo_zoo / name).glob("model_final.*")
        picture = read_image(demo_zoo / "data" / "val" / PICTURE, config.INPUT.FORMAT)
        image = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32))
        return load_model(config, read_weights(weights), name), image

    return load


@pytest.fixture(scope="module")
def mask_rcnn(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, torch.Tensor, Path]:
    """A trained model, an image, and its artifact with everything that there can be in one."""
    model, image = demo("mask_rcnn_fpn")
    directory = tmp_path_factory.mktemp("mask")
    export(model, {"image": image}, directory, {"tflite": True})
    return model, image, directory


def test_a_stranger_gets_boxes_classes_scores_and_masks_from_tensorflow_alone(
    mask_rcnn: Any, tmp_path: Path
) -> None:
    model, image, directory = mask_rcnn
    np.save(tmp_path / "image.npy", image.numpy().transpose(1, 2, 0))
    command = [sys.executable, "-c", STRANGER, directory, tmp_path / "image.npy", tmp_path / "found.npz"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    with np.load(tmp_path / "found.npz") as found:
        wanted = run(model, {"image": image})
        assert set(found) == set(wanted)
        compare_outputs(Sample("", {"image": image.numpy()}, wanted), found, exporter().tolerance({}))
    assert len(wanted["scores"]) > 3


@pytest.mark.parametrize("options", [{}, {"tflite": True}], ids=["saved_model", "tflite"])
def test_every_size_even_one_row_and_nothing_to_find(mask_rcnn: Any, options: dict[str, Any]) -> None:
    model, image, directory = mask_rcnn
    predict = exporter().load(directory, sorted(run(model, {"image": image})), options)

    for part in (image, image[:, :100, :90], image[:, 30:, 45:], image[:, :1]):
        check(predict, model, {"image": part.contiguous()}, options)
    nothing = check(predict, model, {"image": torch.full((3, 64, 64), 114.0)}, options)
    assert len(nothing["scores"]) == 0
    for _ in range(2):  # a second image must not meet what the first one left
        again = check(predict, model, {"image": image}, options)
    assert len(again["scores"]) > 3


def test_the_frozen_graph_is_compared_with_the_eager_model(mask_rcnn: Any) -> None:
    model, image, directory = mask_rcnn
    wanted = run(model, {"image": image})
    with TensorFlowProcess() as process:
        process.load(directory / "model.pb")
        found = process.run({"image": image.numpy().transpose(1, 2, 0)})
    compare_outputs(Sample("", {"image": image.numpy()}, wanted), found, exporter().tolerance({}))


def test_what_stages_return_inside_of_the_graph_is_what_the_models_return(mask_rcnn: Any) -> None:
    model, image, directory = mask_rcnn
    with torch.no_grad(), recording(model) as calls:
        model([{"image": image}])

    found = exporter().inner_outputs(directory, {"image": image.numpy()}, {}, {})
    assert set(found) == set(calls)
    for name, call in calls.items():
        wanted = [tensor.numpy() for _, tensor in named_tensors(call.output)]
        for value, own in zip(found[name], wanted, strict=True):
            np.testing.assert_allclose(value, own, rtol=0, atol=1e-4 * float(np.abs(own).max()), err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_architectures_that_the_demo_zoo_lacks(name: str, tmp_path: Path) -> None:
    model = build_for_export(name, tiny=True)
    inputs = inputs_of(name, *SIZES[0])
    export(model, inputs, tmp_path)

    predict = exporter().load(tmp_path, sorted(run(model, inputs)), {})
    for size in SIZES:
        check(predict, model, inputs_of(name, *size), {})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "batch"), [(PANOPTIC, 3), (FAST, 2)])
def test_in_a_batch_neighbours_do_not_matter(name: str, batch: int, tmp_path: Path) -> None:
    model = build_for_export(name, tiny=True)
    options = {"batch": batch}
    export(model, inputs_of(name, *SIZES[0]), tmp_path, options)

    predict = exporter().load(tmp_path, sorted(run(model, inputs_of(name, *SIZES[0]))), options)
    for size in SIZES[:2]:
        check(predict, model, inputs_of(name, *size), options)


def test_a_lite_model_of_eight_bits_is_smaller_and_judged_by_its_detections(
    mask_rcnn: Any, tmp_path: Path
) -> None:
    model, image, whole = mask_rcnn
    options = {"tflite": True, "quantize": "dynamic"}
    remarks = export(model, {"image": image}, tmp_path, options)

    predict = exporter().load(tmp_path, sorted(run(model, {"image": image})), options)
    check(predict, model, {"image": image}, options)
    with pytest.raises(Failure, match=r"differs|counterparts|detections"):
        check(predict, model, {"image": image}, {})
    small, large = ((folder / "model.tflite").stat().st_size for folder in (tmp_path, whole))
    assert small < 0.45 * large
    assert any("operators of TensorFlow Lite alone" in remark for remark in remarks)


def test_the_description_says_that_channels_come_last() -> None:
    image = {"name": "image", "dtype": "float32", "shape": [3, "height", "width"], "meaning": "one image"}
    scores = {"name": "scores", "dtype": "float32", "shape": ["N"]}

    inputs, outputs = exporter().describe_signature([image], [scores], {})
    assert inputs[0]["shape"] == ["height", "width", 3]
    assert outputs == [scores]
    inputs, outputs = exporter().describe_signature([image], [scores], {"batch": 4})
    assert inputs[0]["shape"] == [4, "height", "width", 3]
    assert [entry["name"] for entry in outputs] == ["scores", "image_index"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch": 0}, "batch = 0 is no positive integer"),
        ({"batch": "dynamic"}, "batch = 'dynamic' is no positive integer"),
        ({"tflite": 1}, "tflite = 1 is neither true nor false"),
        ({"tflite": True, "quantize": "float8"}, "quantize = 'float8' is unknown"),
        ({"quantize": "dynamic"}, "which was not asked for"),
        ({"opset": 17}, "has no option 'opset'"),
    ],
)
def test_options_are_checked_before_any_work(options: dict[str, Any], said: str) -> None:
    with pytest.raises(Failure, match=said) as caught:
        exporter().check_options(options)
    assert (caught.value.code, caught.value.stage) == ("export.option", Stage.PLAN)


@pytest.mark.parametrize(
    ("overrides", "code", "key"),
    [
        ({"MODEL.META_ARCHITECTURE": "PocketNet"}, "unsupported.architecture", "MODEL.META_ARCHITECTURE"),
        ({"MODEL.BACKBONE.NAME": "build_pocket"}, "unsupported.architecture", "MODEL.BACKBONE.NAME"),
        ({"MODEL.ROI_BOX_HEAD.NAME": "PocketHead"}, "unsupported.architecture", "MODEL.ROI_BOX_HEAD.NAME"),
        (
            {"MODEL.ROI_BOX_HEAD.POOLER_TYPE": "ROIPool"},
            "unsupported.combination",
            "MODEL.ROI_BOX_HEAD.POOLER_TYPE",
        ),
    ],
)
def test_what_is_not_translated_is_refused_with_its_key(
    overrides: dict[str, Any], code: str, key: str
) -> None:
    with pytest.raises(Failure) as caught:
        exporter().requires(config_of(MASK, overrides), {})
    assert (caught.value.code, caught.value.details["key"]) == (code, key)
    assert key in caught.value.message


def test_a_module_of_an_extension_ends_with_its_name_and_nothing_written(tmp_path: Path) -> None:
    class Doubling(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    model: Any = build_for_export("Misc/semantic_R_50_FPN_1x", tiny=True)
    model.backbone.bottom_up.stem = torch.nn.Sequential(model.backbone.bottom_up.stem, Doubling())

    with pytest.raises(Failure, match=r"'backbone.bottom_up.stem.1' is a \S+Doubling") as caught:
        export(model, inputs_of("Misc/semantic_R_50_FPN_1x", *SIZES[0]), tmp_path)
    assert caught.value.code == "unsupported.architecture"
    assert list(tmp_path.iterdir()) == []


def test_a_saved_model_that_is_there_already_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "saved_model").mkdir()
    (tmp_path / "saved_model" / "mine").write_text("precious")
    model = build_for_export("Misc/semantic_R_50_FPN_1x", tiny=True)

    with pytest.raises(Failure, match="saved_model already exists") as caught:
        export(model, inputs_of("Misc/semantic_R_50_FPN_1x", *SIZES[0]), tmp_path)
    assert caught.value.code == "export.failed"
    assert [path.name for path in tmp_path.rglob("*")] == ["saved_model", "mine"]


@pytest.mark.parametrize(
    ("version", "said"),
    [(None, "needs TensorFlow, which is not installed"), ("2.9.3", "2.20 or newer; 2.9.3 is installed")],
)
def test_without_a_tensorflow_that_will_do_the_command_to_install_it_is_named(
    version: str | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(installation, "installed_version", lambda: version)
    if version is None:
        monkeypatch.setattr(installation, "find_spec", lambda _: None)

    with pytest.raises(Failure, match=said) as caught:
        exporter().requires(config_of(MASK), {})
    assert caught.value.code == "dependency.missing"
    assert caught.value.hint == "pip install 'zooport[tensorflow]'"


@pytest.mark.parametrize("name", ["saved_model", "model.pb", "model.tflite"])
def test_damaged_files_are_unloadable(name: str, tmp_path: Path) -> None:
    damaged = tmp_path / name
    if name == "saved_model":
        damaged.mkdir()
        damaged /= "saved_model.pb"
    damaged.write_bytes(b"\x0a\xff\xff\xff no graph")
    with TensorFlowProcess() as process, pytest.raises(Failure, match="does not load") as caught:
        process.load(tmp_path / name)
    assert caught.value.code == "artifact.unloadable"


def test_a_process_that_dies_is_a_crash_with_its_signal() -> None:
    process = TensorFlowProcess()
    os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(Failure, match=r"TensorFlow: the process was killed by SIGKILL") as caught:
        process.load(Path("nowhere"))
    assert caught.value.code == "worker.crashed"


def test_a_missing_parameter_is_named_before_anything_is_written(demo_zoo: Path, tmp_path: Path) -> None:
    folder = demo_zoo / "retinanet_fpn"
    config = load_config(folder / "config.yaml")
    state = {name: value.clone() for name, value in torch.load(folder / "model_final.pth")["model"].items()}
    del state["head.cls_score.weight"]
    torch.save({"model": state}, tmp_path / "less.pth")

    with pytest.raises(Failure, match=r"head\.cls_score\.weight") as caught:
        load_model(config, read_weights(tmp_path / "less.pth"), "less.pth")
    assert caught.value.code == "checkpoint.mismatch"


def test_a_blueprint_keeps_settings_arrays_and_order(tmp_path: Path) -> None:
    model: Any = build_for_export("COCO-Detection/retinanet_R_50_FPN_1x", tiny=True)
    write_blueprint(of_model(model), tmp_path / "file")
    read = read_blueprint(tmp_path / "file")

    state = {
        f"{each.path}.{name}": array
        for each in read.walk()
        for name, array in each.arrays.items()
        if f"{each.path}.{name}" in model.state_dict()
    }
    assert {
        name: torch.from_numpy(array) for name, array in state.items()
    }.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(state[name], value.numpy())
    assert list(read.children) == [name for name, _ in model.named_children()]
    selector = read.children["selector"]
    assert selector.settings["topk_candidates"] == model.selector.topk_candidates
    # Classes that only put others together count as what they are made from.
    assert read.kind == "zooport.export_core.modeling.dense_detection.DenseDetector"
    res2 = read.children["backbone"].children["bottom_up"].children["res2"]
    assert res2.kind == "torch.nn.modules.container.Sequential"


def test_the_blueprint_of_a_skeleton_names_modules_that_are_all_translated() -> None:
    listed = json.loads(
        subprocess.run(
            [sys.executable, "-c", LISTED], capture_output=True, text=True, check=True
        ).stdout.splitlines()[-1]
    )
    for name in (MASK, *ARCHITECTURES):
        kinds = {
            each.kind for each in of_model(build_skeleton(config_of(name)).to_empty(device="cpu")).walk()
        }
        assert kinds - set(listed) <= {"torch.nn.modules.container.ModuleList"} | FLATTENED, name


FLATTENED = {"torch.nn.modules.flatten.Flatten"}  # by the sequence that it is in
LISTED = """
import json
import zooport.export_core.tensorflow.translators
from zooport.export_core.tensorflow.translation import _TRANSLATORS
print(json.dumps(list(_TRANSLATORS)))
"""


ALONE = """
import sys, numpy
from pathlib import Path
from zooport.export_core.tensorflow.settings import import_tensorflow
tf = import_tensorflow(1)
from zooport.export_core.tensorflow import translators
from zooport.export_core.tensorflow.blueprint import read_blueprint
from zooport.export_core.tensorflow.translation import Module
for folder in map(Path, sys.argv[1:]):
    module = Module(read_blueprint(folder / "module"), lambda name, array: tf.constant(array))
    x = numpy.load(folder / "x.npy").transpose(0, 2, 3, 1)
    numpy.save(folder / "found.npy", module(tf.constant(x)).numpy().transpose(0, 3, 1, 2))
"""


def deformable_block(groups: int, deform_groups: int, modulated: bool, norm: str) -> torch.nn.Module:
    settings = StageSettings(
        blocks=1,
        in_channels=64,
        out_channels=128,
        stride=2,
        norm=norm,
        width=64,
        groups=groups,
        stride_in_1x1=False,
        deform_modulated=modulated,
        deform_groups=deform_groups,
    )
    return DeformableBottleneckBlock(settings, 64, 2)


def test_layers_of_official_models_in_their_rarer_settings(tmp_path: Path) -> None:
    torch.manual_seed(0)
    modules = [
        deformable_block(1, 1, True, "FrozenBN"),
        deformable_block(8, 1, True, "GN"),
        deformable_block(8, 2, False, "BN"),
        Conv2d(64, 32, 3, stride=2, dilation=2, norm="LN", relu=True),
        Conv2d(64, 64, 5, stride=3, padding=1, groups=16),
        torch.nn.Sequential(torch.nn.ConvTranspose2d(64, 8, 4, stride=2, padding=1), torch.nn.ReLU()),
        torch.nn.ConvTranspose2d(64, 8, 3, stride=2, padding=0),
        torch.nn.Conv2d(64, 8, 3, padding="same", dilation=2),
        torch.nn.Upsample(scale_factor=3, mode="bilinear"),
    ]
    folders = [tmp_path / str(index) for index in range(len(modules))]
    wanted = []
    for folder, module in zip(folders, modules, strict=True):
        for parameter in module.parameters():
            torch.nn.init.normal_(parameter, 0, 0.15)
        folder.mkdir()
        write_blueprint(of_model(module.eval()), folder / "module")
        x = torch.randn(2, 64, 23, 31)
        np.save(folder / "x.npy", x.numpy())
        with torch.no_grad():
            wanted.append(module(x).numpy())

    done = subprocess.run(
        [sys.executable, "-c", ALONE, *folders], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for folder, value in zip(folders, wanted, strict=True):
        found = np.load(folder / "found.npy")
        np.testing.assert_allclose(found, value, rtol=0, atol=1e-5 * np.abs(value).max(), err_msg=folder.name)


REFUSED = """
import sys
from pathlib import Path
from zooport.export_core.failures import Failure
from zooport.export_core.tensorflow.settings import import_tensorflow
tf = import_tensorflow(1)
from zooport.export_core.tensorflow import translators
from zooport.export_core.tensorflow.blueprint import read_blueprint
from zooport.export_core.tensorflow.translation import Module
for file in sys.argv[1:]:
    module = Module(read_blueprint(Path(file)), lambda name, array: tf.constant(array))
    try:
        module(tf.zeros((1, 8, 8, 8)))
        print("taken")
    except Failure as failure:
        print(failure.code, failure.message)
"""


def test_settings_that_are_not_translated_are_named(tmp_path: Path) -> None:
    modules = {
        "mode=nearest": torch.nn.Upsample(scale_factor=2),
        "scale_factor=1.5": torch.nn.Upsample(scale_factor=1.5, mode="bilinear"),
        "align_corners=True": torch.nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
        "groups=2": torch.nn.ConvTranspose2d(8, 8, 2, stride=2, groups=2),
        "output_padding=[1, 1]": torch.nn.ConvTranspose2d(8, 8, 3, stride=2, padding=1, output_padding=1),
        "padding_mode=reflect": torch.nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
    }
    for index, module in enumerate(modules.values()):
        write_blueprint(of_model(module, "neck"), tmp_path / str(index))
    done = subprocess.run(
        [sys.executable, "-c", REFUSED, *sorted(tmp_path.iterdir())],
        capture_output=True,
        text=True,
        check=True,
    )
    for setting, line in zip(modules, done.stdout.splitlines(), strict=True):
        assert line.startswith("unsupported.operator module 'neck' is a torch.nn.modules."), line
        assert setting in line
