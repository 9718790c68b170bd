"""From what a file holds to one flat state dict: which entry it is, what prefixes and copies to leave out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from zooport.export_core.checkpoints.errors import CorruptError
from zooport.export_core.checkpoints.pickle_machine import MAX_NAME

Array = np.ndarray[Any, Any]

# Where checkpoints keep the state dict, in the order in which they are looked for. The plain weights are
# those that detectron2 would load; an exponential moving average is taken only where nothing else is there.
PLAIN_KEYS = ("model", "state_dict", "model_state_dict", "model_state", "blobs")
EMA_KEYS = ("model_ema", "ema_model", "ema_state", "ema_state_dict", "state_dict_ema", "ema")
_INNER_KEYS = (*PLAIN_KEYS, "state", "module")

WRAPPERS = ("module.", "model.", "_orig_mod.")
EMA_WRAPPERS = ("ema.", "ema_model.", "model_ema.")
MAX_WRAPPERS = 8

DETECTRON2, CAFFE2 = "detectron2", "caffe2"


@dataclass(frozen=True)
class Weights:
    """The parameters of a checkpoint as it names them.

    Attributes:
        arrays: name -> array, in the file's dtype, most of them read-only views of the mapped file: nothing
            is copied before it is used. bfloat16, which NumPy lacks, is a structure of one such field.
        matching_heuristics: whether names may be matched by their longest suffix, as detectron2 does for
            every file but those of its own zoo.
        era: "detectron2" for dotted names, "caffe2" for the names of the first Detectron.
        notes: one-line remarks for the user.
    """

    arrays: Mapping[str, Array]
    matching_heuristics: bool = True
    era: str = DETECTRON2
    notes: tuple[str, ...] = ()


def from_contents(contents: Any, to_array: Callable[[Any], Array | None]) -> Weights:
    """Find the state dict in what a file holds.

    Args:
        contents: the unpickled value.
        to_array: makes an array of an entry; None for an entry that is none.

    Raises:
        CorruptError: there is no state dict in it, or one of its arrays is damaged.
    """
    if not isinstance(contents, dict):
        raise CorruptError(f"it holds a {type(contents).__name__}, not a dictionary of weights")
    state, notes = _select(contents)
    arrays, others = {}, []
    for name, entry in state.items():
        if not isinstance(name, str) or name.endswith("_momentum"):
            continue
        if len(name) > MAX_NAME:
            raise CorruptError(f"a parameter's name has {len(name)} characters")
        array = _named(name, entry, to_array)
        if array is None:
            others.append(name)
        else:
            arrays[name] = array
    if not arrays:
        raise CorruptError("it holds no weights")
    if others:
        notes.append(f"{len(others)} entries are no arrays and are left out: {_first(others)}")
    is_zoo_file = "__author__" in contents and "model" in contents
    heuristics = contents.get("matching_heuristics", False) is True if is_zoo_file else True
    return from_arrays(arrays, notes, heuristics)


def from_arrays(arrays: dict[str, Array], notes: Iterable[str] = (), heuristics: bool = True) -> Weights:
    """Strip wrappers' prefixes and tell the era by the names."""
    remarks = list(notes)
    arrays = _without_ema(arrays, remarks)
    prefix = ""
    for _ in range(MAX_WRAPPERS):
        found = _common_prefix(arrays, WRAPPERS + EMA_WRAPPERS)
        if found is None:
            break
        prefix += found
        arrays = {name.removeprefix(found): array for name, array in arrays.items()}
    if prefix:
        remarks.append(f"the prefix {prefix} of all names is left out")
    era = CAFFE2 if _is_caffe2(arrays) else DETECTRON2
    return Weights(arrays, heuristics or era == CAFFE2, era, tuple(remarks))


def _select(contents: dict[Any, Any]) -> tuple[dict[Any, Any], list[str]]:
    for key in PLAIN_KEYS:
        if isinstance(contents.get(key), dict):
            return _unwrap(contents[key]), _ema_note(contents)
    for key in EMA_KEYS:
        if isinstance(contents.get(key), dict):
            return _unwrap(contents[key]), [f"only a moving average is there: {key} is used"]
    return contents, []


def _unwrap(state: dict[Any, Any]) -> dict[Any, Any]:
    """A wrapper's state dict may hold the model's one level deeper."""
    for key in _INNER_KEYS:
        inner = state.get(key)
        if isinstance(inner, dict) and inner:
            return inner
    return state


def _ema_note(contents: dict[Any, Any]) -> list[str]:
    unused = [key for key in EMA_KEYS if isinstance(contents.get(key), dict)]
    return [f"the plain weights are used, not the moving average {unused[0]}"] if unused else []


def _named(name: str, entry: Any, to_array: Callable[[Any], Array | None]) -> Array | None:
    try:
        return to_array(entry)
    except CorruptError as error:
        raise CorruptError(f"{name[:120]}: {error}", error.hint) from error


def _without_ema(arrays: dict[str, Array], remarks: list[str]) -> dict[str, Array]:
    """Drop a moving average that lies among the plain weights under a prefix of its own."""
    plain = {name: array for name, array in arrays.items() if not name.startswith(EMA_WRAPPERS)}
    if not plain or len(plain) == len(arrays):
        return arrays
    dropped = len(arrays) - len(plain)
    remarks.append(f"the plain weights are used, not the {dropped} of a moving average beside them")
    return plain


def _common_prefix(arrays: Mapping[str, Array], prefixes: tuple[str, ...]) -> str | None:
    for prefix in prefixes:
        if arrays and all(name.startswith(prefix) for name in arrays):
            return prefix
    return None


def _is_caffe2(arrays: Mapping[str, Array]) -> bool:
    """The first Detectron joined the parts of a name by underscores; PyTorch joins them by dots."""
    return all("." not in name for name in arrays) and any(name.endswith(("_w", "_b")) for name in arrays)


def _first(names: list[str], count: int = 3) -> str:
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(name[:80] for name in names[:count]) + more
