"""Runs NetDefs on torch, operator by operator, as the real runtime does on the CPU.

Its numbers are proved against the real runtime in the tests. It is there so that a machine without the
runtime can verify an artifact, and it is as strict: what the runtime refuses is refused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from zooport.export_core.caffe2.net_files import Nets, check_inputs, check_nets, without_large

# Importing the modules registers their operators.
from zooport.export_core.caffe2.reference import (  # noqa: F401
    boxes,
    elementwise,
    fills,
    joining,
    layers,
    normalization,
    proposals,
    reductions,
    regions,
    resizing,
    selection,
    shaping,
)
from zooport.export_core.caffe2.reference.registry import KERNELS, Call, NotImplementedHere, Refused
from zooport.export_core.caffe2.schema import NetDef
from zooport.export_core.diagnosis import one_line
from zooport.export_core.failures import Failure


class ReferenceExecutor:
    """Runs nets in this process, on torch; an executor."""

    name = "reference"

    def operators(self) -> tuple[str, ...]:
        """Return the names of all operators that it has."""
        return tuple(sorted(KERNELS))

    def load(self, nets: Nets) -> ReferenceNets:
        """Make the parameters and check that every operator is known.

        Raises:
            Failure: ``unsupported.operator`` naming the first that is not, ``artifact.unloadable``.
        """
        check_nets(nets, nets.predict.name or "net")
        for net in (nets.init, nets.predict):
            for number, operator in enumerate(net.op):
                if operator.type not in KERNELS:
                    raise _unsupported(number, operator, "is not known to the reference executor")
        blobs: dict[str, Tensor] = {}
        _run(without_large(nets), blobs, frozenset())
        for name, array in nets.large.items():
            blobs[name] = torch.from_numpy(np.array(array, np.float32, order="C"))
        return ReferenceNets(Nets(nets.predict, NetDef(), nets.inputs), blobs)

    def close(self) -> None:
        """Do nothing: the nets go with whoever holds them."""


class ReferenceNets:
    """Nets and their parameters."""

    def __init__(self, nets: Nets, parameters: Mapping[str, Tensor]) -> None:
        self._nets = nets
        self._parameters = dict(parameters)

    @torch.inference_mode()
    def run(
        self, inputs: Mapping[str, NDArray[Any]], fetch: Sequence[str] | None = None
    ) -> dict[str, NDArray[Any]]:
        """Run the predict net once; see :class:`~zooport.export_core.caffe2.executors.LoadedNets`.

        Raises:
            Failure: ``artifact.unloadable`` naming the operator that refuses its inputs,
                ``unsupported.operator`` for an argument that is not implemented.
        """
        check_inputs(self._nets, inputs)
        wanted = self._nets.outputs if fetch is None else tuple(fetch)
        blobs = dict(self._parameters)
        for name, array in inputs.items():
            blobs[name] = torch.from_numpy(np.array(array, order="C"))  # a copy: nets may work in place
        _run(self._nets.predict, blobs, frozenset(wanted))
        missing = [name for name in wanted if name not in blobs]
        if missing:
            raise Failure("artifact.unloadable", f"the net has no blob {missing[0]!r}")
        return {name: blobs[name].numpy() for name in wanted}


def _run(net: Any, blobs: dict[str, Tensor], wanted: frozenset[str]) -> None:
    """Run the operators of a net in their order; what nobody reads any more is freed."""
    last = {name: number for number, operator in enumerate(net.op) for name in operator.input}
    kept = wanted | set(net.external_output) | set(net.external_input)
    for number, operator in enumerate(net.op):
        made = _compute(number, operator, [blobs[name] for name in operator.input])
        # An operator may have outputs that the net does not name, and Caffe2 gives only those it names.
        blobs.update(zip(operator.output, made, strict=False))
        for name in operator.input:
            if last[name] == number and name not in kept and name not in operator.output:
                blobs.pop(name, None)


def _compute(number: int, operator: Any, inputs: list[Tensor]) -> Sequence[Tensor]:
    try:
        made = KERNELS[operator.type](Call.of(operator, inputs))
    except NotImplementedHere as error:
        raise _unsupported(number, operator, f"{error} is not known to the reference executor") from error
    except (Refused, RuntimeError, IndexError, ValueError, TypeError) as error:
        shapes = ", ".join(f"{name}: {tuple(one.shape)}" for name, one in _named(operator, inputs))
        reason = str(error) if isinstance(error, Refused) else one_line(error)
        who = f"operator {number} ({operator.type}, making {', '.join(operator.output)})"
        raise Failure(
            "artifact.unloadable",
            f"{who} does not take its inputs: {reason} [{shapes}]",
            details={"operator": operator.type, "number": number},
        ) from error
    made = (made,) if isinstance(made, Tensor) else made
    if len(made) < len(operator.output):
        raise _unsupported(number, operator, f"with {len(operator.output)} outputs is not known here")
    return made


def _named(operator: Any, inputs: list[Tensor]) -> list[tuple[str, Tensor]]:
    return list(zip(operator.input, inputs, strict=True))


def _unsupported(number: int, operator: Any, reason: str) -> Failure:
    return Failure(
        "unsupported.operator",
        f"operator {number}: {operator.type} {reason}",
        hint="the real runtime may have it: zooport runtime install caffe2",
        details={"operator": operator.type, "number": number},
    )
