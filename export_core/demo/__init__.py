"""The embedded demo zoo: tiny trained checkpoints of eight architectures and the images to evaluate them on.

The files are read-only data of the package; whatever a demo run writes goes elsewhere.
"""

from __future__ import annotations

from pathlib import Path

MANIFEST = Path(__file__).resolve().parent / "zoo.yaml"
"""The manifest that ``zooport demo`` submits."""

ZOO = MANIFEST.parent / "zoo"
"""One folder per model (config, weights, detectron2's metrics) and ``data`` with images and annotations."""
