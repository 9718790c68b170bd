"""A failed attempt is stored with a command that repeats it alone, and does."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zooport import cli
from zooport.export_core import demo, formats
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.failures import Failure
from zooport.export_core.sources import CheckpointSource, DatasetSource
from zooport.jobs import reproduce, single
from zooport.jobs.registry import open_registry
from zooport.jobs.single import Order
from zooport.jobs.values import ExportJob
from zooport.tests.registry_support import begin, fail, make_job, run_of, succeed

pytestmark = pytest.mark.alone

ODD = ExportJob(
    id="r-1.1",
    key="k",
    checkpoint=CheckpointSource(
        "team/it's odd",
        Path("/zoo/it's odd/config file.yaml"),
        Path("/zoo/weights (1).pth"),
        {
            "MODEL.MASK_ON": False,
            "MODEL.PIXEL_MEAN": [1.5, -2, 0],
            "SEED": -1,
            "MODEL.WEIGHTS": "",
            "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
            "DATASETS.TEST": ["a b"],
        },
        ("/ext/pocketnet",),
    ),
    format="torchscript-script",
    output=Path("/out/it's odd/torchscript-script"),
    log=Path("/log"),
    options={"batch": 2, "fast": True, "name": "1", "sizes": [1, 2], "none": None},
    dataset=DatasetSource(
        "val",
        Path("/data/val.json"),
        Path("/data/val images"),
        7,
        Path("/data/panoptic.json"),
        Path("/data/panoptic"),
        Path("/data/semantic"),
    ),
    baseline="b",
    tolerance={"AP": 0.25, "bbox/AP": 0},
    timeout=90.5,
    deadlines={"load": 10.0, "evaluate": 60.25},
    sample_image=Path("/data/one.jpg"),
)


def ordered(command: str, monkeypatch: pytest.MonkeyPatch) -> Order:
    """What the command line makes of a command."""
    orders: list[Order] = []

    def export_one(order: Order, _: object) -> int:
        orders.append(order)
        return 0

    monkeypatch.setattr(single, "export_one", export_one)
    words = shlex.split(command)
    assert words[:2] == ["zooport", "export"]
    assert cli.run(words[1:]) == 0
    return orders[0]


def test_the_command_says_everything_that_the_job_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(single, "locate", lambda name, _: name)
    monkeypatch.setattr(single, "fetch_weights", lambda targets, _: targets)
    monkeypatch.setattr(type(formats.get(ODD.format)), "check_options", lambda *_: None)
    order = ordered(reproduce.command(ODD, limit=3 << 29), monkeypatch)
    target = single._target(order)
    job = single._job(order, target)
    assert job.checkpoint.imports == ODD.checkpoint.imports
    assert job.reservation == 3 << 29
    for name in ("format", "options", "tolerance", "timeout", "deadlines", "sample_image"):
        assert getattr(job, name) == getattr(ODD, name)
    assert ODD.dataset is not None
    assert job.dataset == replace(ODD.dataset, name="val")
    for name in ("name", "config", "weights"):
        assert getattr(job.checkpoint, name) == getattr(ODD.checkpoint, name)
    assert job.checkpoint.overrides == {
        "MODEL.MASK_ON": "False",
        "MODEL.PIXEL_MEAN": "[1.5, -2, 0]",
        "SEED": "-1",
        "MODEL.WEIGHTS": "",
        "MODEL.BACKBONE.NAME": "build_resnet_fpn_backbone",
        "DATASETS.TEST": "['a b']",
    }
    assert job.output == tmp_path / "reproduced" / "team" / "it's odd" / "torchscript-script"


def test_a_plain_job_has_a_plain_command() -> None:
    plain = ExportJob(
        "r-1.1",
        "k",
        CheckpointSource("a", Path("/a/config.yaml"), Path("/a/a.pth")),
        "torchscript-trace",
        Path("/out/a/torchscript-trace"),
        Path("/log"),
    )
    assert reproduce.command(plain) == (
        "zooport export --name a --config-file /a/config.yaml --weights /a/a.pth --format torchscript-trace"
        " --output reproduced/a/torchscript-trace"
    )


def test_it_is_kept_with_failures_alone(tmp_path: Path) -> None:
    with open_registry(str(tmp_path / "r.db")) as registry:
        good, bad, refused, cancelled = begin(registry, ["good", "bad", "refused", "cancelled"])
        succeed(registry, good)
        fail(registry, bad)
        fail(registry, refused, "unsupported.architecture")
        registry.start_attempt(cancelled.id)
        registry.finish_run(run_of(good))
        assert registry.export(good.id).command is None
        assert registry.export(cancelled.id).command is None
        assert registry.export(bad.id).command == reproduce.command(bad)
        assert registry.export(refused.id).command == reproduce.command(refused)
        assert registry.export(bad.id).to_dict()["attempts"][0]["command"] == reproduce.command(bad)


def test_show_prints_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with open_registry(str(tmp_path / "r.db")) as registry:
        (job,) = begin(registry, ["bad"])
        fail(registry, job)
    assert cli.run(["show", "bad", "--registry", str(tmp_path / "r.db")]) == 0
    assert f"reproduce  {reproduce.command(job)}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"options": ["batch"]}, "--option takes NAME=VALUE, got 'batch'"),
        ({"tolerance": ["AP=-1"]}, "expected AP points"),
        ({"tolerance": ["AP=much"]}, "expected AP points"),
        ({"limit": 3}, "belong together"),
    ],
)
def test_what_cannot_be_read_is_refused(tmp_path: Path, arguments: dict[str, Any], said: str) -> None:
    job = make_job("r", 1, "a")
    order = Order(job.checkpoint.config, str(job.checkpoint.weights), job.format, tmp_path, **arguments)
    with pytest.raises(Failure, match=said):
        single._target(order)


@pytest.mark.slow
@pytest.mark.usefixtures("stay_joined")
def test_a_checkpoint_with_nan_fails_again_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOOPORT_REGISTRY", str(tmp_path / "r.db"))
    monkeypatch.chdir(tmp_path)
    source = demo.ZOO / "faster_rcnn_fpn"
    weights = dict(read_weights(source / "model_final.pkl").arrays)
    name = next(key for key, value in weights.items() if value.dtype == np.float32 and value.ndim == 4)
    weights[name] = np.full_like(weights[name], np.nan)
    write_weights(weights, tmp_path / "nan.safetensors")
    (tmp_path / "zoo.yaml").write_text(
        f"models:\n  - {{name: nan, config: {source / 'config.yaml'}, weights: nan.safetensors,"
        " overrides: {TEST.DETECTIONS_PER_IMAGE: 7}}\nformats: [torchscript-script]\n"
    )
    assert cli.run(["submit", "zoo.yaml", "--jobs", "1"]) == 1
    capsys.readouterr()
    assert cli.run(["show", "nan", "-o", "json"]) == 0
    failed = json.loads(capsys.readouterr().out)
    assert failed["code"] == "checkpoint.nonfinite"
    assert (
        cli.run([*shlex.split(failed["command"])[1:2], "-o", "json", *shlex.split(failed["command"])[2:]])
        == 1
    )
    again = json.loads(capsys.readouterr().out)
    assert (again["code"], again["message"]) == (failed["code"], failed["message"])


def write_weights(weights: dict[str, np.ndarray[Any, Any]], path: Path) -> None:
    from safetensors.numpy import save_file

    save_file({key: np.ascontiguousarray(value) for key, value in weights.items()}, path)
