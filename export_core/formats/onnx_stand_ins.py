"""Modules that say in ONNX's operators what a module of a model says in torch's.

A converter records one pass over a sample. A loop over data would be unrolled by that, and suppression class
by class has an operator in ONNX. So these modules take the place of the model's own while it is recorded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from zooport.export_core.formats import onnx_regions as regions
from zooport.export_core.formats.onnx_functions import suppress
from zooport.export_core.formats.onnx_heatmaps import MatrixHeatmapDecoder, peaks
from zooport.export_core.formats.onnx_regions import A_BOX, NO_BOX
from zooport.export_core.formats.replaced_modules import replaced
from zooport.export_core.modeling.boxes import BoxCoder, ClassNms
from zooport.export_core.modeling.images import ImageNormalizer
from zooport.export_core.modeling.poolers import RoiPooler
from zooport.export_core.modeling.proposals.rpn import RPN
from zooport.export_core.modeling.roi_heads.box_predictor import DetectionSelector
from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder

_STAND_INS: dict[type[nn.Module], Any] = {
    BoxCoder: regions.PairedBoxCoder,
    ClassNms: lambda module: BatchedClassNms(module.iou_threshold),
    DetectionSelector: regions.OneImageSelector,
    HeatmapDecoder: lambda module: MatrixHeatmapDecoder(compiled(peaks)),
    ImageNormalizer: regions.OneImageNormalizer,
    RPN: regions.OneImageRPN,
}


def stand_ins(model: nn.Module) -> AbstractContextManager[None]:
    """Replace modules by their stand-ins for a while; compile what else loops over data."""
    return replaced(model, _stand_in)


def _stand_in(module: nn.Module) -> Any:
    if type(module) in _STAND_INS:
        return _STAND_INS[type(module)](module).eval()
    if type(module) is RoiPooler and not module.rounds:
        return regions.OneImagePooler(module).eval()
    if getattr(module, "loops_over_data", False):
        return compiled(module)
    return None


def compiled(what: Any) -> Any:
    """Return a module or function whose loops the converter takes as loops, for it is not recorded."""
    return torch.jit.script(what)


class BatchedClassNms(nn.Module):
    """Suppression class by class, by an operator that takes the boxes of each class as one of a batch.

    Overlaps are computed from the coordinates as they are, in float32. Equal scores go by position.
    """

    def __init__(self, iou_threshold: float) -> None:
        super().__init__()
        self.iou_threshold = iou_threshold

    def forward(self, boxes: Tensor, scores: Tensor, classes: Tensor) -> Tensor:
        """Return int64 indices of the kept boxes, best first; arguments as of ClassNms."""
        # One more that is never kept, of a class of its own: no dimension is ever 0.
        all_boxes = torch.cat((boxes, boxes.new_zeros(1, 4)))
        all_scores = torch.cat((scores, scores.new_full((1,), NO_BOX)))
        labels, order = torch.cat((classes, classes.new_full((1,), -1))).sort(stable=True)
        count = torch._shape_as_tensor(labels)
        previous = torch.cat((labels[:1] - 1, labels[:-1]))
        starts = torch.nonzero(labels != previous).squeeze(1)
        lengths = torch.cat((starts[1:], count)) - starts
        columns = torch.arange(lengths.max())[None]  # type: ignore[call-overload]  # stays a tensor
        members = order[torch.minimum(starts[:, None] + columns, count - 1)]
        rated = torch.where(columns < lengths[:, None], all_scores[members], NO_BOX)
        kept = suppress(all_boxes[members], rated[:, None], self.iou_threshold, A_BOX)
        by_position = order[starts[kept[:, 0]] + kept[:, 2]].sort()[0]
        return by_position[torch.argsort(scores[by_position], descending=True, stable=True)]
