"""A user's own modules: found by name or path, imported where a job runs, and named when they fail."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core import demo, extensions, formats
from zooport.export_core.evaluation.costs import without_costs
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats.torchscript_errors import unknown_operator
from zooport.export_core.isolation import ForkServer, run_isolated
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs.digests import DigestCache
from zooport.jobs.manifest import load_manifest
from zooport.jobs.plan import make_plan, place
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter
from zooport.jobs.values import ExportTarget

pytestmark = pytest.mark.alone

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "custom_backbone"
POCKETNET = str(EXAMPLE / "pocketnet")

# Each gives the stem of the example's backbone another forward; "HERE" marks the line to be named.
GENERATOR = """
    def forward(self, x: Tensor) -> Tensor:
        x = sum(part for part in [x, x])  # HERE
        return self.convolve(x)
"""
KEYWORDS = """
    def scaled(self, x: Tensor, **settings: float) -> Tensor:  # HERE
        return x * settings["scale"]

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(self.scaled(x, scale=1.0))
"""
NUMPY = """
    def forward(self, x: Tensor) -> Tensor:
        scale = np.sqrt(4.0)  # HERE
        return self.convolve(x * scale)
"""
IN_A_HELPER = """
    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(helper(x))


def helper(x: Tensor) -> Tensor:
    table = {1: "a", "b": 2}  # HERE
    return x * len(table)
"""
BRANCH = """
    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0.2:  # HERE: so for the first of the two images and not for the second
            x = -x
        return self.convolve(x)
"""
SHAPE = """
    def forward(self, x: Tensor) -> Tensor:
        width = int(torch.ones_like(x[0, 0, 0]).sum())  # HERE
        return self.convolve(x[:, :, :, :width])
"""
OPERATOR = """
    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(torch.ops.odd_extension.twice(x))
"""
RAISES = """
    def forward(self, x: Tensor) -> Tensor:
        raise KeyError("no such feature")  # HERE
"""
MISMATCH = """
    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x @ torch.zeros(7, 7))  # HERE
"""
LOOP = """
    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(self.loop(x))
"""
VALUES = """
    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x * self.factor + self.plain.view(1, -1, 1, 1) + self.kept)
"""
SOURCE = """
import numpy as np
import torch
from torch import Tensor, nn
from pocketnet.backbone import PocketNet
from zooport.export_core.modeling.backbones.fpn import LastLevelMaxPool, build_pyramid
from zooport.export_core.modeling.layers import Conv2d
from zooport.export_core.modeling.registry import BACKBONES


@torch.library.custom_op("odd_extension::twice", mutates_args=())
def twice(x: Tensor) -> Tensor:
    return x * 2


class Loop(nn.Module):
    loops_over_data = True

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.std() * 100) % 3):
            x = x * 0.9
        return x


class Stem(Conv2d):
    def __init__(self, channels: int) -> None:
        super().__init__(3, channels, 3, stride=2, norm="BN", relu=True)
        self.loop = Loop()
        self.factor = torch.linspace(0, 1, 3)[-1].item()
        self.plain = torch.zeros(3)
        self.register_buffer("kept", torch.zeros(1), persistent=False)

    def convolve(self, x: Tensor) -> Tensor:
        x = self._conv_forward(x, self.weight, self.bias)
        return self.activation(self.norm(x))
{forward}

@BACKBONES.register("build_odd_backbone")
def build_odd(config):
    bottom_up = PocketNet(list(config.MODEL.POCKETNET.WIDTHS), config.MODEL.POCKETNET.BLOCKS, "BN")
    bottom_up.stem = Stem(config.MODEL.POCKETNET.WIDTHS[0])
    return build_pyramid(config, bottom_up, LastLevelMaxPool())
"""


def write(folder: Path, text: str, name: str = "odd_extension.py") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refused(function: Callable[..., Any], *arguments: Any, code: str = "extension.invalid") -> Failure:
    with pytest.raises(Failure) as caught:
        function(*arguments)
    assert caught.value.code == code
    assert "\n" not in caught.value.message
    return caught.value


class TestLocate:
    """A name becomes something that every process understands; nothing is imported."""

    def test_an_installed_module_keeps_its_name(self, tmp_path: Path) -> None:
        assert extensions.locate("yaml", tmp_path) == "yaml"
        assert extensions.locate("yaml.nodes", tmp_path) == "yaml.nodes"

    @pytest.mark.parametrize(
        ("file", "name", "found"),
        [
            ("one.py", "one", "one"),
            ("one.py", "./one.py", "one"),
            ("one.py", "./one", "one"),
            ("two/__init__.py", "two", "two"),
            ("two/__init__.py", "two.part", "two.part"),
            ("deep/two/__init__.py", "deep/two", "deep/two"),
            ("deep/two/__init__.py", "./deep/two.part", "deep/two.part"),
        ],
    )
    def test_code_beside_the_manifest_becomes_a_path(
        self, tmp_path: Path, file: str, name: str, found: str
    ) -> None:
        write(tmp_path, "raise SystemError('imported')", file)
        assert extensions.locate(name, tmp_path) == str(tmp_path / found)

    def test_a_process_that_was_started_beside_the_code_does_not_hide_its_place(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write(tmp_path, "", "beside_me.py")
        monkeypatch.syspath_prepend(str(tmp_path))
        assert extensions.locate("beside_me", tmp_path) == str(tmp_path / "beside_me")
        assert extensions.locate("beside_me", tmp_path / "elsewhere") == "beside_me"

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("no_such_extension", "it is not installed, and"),
            ("./no_such_extension", "holds no module 'no_such_extension'"),
            ("./folder", "holds no module 'folder'"),
            ("my-extension", "not the name of a module"),
            ("a; import os", "not the name of a module"),
            ("", "not the name of a module"),
        ],
    )
    def test_what_is_not_there_is_told_with_the_place(self, tmp_path: Path, name: str, said: str) -> None:
        (tmp_path / "folder").mkdir()
        failure = refused(extensions.locate, name, tmp_path)
        assert said in failure.message
        assert name in failure.message
        assert failure.hint


def load_in_process(imports: list[str], log: Path) -> dict[str, list[str]]:
    found: dict[str, list[str]] = run_isolated(
        "zooport.tests.extension_jobs:registered", imports, timeout=120, log=log
    )
    return found


def test_named_extensions_are_imported_once_and_register(tmp_path: Path) -> None:
    write(tmp_path, SOURCE.format(forward=VALUES))
    found = load_in_process([POCKETNET, str(tmp_path / "odd_extension")], tmp_path / "log")
    assert {"build_pocketnet_fpn_backbone", "build_odd_backbone"} <= set(found["MODEL.BACKBONE.NAME"])


def test_an_installed_distribution_announces_its_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site = tmp_path / "site"
    shutil.copytree(POCKETNET, site / "pocketnet")
    write(
        site, "Metadata-Version: 2.1\nName: pocket-net\nVersion: 1.2\n", "pocket_net-1.2.dist-info/METADATA"
    )
    write(site, "[zooport.extensions]\npocketnet = pocketnet\n", "pocket_net-1.2.dist-info/entry_points.txt")
    write(site, "pocketnet\n", "pocket_net-1.2.dist-info/top_level.txt")
    monkeypatch.syspath_prepend(str(site))
    found = load_in_process([], tmp_path / "log")
    assert "build_pocketnet_fpn_backbone" in found["MODEL.BACKBONE.NAME"]
    assert extensions.describe() == [
        {"module": "pocketnet", "version": "1.2", "sha256": extensions.identities()["pocketnet"]}
    ]
    write(site / "pocketnet", "import nowhere_to_be_found", "__init__.py")
    failure = refused(load_in_process, [], tmp_path / "log")
    assert "pocketnet of pocket-net" in failure.message
    assert "nowhere_to_be_found" in failure.message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import math\n\nmath.nothing  # HERE", "AttributeError: module 'math' has no attribute 'nothing'"),
        ("import nowhere_to_be_found  # HERE", "No module named 'nowhere_to_be_found'"),
        ("import sys\nsys.exit(0)  # HERE", "SystemExit"),
        ("x = 1\ndef broken(:  # HERE", "SyntaxError"),
        (
            "from zooport.export_core.config import declare_defaults\n"
            "declare_defaults({'MODEL': {'MASK_ON': True}})  # HERE",
            "config key MODEL.MASK_ON already has the default",
        ),
        (
            "from zooport.export_core.modeling.backbones import resnet\n"
            "from zooport.export_core.modeling.registry import BACKBONES\n"
            "BACKBONES.register('build_resnet_backbone')(print)  # HERE",
            "'build_resnet_backbone' is registered already",
        ),
    ],
)
def test_an_extension_that_cannot_be_imported_is_named_with_its_line(
    tmp_path: Path, text: str, said: str
) -> None:
    path = write(tmp_path, text)
    failure = refused(load_in_process, [str(path.with_suffix(""))], tmp_path / "log")
    assert said in failure.message
    assert marked_line(path) in failure.message
    assert failure.details["extension"] in failure.message


def test_another_module_of_the_same_name_is_not_taken_for_the_extension(tmp_path: Path) -> None:
    write(tmp_path, "", "json.py")
    failure = refused(load_in_process, [str(tmp_path / "json")], tmp_path / "log")
    assert "another module of this name" in failure.message
    assert failure.message.count("json") > 1


def marked_line(path: Path) -> str:
    lines = path.read_text(encoding="utf-8").splitlines()
    (number,) = (index for index, line in enumerate(lines, 1) if "# HERE" in line)
    return f"{path}:{number}"


class TestIdentity:
    """The code of an extension is part of what an artifact is made from."""

    @pytest.fixture
    def target(self, tmp_path: Path) -> ExportTarget:
        package = tmp_path / "pocketnet"
        shutil.copytree(POCKETNET, package)
        base = "MODEL: {RESNETS: {A_KEY_OF_MINE: 1}}"  # known to nobody until the extension is imported
        write(tmp_path, base, "base.yaml")
        config = write(tmp_path, "_BASE_: base.yaml", "config.yaml")
        weights = write(tmp_path, "not read here", "model.pth")
        checkpoint = CheckpointSource("one", config, weights, {}, (str(package),))
        return ExportTarget(checkpoint, "torchscript-trace")

    def key(self, target: ExportTarget) -> str:
        plan = make_plan(
            [(target, place(target, Path("/nowhere")))],
            run_id="r",
            export_ids=["r.1"],
            history=None,
            digests=DigestCache(None),
        )
        return plan.jobs[0].key

    def test_the_key_follows_the_code_and_not_its_place(self, target: ExportTarget, tmp_path: Path) -> None:
        first = self.key(target)
        shutil.copytree(tmp_path / "pocketnet", tmp_path / "moved" / "pocketnet")
        moved = replace(target.checkpoint, imports=(str(tmp_path / "moved" / "pocketnet"),))
        assert self.key(replace(target, checkpoint=moved)) == first
        assert self.key(replace(target, checkpoint=replace(target.checkpoint, imports=()))) != first
        with (tmp_path / "pocketnet" / "backbone.py").open("a") as file:
            file.write("# changed\n")
        assert self.key(target) != first

    def test_the_key_follows_every_file_of_a_config_that_needs_the_extension(
        self, target: ExportTarget, tmp_path: Path
    ) -> None:
        first = self.key(target)
        assert self.key(target) == first
        write(tmp_path, "MODEL: {RESNETS: {A_KEY_OF_MINE: 2}}", "base.yaml")
        assert self.key(target) != first

    def test_planning_imports_nothing(self, target: ExportTarget, tmp_path: Path) -> None:
        write(tmp_path, "raise SystemError('imported')", "pocketnet/__init__.py")
        assert self.key(target)
        assert "pocketnet" not in sys.modules


@pytest.mark.parametrize(
    ("said", "operator"),
    [
        ("\nUnknown builtin op: my_ops::twice.\nCould not find", "my_ops::twice"),
        ("Unknown builtin op: aten::fancy.out.", "aten::fancy.out"),
        ("Python builtin <built-in function sorted> is currently not supported", "sorted"),
        ("shape '[7, 7]' is invalid for input of size 3", ""),
    ],
)
def test_the_operator_that_an_error_misses(said: str, operator: str) -> None:
    assert unknown_operator(said) == operator


def test_a_manifest_names_extensions(tmp_path: Path) -> None:
    shutil.copytree(POCKETNET, tmp_path / "code" / "pocketnet")
    text = "imports: [./code/pocketnet, yaml]\nmodels: [{name: a, config: c, weights: w}]\nformats: [{name}]"
    manifest = write(tmp_path, text.replace("{name}", formats.names()[0]), "zoo.yaml")
    (target,) = load_manifest(manifest).targets
    assert target.checkpoint.imports == (str(tmp_path / "code" / "pocketnet"), "yaml")
    manifest.write_text(manifest.read_text().replace("yaml", "no_such_extension"))
    failure = refused(load_manifest, manifest)
    assert failure.message.startswith(f"{manifest} line 1: imports[1]: extension no_such_extension")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "model.pth"
    subprocess.run([sys.executable, EXAMPLE / "make_weights.py", "--output", path], check=True)
    return path


@pytest.fixture(scope="module")
def server() -> Iterator[ForkServer]:
    server = ForkServer()
    yield server
    server.close()


PARTS = """
from torch import Tensor, nn
from zooport.export_core.modeling.layers import Conv2d
from zooport.export_core.modeling.meta_architectures.generalized_rcnn import GeneralizedRCNN
from zooport.export_core.modeling.proposals.rpn import StandardRPNHead
from zooport.export_core.modeling.registry import (
    BACKBONES, BOX_HEADS, MASK_HEADS, META_ARCHITECTURES, ROI_HEADS, RPN_HEADS
)
from zooport.export_core.modeling.roi_heads.standard import StandardROIHeads


class Neck(nn.Module):
    def __init__(self, bottom_up: nn.Module) -> None:
        super().__init__()
        self.bottom_up = bottom_up
        self.lateral = Conv2d(bottom_up.channels["p2"], 24, 1)
        self.channels = {name: 24 for name in bottom_up.channels}
        self.strides = bottom_up.strides
        self.size_divisibility = bottom_up.size_divisibility

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        features: dict[str, Tensor] = {}
        for name, value in self.bottom_up(x).items():
            features[name] = self.lateral(value)
        return features


@BACKBONES.register("build_necked_backbone")
def build_necked(config):
    return Neck(BACKBONES.get("build_pocketnet_fpn_backbone")(config))


@RPN_HEADS.register("NarrowRPNHead")
class NarrowRPNHead(StandardRPNHead):
    @classmethod
    def from_config(cls, config, in_channels, anchors):
        return cls(in_channels, anchors, [8])


@BOX_HEADS.register("MeanBoxHead")
class MeanBoxHead(nn.Module):
    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.out_features = 20
        self.fc = nn.Linear(in_channels, self.out_features)

    @classmethod
    def from_config(cls, config, in_channels, resolution):
        return cls(in_channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x.mean([2, 3])).relu()


@MASK_HEADS.register("OneLayerMaskHead")
class OneLayerMaskHead(nn.Conv2d):
    @classmethod
    def from_config(cls, config, in_channels):
        return cls(in_channels, config.MODEL.ROI_HEADS.NUM_CLASSES, 3, padding=1)


@ROI_HEADS.register("MyROIHeads")
class MyROIHeads(StandardROIHeads):
    pass


@META_ARCHITECTURES.register("MirroringRCNN")
class MirroringRCNN(GeneralizedRCNN):
    def forward(self, batched_inputs: list[dict[str, Tensor]]) -> list[dict[str, Tensor]]:
        batch, sizes = self.normalizer([inputs["image"] for inputs in batched_inputs])
        features = self.backbone(batch * 0.5)
        return self.roi_heads(features, self.proposal_generator(features, sizes).boxes, sizes)
"""
PARTS_BY_NAME = {
    "MODEL.META_ARCHITECTURE": "MirroringRCNN",
    "MODEL.BACKBONE.NAME": "build_necked_backbone",
    "MODEL.RPN.HEAD_NAME": "NarrowRPNHead",
    "MODEL.ROI_HEADS.NAME": "MyROIHeads",
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.18,
    "MODEL.ROI_BOX_HEAD.NAME": "MeanBoxHead",
    "MODEL.ROI_MASK_HEAD.NAME": "OneLayerMaskHead",
    "INPUT.MIN_SIZE_TEST": 96,
}


@pytest.mark.parametrize("export_format", ["torchscript-trace", "torchscript-script"])
def test_every_kind_of_module_may_come_from_an_extension(
    tmp_path: Path, server: ForkServer, export_format: str
) -> None:
    extension = write(tmp_path, PARTS, "my_parts.py")
    imports = (POCKETNET, str(extension.with_suffix("")))
    weights, staging = tmp_path / "model.pth", tmp_path / "staging"
    staging.mkdir()
    settings: dict[str, Any] = {"timeout": 300, "log": tmp_path / "log", "server": server}
    model = EXAMPLE / "config.yaml", PARTS_BY_NAME
    run_isolated("zooport.tests.extension_jobs:write_weights", *model, imports, weights, **settings)
    checkpoint = CheckpointSource("parts", model[0], weights, model[1], imports)
    data = demo.ZOO / "data"
    dataset = DatasetSource("val", data / "annotations/instances_val.json", data / "val", limit=3)
    stages = "zooport.export_core.pipeline"
    source: tuple[Any, ...] = (checkpoint, export_format, {}, dataset, None, staging)
    run_isolated(f"{stages}:export_stage", *source, **settings)
    exported = run_isolated(f"{stages}:verify_stage", staging, dataset, **settings)
    exported = without_costs(exported)
    eager = run_isolated(f"{stages}:evaluate_eager", checkpoint, dataset, **settings)
    assert exported == without_costs(eager)
    assert {name.split("/")[0] for name in exported} == {"bbox", "segm"}
    description = json.loads((staging / "model.json").read_text(encoding="utf-8"))
    assert description["meta_architecture"] == "MirroringRCNN"
    assert [each["module"] for each in description["source"]["extensions"]] == ["pocketnet", "my_parts"]


class TestCodeThatFails:
    """What a format cannot take, and what an extension does wrong, is told by line or operator."""

    @pytest.fixture
    def run(self, tmp_path: Path, weights: Path, server: ForkServer) -> Callable[..., list[str]]:
        """Export and verify the example's model with another stem; return the notes."""

        def run(forward: str, export_format: str) -> list[str]:
            extension = write(tmp_path, SOURCE.format(forward=forward))
            overrides = {
                "MODEL.BACKBONE.NAME": "build_odd_backbone",
                "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.2,
                "INPUT.MIN_SIZE_TEST": 96,
            }
            imports = (POCKETNET, str(extension.with_suffix("")))
            checkpoint = CheckpointSource("odd", EXAMPLE / "config.yaml", weights, overrides, imports)
            data = demo.ZOO / "data"
            dataset = DatasetSource("val", data / "annotations/instances_val.json", data / "val", limit=2)
            staging = tmp_path / "staging"
            staging.mkdir()
            settings: dict[str, Any] = {"timeout": 300, "log": tmp_path / "log", "server": server}
            stages = "zooport.export_core.pipeline"
            source: tuple[Any, ...] = (checkpoint, export_format, {}, dataset, None, staging)
            notes: list[str] = run_isolated(f"{stages}:export_stage", *source, **settings)
            run_isolated(f"{stages}:verify_stage", staging, None, **settings)
            return notes

        return run

    @pytest.mark.parametrize("forward", [GENERATOR, KEYWORDS, IN_A_HELPER])
    def test_python_that_cannot_be_scripted(
        self, run: Callable[..., list[str]], tmp_path: Path, forward: str
    ) -> None:
        failure = refused(run, forward, "torchscript-script", code="export.failed")
        assert failure.message.startswith("torch.jit.script: ")
        assert marked_line(tmp_path / "odd_extension.py") in failure.message
        assert failure.stage is Stage.EXPORT

    def test_a_function_of_another_library_is_named(
        self, run: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        failure = refused(run, NUMPY, "torchscript-script", code="unsupported.operator")
        assert "numpy.sqrt is no operator of TorchScript" in failure.message
        assert marked_line(tmp_path / "odd_extension.py") in failure.message

    @pytest.mark.parametrize("export_format", ["torchscript-trace", "torchscript-script"])
    def test_an_operator_that_only_the_extension_has(
        self, run: Callable[..., list[str]], export_format: str
    ) -> None:
        failure = refused(run, OPERATOR, export_format, code="unsupported.operator")
        assert "odd_extension::twice" in failure.message

    def test_a_branch_that_a_trace_cannot_hold_is_found_by_verification(
        self, run: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        failure = refused(run, BRANCH, "torchscript-trace", code="artifact.mismatch")
        assert marked_line(tmp_path / "odd_extension.py") in failure.hint
        assert "torch.where" in failure.hint

    def test_a_size_that_a_trace_records_is_found_by_verification(
        self, run: Callable[..., list[str]], tmp_path: Path
    ) -> None:
        with pytest.raises(Failure) as caught:
            run(SHAPE, "torchscript-trace")
        assert caught.value.code in {"artifact.mismatch", "artifact.unloadable"}
        assert marked_line(tmp_path / "odd_extension.py") in caught.value.hint

    @pytest.mark.parametrize("forward", [RAISES, MISMATCH])
    def test_an_exception_of_the_extension_is_its_own(
        self, run: Callable[..., list[str]], tmp_path: Path, forward: str
    ) -> None:
        failure = refused(run, forward, "torchscript-script")
        assert marked_line(tmp_path / "odd_extension.py") in failure.message

    @pytest.mark.parametrize("export_format", ["torchscript-trace", "torchscript-script"])
    @pytest.mark.parametrize("forward", [VALUES, LOOP])
    def test_what_modules_may_do(
        self, run: Callable[..., list[str]], export_format: str, forward: str
    ) -> None:
        assert run(forward, export_format) == []


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example in a folder of its own, with its weights made as its README says."""
    root = tmp_path_factory.mktemp("example")
    (root / "export_core").symlink_to(EXAMPLE.parents[1] / "export_core")
    folder = root / "examples" / "custom_backbone"
    shutil.copytree(
        EXAMPLE, folder, ignore=shutil.ignore_patterns("model_final.pth", "artifacts", "__pycache__")
    )
    subprocess.run([sys.executable, "make_weights.py"], cwd=folder, check=True)
    return folder


def zooport(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "zooport.cli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("export_format", formats.names())
def test_the_example_goes_through_every_format(example: Path, export_format: str) -> None:
    arguments = [
        "export",
        "--config-file",
        "config.yaml",
        "--weights",
        "model_final.pth",
        "--import",
        "pocketnet",
    ]
    output = ["--format", export_format, "--output", f"artifacts/one/{export_format}", "-o", "json"]
    done = zooport(example, *arguments, *output)
    if export_format == "tensorflow":  # translated, not traced: it takes no modules that it does not know
        refused = json.loads(done.stdout)
        assert (done.returncode, refused["code"]) == (1, "unsupported.architecture")
        assert "MODEL.BACKBONE.NAME = 'build_pocketnet_fpn_backbone'" in refused["message"]
        return
    assert done.returncode == 0, done.stdout + done.stderr
    description = json.loads((example / f"artifacts/one/{export_format}/model.json").read_text())
    (extension,) = description["source"]["extensions"]
    assert extension["module"] == "pocketnet"
    assert re.fullmatch("[0-9a-f]{64}", extension["sha256"])
    assert min(sample["detections"] for sample in description["verification"]["samples"][:2]) > 0


@pytest.mark.slow
def test_the_example_runs_from_its_manifest(example: Path) -> None:
    done = zooport(example, "submit", "zoo.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    with open_registry(str(example / "zooport.db"), create=False) as registry:
        rows = registry.exports(ExportFilter())
        jobs = [registry.export(row.id).job for row in rows]
    assert {row.format for row in rows} <= set(formats.names())
    assert [row.status for row in rows] == ["succeeded"] * len(rows)
    assert all(row.metrics["bbox/AP"].delta == 0 for row in rows)
    assert {job.checkpoint.imports for job in jobs} == {(str(example / "pocketnet"),)}
    again = zooport(example, "submit", "zoo.yaml", "--dry-run", "-o", "json")
    assert {row["action"] for row in json.loads(again.stdout)} == {"cached"}
    with (example / "pocketnet" / "backbone.py").open("a") as file:
        file.write("# changed\n")
    again = zooport(example, "submit", "zoo.yaml", "--dry-run", "-o", "json")
    assert {row["action"] for row in json.loads(again.stdout)} == {"run"}


@pytest.mark.slow
def test_a_rerun_may_name_the_extension_that_was_forgotten(example: Path, tmp_path: Path) -> None:
    manifest = (example / "zoo.yaml").read_text().replace("imports: [./pocketnet]\n", "")
    (example / "forgot.yaml").write_text(manifest)
    database = str(tmp_path / "forgot.db")
    done = zooport(
        example, "submit", "forgot.yaml", "--registry", database, "--output", str(tmp_path / "out")
    )
    assert "unsupported.architecture" in done.stdout
    options = ["--failed", "--include-unsupported", "--import", "./pocketnet", "--registry", database]
    again = zooport(example, "rerun", *options)
    assert again.returncode == 0, again.stdout + again.stderr


def test_the_code_in_the_documentation_runs(tmp_path: Path) -> None:
    page = (EXAMPLE.parents[1] / "docs" / "extensions.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", page, re.M | re.S)
    assert len(blocks) == 2
    build = (
        "config = load_config(Path(sys.argv[1]))\nprint(BACKBONES.get('build_my_backbone')(config).channels)"
    )
    imports = "import sys\nfrom pathlib import Path\nfrom zooport.export_core.config import load_config"
    config = write(tmp_path, "MODEL: {MY_BACKBONE: {WIDTH: 8}}", "config.yaml")
    command = [sys.executable, "-c", "\n".join([*blocks, imports, build]), str(config)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "{'c2': 8}", done.stderr


def test_an_unknown_import_is_a_usage_error(tmp_path: Path) -> None:
    arguments = ["--weights", "w.pth", "--format", formats.names()[0], "--output", "out"]
    done = zooport(tmp_path, "export", "--config-file", "c.yaml", *arguments, "--import", "no_such_extension")
    assert done.returncode == 2
    assert "extension.invalid: extension no_such_extension" in done.stderr
