"""Finds detectron2 models in a folder tree: every folder that holds a config and weights is one.

The rule, per folder:

- config: ``config.yaml`` (or ``.yml``), else the only ``.yaml`` or ``.yml`` file;
- weights: the ``model_final`` file, else the one that ``last_checkpoint`` names (detectron2 writes that file
  while it trains), else the only weights file, else the highest ``model_<iteration>``. Weights files end in
  ``.pth``, ``.pkl`` or ``.safetensors``;
- a folder with weights and configs between which this rule cannot choose is reported, never guessed;
- folders with only configs or only weights are no models; hidden folders are not entered.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

CONFIG_SUFFIXES = (".yaml", ".yml")
WEIGHTS_SUFFIXES = (".pth", ".pkl", ".safetensors")

_FINAL = "model_final"
_NUMBERED = re.compile(r"model_(\d+)")
_LAST = "last_checkpoint"


class AmbiguousError(ValueError):
    """A folder holds several files of which any could be meant; the message names them."""


@dataclass(frozen=True)
class Found:
    """A folder that holds a model, or one about which the rule is silent: then ``problem`` says why."""

    name: str
    folder: Path
    config: Path
    weights: Path
    problem: str = ""


def scan(root: Path, exclude: Sequence[str] = ()) -> Iterator[Found]:
    """Yield the models of a folder tree, sorted by name: the path relative to the root.

    Args:
        root: the folder; a model in the folder itself gets the folder's name.
        exclude: globs on relative paths; a folder that matches is left out with all below it. As shells write
            them, they may begin with ``./`` and end with ``/``.

    Raises:
        OSError: a folder cannot be read.
    """
    for folder in _folders(root, [pattern.removeprefix("./").rstrip("/") for pattern in exclude]):
        relative = folder.relative_to(root).as_posix()
        found = _examine(folder, root.resolve().name if relative == "." else relative)
        if found is not None:
            yield found


def _folders(root: Path, exclude: Sequence[str]) -> Iterator[Path]:
    seen: set[tuple[int, int]] = set()
    for current, below, _ in os.walk(root, followlinks=True, onerror=_raise):
        folder = Path(current)
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was here before
            below.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        kept = [name for name in below if not _is_left_out(folder / name, root, exclude)]
        below[:] = sorted(kept)
        yield folder


def _is_left_out(folder: Path, root: Path, exclude: Sequence[str]) -> bool:
    relative = folder.relative_to(root).as_posix()
    return folder.name.startswith(".") or any(fnmatchcase(relative, each) for each in exclude)


def _raise(error: OSError) -> None:
    raise error


def _examine(folder: Path, name: str) -> Found | None:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    configs = [path for path in files if path.suffix in CONFIG_SUFFIXES]
    weights = [path for path in files if path.suffix in WEIGHTS_SUFFIXES]
    if not configs or not weights:
        return None
    try:
        return Found(name, folder, _choose_config(configs), _choose_weights(folder, weights))
    except AmbiguousError as error:
        return Found(name, folder, folder, folder, str(error))


def _choose_config(configs: Sequence[Path]) -> Path:
    candidates = [path for path in configs if path.stem == "config"] or configs
    if len(candidates) == 1:
        return candidates[0]
    raise AmbiguousError(f"{len(candidates)} configs and none is config.yaml: {_list(candidates)}")


def _choose_weights(folder: Path, weights: Sequence[Path]) -> Path:
    final = [path for path in weights if path.stem == _FINAL]
    if len(final) > 1:
        raise AmbiguousError(f"{len(final)} final weights: {_list(final)}")
    if final:
        return final[0]
    last = _last_checkpoint(folder)
    if last is not None and last in weights:
        return last
    if len(weights) == 1:
        return weights[0]
    numbered = {int(found[1]): path for path in weights if (found := _NUMBERED.fullmatch(path.stem))}
    if len(numbered) == len(weights):
        return numbered[max(numbered)]
    raise AmbiguousError(f"{len(weights)} weights files and none is {_FINAL}: {_list(weights)}")


def _last_checkpoint(folder: Path) -> Path | None:
    try:
        name = (folder / _LAST).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return folder / Path(name).name if name else None


def _list(paths: Sequence[Path]) -> str:
    names = ", ".join(path.name for path in paths[:4])
    return names + (f" and {len(paths) - 4} more" if len(paths) > 4 else "")
