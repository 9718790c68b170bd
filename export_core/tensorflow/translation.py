"""From the module of a blueprint to operators of TensorFlow: the table of translators, and how one is called.

Feature maps are (N, H, W, C), the layout in which TensorFlow's CPU kernels are fast; torch's are (N, C, H,
W).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy.typing as npt
import tensorflow as tf

from zooport.export_core.failures import Failure, Stage
from zooport.export_core.tensorflow.blueprint import Blueprint

Array = npt.NDArray[Any]
Keep = Callable[[str, Array], tf.Tensor]
Record = Callable[[str, Any], None]
Translator = Callable[..., Any]
MODELING = "zooport.export_core.modeling"

_TRANSLATORS: dict[str, Translator] = {}


def translates(*kinds: str) -> Callable[[Translator], Translator]:
    """Enter a function that builds what modules of these kinds compute.

    It takes the module and the inputs of its ``forward``, feature maps as (N, H, W, C).

    Args:
        kinds: full names of classes; those that begin with a dot are in zooport's ``modeling``.
    """

    def enter(translator: Translator) -> Translator:
        for kind in kinds:
            _TRANSLATORS[MODELING + kind if kind.startswith(".") else kind] = translator
        return translator

    return enter


class Module:
    """A module of a blueprint inside of the graph that is being built.

    Args:
        blueprint: what the module is made of.
        keep: puts a parameter, with a name of its own, into the graph.
        lite: whether only operators that TensorFlow Lite has may be used.
        record: told the path and the outputs of each module that was built.

    Attributes:
        lite: likewise.
    """

    def __init__(
        self, blueprint: Blueprint, keep: Keep, *, lite: bool = False, record: Record | None = None
    ) -> None:
        self.blueprint = blueprint
        self.lite = lite
        self._keep = keep
        self._record = record
        self._children = {
            name: Module(child, keep, lite=lite, record=record) for name, child in blueprint.children.items()
        }
        self._constants: dict[str, Any] = {}

    def __call__(self, *inputs: Any) -> Any:
        """Build what the module computes.

        Raises:
            Failure: ``unsupported.architecture`` naming the module and its class.
        """
        translator = _TRANSLATORS.get(self.blueprint.kind)
        if translator is None:
            raise unknown_module(self.blueprint)
        with tf.name_scope(self.blueprint.path.rpartition(".")[2] or "model"):
            outputs = translator(self, *inputs)
        if self._record is not None:
            self._record(self.blueprint.path, outputs)
        return outputs

    def __getattr__(self, name: str) -> Any:
        """Return a submodule or a setting."""
        if name.startswith("_"):
            raise AttributeError(name)
        if name in self._children:
            return self._children[name]
        try:
            return self.blueprint.settings[name]
        except KeyError:
            raise AttributeError(f"{self.blueprint.name} has no {name}") from None

    @property
    def children(self) -> Mapping[str, Module]:
        """The submodules by name, in their order."""
        return self._children

    @property
    def arrays(self) -> Mapping[str, Array]:
        """Parameters and buffers."""
        return self.blueprint.arrays

    def is_kind(self, kind: str) -> bool:
        """Whether the module computes what this class does."""
        return self.blueprint.kind == (MODELING + kind if kind.startswith(".") else kind)

    def constant(self, name: str, make: Callable[[], Array]) -> tf.Tensor:
        """Return an array as a tensor of the graph; a module that is called several times has it once."""
        if name not in self._constants:
            self._constants[name] = self._keep(f"{self.blueprint.path}.{name}".lstrip("."), make())
        return self._constants[name]


def unknown_module(blueprint: Blueprint) -> Failure:
    """Return the failure of a module that cannot be translated."""
    where = f"module {blueprint.path!r}" if blueprint.path else "the model"
    return Failure(
        "unsupported.architecture",
        f"{where} is a {blueprint.name}, which no TensorFlow graph is known for",
        stage=Stage.EXPORT,
        hint="another format, such as onnx or torch-export, takes modules of your own",
        details={"module": blueprint.path, "class": blueprint.name},
    )


def require_settings(module: Module, **known: Any) -> None:
    """Refuse a module with another setting than its translation knows.

    Args:
        module: what is to be translated.
        known: setting -> the value that is known; a list stands for a tuple, too.

    Raises:
        Failure: as :func:`unsupported_setting` returns it.
    """
    for name, value in known.items():
        actual = module.blueprint.settings.get(name)
        if actual != value and not (isinstance(actual, tuple) and list(actual) == value):
            raise unsupported_setting(module, name, value)


def unsupported_setting(module: Module, setting: str, known: object) -> Failure:
    """Return the failure ``unsupported.operator`` of a module whose setting has no translation."""
    path, name = module.blueprint.path, module.blueprint.name
    return Failure(
        "unsupported.operator",
        f"module {path!r} is a {name} with {setting}={module.blueprint.settings.get(setting)}:"
        f" TensorFlow gets {known} alone",
        stage=Stage.EXPORT,
        hint="another format, such as onnx or torch-export, takes it as it is",
        details={"module": path, "class": name, "setting": setting},
    )
