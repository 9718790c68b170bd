"""The names of all metrics, so that a tolerance for one that does not exist is refused before any work.

Free of what measuring them imports; a test compares with what the tasks return.
"""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches

EVERY = "*"
"""Stands for every metric that is judged by default."""

_AP = ("AP", "AP50", "AP75", "APs", "APm", "APl")
_LVIS = ("APr", "APc", "APf")  # of rare, common and frequent categories
_AR = ("AR@100", "ARs@100", "ARm@100", "ARl@100", "AR@1000", "ARs@1000", "ARm@1000", "ARl@1000")
_PQ = tuple(f"{name}{suffix}" for suffix in ("", "_th", "_st") for name in ("PQ", "SQ", "RQ"))

#: Task -> its metrics; what ends in a dash is followed by the name of a category or label.
METRICS: Mapping[str, tuple[str, ...]] = {
    "bbox": (*_AP, *_LVIS, "AP-"),
    "segm": (*_AP, *_LVIS, "AP-"),
    "keypoints": ("AP", "AP50", "AP75", "APm", "APl", "AP-"),
    "panoptic_seg": _PQ,
    "sem_seg": ("mIoU", "fwIoU", "mACC", "pACC", "IoU-", "ACC-"),
    "box_proposals": _AR,
}

#: detectron2's meta architectures -> the tasks that their models may be measured by.
TASKS: Mapping[str, tuple[str, ...]] = {
    "GeneralizedRCNN": ("bbox", "segm", "keypoints"),
    "ProposalNetwork": ("box_proposals",),
    "RetinaNet": ("bbox",),
    "FCOS": ("bbox",),
    "PanopticFPN": ("bbox", "segm", "keypoints", "panoptic_seg", "sem_seg"),
    "SemanticSegmentor": ("sem_seg",),
}


def problem_with(name: str) -> str:
    """Return why this cannot name a metric: ``bbox/AP``, or ``AP`` for that of every task; "" if it can."""
    if name == EVERY:
        return ""
    task, slash, metric = _split(name)
    if not slash:
        if any(_has(each, metric) for each in METRICS):
            return ""
        known = dict.fromkeys(known for names in METRICS.values() for known in names)
        return f"no task has a metric {metric!r}{_suggestion(metric, list(known))}"
    if task not in METRICS:
        return f"there is no task {task!r}{_suggestion(task, list(METRICS))}; tasks: {', '.join(METRICS)}"
    if not _has(task, metric):
        return f"{task} has no metric {metric!r}; it has {_listed(METRICS[task])}"
    return ""


def may_have(architecture: str | None, name: str) -> bool:
    """Whether models of an architecture may have a metric of this name; nothing is known of unknown ones."""
    if architecture is None or architecture not in TASKS or name == EVERY:
        return True
    task, slash, metric = _split(name)
    return any(_has(each, metric) for each in TASKS[architecture] if not slash or each == task)


def metrics_of(architecture: str) -> str:
    """Return the metrics that models of an architecture may have, for people."""
    return "; ".join(f"{task}/ {_listed(METRICS[task])}" for task in TASKS[architecture])


def bare(name: str) -> str:
    """Return the name without its task: ``AP`` for ``bbox/AP``. Names of categories may hold a slash."""
    return name.partition("/")[2] or name


def _split(name: str) -> tuple[str, str, str]:
    if any(name.startswith(known) for names in METRICS.values() for known in names if known.endswith("-")):
        return "", "", name
    task, slash, metric = name.partition("/")
    return (task, slash, metric) if slash else ("", "", name)


def _has(task: str, metric: str) -> bool:
    names = METRICS[task]
    if metric in names:
        return not metric.endswith("-")
    return any(metric.startswith(known) for known in names if known.endswith("-"))


def _listed(names: tuple[str, ...]) -> str:
    return ", ".join(f"{name}CATEGORY" if name.endswith("-") else name for name in names)


def _suggestion(name: str, known: list[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""
