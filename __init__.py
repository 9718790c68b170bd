"""zooport: export a zoo of detectron2 checkpoints, and know which exports can be trusted.

``zooport.export_core`` turns one checkpoint into one verified artifact and is usable as a plain library;
``zooport.jobs`` runs many of them on Ray and remembers the results; ``zooport.cli`` is the command line.
:func:`zooport.load` runs a finished artifact of any format on images.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zooport.export_core.loading import Model

__all__ = ["__version__", "load"]
__version__ = "0.2.0"


def load(directory: str | os.PathLike[str], *, runtime: str | None = None) -> Model:
    """Load an artifact with its own runtime; see :func:`zooport.export_core.loading.load`."""
    from zooport.export_core import loading

    return loading.load(directory, runtime=runtime)
