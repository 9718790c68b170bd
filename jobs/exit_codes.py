"""What a command leaves to the shell for a failure."""

from __future__ import annotations

from zooport.export_core.failures import Failure, FailureRecord

FAILED = 1
USAGE = 2
_TO_BE_CHANGED = (
    "artifact.foreign",
    "artifact.missing",
    "config.",
    "dataset.",
    "export.option",
    "extension.",
    "manifest.",
    "output.unwritable",
    "registry.",
    "checkpoint.missing",
    "run.",
)


#: In a failure's details the run that it broke off: what was asked for was not wrong then.
BROKEN_OFF = "broken_off"


def exit_code(failure: Failure | FailureRecord) -> int:
    """Return 1 for a failed export or a state that may pass, 2 for input that has to be changed first."""
    if BROKEN_OFF in failure.details:
        return FAILED
    wrong_usage = failure.code.startswith(_TO_BE_CHANGED) and not failure.retryable
    return USAGE if wrong_usage else FAILED
