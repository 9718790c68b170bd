"""zooport predict: results against detectron2's own metrics, what goes wrong with artifacts and images."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as mask_util
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from zooport.cli import run
from zooport.export_core import demo, formats, pipeline
from zooport.export_core.evaluation.findings import coco_result, find
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.formats import onnx_export
from zooport.export_core.prediction import ImageJob, Selection, predict_stage
from zooport.export_core.sources import DatasetSource
from zooport.export_core.vocabulary import Vocabulary
from zooport.jobs import prediction
from zooport.jobs.manifest import load_manifest
from zooport.jobs.prediction import find_artifact, find_images, plan_pictures
from zooport.jobs.registry import open_registry
from zooport.jobs.values import ArtifactRecord, ExportResult
from zooport.tests.registry_support import TRACE, begin, fail, succeed

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning")

VAL = demo.ZOO / "data" / "val"
ANNOTATIONS = demo.ZOO / "data" / "annotations"
PICTURE = VAL / "000000100026.png"
OTHER = VAL / "000000100017.jpg"
TIMEOUT = 120.0
EVERYTHING = Selection(0.0, 0.5)

Rows = list[dict[str, Any]]
Make = Callable[..., Path]


def ignore(stage: Stage) -> None:
    """Nobody asks which stage begins."""


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    """From a demo model, a format and its options to a published artifact, made once."""
    made: dict[str, Path] = {}
    targets = {target.checkpoint.name: target for target in load_manifest(demo.MANIFEST).targets}

    def export(model: str, form: str = "onnx", named: bool = True, **options: Any) -> Path:
        key = f"{model} {form} {named} {options}"
        if key not in made:
            target = targets[model]
            assert target.dataset is not None
            dataset = replace(target.dataset, limit=3) if named else None
            made[key] = tmp_path_factory.mktemp("artifact")
            sample = None if named else PICTURE
            pipeline.export_stage(target.checkpoint, form, options, dataset, sample, made[key], ignore)
            shutil.rmtree(made[key] / pipeline.HANDOVER)
        return made[key]

    return export


def predict(
    directory: Path, images: list[Path], selection: Selection, folder: Path, drawn: bool = False
) -> tuple[Rows, list[dict[str, Any]], list[str]]:
    """Predict in this process; return the rows, the failures, and the remarks."""
    folder.mkdir(exist_ok=True)
    pictures = [folder / f"{path.stem}.png" if drawn else None for path in images]
    jobs = [ImageJob(str(path), path, picture) for path, picture in zip(images, pictures, strict=True)]
    notes = predict_stage(directory, jobs, selection, folder / "results", ignore)
    lines = [json.loads(line) for line in (folder / "results").read_text().splitlines()]
    rows = [row for line in lines for row in line.get("rows", ())]
    return rows, [line["failure"] for line in lines if "failure" in line], notes


def measured(annotations: str, rows: Rows, kind: str) -> float:
    """AP in points, as pycocotools counts results that it has read itself."""
    truth = COCO(ANNOTATIONS / f"{annotations}_val.json")
    evaluation = COCOeval(truth, truth.loadRes(rows), kind)
    if kind == "keypoints":
        evaluation.params.kpt_oks_sigmas = np.full(5, 0.06)  # as the config has them
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return 100.0 * float(evaluation.stats[0])


def test_coco_results_have_the_ap_that_detectron2_measured(
    make: Make, detectron2_metrics: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    images = find_images([str(VAL)])
    assert len(images) == 100

    rows, failures, notes = predict(make("mask_rcnn_fpn"), images, EVERYTHING, tmp_path)

    assert failures == []
    assert notes == []
    assert {row["category_id"] for row in rows} == {1, 3, 7, 18, 44}
    expected = detectron2_metrics["mask_rcnn_fpn"]
    assert measured("instances", rows, "bbox") == pytest.approx(expected["bbox/AP"], abs=0.05)
    assert measured("instances", rows, "segm") == pytest.approx(expected["segm/AP"], abs=0.3)


@pytest.mark.parametrize(
    ("model", "form", "options"),
    [
        ("mask_rcnn_fpn", "onnx", {"postprocess": True}),
        ("mask_rcnn_fpn", "onnx", {"batch": "dynamic"}),
        ("mask_rcnn_fpn", "torchscript-trace", {"batch": 2}),
        ("mask_rcnn_fpn", "torchscript-script", {}),
        ("panoptic_fpn", "onnx", {"postprocess": True}),
    ],
)
def test_options_and_formats_change_the_call_and_not_the_results(
    model: str, form: str, options: dict[str, Any], make: Make, tmp_path: Path
) -> None:
    found = [
        predict(directory, [PICTURE, OTHER], EVERYTHING, tmp_path / name)[0]
        for name, directory in (("plain", make(model)), ("other", make(model, form, **options)))
    ]

    assert len(found[0]) == len(found[1]) > 8
    for one, other in zip(*found, strict=True):
        assert one["category"] == other["category"]
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.02)
        assert one.get("score") == pytest.approx(other.get("score"), abs=1e-3)
        overlap = mask_util.iou([one["segmentation"]], [other["segmentation"]], [0])
        assert overlap.item() > 0.98


def test_a_panoptic_model_gives_segments_that_share_no_pixel(make: Make, tmp_path: Path) -> None:
    rows, _, _ = predict(make("panoptic_fpn"), [OTHER], EVERYTHING, tmp_path)

    masks = [mask_util.decode(row["segmentation"]).astype(int) for row in rows]
    assert sum(masks).max() == 1
    kinds = {row["kind"] for row in rows}
    assert kinds == {"thing", "stuff"}
    named = {row["category_id"]: row["category"] for row in rows}
    truth = json.loads((ANNOTATIONS / "panoptic_val.json").read_text())
    assert named.items() <= {entry["id"]: entry["name"] for entry in truth["categories"]}.items()
    assert all(("score" in row) == (row["kind"] == "thing") for row in rows)


def test_semantic_labels_cover_the_image_once(make: Make, tmp_path: Path) -> None:
    artifact = shutil.copytree(make("panoptic_fpn"), tmp_path / "artifact")
    about = json.loads((artifact / "model.json").read_text())
    about["panoptic"] = None  # as in the description of a model that merges nothing
    (artifact / "model.json").write_text(json.dumps(about))

    rows, _, _ = predict(artifact, [OTHER], EVERYTHING, tmp_path)

    labels = [row for row in rows if row["kind"] == "label"]
    assert sum(mask_util.area(row["segmentation"]) for row in labels) == np.prod(Image.open(OTHER).size)
    assert {row["category"] for row in labels} <= {"things", "stripes", "noise", "checker"}


def test_keypoints_are_those_of_coco_results_with_a_skeleton(
    make: Make, detectron2_metrics: dict[str, dict[str, float]], tmp_path: Path
) -> None:
    artifact = make("keypoint_rcnn_fpn")

    rows, _, _ = predict(artifact, find_images([str(VAL)]), EVERYTHING, tmp_path)

    expected = detectron2_metrics["keypoint_rcnn_fpn"]
    assert {row["category_id"] for row in rows} == {3}
    assert measured("keypoints", rows, "keypoints") == pytest.approx(expected["keypoints/AP"], abs=0.05)
    about = json.loads((artifact / "model.json").read_text())
    assert about["keypoints"]["names"] == ["tl", "tr", "br", "bl", "centre"]
    assert about["keypoints"]["skeleton"] == [[0, 1], [1, 2], [2, 3], [3, 0], [0, 4]]


def test_thresholds_and_limits(make: Make, tmp_path: Path) -> None:
    scores = {}
    for name, selection in {
        "all": EVERYTHING,
        "half": Selection(0.5),
        "best": Selection(0.0, 0.5, 2),
    }.items():
        rows, _, _ = predict(make("mask_rcnn_fpn"), [PICTURE], selection, tmp_path / name)
        scores[name] = [row["score"] for row in rows]

    assert scores["all"] == sorted(scores["all"], reverse=True)
    assert scores["half"] == [score for score in scores["all"] if score >= 0.5]
    assert 0 < len(scores["half"]) < len(scores["all"])
    assert scores["best"] == scores["all"][:2]


def test_a_picture_shows_what_was_found(make: Make, tmp_path: Path) -> None:
    predict(make("mask_rcnn_fpn"), [PICTURE], Selection(0.5), tmp_path, drawn=True)

    with Image.open(tmp_path / PICTURE.name) as drawn, Image.open(PICTURE) as original:
        factor = drawn.width // original.width
        assert drawn.size == (original.width * factor, original.height * factor)
        plain = original.convert("RGB").resize(drawn.size, Image.Resampling.BICUBIC)
        changed = (np.asarray(drawn).astype(int) != np.asarray(plain)).any(2)
    assert changed[85 * factor : 129 * factor, 45 * factor : 92 * factor].mean() > 0.8  # the blue square
    assert changed[60 * factor : 80 * factor, : 40 * factor].mean() == 0  # nothing is found there


def test_an_image_that_cannot_be_read_is_named_and_the_others_are_predicted(
    make: Make, tmp_path: Path
) -> None:
    broken, missing = tmp_path / "broken.jpg", tmp_path / "missing.jpg"
    broken.write_bytes(OTHER.read_bytes()[:500])

    rows, failures, _ = predict(make("mask_rcnn_fpn"), [broken, PICTURE, missing], EVERYTHING, tmp_path)

    assert {row["file_name"] for row in rows} == {str(PICTURE)}
    assert [failure["code"] for failure in failures] == ["dataset.invalid"] * 2
    assert str(broken) in failures[0]["message"]
    assert str(missing) in failures[1]["message"]


def test_without_a_dataset_classes_are_numbered_and_it_is_said(make: Make, tmp_path: Path) -> None:
    rows, _, notes = predict(make("mask_rcnn_fpn", named=False), [PICTURE], EVERYTHING, tmp_path)

    assert rows
    assert {row["category_id"] for row in rows} <= set(range(5))
    assert {row["category"] for row in rows} <= set("01234")
    assert "class numbers" in notes[0]


def test_instances_of_a_panoptic_model_have_numbers_where_the_dataset_has_labels_alone(
    tmp_path: Path,
) -> None:
    target = next(
        each for each in load_manifest(demo.MANIFEST).targets if each.checkpoint.name == "panoptic_fpn"
    )
    labels = DatasetSource("stuff", demo.ZOO / "data" / "stuff_val", VAL, limit=3, kind="semantic")
    artifact = tmp_path / "artifact"
    artifact.mkdir()

    pipeline.export_stage(target.checkpoint, "onnx", {}, labels, None, artifact, ignore)
    metrics = pipeline.verify_stage(artifact, labels, ignore)
    rows, failures, notes = predict(artifact, [PICTURE], EVERYTHING, tmp_path)

    assert metrics["sem_seg/mIoU"] > 50
    assert not failures
    things = {row["category"] for row in rows if row["kind"] == "thing"}
    assert things
    assert things <= set("01234")
    assert "class numbers" in notes[0]


def alter(artifact: Path) -> None:
    """Change one byte of the weights."""
    with (artifact / "model.onnx").open("r+b") as file:
        file.seek(-5000, 2)
        byte = file.read(1)[0]
        file.seek(-5000, 2)
        file.write(bytes([byte ^ 1]))


def rewrite(key: str, value: Any) -> Callable[[Path], None]:
    """Change an entry of model.json."""

    def spoil(artifact: Path) -> None:
        about = json.loads((artifact / "model.json").read_text()) | {key: value}
        (artifact / "model.json").write_text(json.dumps(about))

    return spoil


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (alter, "artifact.altered", "model.onnx"),
        (lambda artifact: (artifact / "model.onnx").unlink(), "artifact.missing", "model.onnx"),
        (lambda artifact: (artifact / "model.json").unlink(), "artifact.foreign", "model.json"),
        (lambda artifact: (artifact / "model.json").write_text("{"), "artifact.foreign", "not JSON"),
        (lambda artifact: (artifact / "model.json").write_text("{}"), "artifact.foreign", "name"),
        (shutil.rmtree, "artifact.missing", "no such directory"),
        (rewrite("format", "caffe"), "artifact.foreign", "caffe"),
        (rewrite("schema_version", 2), "artifact.foreign", "schema 2"),
    ],
)
def test_spoiled_artifacts(
    spoil: Callable[[Path], object], code: str, said: str, make: Make, tmp_path: Path
) -> None:
    artifact = shutil.copytree(make("mask_rcnn_fpn"), tmp_path / "artifact")
    spoil(artifact)

    with pytest.raises(Failure, match=said) as raised:
        predict(artifact, [PICTURE], EVERYTHING, tmp_path)

    assert raised.value.code == code


def test_images_in_a_channel_order_that_is_not_read_are_not_predicted(make: Make, tmp_path: Path) -> None:
    artifact = shutil.copytree(make("mask_rcnn_fpn"), tmp_path / "artifact")
    steps = json.loads((artifact / "model.json").read_text())["preprocessing"]
    rewrite("preprocessing", steps | {"channel_order": "YUV-BT.601"})(artifact)

    rows, failures, _ = predict(artifact, [PICTURE], EVERYTHING, tmp_path)

    assert not rows
    assert [failure["code"] for failure in failures] == ["unsupported.architecture"]


def test_an_artifact_whose_package_is_not_installed(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Elsewhere(onnx_export.Onnx):
        info = replace(onnx_export.Onnx.info, requires_extra="onnx")

        def load(self, *_: Any) -> Any:
            raise ModuleNotFoundError("No module named 'onnxruntime'", name="onnxruntime")

    monkeypatch.setattr(formats, "get", lambda name: Elsewhere())

    with pytest.raises(Failure) as raised:
        predict(make("mask_rcnn_fpn"), [PICTURE], EVERYTHING, tmp_path)

    assert raised.value.code == "dependency.missing"
    assert "onnxruntime" in raised.value.message
    assert raised.value.hint == "pip install 'zooport[onnx]'"


def test_the_command_prints_coco_results_and_says_where_it_drew(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "drawn"
    command = ["predict", str(make("mask_rcnn_fpn") / "model.onnx"), str(PICTURE), str(tmp_path / "none.png")]

    code = run([*command, "-o", "json", "--out", str(out), "--timeout", "100"])

    said = capsys.readouterr()
    rows = json.loads(said.out)
    assert code == 1
    assert {row["image_id"] for row in rows} == {100026}
    assert min(row["score"] for row in rows) < 0.5
    assert f"drawn: {out / PICTURE.name}" in said.err
    assert (out / PICTURE.name).is_file()
    assert "dataset.invalid: cannot read image" in said.err


def test_the_command_prints_a_table(
    make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    code = run(["predict", str(make("mask_rcnn_fpn")), str(PICTURE), "--limit", "1"])

    lines = capsys.readouterr().out.splitlines()
    assert code == 0
    assert lines[0].split() == ["image", "class", "score", "x1", "y1", "x2", "y2"]
    assert lines[1].split() == [str(PICTURE), "circle", "0.82", "45", "85", "92", "129"]
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{artifact}"], "IMAGE"),
        (["{artifact}", "{empty}"], "holds no image"),
        (["{artifact}", "{empty}/*.jpg"], "no file matches"),
        (["{artifact}", str(PICTURE), "--score-threshold", "2"], "score-threshold"),
        (["{empty}/artifact", str(PICTURE)], "artifact.missing"),
        (["{empty}", str(PICTURE)], "artifact.foreign"),
    ],
)
def test_wrong_usage(
    arguments: list[str], said: str, make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [one.format(artifact=make("mask_rcnn_fpn"), empty=tmp_path) for one in arguments]

    code = run(["predict", *given, "--registry", str(tmp_path / "none.db")])

    assert code == 2
    assert said in capsys.readouterr().err


def test_a_process_that_dies_leaves_what_was_done_and_names_the_image(
    make: Make, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(prediction, "_STAGE", f"{__name__}:predict_one_and_die")

    code = run(["predict", str(make("mask_rcnn_fpn")), str(PICTURE), str(OTHER), "-o", "json"])

    said = capsys.readouterr()
    assert code == 1
    assert {row["image_id"] for row in json.loads(said.out)} == {100026}
    assert "worker.crashed" in said.err
    assert f"at image {OTHER}" in said.err


def predict_one_and_die(*arguments: Any, report: Any) -> None:
    """Predict the first image and die at the second, as a runtime does that crashes."""
    import os

    _, directory, jobs, selection, results = arguments
    predict_stage(directory, jobs[:1], selection, results, report)
    with results.open("a") as file:
        file.write('{"begins": 1}\n')
    os.abort()


def test_an_export_of_the_registry_is_found_by_its_name(make: Make, tmp_path: Path) -> None:
    url = str(tmp_path / "zooport.db")
    artifact = make("mask_rcnn_fpn")
    with open_registry(url) as registry:
        made, failed, gone = begin(registry, ["made", "failed", "gone"])
        registry.start_attempt(made.id, "worker", made.log)
        record = ArtifactRecord(artifact, "model.onnx", "ab" * 32, 1, {"model.onnx": "ab" * 32})
        registry.finish_attempt(made.id, ExportResult(made.id, 1.0, artifact=record), {})
        fail(registry, failed)
        succeed(registry, gone)

    assert find_artifact(f"made/{TRACE}", url) == artifact
    assert find_artifact(made.id, url) == artifact
    for name, said in (("failed", "export.failed"), ("gone", "not at /out/gone"), ("none", "neither")):
        with pytest.raises(Failure, match=said) as raised:
            find_artifact(name, url)
        assert raised.value.code == "artifact.missing"


def test_proposals_are_of_one_category_with_scores_from_0_to_1() -> None:
    outputs = {
        "proposal_boxes": np.array([[0, 0, 10, 10], [5, 5, 30, 25], [8, 8, 8, 20]], dtype=np.float32),
        "objectness_logits": np.array([-1, 3, 2], dtype=np.float32),
    }

    found = find(outputs, "x", (50, 100), (100, 200), Vocabulary())

    rows = [coco_result(one, "a/000000000007.jpg", (100, 200)) for one in found]
    assert [row["bbox"] for row in rows] == [[10, 10, 50, 40], [0, 0, 20, 20]]  # without the empty one
    assert [row["score"] for row in rows] == pytest.approx([0.952574, 0.268941], abs=1e-6)
    assert {(row["category_id"], row["image_id"], row["kind"]) for row in rows} == {(1, 7, "proposal")}


def test_images_are_files_folders_and_patterns_each_once(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("a.JPG", "b/c.png", "b/notes.txt", ".hidden.png", "list[1].png"):
        (tmp_path / name).touch()

    found = find_images([str(tmp_path), str(tmp_path / "**" / "*.png"), str(tmp_path / "b" / "c.png")])
    literal = find_images([str(tmp_path / "list[1].png")])

    assert [path.relative_to(tmp_path).as_posix() for path in found] == ["a.JPG", "b/c.png", "list[1].png"]
    assert literal == [tmp_path / "list[1].png"]


def test_pictures_of_equal_names_do_not_meet_and_images_are_never_replaced(tmp_path: Path) -> None:
    images = [tmp_path / "one" / "x.jpg", tmp_path / "two" / "x.png"]

    jobs = plan_pictures(images, tmp_path / "out")

    assert [job.picture for job in jobs] == [tmp_path / "out" / "x.png", tmp_path / "out" / "x-2.png"]
    with pytest.raises(Failure, match="is one of the images"):
        plan_pictures(images[1:], tmp_path / "two")
