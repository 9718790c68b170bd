"""Names in a config become modules through these registries; an extension adds its own with ``register``."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from zooport.export_core.config import project_of_name, refusal_hint
from zooport.export_core.failures import Failure

if TYPE_CHECKING:
    from torch import nn

Builder = TypeVar("Builder", bound=Callable[..., "nn.Module"])


class Registry(Generic[Builder]):
    """A table from the name that a config uses to the callable that builds the module.

    Args:
        key: the config key that holds such a name, for messages.
    """

    def __init__(self, key: str) -> None:
        self.key = key
        self._builders: dict[str, Builder] = {}

    def register(self, *names: str) -> Callable[[Builder], Builder]:
        """Return a decorator that enters a class or function under ``names``; a taken name is an error."""

        def enter(builder: Builder) -> Builder:
            for name in names:
                if self._builders.get(name, builder) is not builder:
                    raise ValueError(f"{self.key}: {name!r} is registered already")
                self._builders[name] = builder
            return builder

        return enter

    def get(self, name: str) -> Builder:
        """Return the builder for ``name``.

        Raises:
            Failure: ``unsupported.architecture``, naming the config key and value.
        """
        if name not in self._builders:
            failure = unsupported(self.key, name, known=self)
            if "project" not in failure.details:
                failure.hint += "; a module of your own comes with --import"
            raise failure
        return self._builders[name]

    def __contains__(self, name: object) -> bool:
        return name in self._builders

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._builders))


def unsupported(key: str, value: object, *, known: Any = (), why: str = "") -> Failure:
    """Return the refusal of a config value: ``unsupported.architecture`` with the key and the value in it.

    A value of a known project is refused in the name of that project.
    """
    project = project_of_name(value)
    if project is not None:
        return Failure(
            "unsupported.architecture",
            f"{key} = {value!r} is for {project}, which zooport does not implement",
            hint=refusal_hint(project),
            details={"key": key, "value": value, "project": project},
        )
    close = difflib.get_close_matches(str(value), [str(name) for name in known], n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    if known:
        hint += "known: " + ", ".join(str(name) for name in known)
    return Failure(
        "unsupported.architecture",
        f"{key} = {value!r} is not supported" + (f": {why}" if why else ""),
        hint=hint.strip() or "see `zooport formats` for what is",
        details={"key": key, "value": str(value)},
    )


META_ARCHITECTURES: Registry[Any] = Registry("MODEL.META_ARCHITECTURE")
BACKBONES: Registry[Any] = Registry("MODEL.BACKBONE.NAME")
ANCHOR_GENERATORS: Registry[Any] = Registry("MODEL.ANCHOR_GENERATOR.NAME")
PROPOSAL_GENERATORS: Registry[Any] = Registry("MODEL.PROPOSAL_GENERATOR.NAME")
RPN_HEADS: Registry[Any] = Registry("MODEL.RPN.HEAD_NAME")
ROI_HEADS: Registry[Any] = Registry("MODEL.ROI_HEADS.NAME")
BOX_HEADS: Registry[Any] = Registry("MODEL.ROI_BOX_HEAD.NAME")
MASK_HEADS: Registry[Any] = Registry("MODEL.ROI_MASK_HEAD.NAME")
KEYPOINT_HEADS: Registry[Any] = Registry("MODEL.ROI_KEYPOINT_HEAD.NAME")
SEM_SEG_HEADS: Registry[Any] = Registry("MODEL.SEM_SEG_HEAD.NAME")
