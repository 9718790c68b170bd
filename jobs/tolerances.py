"""The tolerances of a manifest, sorted out for each export: which points hold for which metric, and whence.

Of the entries that apply to an export the one with the most exact metric counts (``bbox/AP`` before ``AP``
before all), among equal ones the last.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from zooport.export_core.config.architecture import architecture_of
from zooport.export_core.evaluation.metric_names import EVERY, may_have, metrics_of, problem_with
from zooport.export_core.failures import Failure
from zooport.export_core.sources import CheckpointSource
from zooport.jobs.manifest_spec import ManifestSpec
from zooport.jobs.values import ExportTarget
from zooport.jobs.yaml_lines import Place

Refuse = Callable[[Place, str], Failure]


@dataclass(frozen=True)
class _Rule:
    """One tolerance: for which exports and metric, how many points, and where it stands."""

    place: Place
    metric: str
    points: float
    format: str = "*"
    architecture: str | None = None

    @property
    def origin(self) -> str:
        """Where it stands, for people: ``tolerance.AP``, ``tolerances[2]``."""
        words = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.place]
        return "".join(words).lstrip(".").removesuffix(f".{EVERY}")


def assign(
    spec: ManifestSpec, targets: Sequence[ExportTarget], file: str, refuse: Refuse
) -> list[ExportTarget]:
    """Return the targets with their tolerances.

    Args:
        spec: the manifest.
        targets: what is exported.
        file: the manifest's name, which an origin begins with.
        refuse: makes the failure of a place in the manifest.

    Raises:
        Failure: of ``refuse``, for a tolerance that can apply to no export: no task, or no model here, has
            the metric; no model here has the format or the architecture.
    """
    rules = list(_rules(spec))
    known = _Architectures()
    for rule in rules:
        # An extension may bring tasks and architectures of its own, with any metrics.
        problem = "" if spec.imports else problem_with(rule.metric)
        problem = problem or _reach(rule, targets, known, any_metric=bool(spec.imports))
        if problem:
            raise refuse(rule.place, problem)
    return [
        _with(target, [rule for rule in rules if _applies(rule, target, known)], file) for target in targets
    ]


def refuse_unknown(tolerance: Mapping[str, float], checkpoint: CheckpointSource) -> None:
    """Check tolerances of the command line for one checkpoint.

    Raises:
        Failure: ``export.option`` for a metric that no model of this architecture has.
    """
    known = _Architectures()
    for name in tolerance:
        if checkpoint.imports:  # an extension may bring tasks of its own
            return
        problem = problem_with(name)
        architecture = known.of(checkpoint)
        if not problem and architecture is not None and not may_have(architecture, name):
            problem = f"{architecture} has no such metric; it has {metrics_of(architecture)}"
        if problem:
            raise Failure("export.option", f"--tolerance {name}: {problem}")


class _Architectures:
    """Meta architectures by config, each read once."""

    def __init__(self) -> None:
        self._found: dict[Any, str | None] = {}

    def of(self, checkpoint: CheckpointSource) -> str | None:
        key = checkpoint.config, repr(checkpoint.overrides)
        if key not in self._found:
            self._found[key] = architecture_of(checkpoint.config, checkpoint.overrides)
        return self._found[key]


def _rules(spec: ManifestSpec) -> Iterator[_Rule]:
    for metric, points in spec.tolerance.items():
        yield _Rule(("tolerance", metric), metric, points)
    for index, each in enumerate(spec.tolerances):
        yield _Rule(("tolerances", index), each.metric, each.points, each.format or "*", each.architecture)


def _applies(rule: _Rule, target: ExportTarget, known: _Architectures) -> bool:
    if not fnmatchcase(target.format, rule.format):
        return False
    if rule.architecture is None:
        return True
    architecture = known.of(target.checkpoint)
    return architecture is not None and fnmatchcase(architecture, rule.architecture)


def _reach(rule: _Rule, targets: Sequence[ExportTarget], known: _Architectures, *, any_metric: bool) -> str:
    """Return why a rule applies to no export, "" if it may apply to one."""
    formats = [target for target in targets if fnmatchcase(target.format, rule.format)]
    if not formats:
        names = list(dict.fromkeys(target.format for target in targets))
        return (
            f"no model is exported to {rule.format!r}{_near(rule.format, names)}; formats: {', '.join(names)}"
        )
    chosen = [target for target in formats if _may_apply(rule, target, known)]
    if not chosen:
        names = sorted({str(known.of(target.checkpoint)) for target in formats})
        architecture = rule.architecture or ""
        return f"no model here is a {architecture!r}{_near(architecture, names)}; known: {', '.join(names)}"
    if any_metric or rule.metric == EVERY:
        return ""
    if any(may_have(known.of(target.checkpoint), rule.metric) for target in chosen):
        return ""
    found = sorted({str(known.of(target.checkpoint)) for target in chosen})
    listed = "; ".join(f"{name} has {metrics_of(name)}" for name in found)
    return f"no model here has {rule.metric}: {listed}"


def _may_apply(rule: _Rule, target: ExportTarget, known: _Architectures) -> bool:
    """Whether it applies, or may: the architecture of a config that cannot be read is not known."""
    return _applies(rule, target, known) or known.of(target.checkpoint) is None


def _with(target: ExportTarget, rules: Sequence[_Rule], file: str) -> ExportTarget:
    return replace(
        target,
        tolerance={rule.metric: rule.points for rule in rules},
        tolerance_origins={rule.metric: f"{file}: {rule.origin}" for rule in rules},
    )


def _near(name: str, known: Sequence[str]) -> str:
    near = get_close_matches(name, known, n=1, cutoff=0.5)
    return f", did you mean {near[0]!r}?" if near else ""
