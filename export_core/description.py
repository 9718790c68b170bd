"""``model.json``: what a consumer has to know of an artifact, and where it came from."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zooport.export_core.artifacts import DESCRIPTION
from zooport.export_core.evaluation.images import image_channels
from zooport.export_core.extensions import describe as describe_extensions
from zooport.export_core.formats.base import RUNTIME
from zooport.export_core.outputs import describe_outputs
from zooport.export_core.vocabulary import describe_vocabulary

if TYPE_CHECKING:
    from zooport.export_core.config import Config
    from zooport.export_core.evaluation import Dataset
    from zooport.export_core.formats import Format
    from zooport.export_core.samples import Sample
    from zooport.export_core.sources import CheckpointSource

SCHEMA_VERSION = 1
TOOLS = ("zooport", "torch", "torchvision")


def tool_versions(tools: Sequence[str] = TOOLS) -> dict[str, str]:
    """Return the versions of those of the packages that are installed, without importing them."""
    found = {}
    for tool in tools:
        with suppress(PackageNotFoundError):  # TensorFlow comes in one of two packages
            found[tool] = version(tool)
    return found


def describe_model(
    source: CheckpointSource,
    config: Config,
    weights_digest: str,
    exporter: Format,
    sample: Sample,
    dataset: Dataset | None,
    options: Mapping[str, Any],
    notes: Sequence[str],
) -> dict[str, Any]:
    """Return the content of model.json for an artifact that is about to be verified."""
    channels = len(sample.image)
    order = f"channels in the order {config.INPUT.FORMAT}" if channels > 1 else "grey"
    image: dict[str, Any] = {
        "name": "image",
        "dtype": "float32",
        "shape": [channels, "height", "width"],
        "meaning": f"one image, {order}, 0 to 255, already resized",
    }
    more = describe_outputs([name for name in sample.inputs if name != "image"])
    outputs = describe_outputs(sorted(sample.outputs))
    inputs, outputs = exporter.describe_signature([image, *more], outputs, options)
    return {
        "schema_version": SCHEMA_VERSION,
        "name": source.name,
        "format": exporter.info.name,
        "options": dict(options),
        "main_file": exporter.info.main_file,
        "call": exporter.info.call,
        "meta_architecture": config.MODEL.META_ARCHITECTURE,
        "inputs": inputs,
        "outputs": outputs,
        "fields": sorted(sample.outputs),
        "preprocessing": preprocessing(config),
        **describe_vocabulary(config, dataset, sample.outputs),
        "source": {
            "config": str(source.config),
            "config_sha256": config.digest(),
            "weights": str(source.weights),
            "weights_sha256": weights_digest,
            "overrides": dict(source.overrides),
            "unknown_config_nodes": list(config.unknown),
            "extensions": describe_extensions(source.imports),
        },
        "versions": {**tool_versions((*TOOLS, *exporter.info.tools)), "python": platform.python_version()},
        "notes": list(notes),
    }


def preprocessing(config: Config) -> dict[str, Any]:
    """Return how an image file becomes the input, and what the model does itself."""
    node = config.INPUT
    resize = None
    if node.MIN_SIZE_TEST > 0:
        resize = {
            "rule": "scale so that the shorter side is shortest_edge, or the longer one longest_edge if that"
            " makes it smaller; round sides to the nearest integer",
            "shortest_edge": node.MIN_SIZE_TEST,
            "longest_edge": node.MAX_SIZE_TEST,
            "interpolation": "bilinear with antialiasing, on uint8 (PIL.Image.BILINEAR)",
        }
    converted = "grey, palette and alpha images become three channels"
    if image_channels(config) == 1:
        converted = "colours become grey, 0.299 R + 0.587 G + 0.114 B (PIL's convert('L'))"
    return {
        "decode": f"apply the EXIF rotation; {converted}",
        "resize": resize,
        "channel_order": node.FORMAT,
        "value_range": [0, 255],
        "inside_the_model": {
            "pixel_mean": list(config.MODEL.PIXEL_MEAN),
            "pixel_std": list(config.MODEL.PIXEL_STD),
            "padding": "zeros after normalisation, right and bottom",
        },
    }


def write_description(description: Mapping[str, Any], directory: Path) -> None:
    """Write model.json into an artifact's directory."""
    text = json.dumps(description, indent=2, ensure_ascii=False, allow_nan=False)
    # Halves of surrogate pairs, as in file names that are not UTF-8, become \udc80: JSON's own escape.
    (directory / DESCRIPTION).write_text(text + "\n", encoding="utf-8", errors="backslashreplace")


def verified_by(directory: Path) -> str:
    """Return what ran the artifact when it was verified, "" where there is no choice or no model.json."""
    try:
        verification = read_description(directory)["verification"]
    except (OSError, ValueError, KeyError):
        return ""
    return str(verification.get(RUNTIME, ""))


def read_description(directory: Path) -> dict[str, Any]:
    """Return the content of model.json of an artifact's directory."""
    content: dict[str, Any] = json.loads((directory / DESCRIPTION).read_text(encoding="utf-8"))
    return content
