"""The taxonomy of failures: every way in which an export can end badly is one value of :class:`Failure`.

A failure says what happened (``message``), where (``stage``), what to do next (``hint``) and whether trying
again could help (``retryable``). It is an exception inside one process and a plain value between processes
(:meth:`Failure.to_dict`), so nobody has to search the text of a stack trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Stage(StrEnum):
    """The step of a job in which something failed, in the order in which a job passes them."""

    PLAN = "plan"
    LOAD = "load"
    EXPORT = "export"
    VERIFY = "verify"
    EVALUATE = "evaluate"
    PUBLISH = "publish"


@dataclass(frozen=True)
class Code:
    """One kind of failure: its dotted name, what it means, and whether the same job may succeed next time."""

    name: str
    meaning: str
    retryable: bool = False

    @property
    def unsupported(self) -> bool:
        """True for a job that was refused before any work; asking again changes nothing."""
        return self.name.startswith("unsupported.")


CODES: dict[str, Code] = {
    code.name: code
    for code in (
        Code("unsupported.combination", "this architecture cannot be expressed in this format"),
        Code("unsupported.operator", "an operator of this model has no counterpart in this format"),
        Code("unsupported.architecture", "zooport does not implement what the config asks for"),
        Code("unsupported.device", "the model needs a device that is not here"),
        Code("dependency.missing", "an optional package is not installed"),
        Code("manifest.invalid", "the manifest cannot be read or holds a wrong key or value"),
        Code("config.invalid", "the config cannot be read or holds a wrong key or value"),
        Code("extension.invalid", "code that was named as an extension cannot be imported, or fails"),
        Code("checkpoint.missing", "the weights file is not there or cannot be read"),
        Code("checkpoint.corrupt", "the weights file is truncated or not what its name says"),
        Code("checkpoint.unsafe", "the weights file would run code when loaded"),
        Code("checkpoint.mismatch", "parameters are missing, unexpected or of another shape"),
        Code("checkpoint.nonfinite", "weights contain NaN or infinity"),
        Code("fetch.failed", "weights named by address could not be fetched", retryable=True),
        Code("export.option", "no such format, or the format has no such option"),
        Code("sample.no_detections", "the sample image exercises no detection, so a trace would be blind"),
        Code("export.failed", "the converter raised an error"),
        Code("artifact.missing", "there is no artifact at this place, or one of its files is not there"),
        Code("artifact.foreign", "this is no artifact, or not one that this zooport reads"),
        Code("artifact.altered", "a file of the artifact is not as it was published"),
        Code("artifact.unloadable", "a fresh process cannot load the artifact"),
        Code("artifact.mismatch", "the artifact's outputs differ from the eager model's"),
        Code("output.occupied", "something that is not an artifact is where the artifact belongs"),
        Code("output.unwritable", "artifacts cannot be written to the output, or not from every node"),
        Code("accuracy.drift", "a metric moved by more than its tolerance, and not by chance"),
        Code("accuracy.nonfinite", "a metric or an output is NaN or infinite"),
        Code("dataset.invalid", "annotations or images cannot be used"),
        Code("resource.memory", "the job ran out of memory", retryable=True),
        Code("resource.timeout", "the job passed its deadline and was stopped", retryable=True),
        Code("resource.disk", "writing failed: disk full, read-only or not permitted", retryable=True),
        Code("worker.crashed", "the worker process died", retryable=True),
        Code("worker.error", "an error that zooport did not foresee; please report it with the log"),
        Code("cluster.unavailable", "no Ray cluster could be started or joined", retryable=True),
        Code("run.cancelled", "the run was cancelled before the job finished", retryable=True),
        Code("run.conflict", "another driver is running the same manifest", retryable=True),
        Code("log.missing", "the log that was asked for is not on this machine"),
        Code("registry.missing", "there is no registry at this place"),
        Code("registry.unavailable", "the registry cannot be opened or written here"),
        Code("registry.invalid", "this is not a zooport registry, or it is damaged"),
        Code("registry.outdated", "the registry's schema is not the one that this zooport reads"),
        Code("registry.locked", "another process holds the registry's lock", retryable=True),
        Code("registry.unknown", "the registry has no run or export of this name"),
    )
}


class Failure(Exception):
    """A typed failure.

    Args:
        code: a key of :data:`CODES`; another raises KeyError, so a new kind is declared before it is used.
        message: one line: what happened, to which file, key or operator.
        stage: where; the pipeline fills it in when the raiser does not know.
        hint: one line: what to do next.
        details: plain JSON values for machines (names of parameters, sizes).
    """

    def __init__(
        self,
        code: str,
        message: str,
        *,
        stage: Stage | None = None,
        hint: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = CODES[code]
        self.message = message
        self.stage = stage
        self.hint = hint
        self.details = dict(details or {})

    @property
    def code(self) -> str:
        """The dotted name, for example ``checkpoint.mismatch``."""
        return self.kind.name

    @property
    def retryable(self) -> bool:
        """Whether the same job may succeed when it is simply run again."""
        return self.kind.retryable

    def at(self, stage: Stage) -> Failure:
        """Set the stage if the raiser left it open, and return self."""
        self.stage = self.stage or stage
        return self

    def record(self) -> FailureRecord:
        """Return the failure as a plain value that crosses processes and is stored."""
        return FailureRecord(
            code=self.code,
            stage=str(self.stage or ""),
            message=self.message,
            hint=self.hint,
            retryable=self.retryable,
            details=self.details,
        )

    def __str__(self) -> str:
        return f"{self.code}: {self.message}" + (f" ({self.hint})" if self.hint else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self.code, self.message, self.stage, self.hint, self.details)


def _rebuild(code: str, message: str, stage: Stage | None, hint: str, details: dict[str, Any]) -> Failure:
    return Failure(code, message, stage=stage, hint=hint, details=details)


@dataclass(frozen=True)
class FailureRecord:
    """A failure as plain values."""

    code: str
    stage: str
    message: str
    hint: str
    retryable: bool
    details: dict[str, Any]

    @property
    def unsupported(self) -> bool:
        """True for a job that was refused before any work."""
        return CODES[self.code].unsupported

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values."""
        return asdict(self)
