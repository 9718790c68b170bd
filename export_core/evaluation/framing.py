"""Everything that a model says of an image, in the frame of the original: for artifacts that give it so."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from zooport.export_core.evaluation.postprocess import Array, paste_masks, to_image_frame
from zooport.export_core.evaluation.segmentation import semantic_labels


def in_image_frame(
    outputs: Mapping[str, Array], network_size: tuple[int, int], image_size: tuple[int, int]
) -> dict[str, Array]:
    """Return pasted masks, bool (N, 1, H, W), label maps, int64 (1, H, W), and scaled boxes and keypoints.

    Args:
        outputs: fields in the network's frame.
        network_size: (H, W) of what the network saw.
        image_size: (H, W) of the original.
    """
    framed = to_image_frame(outputs, network_size, image_size)
    if "pred_masks" in framed:
        framed["pred_masks"] = paste_masks(framed["pred_masks"], framed["pred_boxes"], *image_size)[:, None]
    if "sem_seg" in framed:
        labels = semantic_labels(framed["sem_seg"], network_size, image_size)
        framed["sem_seg"] = labels[None].astype(np.int64)
    return framed
