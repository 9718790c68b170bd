"""How the reference executor finds the function of an operator, and what that function gets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from zooport.export_core.caffe2.arguments import argument_value, floats_of


class Refused(Exception):
    """An operator does not take these inputs or arguments; the real runtime refuses them as well."""


class NotImplementedHere(Exception):
    """The real runtime may do this; the reference executor does not."""


@dataclass(frozen=True)
class Call:
    """One operator of a net and its inputs.

    ``arguments`` are Argument messages by name. They have the kinds that Caffe2 asks for: a float where it
    wants an integer is refused there, too.
    """

    kind: str
    inputs: Sequence[Tensor]
    arguments: dict[str, Any]
    outputs: int

    @classmethod
    def of(cls, operator: Any, inputs: Sequence[Tensor]) -> Call:
        """Make the call of an OperatorDef."""
        arguments = {one.name: one for one in reversed(operator.arg)}  # of two alike the first counts
        return cls(operator.type, inputs, arguments, len(operator.output))

    def has(self, name: str) -> bool:
        """Whether the operator has this argument."""
        return name in self.arguments

    def integer(self, name: str, default: int) -> int:
        """Return an integer argument."""
        return self._single(name, default, int)  # type: ignore[no-any-return]

    def flag(self, name: str, default: bool) -> bool:
        """Return a truth value, which is an integer argument."""
        return bool(self.integer(name, int(default)))

    def number(self, name: str, default: float) -> float:
        """Return a float argument."""
        return self._single(name, default, float)  # type: ignore[no-any-return]

    def text(self, name: str, default: str) -> str:
        """Return a string argument."""
        found = self._single(name, default.encode(), bytes)
        return found.decode(errors="replace")  # type: ignore[no-any-return]

    def integers(self, name: str, default: Sequence[int] = ()) -> list[int]:
        """Return a repeated integer argument."""
        return self._several(name, default, int)

    def numbers(self, name: str, default: Sequence[float] = ()) -> list[float]:
        """Return a repeated float argument."""
        return self._several(name, default, float)

    def array(self, name: str) -> NDArray[np.float32]:
        """Return a repeated float argument as float32 (N,)."""
        return floats_of(self.arguments[name]) if name in self.arguments else np.zeros(0, np.float32)

    def value(self, name: str, default: Any) -> Any:
        """Return an argument of any kind."""
        return argument_value(self.arguments[name]) if name in self.arguments else default

    def only(self, name: str, value: object) -> None:
        """Refuse any value of an argument but the one that is implemented.

        Raises:
            NotImplementedHere: another value.
        """
        found = self.value(name, value)
        if (found.decode(errors="replace") if isinstance(found, bytes) else found) != value:
            raise NotImplementedHere(f"with {name}={found!r}")

    def _single(self, name: str, default: Any, kind: type) -> Any:
        found = self.value(name, default)
        if type(found) is not kind:
            raise Refused(f"argument {name} is {found!r}, not of type {kind.__name__}")
        return found

    def _several(self, name: str, default: Sequence[Any], kind: type) -> list[Any]:
        found = self.value(name, default)
        if not isinstance(found, Sequence) or any(type(one) is not kind for one in found):
            raise Refused(f"argument {name} is {found!r}, not a list of type {kind.__name__}")
        return list(found)


Kernel = Callable[[Call], Tensor | Sequence[Tensor]]

KERNELS: dict[str, Kernel] = {}
"""Operator type -> the function that computes it; filled by the modules of this package."""


def operator(*kinds: str) -> Callable[[Kernel], Kernel]:
    """Register a function as that of these operator types."""

    def register(kernel: Kernel) -> Kernel:
        KERNELS.update(dict.fromkeys(kinds, kernel))
        return kernel

    return register


def refuse_unless(condition: bool, reason: str) -> None:
    """Raise :class:`Refused` for inputs that the real operator does not take."""
    if not condition:
        raise Refused(reason)
