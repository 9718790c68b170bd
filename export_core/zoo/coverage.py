"""What converts to what, asked of the code that converts: no table is kept by hand."""

from __future__ import annotations

from zooport.export_core.config import Config, load_config
from zooport.export_core.failures import Failure
from zooport.export_core.formats import Format
from zooport.export_core.zoo import CatalogEntry


def refusals(entry: CatalogEntry) -> dict[str, Failure | None]:
    """Return for each format why this model cannot be exported to it, None where it can.

    The model is built without memory for its parameters, so that the whole zoo takes a second or two; nothing
    is fetched.
    """
    from zooport.export_core import formats

    config = load_config(entry.config)
    problem = _problem_of(config)
    return {name: problem or _refusal(formats.get(name), config) for name in formats.names()}


def _problem_of(config: Config) -> Failure | None:
    from zooport.export_core.modeling.build import build_skeleton

    try:
        build_skeleton(config)
    except Failure as failure:
        return failure
    return None


def _refusal(exporter: Format, config: Config) -> Failure | None:
    try:
        exporter.requires(config, {})
    except Failure as failure:
        return failure
    return None
