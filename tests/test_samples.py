"""Which images an export is tried on: two sizes with detections, and one image without any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.config import Config, load_config
from zooport.export_core.evaluation import Dataset, load_dataset
from zooport.export_core.failures import Failure, Stage
from zooport.export_core.samples import (
    IMAGES_TRIED,
    count_detections,
    find_samples,
    grid_boxes,
    shrink,
    synthetic_picture,
)
from zooport.tests.evaluation_support import coco_object, write_dataset

Array = np.ndarray[Any, Any]


class Detector:
    """A model that finds something on images of which ``sees`` says so, and remembers what it was given."""

    def __init__(self, sees: Any) -> None:
        self.sees = sees
        self.given: list[Array] = []

    def __call__(self, image: Array, **more: Array) -> dict[str, Array]:
        self.given.append(image)
        count = 2 if self.sees(image) else 0
        boxes = np.tile(np.array([0, 0, 5, 5], np.float32), (count, 1))
        return {"pred_boxes": boxes, "scores": np.full(count, 0.9, np.float32), **more}


def is_busy(image: Array) -> bool:
    return float(image.std()) > 10


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "config.yaml"
    path.write_text("VERSION: 2\n")
    return load_config(path, {"INPUT.MIN_SIZE_TEST": 64, "INPUT.MAX_SIZE_TEST": 200})


def dataset_of(folder: Path, sizes: list[tuple[int, int]]) -> Dataset:
    """A dataset of random images of these heights and widths."""

    def change(document: dict[str, Any]) -> None:
        document["images"] = [
            {"id": index, "file_name": f"{index}.png", "height": height, "width": width}
            for index, (height, width) in enumerate(sizes)
        ]
        document["annotations"] = [coco_object(0, 0, 4, [1, 1, 9, 9])]

    source = write_dataset(folder, change)
    random = np.random.default_rng(0)
    for index, (height, width) in enumerate(sizes):
        pixels = (random.random((height, width, 3)) > 0.5).astype(np.uint8) * 255
        Image.fromarray(pixels).save(source.images / f"{index}.png")
    return load_dataset(source)


def test_two_sizes_and_an_empty_one_are_taken(tmp_path: Path, config: Config) -> None:
    dataset = dataset_of(tmp_path, [(100, 100), (50, 50), (100, 120), (100, 150)])

    samples, notes = find_samples(Detector(is_busy), config, dataset, None)

    assert [sample.name for sample in samples[:2]] == ["0.png", "2.png"]
    assert [sample.image.shape for sample in samples[:2]] == [(3, 64, 64), (3, 64, 77)]
    assert [sample.detections for sample in samples] == [2, 2, 0]
    assert samples[2].image.std() == 0
    assert notes == []


def test_images_on_which_nothing_is_found_are_passed_over(tmp_path: Path, config: Config) -> None:
    dataset = dataset_of(tmp_path, [(100, 100), (100, 120), (100, 150)])

    samples, _ = find_samples(Detector(lambda image: image.shape[2] != 64), config, dataset, None)

    assert [sample.name for sample in samples[:2]] == ["1.png", "2.png"]


def test_images_of_one_size_are_also_tried_smaller(tmp_path: Path, config: Config) -> None:
    dataset = dataset_of(tmp_path, [(100, 120)] * 3)

    samples, notes = find_samples(Detector(is_busy), config, dataset, None)

    assert samples[1].name == "0.png, scaled down"
    assert samples[1].image.shape == (3, 64, 64)  # three quarters, but no side below 64
    assert notes == []


def test_one_size_alone_is_remarked(config: Config, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(100, 120)])

    samples, notes = find_samples(Detector(lambda image: image.shape[2] == 77), config, dataset, None)

    assert [sample.detections for sample in samples] == [2, 0]
    assert notes == ["only one sample image has detections: one image size was verified"]


def test_a_model_that_always_finds_something_is_remarked(config: Config, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(100, 120), (100, 100)])

    samples, notes = find_samples(Detector(lambda image: True), config, dataset, None)

    assert [sample.detections for sample in samples] == [2, 2]
    assert notes == ["no image without detections was found: the empty case was not verified"]


def test_no_detection_at_all_is_a_typed_failure(config: Config, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(100, 120)] * 2)

    with pytest.raises(Failure, match="finds nothing") as caught:
        find_samples(Detector(lambda image: False), config, dataset, None)

    assert (caught.value.code, caught.value.stage) == ("sample.no_detections", Stage.EXPORT)
    assert "--sample-image" in caught.value.hint


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_model_whose_outputs_are_no_numbers_is_not_exported(config: Config, bad: float) -> None:
    sees = Detector(is_busy)

    def model(image: Array) -> dict[str, Array]:
        outputs = sees(image)
        return {**outputs, "pred_masks": np.full((len(outputs["scores"]), 1, 28, 28), bad, np.float32)}

    with pytest.raises(Failure, match="output pred_masks of the eager model holds NaN or infinity") as caught:
        find_samples(model, config, None, None)
    assert (caught.value.code, caught.value.stage) == ("accuracy.nonfinite", Stage.EXPORT)


def test_a_large_dataset_is_not_searched_to_its_end(config: Config, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(8, 8)] * (IMAGES_TRIED + 20))
    detector = Detector(lambda image: False)

    with pytest.raises(Failure):
        find_samples(detector, config, dataset, None)

    assert len(detector.given) <= IMAGES_TRIED + 10


def test_a_given_image_is_resized_like_the_dataset_s(config: Config, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (128, 160, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "own.png")

    samples, _ = find_samples(Detector(lambda image: True), config, None, tmp_path / "own.png")

    assert samples[0].name == "own.png"
    assert samples[0].image.shape == (3, 64, 80)
    assert samples[0].image.dtype == np.float32
    assert samples[1].image.shape != samples[0].image.shape


def test_without_any_image_a_picture_is_made(config: Config) -> None:
    samples, _ = find_samples(Detector(lambda image: True), config, None, None)

    assert samples[0].name == "a synthetic picture"
    assert samples[0].image.shape == (3, 64, 85)


def test_samples_of_a_model_of_grey_images_have_one_channel(config: Config, tmp_path: Path) -> None:
    grey = load_config(
        tmp_path / "config.yaml",
        {
            "INPUT.FORMAT": "L",
            "INPUT.MIN_SIZE_TEST": 64,
            "MODEL.PIXEL_MEAN": [110.0],
            "MODEL.PIXEL_STD": [57.0],
        },
    )

    made, _ = find_samples(Detector(is_busy), grey, None, None)
    read, _ = find_samples(Detector(is_busy), grey, dataset_of(tmp_path, [(100, 100), (100, 120)]), None)

    assert made[0].name == "a synthetic picture"
    assert [sample.image.shape[0] for sample in made + read] == [1] * 6
    assert [sample.detections for sample in made + read] == [2, 2, 0] * 2


def test_models_that_label_pixels_need_no_empty_image(config: Config, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(100, 100), (100, 120)])

    samples, notes = find_samples(
        lambda image, **more: {"sem_seg": np.zeros((3, *image.shape[1:]), np.float32)}, config, dataset, None
    )

    assert len(samples) == 2
    assert notes == []


def test_further_inputs_are_made_up_for_every_sample(config: Config, tmp_path: Path) -> None:
    dataset = dataset_of(tmp_path, [(100, 100), (100, 120)])

    samples, _ = find_samples(Detector(is_busy), config, dataset, None, ("proposal_boxes",))

    for sample in samples:
        boxes, (_, height, width) = sample.inputs["proposal_boxes"], sample.image.shape
        assert list(sample.inputs) == ["image", "proposal_boxes"]
        assert np.array_equal(boxes, grid_boxes(sample.image))
        assert ((boxes >= 0) & (boxes <= [width, height, width, height])).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_an_input_of_which_nothing_is_known_is_a_typed_failure(config: Config) -> None:
    with pytest.raises(Failure, match="depth_map") as caught:
        find_samples(Detector(is_busy), config, None, None, ("depth_map",))
    assert caught.value.code == "export.failed"


@pytest.mark.parametrize(
    ("size", "factor", "wanted"), [((200, 300), 0.5, (100, 150)), ((70, 50), 0.5, (64, 50))]
)
def test_shrinking_keeps_a_least_side(size: tuple[int, int], factor: float, wanted: tuple[int, int]) -> None:
    assert shrink(np.zeros((3, *size), np.float32), factor).shape == (3, *wanted)


def test_the_synthetic_picture_is_an_image_of_the_size_that_the_config_asks_for(config: Config) -> None:
    picture = synthetic_picture(config)

    assert picture.dtype == np.float32
    assert 0 <= picture.min() < picture.max() <= 255
    assert np.array_equal(picture, synthetic_picture(config))
    assert picture.std() > 20


def test_detections_are_counted_by_scores_or_objectness() -> None:
    assert count_detections({"scores": np.zeros(3)}) == 3
    assert count_detections({"objectness_logits": np.zeros(0)}) == 0
    assert count_detections({"sem_seg": np.zeros((5, 4, 4))}) == 1
