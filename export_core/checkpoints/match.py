"""Fit the weights of a checkpoint to the parameters that a model expects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from zooport.export_core.checkpoints import caffe2_names
from zooport.export_core.checkpoints.tensors import is_bfloat16, widen
from zooport.export_core.checkpoints.weights import CAFFE2, Array, Weights
from zooport.export_core.failures import Failure

Shape = tuple[int, ...]

_SHOWN = 3
_COUNTER = "num_batches_tracked"


@dataclass
class _Pairing:
    """Which entry of the checkpoint each expected parameter takes, and what is left on both sides."""

    found: dict[str, str] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    reshaped: list[tuple[str, Shape, Shape]] = field(default_factory=list)
    ambiguous: list[tuple[str, str, str]] = field(default_factory=list)

    def fits(self) -> bool:
        return not (self.missing or self.unexpected or self.reshaped or self.ambiguous)


def match_weights(
    expected: Mapping[str, Shape], weights: Weights, *, source: str, notes: list[str] | None = None
) -> dict[str, Array]:
    """Return an array for every expected parameter.

    Names are taken as they are; where the checkpoint allows it (see :class:`Weights`), a parameter without
    an entry of its name takes the entry that is its longest suffix after a dot, as detectron2 does. Old
    Detectron names are translated first.

    Tolerated as detectron2 tolerates them, and absent from the result: buffers of anchors (``cell_anchors``,
    ``anchor_generator``) and ``pixel_mean`` and ``pixel_std``, missing, extra or of any shape: they follow
    from the config. Counters ``num_batches_tracked`` may be missing (they are returned as 0) or extra. A
    checkpoint without any running statistics, as Caffe2's affine-only ones, leaves those of frozen norms at
    mean 0 and variance 1; for a norm that keeps a counter, and so was not frozen, they must be there.

    Args:
        expected: parameter and buffer names of the model with their shapes.
        weights: as :func:`read_weights` returns them.
        source: the file's name, for errors.
        notes: receives one-line remarks, if given.

    Returns:
        name -> writable, contiguous float32 array of the expected shape (int64 for counters), independent of
        the file.

    Raises:
        Failure: ``checkpoint.mismatch`` with the missing, unexpected and wrongly shaped names;
            ``checkpoint.nonfinite`` with the names of parameters that hold NaN or infinity.
    """
    remarks = [] if notes is None else notes
    arrays, origins = dict(weights.arrays), {name: name for name in weights.arrays}
    if weights.era == CAFFE2:
        arrays, origins = caffe2_names.convert(weights.arrays)
        remarks.append("names of the first Detectron are translated, the background class moved to the end")
    wanted = {name: tuple(shape) for name, shape in expected.items() if not _follows_from_config(name)}
    pairing = _pair(wanted, arrays, weights.matching_heuristics)
    matched = sum(name != entry for name, entry in pairing.found.items())
    if matched and weights.era != CAFFE2:
        remarks.append(f"{matched} names are matched by their endings, as detectron2 does")
    _tolerate(pairing, wanted, arrays, origins, remarks)
    if not pairing.fits():
        raise _mismatch(pairing, origins, source)
    result = {name: _take(arrays[pairing.found[name]], name) for name in wanted if name in pairing.found}
    _check_finite(result, source)
    result |= {name: _absent(name, shape) for name, shape in wanted.items() if name not in result}
    return result


def _follows_from_config(name: str) -> bool:
    leaf = name.rsplit(".", 1)[-1]
    return leaf in ("pixel_mean", "pixel_std") or "cell_anchors" in name or "anchor_generator." in name


def _is_counter(name: str) -> bool:
    return name.rsplit(".", 1)[-1] == _COUNTER


def _is_statistic(name: str) -> bool:
    return name.rsplit(".", 1)[-1] in ("running_mean", "running_var")


def _pair(wanted: Mapping[str, Shape], arrays: Mapping[str, Array], by_suffix: bool) -> _Pairing:
    pairing = _Pairing()
    users: dict[str, str] = {}
    # Parameters with an entry of their own name first: it is not up for others to take by its ending.
    for name in sorted(wanted, key=lambda name: name not in arrays):
        entry = name if name in arrays else _longest_suffix(name, arrays) if by_suffix else None
        if entry is None or (entry != name and entry in wanted):
            pairing.missing.append(name)
        elif entry in users:
            pairing.ambiguous.append((entry, users[entry], name))
        elif arrays[entry].shape != wanted[name] and not _is_counter(name):
            pairing.reshaped.append((name, arrays[entry].shape, wanted[name]))
            users[entry] = name
        else:
            pairing.found[name] = entry
            users[entry] = name
    pairing.unexpected = [entry for entry in arrays if entry not in users]
    return pairing


def _longest_suffix(name: str, arrays: Mapping[str, Array]) -> str | None:
    rest = name
    while "." in rest:
        rest = rest.split(".", 1)[1]
        if rest in arrays:
            return rest
    return None


def _tolerate(
    pairing: _Pairing,
    wanted: Mapping[str, Shape],
    arrays: Mapping[str, Array],
    origins: Mapping[str, str],
    remarks: list[str],
) -> None:
    """Strike what detectron2 tolerates from both lists; see :func:`match_weights`."""
    pairing.missing = [name for name in pairing.missing if not _is_counter(name)]
    if not any(_is_statistic(entry) for entry in arrays):
        norms = {name for name in pairing.missing if _is_statistic(name) and _is_frozen(name, wanted)}
        if norms:
            pairing.missing = [name for name in pairing.missing if name not in norms]
            remarks.append("the checkpoint has no running statistics; frozen norms use mean 0 and variance 1")
    pairing.unexpected = [
        entry
        for entry in pairing.unexpected
        if not (_follows_from_config(entry) or _is_counter(entry) or caffe2_names.is_leftover(origins[entry]))
    ]


def _is_frozen(name: str, wanted: Mapping[str, Shape]) -> bool:
    """A norm that was trained counts its batches; a frozen one does not."""
    return f"{name.rsplit('.', 1)[0]}.{_COUNTER}" not in wanted


def _take(array: Array, name: str) -> Array:
    if _is_counter(name):
        return np.array(array, np.int64)
    if is_bfloat16(array):
        return np.ascontiguousarray(widen(array))
    with np.errstate(over="ignore"):  # float64 beyond float32 becomes infinite and is found right after
        return np.array(array, np.float32, order="C")


def _absent(name: str, shape: Shape) -> Array:
    if _is_counter(name):
        return np.zeros(shape, np.int64)
    return (np.ones if name.endswith("running_var") else np.zeros)(shape, np.float32)


def _check_finite(arrays: Mapping[str, Array], source: str) -> None:
    names = [name for name, array in arrays.items() if not _is_finite(array)]
    if names:
        raise Failure(
            "checkpoint.nonfinite",
            f"{source}: {_count(names, 'parameter')} with NaN or infinity: {_list(names)}",
            hint="training diverged, or numbers were too large for half precision; use an earlier checkpoint",
            details={"file": source, "names": names},
        )


def _is_finite(array: Array) -> bool:
    """NaN and infinity survive a sum, and float32 numbers cannot overflow one in float64: no mask needed."""
    with np.errstate(invalid="ignore"):
        return bool(np.isfinite(np.add.reduce(array, axis=None, dtype=np.float64)))


def _mismatch(pairing: _Pairing, origins: Mapping[str, str], source: str) -> Failure:
    unexpected = [origins[entry] for entry in pairing.unexpected]
    reshaped = [f"{name} is {found}, expected {shape}" for name, found, shape in pairing.reshaped]
    twice = [f"{origins[entry]} for {first} and {name}" for entry, first, name in pairing.ambiguous]
    parts = [
        f"{_count(names, noun)} {what}: {_list(names)}"
        for names, noun, what in (
            (pairing.missing, "parameter", "missing"),
            (unexpected, "entry", "unexpected"),
            (reshaped, "shape", "different"),
            (twice, "entry", "ambiguous"),
        )
        if names
    ]
    return Failure(
        "checkpoint.mismatch",
        f"{source}: the weights do not fit the config: {'; '.join(parts)}",
        hint=_advice(pairing),
        details={
            "file": source,
            "missing": pairing.missing,
            "unexpected": unexpected,
            "shapes": {name: {"found": found, "expected": want} for name, found, want in pairing.reshaped},
            "ambiguous": [entry for entry, _, _ in pairing.ambiguous],
        },
    )


def _advice(pairing: _Pairing) -> str:
    """Where only the last layers differ, the config has another number of classes."""
    rows = {name.rsplit(".", 1)[0]: found[0] for name, found, _ in pairing.reshaped if found}
    classifier = next((layer for layer in rows if layer.endswith("box_predictor.cls_score")), None)
    if classifier and not (pairing.missing or pairing.unexpected):
        return f"were they trained with MODEL.ROI_HEADS.NUM_CLASSES {rows[classifier] - 1}?"
    return "is this the config that the weights were trained with?"


def _count(names: list[str], noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{len(names)} {noun if len(names) == 1 else plural}"


def _list(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(name[:120] for name in names[:_SHOWN]) + more
