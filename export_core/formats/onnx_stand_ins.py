"""Modules that say in ONNX's operators what a module of a model says in torch's.

A converter records one pass over a sample. A loop over data would be unrolled by that, and suppression class
by class has an operator in ONNX. So these modules take the place of the model's own while it is recorded.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import nms

from zooport.export_core.formats.onnx_heatmaps import MatrixHeatmapDecoder
from zooport.export_core.formats.onnx_operators import MANY_BOXES, constant, float_at_most
from zooport.export_core.formats.replaced_modules import replaced
from zooport.export_core.modeling.boxes import ClassNms
from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder

NO_BOX = -1e9  # score of what fills up the rows of classes with fewer boxes than others
A_BOX = -5e8  # above it


def stand_ins(model: nn.Module) -> AbstractContextManager[None]:
    """Replace modules by their stand-ins for a while; compile what else loops over data."""
    return replaced(model, _stand_in)


def _stand_in(module: nn.Module) -> Any:
    if type(module) is ClassNms:
        return BatchedClassNms(module.iou_threshold).eval()
    if type(module) is HeatmapDecoder:
        return MatrixHeatmapDecoder().eval()
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
        kept = _BatchedNms.apply(all_boxes[members], rated[:, None], self.iou_threshold)
        by_position = order[starts[kept[:, 0]] + kept[:, 2]].sort()[0]
        return by_position[torch.argsort(scores[by_position], descending=True, stable=True)]


class _BatchedNms(torch.autograd.Function):
    """ONNX's NonMaxSuppression: int64 (K, 3) of batch, 0 and box, from boxes (B, M, 4), scores (B, 1, M)."""

    @staticmethod
    def forward(context: Any, boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
        found = []
        for index in range(len(boxes)):
            members = torch.nonzero(scores[index, 0] > A_BOX).squeeze(1)
            kept = members[nms(boxes[index, members], scores[index, 0, members], iou_threshold)]
            found.append(torch.stack((torch.full_like(kept, index), torch.zeros_like(kept), kept), dim=1))
        return torch.cat(found)

    @staticmethod
    def symbolic(graph: Any, boxes: Any, scores: Any, iou_threshold: float) -> Any:
        chosen = graph.op(
            "NonMaxSuppression",
            boxes,
            scores,
            constant(graph, [MANY_BOXES]),
            constant(graph, [float_at_most(iou_threshold)], exact=False),
            constant(graph, [A_BOX], exact=False),
        )
        return chosen.setType(boxes.type().with_dtype(torch.int64).with_sizes([None, 3]))
