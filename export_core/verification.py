"""Does an artifact say what the eager model says? Outputs are compared sample by sample."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.outputs import FIELDS, has_rows
from zooport.export_core.samples import Sample, count_detections

if TYPE_CHECKING:
    from zooport.export_core.formats import Tolerance
    from zooport.export_core.formats.base import AnyPredictor

Array = npt.NDArray[Any]

BOXES = ("pred_boxes", "proposal_boxes")
PAIRING_FIELDS = ("pred_classes", "scores", "pred_boxes")
PROPOSAL_FIELDS = ("proposal_boxes", "objectness_logits")


def verify(predictor: AnyPredictor, samples: Sequence[Sample], tolerance: Tolerance) -> dict[str, float]:
    """Run an artifact on the samples and compare.

    Returns:
        Field name -> largest deviation found, in the field's unit (pixels, score, or relative).

    Raises:
        Failure: ``artifact.mismatch`` naming the sample, the output and by how much it differs;
            ``artifact.unloadable`` when the artifact cannot run.
    """
    worst: dict[str, float] = {}
    for sample in samples:
        try:
            more = {name: value for name, value in sample.inputs.items() if name != "image"}
            found = predictor(sample.image, **more)
        except Failure:
            raise
        except Exception as error:
            raise Failure(
                "artifact.unloadable",
                f"the artifact fails on {_where(sample)}: {_last_line(error)}",
                stage=Stage.VERIFY,
                hint="the log holds the whole error",
            ) from error
        for name, deviation in compare_outputs(sample, found, tolerance).items():
            worst[name] = max(worst.get(name, 0.0), deviation)
    return worst


def compare_outputs(sample: Sample, found: Mapping[str, Array], tolerance: Tolerance) -> dict[str, float]:
    """Compare the outputs of one sample; detections count as a set, since equal scores have no order.

    Returns:
        Field name -> largest deviation, of detections with a counterpart where some may have none.

    Raises:
        Failure: ``artifact.mismatch``.
    """
    missing = [name for name in sample.outputs if name not in found]
    if missing:
        raise _mismatch(sample, missing[0], "is missing")
    found = {name: np.asarray(found[name]) for name in sample.outputs}
    if tolerance.unmatched and any(name in sample.outputs for name in BOXES):
        rows, deviations = _compare_counterparts(sample, found, tolerance)
        whole = {name: value for name, value in sample.outputs.items() if name not in rows}
        _check_shapes(sample, whole, found)
        return deviations | _compare_fields(sample, whole, found, None, tolerance)
    wanted_count, found_count = count_detections(sample.outputs), count_detections(found)
    if wanted_count != found_count:
        raise _mismatch(sample, "scores", f"has {found_count} detections instead of {wanted_count}")
    _check_shapes(sample, sample.outputs, found)
    order = _pair(sample.outputs, found, tolerance)
    return _compare_fields(sample, sample.outputs, found, order, tolerance)


def _check_shapes(sample: Sample, outputs: Mapping[str, Array], found: Mapping[str, Array]) -> None:
    for name, wanted in outputs.items():
        if found[name].shape != wanted.shape:
            raise _mismatch(sample, name, f"has shape {found[name].shape} instead of {wanted.shape}")


def _compare_fields(
    sample: Sample,
    outputs: Mapping[str, Array],
    found: Mapping[str, Array],
    order: npt.NDArray[np.intp] | None,
    tolerance: Tolerance,
) -> dict[str, float]:
    deviations = {}
    for name, wanted in outputs.items():
        value = found[name]
        if order is not None and _is_of_each(name, value, len(order)):
            value = value[order]
        deviation, limit, unit = _deviation(name, wanted, value, tolerance)
        if not deviation <= limit:  # NaN is never within a limit
            raise _mismatch(sample, name, f"differs by {deviation:.3g}{unit}, allowed {limit:g}{unit}")
        deviations[name] = deviation
    return deviations


def _compare_counterparts(
    sample: Sample, found: Mapping[str, Array], tolerance: Tolerance
) -> tuple[set[str], dict[str, float]]:
    """Compare each detection with the nearest one of its class; return the fields with a row for each.

    One that differs from it beyond the tolerance in any field has no counterpart.
    """
    boxes = next(name for name in BOXES if name in sample.outputs)
    wanted_count, found_count = len(sample.outputs[boxes]), len(found[boxes])
    rows = {
        name
        for name, value in sample.outputs.items()
        if _is_of_each(name, value, wanted_count)
        and _is_of_each(name, found[name], found_count)
        and value.shape[1:] == found[name].shape[1:]
    }
    free = np.ones(found_count, dtype=bool)
    worst = dict.fromkeys(sorted(rows), 0.0)
    for index, box in enumerate(sample.outputs[boxes]):
        alike = free.copy()
        if "pred_classes" in rows:
            alike &= found["pred_classes"] == sample.outputs["pred_classes"][index]
        if not alike.any():
            continue
        distance = np.where(alike, np.abs(found[boxes] - box).max(axis=1), np.inf)
        nearest = int(distance.argmin())
        measured = {
            name: _deviation(name, sample.outputs[name][index], found[name][nearest], tolerance)
            for name in worst
        }
        if all(deviation <= limit for deviation, limit, _ in measured.values()):
            free[nearest] = False
            worst = {name: max(worst[name], measured[name][0]) for name in worst}
    matched = found_count - int(free.sum())
    more = max(wanted_count, found_count)
    if more - matched > round(tolerance.unmatched * more):
        what = f"has counterparts for {matched} of {wanted_count} detections among {found_count}"
        raise _mismatch(sample, boxes, what)
    return rows, worst


def _is_of_each(name: str, value: Array, count: int) -> bool:
    """Whether a field has an entry for each of so many detections; a map has as many labels by chance."""
    return has_rows(name) and value.ndim > 0 and len(value) == count


def _deviation(  # noqa: PLR0911  one for each kind
    name: str, wanted: Array, found: Array, tolerance: Tolerance
) -> tuple[float, float, str]:
    kind = FIELDS[name].kind if name in FIELDS else "tensor"
    if wanted.size == 0:
        return 0.0, 0.0, ""
    if kind in {"mask", "tensor"} and wanted.dtype.kind in "bi":  # pasted masks and maps of labels
        return float((wanted != found).mean()), tolerance.mask, " of the pixels"
    difference = float(np.abs(wanted.astype(np.float64) - found.astype(np.float64)).max())
    if kind == "exact":
        return difference, 0.0, ""
    if kind == "keypoints" and np.abs(wanted[..., 2] - found[..., 2]).max() > tolerance.score:
        return float(np.abs(wanted[..., 2] - found[..., 2]).max()), tolerance.score, " of score"
    if kind in {"pixels", "keypoints"}:
        return difference, tolerance.pixels, " px"
    if kind in {"score", "mask"}:
        return difference, tolerance.score if kind == "score" else tolerance.mask, ""
    return difference / max(float(np.abs(wanted).max()), 1e-12), tolerance.relative, " relative"


def _pair(
    wanted: Mapping[str, Array], found: Mapping[str, Array], tolerance: Tolerance
) -> npt.NDArray[np.intp] | None:
    """Return for each wanted detection the index of the found one that is meant; None keeps the order.

    Each takes the nearest box among those of its class and score that are not taken yet. Proposals have no
    class; among a thousand of them, some have scores that rounding may put in another order.
    """
    if all(name in wanted for name in PAIRING_FIELDS):
        boxes, scores, allowed = "pred_boxes", "scores", tolerance.score
        classes = wanted["pred_classes"], found["pred_classes"]
    elif all(name in wanted for name in PROPOSAL_FIELDS):
        boxes, scores = PROPOSAL_FIELDS
        allowed = tolerance.relative * float(np.abs(wanted[scores]).max(initial=0))
        classes = np.zeros(len(wanted[boxes])), np.zeros(len(found[boxes]))
    else:
        return None
    if np.array_equal(*classes) and np.allclose(wanted[boxes], found[boxes], rtol=0, atol=tolerance.pixels):
        return None
    free = np.ones(len(found[boxes]), dtype=bool)
    order = np.zeros(len(wanted[boxes]), dtype=np.intp)
    for index, (class_, score, box) in enumerate(zip(classes[0], wanted[scores], wanted[boxes], strict=True)):
        alike = free & (classes[1] == class_)
        alike &= np.abs(found[scores] - score) <= allowed
        if not alike.any():
            return None
        distance = np.abs(found[boxes] - box).max(axis=1)
        order[index] = np.where(alike, distance, np.inf).argmin()
        free[order[index]] = False
    return order


def _mismatch(sample: Sample, name: str, what: str) -> Failure:
    return Failure(
        "artifact.mismatch",
        f"output {name} {what}, for {_where(sample)}",
        stage=Stage.VERIFY,
        hint="the artifact must not be shipped; report it with the log",
        details={"output": name, "sample": sample.name},
    )


def _where(sample: Sample) -> str:
    _, height, width = sample.image.shape
    return f"sample {sample.name!r} at {width}x{height} with {sample.detections} detections"


def _last_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
