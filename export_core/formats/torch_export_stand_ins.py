"""What torch.export gets in place of modules and shape rules that it could not record as they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
import torchvision  # noqa: F401  has the operator whose rule is replaced
from torch import Tensor, nn
from torch._higher_order_ops.while_loop import while_loop

from zooport.export_core.formats.replaced_modules import replaced
from zooport.export_core.modeling.images import ImageNormalizer
from zooport.export_core.modeling.layers import FrozenBatchNorm2d
from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder


@contextmanager
def stand_ins(model: nn.Module) -> Iterator[None]:
    """Replace modules by their stand-ins for a while, and torchvision's rule for the result of nms."""
    with replaced(model, _stand_in), nms_that_may_keep_nothing():
        yield


def _stand_in(module: nn.Module) -> Any:
    if type(module) is HeatmapDecoder:
        return LoopedHeatmapDecoder().eval()
    if type(module) is ImageNormalizer:
        return SymbolicImageNormalizer(module).eval()
    if type(module) is nn.GroupNorm:
        return UncheckedGroupNorm(module).eval()
    if type(module) in {FrozenBatchNorm2d, nn.BatchNorm2d}:
        return BatchNormOfAnyNumber(module).eval()
    return None


@contextmanager
def nms_that_may_keep_nothing() -> Iterator[None]:
    """Tell torch that nms keeps any number of boxes.

    torchvision's rule says at least two, and programs made by it refuse an image with fewer.
    """
    with torch.library._scoped_library("torchvision", "FRAGMENT") as library:

        def kept(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
            count = torch.library.get_ctx().new_dynamic_size()
            return boxes.new_empty(count, dtype=torch.int64)

        torch.library.register_fake("torchvision::nms", kept, lib=library)
        yield


class SymbolicImageNormalizer(nn.Module):
    """ImageNormalizer of one image, whose padded lengths are symbols of their own.

    Else the length of every feature map would be a formula of the image's, and a file of such formulas
    takes minutes to read.
    """

    def __init__(self, normalizer: ImageNormalizer) -> None:
        super().__init__()
        self.step, self.mean, self.std = normalizer.size_divisibility, normalizer.mean, normalizer.std

    def forward(self, images: list[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        """Return a batch (1, C, H, W) and the image's own (height, width), as ImageNormalizer."""
        (image,) = images
        size = image.shape[1], image.shape[2]
        bottom, right = (self.cells(length) * self.step - length for length in size)
        torch._check(bottom >= 0)
        torch._check(right >= 0)
        padded = F.pad((image - self.mean) / self.std, [0, right, 0, bottom], value=0.0)
        return padded[None], [size]

    def cells(self, length: int) -> int:
        """Return how many steps a length takes."""
        count = torch.full((), (length + self.step - 1) // self.step, dtype=torch.int64).item()
        torch._check(count >= 1)
        return count  # type: ignore[return-value]  # a symbol


class BatchNormOfAnyNumber(nn.Module):
    """Batch normalisation by its statistics, also of so many regions as only the data tell.

    torch's operator asks whether there are none, and what follows is recorded for one of the answers; what
    it calls then does not ask and computes the same.
    """

    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, H, W)."""
        count: Any = x.shape[0]
        if not isinstance(count, torch.SymInt):
            return self.norm(x)  # type: ignore[no-any-return]
        norm = self.norm
        statistics = norm.weight, norm.bias, norm.running_mean, norm.running_var
        normal: Tensor = torch.ops.aten._native_batch_norm_legit_no_training(x, *statistics, 0.0, norm.eps)[0]
        return normal


class UncheckedGroupNorm(nn.Module):
    """GroupNorm without the check, in Python, that the map has more than one cell."""

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.num_groups, self.eps = norm.num_groups, norm.eps
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x (N, C, ...)."""
        return torch.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


class LoopedHeatmapDecoder(nn.Module):
    """HeatmapDecoder whose loop over the detections is an operator of the graph."""

    def forward(self, heatmaps: Tensor, boxes: Tensor) -> Tensor:
        """Return float32 (R, K, 3); arguments as of HeatmapDecoder."""
        sides = (boxes[:, 2:] - boxes[:, :2]).clamp(min=1)
        pixels = sides.ceil().to(torch.int64)
        first = torch.zeros((), dtype=torch.int64)
        nothing = heatmaps.new_zeros((heatmaps.shape[0], heatmaps.shape[1], 3))

        def not_done(index: Tensor, found: Tensor) -> Tensor:
            return index < found.shape[0]

        def step(index: Tensor, found: Tensor) -> tuple[Tensor, Tensor]:
            place = index.reshape(1)
            one = [value.index_select(0, place)[0] for value in (heatmaps, boxes, sides, pixels)]
            return index + 1, found.index_copy(0, place, highest(*one)[None])

        result: Tensor = while_loop(not_done, step, (first, nothing))[1]
        return result


def highest(heatmap: Tensor, box: Tensor, sides: Tensor, pixels: Tensor) -> Tensor:
    """Return float32 (K, 3) of one detection: heatmap (K, S, S), box (4,), sides and pixels (2,)."""
    keypoints = heatmap.shape[0]
    width: Any = pixels[0].item()
    height: Any = pixels[1].item()
    torch._check(width >= 1)
    torch._check(height >= 1)
    surface = F.interpolate(heatmap[None], size=[height, width], mode="bicubic", align_corners=False)
    logit, place = surface.reshape(keypoints, height * width).max(1)
    cells = (heatmap.reshape(keypoints, -1) - logit[:, None]).exp()
    column = (place % pixels[0]).to(heatmap.dtype)
    row = torch.div(place, pixels[0], rounding_mode="floor").to(heatmap.dtype)
    scale = sides / pixels
    x, y = (column + 0.5) * scale[0] + box[0], (row + 0.5) * scale[1] + box[1]
    return torch.stack((x, y, 1.0 / cells.sum(1)), dim=1)
