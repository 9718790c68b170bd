"""Where an exported model drifts from its eager original: the stage, the categories and the worst images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from zooport.export_core.drift.report import DriftReport
from zooport.export_core.failures import Stage
from zooport.export_core.sources import CheckpointSource, DatasetSource

__all__ = ["DriftReport", "locate"]


def locate(
    checkpoint: CheckpointSource,
    directory: Path,
    dataset: DatasetSource,
    folder: Path,
    report: Callable[[Stage], None],
) -> DriftReport:
    """Run the eager model and the artifact on the dataset, and find out where they part.

    Args:
        checkpoint: of the eager model.
        directory: the artifact.
        dataset: that both are run on; of a large one, images at equal distances.
        folder: gets a PNG of each of the worst images, eager and exported side by side; made if need be.
        report: told each stage of the work as it begins.

    Raises:
        Failure: what loading a checkpoint, a dataset or an artifact raises; ``accuracy.nonfinite``;
            ``resource.disk``.
    """
    from zooport.export_core.drift.locating import locate as find

    return find(checkpoint, directory, dataset, folder, report)
