"""detectron2's Python configs (LazyConfig): never run, but recognised, so that a refusal says what to do."""

from __future__ import annotations

import re
from pathlib import Path

from zooport.export_core.config.projects import refusal_hint
from zooport.export_core.failures import Failure

_MAX_CHARACTERS = 2**20
_WRITE_YAML = (
    "zooport reads YAML: name the model (zooport zoo list), or write its config with the keys of"
    " detectron2's YAML configs; modules of your own come as an extension (--import)"
)

# Classes and files that only these projects' configs name. All of them exist as Python configs only.
_PROJECTS = {
    "ViTDet": ("ViT", "SimpleFeaturePyramid", "get_vit_lr_decay_rate"),
    "MViTv2": ("MViT",),
    "Swin Transformer in ViTDet": ("SwinTransformer",),
    "Rethinking-BatchNorm": ("BatchNormBatchStat", "mask_rcnn_BNhead", "retinanet_SyncBNhead"),
}
_PROJECT_OF = {name: project for project, names in _PROJECTS.items() for name in names}
_IN_FILE_NAMES = {"vitdet": "ViTDet", "mvitv2": "MViTv2", "BNhead": "Rethinking-BatchNorm"}
_TARGET = re.compile(r"^\s*(?:-\s+)?_target_\s*:\s*['\"]?(?P<target>[\w.]+)", re.MULTILINE)


def is_dump(text: str) -> bool:
    """Whether YAML text is the dump of a LazyConfig: objects described by ``_target_`` keys."""
    return _TARGET.search(text) is not None


def python_refusal(path: Path, origin: str = "") -> Failure:
    """Return the refusal of a ``.py`` file given as a config; its text is searched, never run.

    Args:
        path: the file.
        origin: which file named it, for the message.

    Returns:
        ``unsupported.architecture`` when it is of a project that zooport lacks, else ``config.invalid``.
    """
    named = _project_in_python(path)
    if named is not None:
        return _unsupported(f"{path}{origin}", *named)
    return Failure(
        "config.invalid",
        f"{path}{origin}: Python configs are not run",
        hint=_official(path) or _WRITE_YAML,
        details={"file": str(path)},
    )


def dump_refusal(path: Path, text: str) -> Failure:
    """Return the refusal of a LazyConfig's YAML dump; codes as :func:`python_refusal`."""
    for found in _TARGET.finditer(text):
        project = _PROJECT_OF.get(found["target"].rpartition(".")[2])
        if project is not None:
            line = text.count("\n", 0, found.start("target")) + 1
            return _unsupported(str(path), project, f"line {line}: _target_ = {found['target']!r}")
    return Failure(
        "config.invalid",
        f"{path}: this is the dump of a LazyConfig (it has _target_ keys), not a YAML config",
        hint=_WRITE_YAML,
        details={"file": str(path)},
    )


def _project_in_python(path: Path) -> tuple[str, str] | None:
    """Return a project and what names it, None when nothing does."""
    for number, line in enumerate(_lines(path), 1):
        for word in re.findall(r"\w+", line.partition("#")[0]):
            if word in _PROJECT_OF:
                return _PROJECT_OF[word], f"line {number}: {word}"
    named = (mark for mark in _IN_FILE_NAMES if mark in path.stem)
    mark = next(named, None)
    return None if mark is None else (_IN_FILE_NAMES[mark], f"its name says {mark}")


def _lines(path: Path) -> list[str]:
    try:
        if not path.is_file():
            return []
        with path.open(encoding="utf-8", errors="replace") as file:
            return file.read(_MAX_CHARACTERS).splitlines()
    except (OSError, ValueError):
        return []  # a file that cannot be read is refused all the same


def _official(path: Path) -> str:
    """Return a hint for a file that is named like a model of the official zoo, "" for any other."""
    from zooport.export_core.zoo import catalog

    entry = next((entry for name, entry in catalog().items() if Path(name).name == path.stem), None)
    return "" if entry is None else f"zooport has this model as plain YAML: zoo {entry.name}, {entry.config}"


def _unsupported(source: str, project: str, evidence: str) -> Failure:
    return Failure(
        "unsupported.architecture",
        f"{source}: {evidence}: this is a model of {project}, which zooport does not implement",
        hint=refusal_hint(project),
        details={"project": project, "evidence": evidence},
    )
