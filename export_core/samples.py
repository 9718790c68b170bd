"""The images on which an export is tried: two of different sizes with detections, and one without any."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zooport.export_core.evaluation import load_network_input, read_image, resize_shortest_edge
from zooport.export_core.evaluation.images import image_channels
from zooport.export_core.failures import Failure, Stage

if TYPE_CHECKING:
    from zooport.export_core.config import Config
    from zooport.export_core.evaluation import Dataset, ImageCache
    from zooport.export_core.formats.base import AnyPredictor

Image = npt.NDArray[np.float32]
Outputs = Mapping[str, npt.NDArray[Any]]

IMAGES_TRIED = 50  # of a dataset, to find two with detections
COUNTED = ("scores", "objectness_logits")  # fields with one entry for each instance
FIRST_SCALED = 3  # images that are tried scaled down when their own sizes do not do
SMALLEST_SIDE = 64  # pixels of a sample made by scaling another one down


@dataclass(frozen=True)
class Sample:
    """What a model took for one image, and what the eager model returned.

    Attributes:
        inputs: "image" (C, H, W) and the model's further inputs.
    """

    name: str
    inputs: Outputs
    outputs: Outputs

    @property
    def image(self) -> Image:
        """The image (C, H, W)."""
        return self.inputs["image"]

    @property
    def detections(self) -> int:
        """How many things the model found; 1 for a model that labels pixels."""
        return count_detections(self.outputs)


def count_detections(outputs: Outputs) -> int:
    """Return the number of instances in the outputs of one image; 1 where there are only pixel labels."""
    return len(next((outputs[name] for name in COUNTED if name in outputs), (1,)))


def find_samples(
    predictor: AnyPredictor,
    config: Config,
    dataset: Dataset | None,
    sample_image: Path | None,
    extra_inputs: tuple[str, ...] = (),
    cache: ImageCache | None = None,
) -> tuple[list[Sample], list[str]]:
    """Run the eager model on candidates until there are samples of every kind.

    Args:
        predictor: the eager model.
        config: how images are resized.
        dataset: where images come from when no ``sample_image`` is given.
        sample_image: a file to use instead.
        extra_inputs: what the model takes besides the image; values are made up.
        cache: of the dataset's resized images.

    Returns:
        Two samples of different sizes with detections, then one without if there is any; and remarks for
        the user on what could not be tried.

    Raises:
        Failure: ``sample.no_detections`` when no candidate has any detection; ``accuracy.nonfinite`` when
            the model's outputs are no numbers: an artifact that gives the same could not be told from
            another one.
    """
    samples: list[Sample] = []
    for name, image in _candidates(config, dataset, sample_image, cache):
        if samples and image.shape == samples[0].image.shape:
            continue
        sample = run_sample(predictor, name, image, extra_inputs)
        if sample.detections:
            _require_numbers(sample)
            samples.append(sample)
        if len(samples) == 2:
            break
    if not samples:
        raise Failure(
            "sample.no_detections",
            "the model finds nothing on any sample image, so an export could not be checked",
            stage=Stage.EXPORT,
            hint="name an image with objects (--sample-image, or a dataset), or lower the score threshold",
        )
    notes = [] if len(samples) == 2 else ["only one sample image has detections: one image size was verified"]
    if not any(name in samples[0].outputs for name in COUNTED):
        return samples, notes
    empty = _find_empty(predictor, samples[0].image.shape, extra_inputs)
    if empty is None:
        notes.append("no image without detections was found: the empty case was not verified")
        return samples, notes
    return [*samples, empty], notes


def run_sample(predictor: AnyPredictor, name: str, image: Image, extra_inputs: tuple[str, ...]) -> Sample:
    """Run the eager model on an image and made-up values of its further inputs."""
    more = made_up_inputs(image, extra_inputs)
    return Sample(name, {"image": image, **more}, predictor(image, **more))


def _require_numbers(sample: Sample) -> None:
    for name, value in sample.outputs.items():
        if np.issubdtype(value.dtype, np.floating) and not np.isfinite(value).all():
            raise Failure(
                "accuracy.nonfinite",
                f"output {name} of the eager model holds NaN or infinity for sample {sample.name}",
                stage=Stage.EXPORT,
                hint="the checkpoint holds such weights, or weights that are not of this config",
                details={"output": name, "image": sample.name},
            )


def made_up_inputs(image: Image, names: tuple[str, ...]) -> dict[str, Image]:
    """Return values for what a model takes besides the image.

    Raises:
        Failure: ``export.failed`` for an input that nothing is known of.
    """
    unknown = sorted(set(names) - set(MADE_UP_INPUTS))
    if unknown:
        raise Failure("export.failed", f"no sample values are known for the model's inputs {unknown}")
    return {name: MADE_UP_INPUTS[name](image) for name in names}


def grid_boxes(image: Image) -> Image:
    """Return boxes (P, 4) of three sizes on a regular grid over an image (C, H, W)."""
    _, height, width = image.shape
    boxes = []
    for cells in (2, 4, 7):
        box_height, box_width = height / cells, width / cells
        for row in np.arange(0, cells - 0.5, 0.5):
            for column in np.arange(0, cells - 0.5, 0.5):
                x, y = column * box_width, row * box_height
                boxes.append((x, y, x + box_width, y + box_height))
    return np.array(boxes, dtype=np.float32)


MADE_UP_INPUTS = {"proposal_boxes": grid_boxes}


def _candidates(
    config: Config, dataset: Dataset | None, sample_image: Path | None, cache: ImageCache | None
) -> Iterator[tuple[str, Image]]:
    first: list[tuple[str, Image]] = []
    for candidate in _originals(config, dataset, sample_image, cache):
        first = [*first, candidate][:FIRST_SCALED]
        yield candidate
    for name, image in first:
        for factor in (3 / 4, 5 / 6):
            yield f"{name}, scaled down", shrink(image, factor)


def _originals(
    config: Config, dataset: Dataset | None, sample_image: Path | None, cache: ImageCache | None
) -> Iterator[tuple[str, Image]]:
    if sample_image is not None:
        pixels = read_image(sample_image, config.INPUT.FORMAT)
        resized = resize_shortest_edge(pixels, config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)
        yield sample_image.name, np.ascontiguousarray(resized.transpose(2, 0, 1), dtype=np.float32)
    elif dataset is not None:
        for entry in dataset.images[:IMAGES_TRIED]:
            yield entry.file_name, load_network_input(entry, config, cache)[0]
    else:
        yield "a synthetic picture", synthetic_picture(config)


def synthetic_picture(config: Config) -> Image:
    """Return a picture (C, H, W) of discs and bars on a gradient, at the size that the config asks for."""
    side = config.INPUT.MIN_SIZE_TEST or 800
    height, width = side, min(side * 4 // 3, max(config.INPUT.MAX_SIZE_TEST, side))
    rows, columns = np.mgrid[0:height, 0:width].astype(np.float32)
    random = np.random.default_rng(0)
    channels = image_channels(config)
    slopes = [rows / height, columns / width, 1 - rows / height]
    picture = np.stack([slopes[channel % 3] for channel in range(channels)]) * 120 + 60
    for index in range(12):
        y, x = random.random(2) * (height, width)
        radius = side * random.uniform(0.04, 0.2)
        disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
        bar = (abs(rows - y) < radius) & (abs(columns - x) < radius / 3)
        picture[:, disc if index % 2 else bar] = random.uniform(0, 255, (channels, 1))
    noise = random.standard_normal(picture.shape) * 6
    return np.clip(np.rint(picture + noise), 0, 255).astype(np.float32)


def shrink(image: Image, factor: float) -> Image:
    """Return an image (C, H, W) made smaller by dropping rows and columns, at least 64 pixels a side."""
    height = max(int(image.shape[1] * factor), min(SMALLEST_SIDE, image.shape[1]))
    width = max(int(image.shape[2] * factor), min(SMALLEST_SIDE, image.shape[2]))
    rows = np.arange(height) * image.shape[1] // height
    columns = np.arange(width) * image.shape[2] // width
    return np.ascontiguousarray(image[:, rows][:, :, columns])


def _find_empty(
    predictor: AnyPredictor, shape: tuple[int, ...], extra_inputs: tuple[str, ...]
) -> Sample | None:
    """Try plain pictures, and then noise, until the model finds nothing on one."""
    channels, height, width = shape
    random = np.random.default_rng(0)
    # Small ones first: they cost little, and large models take seconds for a large one.
    for rows, columns in ((64, 64), (32, 48), (48, 32), (32, 32), (96, 64), (height, width)):
        plain = [np.full((channels, rows, columns), level) for level in (114, 0, 255, 64, 192)]
        noise = [random.uniform(0, high, (channels, rows, columns)) for high in (32, 128, 255)]
        pictures = [*plain, *noise] if rows * columns < height * width else plain[:2]
        for index, picture in enumerate(pictures):
            name = f"plain picture {index + 1}"
            sample = run_sample(predictor, name, picture.astype(np.float32), extra_inputs)
            if sample.detections == 0:
                return sample
    return None
