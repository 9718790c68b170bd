"""Images are read and resized as detectron2 does: upright, three channels, its rounding, PIL's filter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from zooport.export_core.evaluation import read_image, resize_shortest_edge
from zooport.export_core.evaluation.images import pixels_of, resized_shape
from zooport.export_core.failures import Failure
from zooport.tests.evaluation_support import DATA

# A 2 x 3 picture (height 2, width 3) as it should be seen; every pixel differs.
SEEN = np.array([[10, 20, 30], [40, 50, 60]], dtype=np.uint8)
# How each EXIF orientation stores it: first row and first column of the file show which sides of the picture.
STORED = {
    1: SEEN,
    2: SEEN[:, ::-1],
    3: SEEN[::-1, ::-1],
    4: SEEN[::-1],
    5: SEEN.T,
    6: SEEN.T[::-1],
    7: SEEN[::-1, ::-1].T,
    8: SEEN.T[:, ::-1],
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation])).convert("RGB").save(path, exif=exif)

    assert read_image(path, "RGB")[:, :, 0].tolist() == SEEN.tolist()


def test_unknown_orientation_is_ignored(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 77
    Image.fromarray(SEEN).save(tmp_path / "picture.png", exif=exif)

    assert read_image(tmp_path / "picture.png", "RGB").shape == (2, 3, 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_hide_the_image(tmp_path: Path) -> None:
    Image.fromarray(SEEN).save(tmp_path / "picture.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")

    assert read_image(tmp_path / "picture.png", "RGB")[:, :, 0].tolist() == SEEN.tolist()


def test_channel_orders(tmp_path: Path) -> None:
    path = tmp_path / "colour.png"
    Image.new("RGB", (2, 1), (200, 100, 50)).save(path)

    assert read_image(path, "RGB")[0, 0].tolist() == [200, 100, 50]
    assert read_image(path, "BGR")[0, 0].tolist() == [50, 100, 200]
    assert read_image(path, "L").shape == (1, 2, 1)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 7, [7, 7, 7]),
        ("1", 1, [255, 255, 255]),
        ("LA", (7, 0), [7, 7, 7]),
        ("RGBA", (1, 2, 3, 0), [1, 2, 3]),
        ("I;16", 200, [200, 200, 200]),
    ],
)
def test_other_modes_become_three_channels(
    tmp_path: Path, mode: str, colour: int | tuple[int, ...], expected: list[int]
) -> None:
    path = tmp_path / "picture.png"
    Image.new(mode, (2, 2), colour).save(path)

    assert read_image(path, "RGB")[1, 1].tolist() == expected


def test_palette_with_transparency_becomes_its_colours(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 2), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "picture.png", transparency=bytes([0, 128]))

    assert read_image(tmp_path / "picture.png", "RGB")[0, 0].tolist() == [9, 8, 7]


def test_cmyk_becomes_three_channels(tmp_path: Path) -> None:
    Image.new("CMYK", (16, 16), (0, 255, 255, 0)).save(tmp_path / "picture.jpg", quality=100)

    red, green, blue = read_image(tmp_path / "picture.jpg", "RGB")[8, 8].tolist()
    assert red > 240
    assert green < 15
    assert blue < 15


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp"])
def test_truncated_images_are_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"picture.{suffix}"
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])

    with pytest.raises(Failure, match=f"cannot read image .*{path.name}") as caught:
        read_image(path, "RGB")
    assert caught.value.code == "dataset.invalid"


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + bytes(30)])
def test_files_that_are_no_images_are_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "picture.png"
    path.write_bytes(content)

    with pytest.raises(Failure, match=r"cannot read image .*picture\.png") as caught:
        read_image(path, "RGB")
    assert caught.value.code == "dataset.invalid"
    with pytest.raises(Failure, match="No such file"):
        read_image(tmp_path / "absent.png", "RGB")


def test_decompression_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (100, 100)).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)

    with pytest.raises(Failure, match="decompression bomb") as caught:
        read_image(tmp_path / "bomb.png", "RGB")
    assert caught.value.code == "dataset.invalid"


def test_float_formats_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(Failure, match=r"INPUT\.FORMAT is 'YUV-BT\.601'") as caught:
        read_image(tmp_path / "any.png", "YUV-BT.601")
    assert caught.value.code == "unsupported.architecture"
    with pytest.raises(Failure, match=r"INPUT\.FORMAT is 'GBR'"):
        pixels_of(Image.new("RGB", (2, 1)), "GBR")


@pytest.mark.parametrize(
    ("size", "limits", "expected"),
    [
        ((480, 640), (800, 1333), (800, 1067)),
        ((640, 480), (800, 1333), (1067, 800)),
        ((427, 640), (800, 1333), (800, 1199)),
        ((300, 1000), (800, 1333), (400, 1333)),
        ((500, 500), (800, 1333), (800, 800)),
        ((1080, 1920), (800, 1333), (750, 1333)),
        ((132, 258), (160, 256), (131, 256)),
        ((333, 500), (0, 10), (333, 500)),
    ],
)
def test_resized_shape(size: tuple[int, int], limits: tuple[int, int], expected: tuple[int, int]) -> None:
    assert resized_shape(*size, *limits) == expected


def test_zero_minimum_turns_resizing_off() -> None:
    image = np.zeros((333, 500, 3), dtype=np.uint8)

    assert resize_shortest_edge(image, 0, 100) is image


def test_single_channel_images_keep_their_axis() -> None:
    assert resize_shortest_edge(np.zeros((20, 40, 1), dtype=np.uint8), 10, 100).shape == (10, 20, 1)


def test_vanishing_sides_are_refused() -> None:
    with pytest.raises(Failure, match="5000x1 pixels is too elongated") as caught:
        resize_shortest_edge(np.zeros((1, 5000, 3), dtype=np.uint8), 800, 1333)
    assert caught.value.code == "dataset.invalid"


@pytest.mark.parametrize("index", range(3))
def test_network_inputs_equal_those_of_detectron2(demo_zoo: Path, index: int) -> None:
    with np.load(DATA / "mask_rcnn_fpn.npz") as reference:
        expected, name = reference[f"{index}/input"], str(reference[f"{index}/file_name"])

    image = resize_shortest_edge(read_image(demo_zoo / "data" / "val" / name, "BGR"), 160, 256)

    np.testing.assert_array_equal(image.transpose(2, 0, 1), expected)


def test_rgb_network_input_equals_that_of_detectron2(demo_zoo: Path) -> None:
    with np.load(DATA / "faster_rcnn_c4.npz") as reference:
        expected, name = reference["input"], str(reference["file_name"])

    image = resize_shortest_edge(read_image(demo_zoo / "data" / "val" / name, "RGB"), 160, 256)

    np.testing.assert_array_equal(image.transpose(2, 0, 1), expected)
