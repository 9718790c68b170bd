"""Operators of Caffe2 with inputs, randomised and at the edges, on which two executors are compared."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from zooport.export_core.caffe2.arguments import make_operator
from zooport.export_core.caffe2.net_files import Nets, one_operator_net

Inputs = Callable[[Generator], Sequence[NDArray[Any]]]
F4 = np.float32
I4 = np.int32
I8 = np.int64
EXACT = 0.0
CLOSE = 2e-5


@dataclass(frozen=True)
class Case:
    """One operator and what makes its inputs.

    Attributes:
        kind: the operator's type.
        number: tells cases of a kind apart; seeds the inputs.
        inputs: makes them.
        outputs: how many are compared.
        tolerance: relative to the larger of 1 and the number itself.
        arguments: of the operator.
    """

    kind: str
    number: int
    inputs: Inputs
    outputs: int = 1
    tolerance: float = CLOSE
    arguments: dict[str, Any] = field(default_factory=dict)

    def nets(self) -> tuple[Nets, dict[str, NDArray[Any]]]:
        """Return nets of this one operator, and what to feed."""
        random = np.random.default_rng(zlib.crc32(f"{self.kind} {self.number}".encode()))
        feed = {f"x{place}": array for place, array in enumerate(self.inputs(random))}
        made = [f"y{place}" for place in range(self.outputs)]
        return one_operator_net(make_operator(self.kind, list(feed), made, self.arguments)), feed

    def __str__(self) -> str:
        return f"{self.kind} {self.number} {self.arguments}"


class Cases:
    """A list of cases that is easily added to."""

    def __init__(self) -> None:
        self.all: list[Case] = []

    def add(
        self,
        kinds: str,
        inputs: Inputs,
        outputs: int = 1,
        tolerance: float = CLOSE,
        times: int = 1,
        **arguments: Any,
    ) -> None:
        """Add a case for each of the operators named, and as many with other random numbers as wanted."""
        for kind in kinds.split() * times:
            self.all.append(Case(kind, len(self.all), inputs, outputs, tolerance, arguments))

    def by_kind(self) -> Iterator[tuple[str, list[Case]]]:
        """Yield the cases of each operator."""
        for kind in dict.fromkeys(case.kind for case in self.all):
            yield kind, [case for case in self.all if case.kind == kind]


def normal(*shape: int) -> Inputs:
    """One float32 input."""
    return lambda random: [gauss(random, *shape)]


def normals(*shapes: tuple[int, ...]) -> Inputs:
    """Several float32 inputs."""
    return lambda random: [gauss(random, *shape) for shape in shapes]


def gauss(random: Generator, *shape: int) -> NDArray[np.float32]:
    return random.standard_normal(shape).astype(F4)


def positive(*shapes: tuple[int, ...]) -> Inputs:
    return lambda random: [abs(gauss(random, *shape)) + F4(0.1) for shape in shapes]


def rounded(*shape: int) -> Inputs:
    """Many equal numbers."""
    return lambda random: [np.round(gauss(random, *shape))]


def whole(kind: type, *shapes: tuple[int, ...], low: int = 1) -> Inputs:
    return lambda random: [random.integers(low, 9, shape).astype(kind) for shape in shapes]


def truths(*shapes: tuple[int, ...]) -> Inputs:
    return lambda random: [random.random(shape) > 0.5 for shape in shapes]


def boxes(random: Generator, count: int, size: float = 200.0, empty: float = 0.0) -> NDArray[np.float32]:
    """(count, 4) boxes, a fraction of them without area."""
    corner = random.random((count, 2)) * size
    made = np.concatenate([corner, corner + np.exp(random.standard_normal((count, 2)) + 3)], 1).astype(F4)
    flat = random.random(count) < empty
    made[flat, 2:] = made[flat, :2]
    return made


def regions(random: Generator, count: int, images: int = 1, **more: float) -> NDArray[np.float32]:
    """(count, 5) boxes behind the number of their image, in order of these."""
    numbers = np.sort(random.integers(0, images, count)).astype(F4)
    return np.concatenate([numbers[:, None], boxes(random, count, **more)], 1)


def then(first: Inputs, *arrays: Any) -> Inputs:
    """Inputs and, after them, arrays that are always the same."""
    return lambda random: [*first(random), *(np.array(array) for array in arrays)]
