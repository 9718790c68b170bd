"""The contract of a format: refuse, export, load. Free of torch, so that listing formats is quick."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from zooport.export_core.failures import Failure, Stage

if TYPE_CHECKING:
    from torch import Tensor, nn

    from zooport.export_core.config import Config


Array = npt.NDArray[Any]
AnyPredictor = Callable[..., dict[str, Array]]  # from an image, and further inputs by name
Entry = dict[str, Any]  # of an input or output in model.json


@dataclass(frozen=True)
class Tolerance:
    """How far an artifact's outputs may be from the eager model's.

    Attributes:
        pixels: of box corners and keypoints, absolute.
        score: of scores, absolute.
        mask: of mask probabilities, absolute.
        relative: of any other tensor, relative to the largest magnitude in it.
        unmatched: share of the detections that may have no counterpart; of formats that compute with fewer
            digits. Above 0, detections are compared with the most similar one instead of one by one.
    """

    pixels: float = 0.01
    score: float = 1e-4
    mask: float = 1e-4
    relative: float = 1e-4
    unmatched: float = 0.0


@dataclass(frozen=True)
class FormatInfo:
    """What people and commands know of a format.

    Attributes:
        name: as it stands in manifests.
        main_file: the file in the artifact that a consumer loads.
        requires_extra: name of zooport's extra with the needed packages, None when there is none.
        options: option name -> what it does and its default.
        call: how the artifact is called, for model.json.
        tools: packages besides torch and torchvision whose versions make a difference to the artifact.
        runtime_bytes: memory that a process of the format's own holds at most, besides the job's, before
            there are parameters; ``runtime_bytes_per_checkpoint_byte`` for each byte of these.
        runtimes: what can run the artifacts, where there is a choice; the option ``runtime`` names one.
    """

    name: str
    summary: str
    main_file: str
    call: str
    requires_extra: str | None = None
    tools: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    tolerance: Tolerance = Tolerance()
    runtime_bytes: int = 0
    runtime_bytes_per_checkpoint_byte: float = 0.0
    runtimes: tuple[str, ...] = ()


RUNTIME = "runtime"
"""The option of formats with ``runtimes``: what an artifact is verified with. The artifact is the same."""


class Format(ABC):
    """One way to ship a model. A format knows nothing of other formats, of datasets or of runs.

    Attributes:
        remarks: what the user should know of the last export, one line each.
        runtime: what runs the artifact that was loaded last, "" where there is no choice.
        inner_parts_are_called: see :meth:`inner_outputs`.
    """

    info: FormatInfo
    inner_parts_are_called = False

    def __init__(self) -> None:
        self.remarks: list[str] = []
        self.runtime = ""

    def check_options(self, options: Mapping[str, Any]) -> None:
        """Refuse options that the format does not have.

        Raises:
            Failure: ``export.option`` naming the option, or a runtime that the format does not have.
        """
        for name in options:
            if name not in self.info.options:
                known = ", ".join(self.info.options) or "none"
                raise Failure(
                    "export.option",
                    f"format {self.info.name} has no option {name!r}",
                    stage=Stage.PLAN,
                    hint=f"its options: {known}",
                )
        if options.get(RUNTIME) is not None:
            self.check_runtime(options[RUNTIME])

    def check_runtime(self, name: Any) -> None:
        """Refuse a runtime that cannot run the format's artifacts.

        Raises:
            Failure: ``export.option``.
        """
        if name not in self.info.runtimes:
            known = ", ".join(self.info.runtimes)
            raise Failure(
                "export.option",
                f"format {self.info.name} has no runtime {name!r}",
                stage=Stage.PLAN,
                hint=f"its runtimes: {known}" if known else "its artifacts are run in one way only",
            )

    def requires(self, config: Config, options: Mapping[str, Any]) -> None:
        """Refuse a model that the format cannot express, before any work is done.

        Raises:
            Failure: ``unsupported.combination`` naming the config key and value.
        """
        self.check_options(options)

    @abstractmethod
    def export(
        self,
        model: nn.Module,
        inputs: Mapping[str, Tensor],
        fields: Sequence[str],
        directory: Path,
        options: Mapping[str, Any],
    ) -> None:
        """Write the artifact's files.

        Args:
            model: in evaluation mode; called with [inputs], returns [{field: tensor}].
            inputs: "image", float32 (C, H, W), 0-255, on which the model detects something; first, and
                followed by whatever else the model takes, such as "proposal_boxes" (P, 4).
            fields: names of the model's outputs, sorted.
            directory: empty, on the file system of the finished artifact.
            options: checked values of the format's options.

        Raises:
            Failure: ``unsupported.operator``, ``export.failed`` or ``resource.disk``.
        """

    def annotate(  # noqa: B027  most formats have no such place
        self, directory: Path, description: Mapping[str, Any]
    ) -> None:
        """Enter into the artifact's own files what model.json says, where they have a place for it.

        Raises:
            Failure: ``resource.disk``.
        """

    @abstractmethod
    def load(self, directory: Path, fields: Sequence[str], options: Mapping[str, Any]) -> AnyPredictor:
        """Load an artifact as a consumer would, without the code that built it.

        The predictor takes the image, and the model's further inputs as keywords.

        Raises:
            Failure: ``artifact.unloadable``.
        """

    def inner_outputs(
        self,
        directory: Path,
        inputs: Mapping[str, Array],
        calls: Mapping[str, Sequence[Any]],
        options: Mapping[str, Any],
    ) -> Mapping[str, Sequence[Array]]:
        """Return what parts of the model give inside of an artifact, to find where it departs from the model.

        Either the whole artifact runs on the inputs, or, where ``inner_parts_are_called`` is true, each part
        is called with the arguments of the eager model's.

        Args:
            directory: the artifact's.
            inputs: of the artifact.
            calls: dotted name of each part -> the arguments that the eager model called it with, of torch.
            options: of the format.

        Returns:
            Name -> the tensors that the part returned, of the parts that can be told; those of equal shape in
            the eager model's order. {} of a format or an option where inner tensors cannot be had.
        """
        return {}

    def tolerance(self, options: Mapping[str, Any]) -> Tolerance:
        """Return how far the outputs of an artifact with these options may be from the eager model's."""
        return self.info.tolerance

    def expected(
        self, inputs: Mapping[str, Array], outputs: Mapping[str, Array], options: Mapping[str, Any]
    ) -> tuple[Mapping[str, Array], Mapping[str, Array]]:
        """Return what an artifact with these options is to be given and to return, to verify it.

        Args:
            inputs: of the eager model, the image first.
            outputs: what it returned.
            options: of the format.
        """
        return inputs, outputs

    def explain(self, failure: Failure, notes: Sequence[str]) -> Failure:
        """Return a failure of verification with a better hint, where the format knows what it comes from.

        Args:
            failure: what verification found.
            notes: what was remarked when the artifact was made.
        """
        return failure

    def describe_signature(
        self, inputs: list[Entry], outputs: list[Entry], options: Mapping[str, Any]
    ) -> tuple[list[Entry], list[Entry]]:
        """Return the artifact's inputs and outputs for model.json, from those of the model for one image."""
        return inputs, outputs


def as_arrays(fields: Mapping[str, Any]) -> dict[str, Array]:
    """Return numpy arrays of the tensors that a torch model returned."""
    return {name: value.detach().cpu().numpy() for name, value in fields.items()}
