"""Deadlines and amounts of memory as people write them, and how much a job is thought to need."""

from __future__ import annotations

import pytest

from zooport.export_core import zoo
from zooport.export_core.config import load_config
from zooport.jobs import limits, memory
from zooport.jobs.limits import Deadlines

GIB = 1 << 30


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("600", Deadlines(600)),
        ("0.5", Deadlines(0.5)),
        ("export=300", Deadlines(None, {"export": 300})),
        ("load=1, evaluate=2.5,total=9", Deadlines(9, {"load": 1, "evaluate": 2.5})),
        ("publish=60", Deadlines(None, {"publish": 60})),
    ],
)
def test_deadlines_are_read_and_written(text: str, expected: Deadlines) -> None:
    assert limits.parse(text) == expected
    assert limits.parse(str(expected)) == expected


@pytest.mark.parametrize(
    "text", ["", "soon", "0", "-1", "nan", "inf", "export=", "plan=3", "export=3,", "=3"]
)
def test_what_is_no_deadline_is_refused_with_what_is_expected(text: str) -> None:
    with pytest.raises(
        ValueError, match="expected seconds, or some of load, export, verify, evaluate, publish and total"
    ):
        limits.parse(text)


@pytest.mark.parametrize("size", [1, 1023, 1024, 3 << 29, 6 * GIB, 6 * GIB + 1, 10**9])
def test_memory_is_written_as_it_is_read(size: int) -> None:
    assert memory.parse(memory.exactly(size)) == size


@pytest.mark.parametrize("text", ["", "6", "six GiB", "-1GiB", "0GiB", "6 GiBs", "1e3MB"])
def test_an_amount_needs_a_number_and_a_unit(text: str) -> None:
    with pytest.raises(ValueError, match="such as 6GiB"):
        memory.parse(text)


def test_workers_come_in_few_sizes() -> None:
    sizes = {memory.size_class(reservation) for reservation in range(GIB // 4, 64 * GIB, GIB // 7)}
    assert len(sizes) <= 16
    for reservation in range(GIB // 4, 64 * GIB, GIB // 7):
        assert reservation <= memory.size_class(reservation) <= max(GIB // 2, reservation * 1.5)


def test_no_worker_is_larger_than_the_largest_machine() -> None:
    assert memory.size_class(40 * GIB, most=10 * GIB) == 10 * GIB
    assert memory.size_class(0, most=10 * GIB) == 0


def test_larger_checkpoints_and_images_need_more() -> None:
    small = memory.estimate(10 << 20, 100 << 20)
    assert small < memory.estimate(500 << 20, 100 << 20)
    assert small < memory.estimate(10 << 20, 200 << 20)
    assert small < memory.estimate(10 << 20, 100 << 20, annotations=1 << 20)
    assert small < memory.estimate(10 << 20, 0)  # a config that only an extension can read


#: Checkpoint in MiB, and what a process of the job was seen to hold: benchmarks/reservation.py.
MEASURED = {
    "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_3x": (170, 1598),
    "COCO-Detection/faster_rcnn_R_50_C4_3x": (129, 3452),
    "COCO-PanopticSegmentation/panoptic_fpn_R_101_3x": (249, 1959),
}


@pytest.mark.parametrize("name", MEASURED)
def test_an_estimate_is_above_what_was_measured_and_not_far_above(name: str) -> None:
    checkpoint, held = MEASURED[name]
    config = load_config(zoo.find(name).config)
    estimated = memory.estimate(checkpoint << 20, memory.activations(config)) / (1 << 20)
    assert held * 1.1 < estimated < held * 2


def test_an_estimate_follows_the_config() -> None:
    path = zoo.find("COCO-Detection/faster_rcnn_R_50_FPN_3x").config
    usual = memory.activations(load_config(path))
    assert memory.activations(load_config(path, {"INPUT.MIN_SIZE_TEST": 400})) < usual
    assert memory.activations(load_config(path, {"MODEL.RPN.POST_NMS_TOPK_TEST": 2000})) > usual
    assert memory.activations(load_config(path, {"INPUT.MIN_SIZE_TEST": 0})) > 0
