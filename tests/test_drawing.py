"""Drawing: colours of classes, text that can be read, masks, keypoints, pictures side by side."""

from __future__ import annotations

import numpy as np
import pytest

from zooport.export_core.drawing import Mark, Picture, Region, colour_of, draw, scale_of, side_by_side


def plain(height: int, width: int, level: int = 128) -> Picture:
    return np.full((height, width, 3), level, dtype=np.uint8)


def changed(picture: Picture, level: int = 128) -> np.ndarray:
    return np.asarray((picture != level).any(axis=2))


def test_classes_have_stable_colours_that_can_be_told_apart() -> None:
    colours = np.array([colour_of(number) for number in range(20)], dtype=int)

    distances = np.abs(colours[:, None] - colours[None]).sum(axis=2)
    assert colour_of(3) == colour_of(3)
    assert distances[~np.eye(20, dtype=bool)].min() > 25


@pytest.mark.parametrize("level", [0, 255])
def test_text_stands_on_a_plate_and_contrasts_with_it(level: int) -> None:
    for number in range(12):
        drawn = draw(plain(700, 700, level), [Mark("cat 0.98", number, (100, 300, 400, 500))])

        plate = drawn[280:299, 102:150].reshape(-1, 3).astype(float)
        luminance = plate @ (0.299, 0.587, 0.114)
        assert np.abs(plate - colour_of(number)).sum(axis=1).min() == 0
        assert luminance.max() - luminance.min() > 90


def test_text_stays_in_the_picture_and_does_not_cover_other_text() -> None:
    boxes = [(0, 0, 60, 60), (690, 690, 700, 700), (200, 200, 500, 500), (202, 200, 500, 500)]
    one_by_one = [changed(draw(plain(700, 700), [Mark("a long name", 1, box)])).sum() for box in boxes[:2]]

    together = draw(plain(700, 700), [Mark("name", index, box) for index, box in enumerate(boxes)])

    assert min(one_by_one) > 1000
    for index in range(len(boxes)):
        visible = (together == np.array(colour_of(index))).all(axis=2).sum()
        assert visible > 300


def test_a_mask_is_translucent_with_a_solid_outline() -> None:
    crop = np.ones((200, 100), dtype=bool)

    drawn = draw(plain(700, 700), [Mark("", 5, region=Region(crop, 50, 80))])

    inside, colour = drawn[150, 130].astype(int), np.array(colour_of(5))
    assert (drawn[50, 80] == colour).all()
    assert (np.abs(inside - 128) < np.abs(colour - 128)).all()
    assert changed(drawn).sum() == crop.sum()


def test_a_small_picture_is_enlarged_with_its_marks() -> None:
    assert [scale_of(*size) for size in ((100, 80), (320, 640), (2000, 100), (10, 10))] == [7, 1, 1, 8]

    drawn = draw(plain(100, 80), [Mark("", 0, (10, 20, 30, 60))])

    assert drawn.shape == (700, 560, 3)
    rows, columns = np.nonzero(changed(drawn))
    assert (columns.min(), rows.min(), columns.max(), rows.max()) == (70, 140, 209, 419)


def test_keypoints_are_joined_and_those_that_are_not_finite_left_out() -> None:
    points = np.array([[100.0, 100], [500, 100], [np.nan, 300]])
    marks = [Mark("", 2, points=points, lines=((0, 1), (1, 2)))]

    where = changed(draw(plain(700, 700), marks))

    assert where[100, 110:490].all()
    assert not where[120:].any()


@pytest.mark.parametrize(
    "mark",
    [
        Mark("edge", 1, (-50.0, -50.0, 2000.0, 2000.0)),
        Mark("none", 1, (5.0, 5.0, 5.0, 5.0)),
        Mark("one pixel", 1, region=Region(np.ones((1, 1), dtype=bool), 0, 0)),
        Mark("empty", 1, region=Region(np.zeros((3, 3), dtype=bool), 0, 0)),
        Mark("no points", 1, points=np.zeros((0, 2))),
        Mark("名前 ü", 1),
    ],
)
def test_strange_marks_are_drawn_without_an_error(mark: Mark) -> None:
    assert draw(plain(40, 30), [mark]).shape == (320, 240, 3)


def test_pictures_side_by_side_keep_their_pixels() -> None:
    left, right = plain(100, 150, 10), plain(100, 150, 200)

    joined = side_by_side([("eager", left), ("exported", right)])

    assert joined.shape[1] > 300
    assert joined.shape[0] > 100
    assert (joined[-100:, :150] == 10).all()
    assert (joined[-100:, -150:] == 200).all()
