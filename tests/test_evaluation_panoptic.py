"""Dense tasks: the merge equals detectron2's, panoptic quality and semantic IoU their definitions."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import evaluate, load_dataset
from zooport.export_core.evaluation.panoptic_metrics import PanopticQuality, match_segments
from zooport.export_core.evaluation.panoptic_truth import TrueSegment, load_panoptic
from zooport.export_core.evaluation.postprocess import PastedMask
from zooport.export_core.evaluation.segmentation import merge_panoptic, semantic_labels
from zooport.export_core.failures import Failure
from zooport.export_core.sources import DatasetSource
from zooport.tests.evaluation_support import DATA, make_config, write_dataset
from zooport.tests.panoptic_support import STUFF, THINGS, Segments, panoptic_images

THINGS_AND_STUFF = {
    "MODEL__META_ARCHITECTURE": "PanopticFPN",
    "MODEL__MASK_ON": True,
    "MODEL__SEM_SEG_HEAD__NUM_CLASSES": 3,
    "MODEL__PANOPTIC_FPN__COMBINE__STUFF_AREA_LIMIT": 10,
    "INPUT__MIN_SIZE_TEST": 0,
}


@pytest.mark.parametrize("index", range(3))
def test_merge_equals_that_of_detectron2(index: int) -> None:
    with np.load(DATA / "panoptic_fpn.npz") as reference:
        data = {key.split("/")[1]: reference[key] for key in reference if key.startswith(f"{index}/")}
    labels = data["sem_seg"].astype(np.int32)
    count = len(data["scores"])
    masks = np.unpackbits(data["pred_masks"], count=count * labels.size).reshape(count, *labels.shape)

    panoptic, segments = merge_panoptic(
        data["scores"],
        data["pred_classes"],
        [PastedMask(mask.astype(bool), 0, 0) for mask in masks],
        labels,
        overlap=0.5,
        stuff_area=256,
        confidence=0.5,
    )

    np.testing.assert_array_equal(panoptic, data["panoptic_seg"])
    expected = json.loads(str(data["panoptic_info"]))
    assert [(s.id, s.is_thing, s.label) for s in segments] == [
        (info["id"], info["isthing"], info["category_id"]) for info in expected
    ]


def test_labels_equal_those_of_torch() -> None:
    torch = pytest.importorskip("torch")
    generator = np.random.default_rng(2)
    logits = generator.standard_normal((5, 24, 33)).astype(np.float32)

    labels = semantic_labels(logits, (20, 30), (47, 61))

    resized = torch.nn.functional.interpolate(
        torch.from_numpy(logits[None, :, :20, :30]), size=(47, 61), mode="bilinear", align_corners=False
    )
    np.testing.assert_array_equal(labels, resized[0].argmax(0).numpy())


def test_label_maps_made_from_panoptic_annotations_equal_the_given_ones(demo_zoo: Path) -> None:
    data = demo_zoo / "data"
    truth = load_panoptic(data / "annotations" / "panoptic_val.json", data / "panoptic_val")
    assert [category.name for category in truth.stuff] == ["stripes", "noise", "checker"]
    merged = {category.id: 0 for category in truth.things} | {92: 1, 93: 2, 100: 3}

    for image_id, entry in list(truth.images.items())[:10]:
        expected = np.asarray(Image.open(data / "stuff_val" / entry.path.name))
        np.testing.assert_array_equal(truth.label_map(image_id, merged, expected.shape), expected)


def ids(*rows: str) -> Any:
    return np.array([[int(character) for character in row] for row in rows], dtype=np.int32)


def test_segments_match_above_half_iou_of_the_same_category() -> None:
    true = ids("1111222200", "1111222233")
    found = ids("1111122200", "1111122233")
    segments = [TrueSegment(1, 10, False), TrueSegment(2, 20, False), TrueSegment(3, 30, False)]

    rows = match_segments(true, segments, found, {1: 10, 2: 20, 3: 31})

    assert sorted(rows) == [
        [10, pytest.approx(8 / 10), 1, 0, 0],
        [20, pytest.approx(6 / 8), 1, 0, 0],
        [30, 0.0, 0, 0, 1],
        [31, 0.0, 0, 1, 0],
    ]


def test_exactly_half_is_no_match() -> None:
    rows = match_segments(ids("1111"), [TrueSegment(1, 10, False)], ids("1100"), {1: 10})

    assert rows == [[10, 0.0, 0, 1, 1]]


def test_pixels_without_truth_and_crowds_cost_nothing() -> None:
    true = ids("1111000022229999")
    found = ids("1111110033333333")
    segments = [TrueSegment(1, 10, False), TrueSegment(2, 20, False), TrueSegment(9, 30, True)]

    # Segment 1 reaches into unannotated pixels: its IoU is still 1. Segment 3 lies half on a crowd: counted.
    rows = match_segments(true, segments, found, {1: 10, 3: 30})
    assert sorted(rows) == [[10, 1.0, 1, 0, 0], [20, 0.0, 0, 0, 1], [30, 0.0, 0, 1, 0]]

    # Mostly on a crowd of its own category: excused. Of another category: not.
    found = ids("1111000000033333")
    assert sorted(match_segments(true, segments, found, {1: 10, 3: 30})) == [
        [10, 1.0, 1, 0, 0],
        [20, 0.0, 0, 0, 1],
    ]
    assert [20, 0.0, 0, 1, 1] in match_segments(true, segments, found, {1: 10, 3: 20})


def test_panoptic_quality_equals_that_of_panopticapi() -> None:
    expected = json.loads((DATA / "panoptic_metrics.json").read_text())

    assert quality(panoptic_images()) == pytest.approx(expected, abs=1e-9)


def quality(images: Sequence[tuple[Any, Segments, Any, Segments]]) -> dict[str, float]:
    rows = [
        match_segments(
            true_map,
            [TrueSegment(*segment) for segment in true],
            found_map,
            {identifier: category for identifier, category, _ in found},
        )
        for true_map, true, found_map, found in images
    ]
    things, stuff = (
        [SimpleNamespace(id=category, is_thing=group is THINGS) for category in group]
        for group in (THINGS, STUFF)
    )
    truth = SimpleNamespace(things=things, stuff=stuff, categories=[*things, *stuff])
    dataset: Any = SimpleNamespace(require_panoptic=lambda: truth)
    metrics, tally = PanopticQuality().measure(rows, dataset, None)
    resampled = PanopticQuality().resampled(tally, np.ones((1, len(rows)), dtype=np.int32))
    assert {name: points for name, (points,) in resampled.items() if not np.isnan(points)} == pytest.approx(
        metrics, abs=1e-9
    )
    return metrics


@pytest.mark.parametrize("crowd", [False, True])
def test_which_qualities_there_are_does_not_depend_on_what_was_found(crowd: bool) -> None:
    """Stuff alone is annotated, and maybe a crowd of things, which nobody has to find."""
    true_map = ids("1111222200")
    true: Segments = [(1, STUFF[0], False), *([(2, THINGS[0], True)] if crowd else [])]
    nothing = np.zeros_like(true_map)
    found: list[tuple[Any, Segments]] = [
        (nothing, []),
        (ids("1111000000"), [(1, STUFF[0], False)]),
        (ids("3333000000"), [(3, THINGS[1], False)]),
        (ids("1113000000"), [(1, STUFF[0], False), (3, THINGS[1], False)]),
    ]

    metrics = [quality([(true_map, true, *each)]) for each in found]

    assert {frozenset(each) for each in metrics} == {
        frozenset(f"{name}{suffix}" for name in ("PQ", "SQ", "RQ") for suffix in ("", "_st"))
    }
    # What is of no true category still counts in the average over all.
    assert [each["PQ"] for each in metrics] == pytest.approx([0, 100, 0, 75 / 2])
    assert [each["PQ_st"] for each in metrics] == pytest.approx([0, 100, 0, 75])


def write_panoptic(
    folder: Path, change: Callable[[dict[str, Any]], None] = lambda document: None
) -> tuple[DatasetSource, dict[int, Any]]:
    """The tiny dataset with panoptic annotations: its boxes on two kinds of stuff; and the maps of ids."""
    source = write_dataset(folder)
    instances = json.loads(source.annotations.read_text())
    masks = folder / "panoptic"
    masks.mkdir()
    things = [{**category, "isthing": 1} for category in instances["categories"]]
    stuff = [{"id": 50, "name": "sky", "isthing": 0}, {"id": 60, "name": "sea", "isthing": 0}]
    document: dict[str, Any] = {
        "images": instances["images"],
        "categories": [*things, *stuff],
        "annotations": [],
    }
    maps = {}
    for image in instances["images"]:
        colours = np.full((image["height"], image["width"]), 500, dtype=np.int32)
        colours[image["height"] // 2 :] = 600
        segments = [{"id": 500, "category_id": 50}, {"id": 600, "category_id": 60}]
        for item in instances["annotations"]:
            if item["image_id"] == image["id"]:
                x, y, width, height = item["bbox"]
                colours[y : y + height, x : x + width] = 70_000 + item["id"]
                segments.append({"id": 70_000 + item["id"], "category_id": item["category_id"], "iscrowd": 0})
        name = Path(image["file_name"]).with_suffix(".png").name
        planes = np.stack([colours % 256, colours // 256 % 256, colours // 65536], axis=-1)
        Image.fromarray(planes.astype(np.uint8)).save(masks / name)
        document["annotations"].append(
            {"image_id": image["id"], "file_name": name, "segments_info": segments}
        )
        maps[image["id"]] = colours
    change(document)
    (folder / "panoptic.json").write_text(json.dumps(document))
    return replace(source, panoptic=folder / "panoptic.json", panoptic_masks=masks), maps


class PanopticOracle:
    """Finds every object, and the stuff of ``maps`` with labels 1 (sky) and 2 (sea)."""

    def __init__(self, source: DatasetSource, maps: dict[int, Any]) -> None:
        self.dataset = load_dataset(source)
        self.maps = iter(maps.values())
        self.images = iter(self.dataset.images)

    def __call__(self, image: Any) -> dict[str, Any]:
        colours = next(self.maps)
        objects = self.dataset.annotations_by_image[next(self.images).id]
        labels = np.select([colours == 500, colours == 600], [1, 2], 0)
        boxes = np.array([item.box for item in objects], dtype=np.float32)
        boxes[:, 2:] += boxes[:, :2]
        return {
            "pred_boxes": boxes,
            "scores": np.linspace(0.9, 0.8, len(objects), dtype=np.float32),
            "pred_classes": np.array([self.dataset.category_ids.index(item.category_id) for item in objects]),
            "pred_masks": np.ones((len(objects), 1, 28, 28), dtype=np.float32),
            "sem_seg": (labels == np.arange(3)[:, None, None]).astype(np.float32),
        }


def test_a_perfect_panoptic_model_has_all_100(tmp_path: Path) -> None:
    source, maps = write_panoptic(tmp_path)
    model = PanopticOracle(source, maps)

    metrics = evaluate(model, model.dataset, make_config(**THINGS_AND_STUFF))

    perfect = {name: points for name, points in metrics.items() if name.startswith(("panoptic", "sem"))}
    assert perfect == {name: pytest.approx(100.0) for name in perfect}
    assert {"panoptic_seg/PQ", "panoptic_seg/SQ_th", "panoptic_seg/RQ_st"} <= perfect.keys()
    assert {"sem_seg/mIoU", "sem_seg/fwIoU", "sem_seg/IoU-things", "sem_seg/ACC-sea"} <= perfect.keys()
    assert metrics["segm/AP"] == pytest.approx(100.0)


def test_wrong_stuff_costs_stuff_alone(tmp_path: Path) -> None:
    source, maps = write_panoptic(tmp_path)
    only_sky = {image: np.where(colours == 600, 500, colours) for image, colours in maps.items()}
    model = PanopticOracle(source, only_sky)

    metrics = evaluate(model, model.dataset, make_config(**THINGS_AND_STUFF))

    sky = sum(np.count_nonzero(colours == 500) for colours in maps.values())
    sea = sum(np.count_nonzero(colours == 600) for colours in maps.values())
    assert metrics["panoptic_seg/PQ_th"] == pytest.approx(100.0)
    assert metrics["panoptic_seg/PQ_st"] < 50
    assert metrics["sem_seg/IoU-sky"] == pytest.approx(100 * sky / (sky + sea))
    assert metrics["sem_seg/IoU-sea"] == 0.0
    assert metrics["sem_seg/ACC-sky"] == pytest.approx(100.0)
    things_iou = 100.0
    assert metrics["sem_seg/mIoU"] == pytest.approx((things_iou + metrics["sem_seg/IoU-sky"]) / 3)


def test_labels_of_one_name_keep_a_metric_each(tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["categories"][3]["name"] = "sky"

    source, maps = write_panoptic(tmp_path, rename)
    no_sea = {image: np.where(colours == 600, 500, colours) for image, colours in maps.items()}
    model = PanopticOracle(source, no_sea)

    metrics = evaluate(model, model.dataset, make_config(**THINGS_AND_STUFF))

    assert metrics["sem_seg/ACC-sky#50"] == pytest.approx(100.0)
    assert metrics["sem_seg/ACC-sky#60"] == 0.0
    assert "sem_seg/ACC-sky" not in metrics


def test_semantic_models_are_measured_with_label_maps_alone(tmp_path: Path) -> None:
    source, maps = write_panoptic(tmp_path)
    folder = tmp_path / "labels"
    folder.mkdir()
    for image, colours in zip(load_dataset(source).images, maps.values(), strict=True):
        labels = np.select([colours == 500, colours == 600], [1, 2], 255).astype(np.uint8)
        Image.fromarray(labels).save(folder / Path(image.file_name).with_suffix(".png"))
    model = PanopticOracle(source, maps)
    config = make_config(**{**THINGS_AND_STUFF, "MODEL__META_ARCHITECTURE": "SemanticSegmentor"})

    dataset = load_dataset(replace(source, panoptic=None, panoptic_masks=None, semantic_masks=folder))
    metrics = evaluate(model, dataset, config)

    assert metrics["sem_seg/mIoU"] == pytest.approx(100.0)
    assert "sem_seg/IoU-0" not in metrics
    assert metrics["sem_seg/IoU-2"] == pytest.approx(100.0)


BAD_PANOPTIC: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no annotations": (lambda document: document.pop("annotations"), "has no list 'annotations'"),
    "image not annotated": (lambda document: document["annotations"].pop(), "does not annotate image 7"),
    "file not there": (
        lambda document: document["annotations"][0].update(file_name="absent.png"),
        r"absent\.png, which .* names, does not exist",
    ),
    "unknown category": (
        lambda document: document["annotations"][0]["segments_info"][0].update(category_id=1),
        r"annotations\[0\] is not a panoptic annotation: unknown category_id 1",
    ),
    "segment twice": (
        lambda document: document["annotations"][0]["segments_info"][1].update(id=500),
        r"annotations\[0\] is not a panoptic annotation: two segments have one id",
    ),
    "segment of nothing": (
        lambda document: document["annotations"][0]["segments_info"][0].update(id=0),
        r"annotations\[0\] is not a panoptic annotation: a segment has the id 0",
    ),
    "image twice": (
        lambda document: document["annotations"][1].update(image_id=0),
        r"annotations\[1\] is not a panoptic annotation: image 0 is annotated twice",
    ),
    "no segments": (
        lambda document: document["annotations"][1].pop("segments_info"),
        r"annotations\[1\] is not a panoptic annotation",
    ),
    "unlisted segment": (
        lambda document: document["annotations"][0]["segments_info"].pop(),
        r"first\.png holds segment 7000\d, which its annotations lack",
    ),
    "other things": (
        lambda document: document["categories"][0].update(isthing=0),
        "are not the categories of",
    ),
    "other stuff": (
        lambda document: document["categories"].append({"id": 61, "name": "sand", "isthing": 0}),
        "defines 3 stuff categories, the model has 3 semantic labels",
    ),
}


@pytest.mark.parametrize("case", BAD_PANOPTIC)
def test_bad_panoptic_annotations_are_named(tmp_path: Path, case: str) -> None:
    change, message = BAD_PANOPTIC[case]
    source, maps = write_panoptic(tmp_path, change)
    model = PanopticOracle(source, maps)

    with pytest.raises(Failure, match=message) as caught:
        evaluate(model, model.dataset, make_config(**THINGS_AND_STUFF))
    assert caught.value.code == "dataset.invalid"


def test_the_digest_covers_panoptic_maps_whatever_they_are_called(tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        masks = tmp_path / "panoptic"
        for entry in document["annotations"]:
            (masks / entry["file_name"]).rename(masks / f"gt_{entry['file_name']}")
            entry["file_name"] = f"gt_{entry['file_name']}"

    source, _ = write_panoptic(tmp_path, rename)
    before = load_dataset(source)
    digest = before.digest()
    path = tmp_path / "panoptic" / "gt_first.png"
    Image.fromarray(np.asarray(Image.open(path))[::-1]).save(path)

    assert load_dataset(source).digest() != digest
    assert path in before.files()


def test_missing_label_maps_are_named_before_the_model_runs(tmp_path: Path) -> None:
    source, maps = write_panoptic(tmp_path)
    model = PanopticOracle(source, maps)
    dataset = load_dataset(replace(source, semantic_masks=tmp_path / "absent"))

    with pytest.raises(Failure, match=r"absent/first\.png, the label map of first\.png, does not exist"):
        evaluate(model, dataset, make_config(**THINGS_AND_STUFF))


def test_semantic_outputs_with_other_labels_are_refused(tmp_path: Path) -> None:
    source, maps = write_panoptic(tmp_path)
    model = PanopticOracle(source, maps)
    config = make_config(**{**THINGS_AND_STUFF, "MODEL__META_ARCHITECTURE": "SemanticSegmentor"})

    def fewer(image: Any) -> dict[str, Any]:
        return {"sem_seg": model(image)["sem_seg"][:2]}

    with pytest.raises(Failure, match="output sem_seg has 2 labels, not 3") as caught:
        evaluate(fewer, model.dataset, config)
    assert caught.value.code == "artifact.mismatch"
