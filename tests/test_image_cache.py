"""Resized images are decoded once, stay the same bits, and cost only speed when keeping them fails."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from zooport.export_core import pipeline
from zooport.export_core.evaluation import image_cache, load_dataset, load_network_input, predict
from zooport.export_core.evaluation.datasets import Dataset
from zooport.export_core.evaluation.image_cache import IN_USE, ImageCache, open_image_cache, size_limit
from zooport.export_core.failures import Failure
from zooport.tests.evaluation_support import make_config, write_dataset
from zooport.tests.patience import wait_until
from zooport.tests.test_pipeline import ignore, source_of

SCRIPT = """
import sys
from pathlib import Path
from zooport.export_core.evaluation import load_dataset, load_network_input
from zooport.export_core.evaluation.image_cache import ImageCache
from zooport.export_core.sources import DatasetSource
from zooport.tests.evaluation_support import make_config
folder = Path(sys.argv[1])
dataset = load_dataset(DatasetSource("tiny", folder / "annotations.json", folder / "images"))
print("ready", flush=True)
for size in range(20, 20 + int(sys.argv[2])):
    config = make_config(INPUT__MIN_SIZE_TEST=size, INPUT__MAX_SIZE_TEST=4000)
    for image in dataset.images:
        load_network_input(image, config, ImageCache(folder / "cache", str(size)))
"""


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return load_dataset(write_dataset(tmp_path))


def cache_of(dataset: Dataset, folder: Path, **config: Any) -> ImageCache:
    cache = open_image_cache(dataset, make_config(**config), folder / "cache")
    assert cache is not None
    return cache


def kept(folder: Path) -> list[Path]:
    return sorted(path for path in (folder / "cache").rglob("*") if len(path.name) == 64)


def no_decoding(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr(predict, "read_image", refuse)


@pytest.mark.parametrize("format_", ["BGR", "RGB", "L"])
@pytest.mark.parametrize("size", [0, 40, 333])
def test_the_second_job_decodes_nothing_and_gets_the_same_bits(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format_: str, size: int
) -> None:
    config = make_config(INPUT__FORMAT=format_, INPUT__MIN_SIZE_TEST=size)
    cache = open_image_cache(dataset, config, tmp_path / "cache")
    decoded = [load_network_input(image, config) for image in dataset.images]
    first = [load_network_input(image, config, cache) for image in dataset.images]
    no_decoding(monkeypatch)
    again = open_image_cache(dataset, config, tmp_path / "cache")
    second = [load_network_input(image, config, again) for image in dataset.images]

    for found in (first, second):
        for (planes, shape), (expected, expected_shape) in zip(found, decoded, strict=True):
            assert shape == expected_shape
            assert planes.dtype == np.float32
            assert planes.flags["C_CONTIGUOUS"]
            assert planes.flags["WRITEABLE"]
            assert planes.tobytes() == expected.tobytes()


def test_an_image_that_was_replaced_is_decoded(dataset: Dataset, tmp_path: Path) -> None:
    image, config, cache = dataset.images[0], make_config(), cache_of(dataset, tmp_path)
    load_network_input(image, config, cache)
    times = image.path.stat()
    Image.new("RGB", (image.width, image.height), (1, 2, 3)).save(image.path)
    os.utime(image.path, ns=(times.st_atime_ns, times.st_mtime_ns))

    planes, _ = load_network_input(image, config, cache)

    assert planes[:, 0, 0].tolist() == [3, 2, 1]


def test_an_image_of_another_size_than_annotated_is_refused_whoever_kept_it(
    dataset: Dataset, tmp_path: Path
) -> None:
    image, config, cache = dataset.images[0], make_config(), cache_of(dataset, tmp_path)
    load_network_input(image, config, cache)
    wrong = type(image)(image.id, image.file_name, image.path, image.height + 1, image.width)
    with pytest.raises(Failure, match="after EXIF rotation"):
        load_network_input(wrong, config, cache)


def shorten(content: bytes) -> bytes:
    return content[:-7]


def flip(content: bytes) -> bytes:
    return content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]


def reshape(content: bytes) -> bytes:
    """Exchange the height and the width in the header."""
    at = image_cache._HEADER.size
    return content[: at - 8] + content[at - 4 : at] + content[at - 8 : at - 4] + content[at:]


@pytest.mark.parametrize("damage", [shorten, flip, reshape, lambda content: b"", lambda content: b"zpimage1"])
def test_a_damaged_entry_is_not_trusted_but_mended(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: Callable[[bytes], bytes]
) -> None:
    image, config, cache = dataset.images[0], make_config(), cache_of(dataset, tmp_path)
    expected, _ = load_network_input(image, config, cache)
    (entry,) = kept(tmp_path)
    entry.write_bytes(damage(entry.read_bytes()))

    planes, _ = load_network_input(image, config, cache)
    np.testing.assert_array_equal(planes, expected)
    no_decoding(monkeypatch)
    planes, _ = load_network_input(image, config, cache)
    np.testing.assert_array_equal(planes, expected)


def test_versions_sizes_and_formats_do_not_share(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(**config: Any) -> None:
        cache = cache_of(dataset, tmp_path, **config)
        load_network_input(dataset.images[0], make_config(**config), cache)

    fill()
    fill(INPUT__MIN_SIZE_TEST=41)
    fill(INPUT__FORMAT="RGB")
    fill(INPUT__MAX_SIZE_TEST=101)
    monkeypatch.setattr(image_cache, "__version__", "0.0.1")
    fill()
    assert len({entry.parent for entry in kept(tmp_path)}) == len(kept(tmp_path)) == 5


def test_a_cache_that_cannot_be_written_costs_a_remark(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder belongs")
    cache = cache_of(dataset, tmp_path)
    for image in dataset.images:
        planes, _ = load_network_input(image, make_config(), cache)
        np.testing.assert_array_equal(planes, load_network_input(image, make_config())[0])
    assert str(tmp_path / "cache") in cache.remark
    assert "decoded again" in cache.remark


def test_a_write_that_fails_leaves_nothing_half(dataset: Dataset, tmp_path: Path) -> None:
    cache = cache_of(dataset, tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
    try:
        planes, _ = load_network_input(dataset.images[0], make_config(), cache)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    np.testing.assert_array_equal(planes, load_network_input(dataset.images[0], make_config())[0])
    assert "cannot be written" in cache.remark
    assert [path.name for path in (tmp_path / "cache").rglob("*") if path.is_file()] == ["used"]


def test_a_disk_that_is_nearly_full_is_left_alone(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_cache, "SPARE", 1 << 60)
    cache = cache_of(dataset, tmp_path)
    load_network_input(dataset.images[0], make_config(), cache)
    assert "free on its disk" in cache.remark
    assert kept(tmp_path) == []


def test_the_folder_longest_out_of_use_makes_room(dataset: Dataset, tmp_path: Path) -> None:
    image = dataset.images[0]
    size = 3 * 40 * 60 + 200  # of one entry, about
    for age, name in ((3, "a"), (2, "b"), (1, "c")):
        load_network_input(image, make_config(), ImageCache(tmp_path / "cache", name, 4 * size))
        then = time.time() - IN_USE - age
        os.utime(tmp_path / "cache" / name / "used", (then, then))

    last = ImageCache(tmp_path / "cache", "d", 3 * size)
    load_network_input(image, make_config(), last)

    assert [entry.parent.name for entry in kept(tmp_path)] == ["b", "c", "d"]
    assert last.remark == ""


def test_what_others_use_is_not_dropped(dataset: Dataset, tmp_path: Path) -> None:
    image = dataset.images[0]
    load_network_input(image, make_config(), ImageCache(tmp_path / "cache", "a", 8000))
    full = ImageCache(tmp_path / "cache", "b", 8000)
    load_network_input(image, make_config(), full)
    assert [entry.parent.name for entry in kept(tmp_path)] == ["a"]
    assert "is full" in full.remark


def test_writers_at_once_and_one_killed_leave_only_whole_images(dataset: Dataset, tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path), "120"]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.readline()
    wait_until(lambda: kept(tmp_path))
    writers[0].send_signal(signal.SIGKILL)
    assert writers[1].wait() == 0
    writers[0].wait()
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()

    assert len(kept(tmp_path)) == 240
    for size in range(20, 140, 7):
        config = make_config(INPUT__MIN_SIZE_TEST=size, INPUT__MAX_SIZE_TEST=4000)
        cache = ImageCache(tmp_path / "cache", str(size))
        for image in dataset.images:
            key = cache.key(image.path, (image.height, image.width))
            assert key is not None
            planes = cache.load(key)
            assert planes is not None
            np.testing.assert_array_equal(planes, load_network_input(image, config)[0])


@pytest.mark.parametrize(
    ("text", "size"),
    [("off", 0), ("0", 0), ("500M", 500 << 20), ("20GiB", 20 << 30), ("", image_cache.LIMIT)],
)
def test_the_size_is_set_by_the_environment(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, size: int
) -> None:
    assert size_limit(text) == size
    monkeypatch.setenv("ZOOPORT_IMAGE_CACHE", text)
    cache = open_image_cache(dataset, make_config(), tmp_path)
    assert (cache is None) == (size == 0)


def test_nonsense_for_a_size_is_said_and_not_heeded(capsys: pytest.CaptureFixture[str]) -> None:
    assert size_limit("plenty") == image_cache.LIMIT
    assert "ZOOPORT_IMAGE_CACHE=plenty" in capsys.readouterr().err


def test_an_export_remarks_on_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "images").write_text("a file where the folder belongs")
    monkeypatch.setenv("ZOOPORT_CACHE", str(tmp_path))
    checkpoint, data = source_of("faster_rcnn_c4", limit=2)
    staging = tmp_path / "staging"
    staging.mkdir()
    notes = pipeline.export_stage(checkpoint, "torchscript-trace", {}, data, None, staging, ignore)
    assert [note for note in notes if "cache of resized images" in note]
