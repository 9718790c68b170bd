"""The official zoo by name: what is in it, how names and patterns are read, and that each config merges."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from zooport.export_core import formats, zoo
from zooport.export_core.checkpoints.fetch import cache_path
from zooport.export_core.config import Config, load_config
from zooport.export_core.failures import Failure
from zooport.export_core.sources import CheckpointSource
from zooport.export_core.zoo.coverage import refusals
from zooport.jobs import official, tables
from zooport.jobs.fetching import fetch_weights
from zooport.jobs.manifest import load_manifest
from zooport.jobs.output import OutputFormat
from zooport.jobs.registry.records import Metric
from zooport.jobs.values import ExportTarget

ALL = sorted(zoo.catalog())


def test_the_whole_zoo_is_there() -> None:
    entries = zoo.catalog().values()
    assert sum(not entry.lazy for entry in entries) == 59
    assert sum(entry.lazy for entry in entries) == 15
    assert sum(entry.weights is not None for entry in entries) == 64
    files = {path.relative_to(zoo._HERE / "configs") for path in (zoo._HERE / "configs").rglob("*.yaml")}
    assert {path.with_suffix("").as_posix() for path in files} == set(ALL)


@pytest.mark.parametrize("name", ALL)
def test_config_merges_and_agrees_with_the_catalog(name: str) -> None:
    entry = zoo.find(name)
    config = load_config(entry.config)
    assert config.unknown == ()
    assert (entry.weights or "") == config.MODEL.WEIGHTS
    by_architecture = {
        "PanopticFPN": "panoptic-segmentation",
        "SemanticSegmentor": "semantic-segmentation",
        "ProposalNetwork": "proposals",
    }
    by_head = "keypoints" if config.MODEL.KEYPOINT_ON else "detection"
    by_head = "instance-segmentation" if config.MODEL.MASK_ON else by_head
    assert entry.task == by_architecture.get(config.MODEL.META_ARCHITECTURE, by_head)


def test_weights_are_named_by_their_md5_and_have_a_place_of_their_own() -> None:
    weights = [entry.weights for entry in zoo.catalog().values() if entry.weights]
    assert all(re.search(r"/model_(final|\d{7})_[0-9a-f]{6}\.pkl$", address) for address in weights)
    assert len({cache_path(address) for address in weights}) == len(weights)


def test_a_known_model_merges_to_known_values() -> None:
    config = load_config(zoo.find("Misc/cascade_mask_rcnn_X_152_32x8d_FPN_IN5k_gn_dconv").config)
    assert config.MODEL.RESNETS.DEPTH == 152
    assert list(config.MODEL.RESNETS.DEFORM_ON_PER_STAGE) == [False, True, True, True]
    assert config.MODEL.ROI_HEADS.NAME == "CascadeROIHeads"
    assert zoo.find("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x").published == {
        "bbox/AP": 41.0,
        "segm/AP": 37.2,
    }


def test_names_are_read_with_and_without_suffix() -> None:
    plain = zoo.find("COCO-Detection/faster_rcnn_R_50_FPN_3x")
    assert zoo.find("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml") == plain
    assert zoo.expand("COCO-Detection/faster_rcnn_R_50_FPN_3x.yaml") == [plain]


def test_patterns_match_what_has_weights() -> None:
    names = [entry.name for entry in zoo.expand("COCO-Detection/*_3x")]
    assert names == sorted(names)
    assert len(names) == 9
    assert all(name.startswith("COCO-Detection/") and name.endswith("_3x") for name in names)
    assert len(zoo.expand("*")) == 64
    assert [entry.weights for entry in zoo.expand("Misc/semantic_R_50_FPN_1x")] == [None]


@pytest.mark.parametrize("ask", [zoo.find, zoo.expand])
def test_an_unknown_name_suggests_the_nearest(ask: object) -> None:
    with pytest.raises(Failure) as caught:
        ask("COCO-Detection/faster_rcnn_R50_FPN_3x")  # type: ignore[operator]
    assert caught.value.code == "config.invalid"
    assert "COCO-Detection/faster_rcnn_R_50_FPN_3x" in caught.value.hint


def write_manifest(folder: Path, models: str) -> Path:
    path = folder / "zoo.yaml"
    path.write_text(f"models:\n{models}\nformats: [torchscript-trace]\n", encoding="utf-8")
    return path


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ZOOPORT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ZOOPORT_DETECTRON2_URL", "http://127.0.0.1:1/")
    monkeypatch.setattr("zooport.export_core.checkpoints.remote.FIRST_PAUSE", 0.0)
    return tmp_path / "cache"


def test_a_manifest_takes_models_by_pattern(tmp_path: Path, cache: Path) -> None:
    path = write_manifest(tmp_path, '  - {zoo: "COCO-Detection/retinanet_*_3x", prefix: official/}')
    manifest = load_manifest(path)
    assert [target.checkpoint.name for target in manifest.targets] == [
        "official/COCO-Detection/retinanet_R_101_FPN_3x",
        "official/COCO-Detection/retinanet_R_50_FPN_3x",
    ]
    entry = zoo.find("COCO-Detection/retinanet_R_101_FPN_3x")
    assert manifest.targets[0].checkpoint.config == entry.config
    assert manifest.targets[0].checkpoint.weights.is_relative_to(cache)
    assert manifest.addresses[manifest.targets[0].checkpoint.weights] == entry.weights


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("zoo: COCO-Detection/retinanet_R50_FPN_3x", "retinanet_R_50_FPN_3x"),
        ("zoo: Misc/semantic_R_50_FPN_1x", "never released"),
        ("name: a, config: c.yaml, weights: ftp://host/x.pth", "unknown scheme"),
        ('name: a, config: c.yaml, weights: "https://me:secret@[bad/x.pth"', "https://...: Invalid IPv6"),
    ],
)
def test_a_manifest_that_asks_for_what_is_not_there_is_told_where(
    tmp_path: Path, entry: str, complaint: str
) -> None:
    with pytest.raises(Failure) as caught:
        load_manifest(write_manifest(tmp_path, f"  - {{{entry}}}"))
    assert caught.value.code == "manifest.invalid"
    assert "line 2" in caught.value.message
    assert complaint in str(caught.value)


def test_weights_that_cannot_be_fetched_fail_their_own_exports_only(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "here.pth").write_bytes(b"weights")
    models = f"""\
  - {{name: local, config: c.yaml, weights: here.pth}}
  - {{name: by_address, config: c.yaml, weights: "{(tmp_path / "here.pth").as_uri()}"}}
  - {{zoo: COCO-Detection/rpn_R_50_C4_1x}}"""
    manifest = load_manifest(write_manifest(tmp_path, models))
    local, by_address, official = fetch_weights(manifest.targets, manifest.addresses, base=0.01)
    assert local.refusal is None
    assert by_address.refusal is None
    assert by_address.checkpoint.weights == tmp_path / "here.pth"
    assert official.refusal is not None
    assert official.refusal.code == "fetch.failed"
    assert official.refusal.retryable
    assert str(official.checkpoint.weights) in official.refusal.hint


@pytest.mark.parametrize(("refused", "retries", "calls"), [(False, 2, 3), (False, 0, 1), (True, 2, 1)])
def test_a_server_that_is_away_is_asked_again_and_one_that_says_no_is_not(
    tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str], refused: bool, retries: int, calls: int
) -> None:
    models = "  - {zoo: COCO-Detection/rpn_R_50_C4_1x}"
    manifest = load_manifest(write_manifest(tmp_path, models))
    targets = [replace(target, retries=retries) for target in manifest.targets]
    asked: list[str] = []

    def fetch(url: str, **options: object) -> Path:
        asked.append(url)
        raise Failure("fetch.failed", "no answer", details={"refused": refused})

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zooport.jobs.fetching.fetch", fetch)
        (target,) = fetch_weights(targets, base=0.01)
    assert len(asked) == calls
    assert target.refusal is not None
    assert capsys.readouterr().err.count("no answer; retrying in 0 s") == calls - 1


def test_what_comes_at_the_second_try_is_no_failure(tmp_path: Path, cache: Path) -> None:
    models = "  - {zoo: COCO-Detection/rpn_R_50_C4_1x}\n  - {zoo: COCO-Detection/rpn_R_50_FPN_1x}"
    manifest = load_manifest(write_manifest(tmp_path, models))
    asked: list[str] = []

    def fetch(url: str, **options: object) -> Path:
        asked.append(url)
        if len(asked) < 3:
            raise Failure("fetch.failed", "no answer")
        return tmp_path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zooport.jobs.fetching.fetch", fetch)
        targets = fetch_weights(manifest.targets, base=0.01)
    assert [target.refusal for target in targets] == [None, None]
    assert len(asked) == 4


def test_a_later_run_fetches_without_the_manifest(tmp_path: Path, cache: Path) -> None:
    mirror = tmp_path / "mirror"
    manifest = load_manifest(write_manifest(tmp_path, "  - {zoo: COCO-Detection/rpn_R_50_C4_1x}"))
    asked: list[str] = []

    def fetch(url: str, **options: object) -> Path:
        asked.append(url)
        return mirror

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("zooport.jobs.fetching.fetch", fetch)
        (target,) = fetch_weights(manifest.targets)
    assert asked == [zoo.find("COCO-Detection/rpn_R_50_C4_1x").weights]
    assert target.refusal is None


def test_weights_placed_by_hand_are_those_of_their_name(tmp_path: Path, cache: Path) -> None:
    manifest = load_manifest(write_manifest(tmp_path, "  - {zoo: COCO-Detection/rpn_R_50_C4_1x}"))
    place = manifest.targets[0].checkpoint.weights
    place.parent.mkdir(parents=True)
    place.write_bytes(b"other weights")
    (target,) = fetch_weights(manifest.targets, manifest.addresses)
    assert target.refusal is not None
    assert target.refusal.code == "checkpoint.corrupt"
    assert target.refusal.stage == "load"
    assert f"remove {place}" in target.refusal.hint


def test_weights_named_by_their_md5_are_read_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("zooport.jobs.digests._FRESH", -1.0)  # so recent a file is not remembered
    place = cache_path(f"detectron2://Misc/model_final_{hashlib.md5(b'weights').hexdigest()[:6]}.pkl")
    place.parent.mkdir(parents=True)
    place.write_bytes(b"weights")
    read: list[Path] = []

    def is_as_named(path: Path, name: str) -> bool:
        read.append(path)
        return path.read_bytes() == b"weights"

    monkeypatch.setattr("zooport.export_core.checkpoints.fetch._is_as_named", is_as_named)
    targets = [ExportTarget(CheckpointSource("m", tmp_path / "c.yaml", place), "onnx")]
    for _ in range(3):
        assert fetch_weights(targets)[0].refusal is None
    assert read == [place]
    place.write_bytes(b"changed")
    assert fetch_weights(targets)[0].refusal is not None
    assert read == [place, place]


def test_what_converts_is_asked_of_the_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = zoo.find("COCO-Detection/faster_rcnn_R_50_FPN_1x")
    assert refusals(entry) == dict.fromkeys(formats.names())

    def refuse(self: object, config: Config, options: object) -> None:
        raise Failure("unsupported.combination", f"no {config.MODEL.META_ARCHITECTURE} here")

    first = formats.names()[0]
    monkeypatch.setattr(type(formats.get(first)), "requires", refuse)
    answers = refusals(entry)
    refusal = answers.pop(first)
    assert refusal is not None
    assert (refusal.code, refusal.message) == ("unsupported.combination", "no GeneralizedRCNN here")
    assert set(answers.values()) == {None}


@pytest.mark.slow
def test_a_refusal_of_the_official_zoo_is_typed() -> None:
    codes = {
        failure.code
        for entry in zoo.catalog().values()
        for failure in refusals(entry).values()
        if failure is not None
    }
    assert all(code.startswith("unsupported.") for code in codes)


def test_a_model_that_cannot_be_built_says_why_for_every_format(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "strange.yaml"
    config.write_text("MODEL: {META_ARCHITECTURE: Strange}\n", encoding="utf-8")
    monkeypatch.setattr(zoo.CatalogEntry, "config", config)
    answers = refusals(zoo.CatalogEntry("strange", "detection", None, {}, lazy=False))
    assert set(answers) == set(formats.names())
    for failure in answers.values():
        assert failure is not None
        assert failure.code == "unsupported.architecture"
        assert "Strange" in failure.message


def test_listing_is_valid_in_every_output(capsys: pytest.CaptureFixture[str]) -> None:
    official.print_catalog("proposals", check_formats=False, output=OutputFormat.JSON)
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == [
        "COCO-Detection/rpn_R_50_C4_1x",
        "COCO-Detection/rpn_R_50_FPN_1x",
    ]
    assert rows[0]["published"] == {"box_proposals/AR@1000": 51.6}
    official.print_catalog(None, check_formats=False, output=OutputFormat.CSV)
    lines = list(csv.DictReader(capsys.readouterr().out.splitlines()))
    assert len(lines) == len(ALL)
    assert {line["task"] for line in lines} == set(zoo.tasks())
    official.print_catalog("keypoints", check_formats=True, output=OutputFormat.TABLE)
    table = capsys.readouterr().out
    assert "COCO-Keypoints/keypoint_rcnn_R_50_FPN_3x" in table
    assert "keypoints/AP 65.5" in table


def test_an_unknown_task_lists_the_known_ones() -> None:
    with pytest.raises(Failure) as caught:
        official.print_catalog("boxes", check_formats=False, output=OutputFormat.TABLE)
    assert caught.value.code == "config.invalid"
    assert "instance-segmentation" in caught.value.hint


def test_one_model_is_shown_with_its_merged_config(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    official.print_model("Misc/cascade_mask_rcnn_R_50_FPN_1x", OutputFormat.JSON)
    shown = json.loads(capsys.readouterr().out)
    assert shown["merged_config"]["MODEL"]["ROI_HEADS"]["NAME"] == "CascadeROIHeads"
    assert shown["merged_config"]["MODEL"]["RPN"]["NMS_THRESH"] == 0.7
    assert Path(shown["cache"]).is_relative_to(cache)
    assert not shown["cached"]
    official.print_model("Misc/cascade_mask_rcnn_R_50_FPN_1x", OutputFormat.TABLE)
    page = capsys.readouterr().out
    assert "NAME: CascadeROIHeads" in page
    assert "not here yet" in page


def test_released_weights_are_known_by_their_file_name() -> None:
    entry = zoo.find("COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x")
    assert zoo.released_as(Path("/anywhere/model_final_f10217.pkl")) == entry
    assert zoo.released_as(Path("/anywhere/model_final.pkl")) is None
    released = [other for other in zoo.catalog().values() if other.weights]
    assert all(zoo.released_as(Path(other.weights or "")) == other for other in released)


def test_published_metrics_stand_beside_the_measured_ones() -> None:
    measured = {"bbox/AP": Metric(41.02, 41.01, -0.01), "bbox/AP50": Metric(61.7, 61.7, 0.0)}
    screen = Console(width=80, file=io.StringIO(), record=True)
    screen.print(tables.metric_table(measured, {"bbox/AP": 41.0}))
    lines = [line.split() for line in screen.export_text().splitlines()]
    assert lines[0] == ["metric", "eager", "exported", "delta", "published"]
    assert lines[1] == ["bbox/AP", "41.02", "41.01", "-0.01", "41.00"]
    assert lines[2] == ["bbox/AP50", "61.70", "61.70", "+0.00"]
