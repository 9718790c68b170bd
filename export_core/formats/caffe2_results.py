"""What a consumer does around a Caffe2 net: pad an image, run the net, and read its outputs.

Everything comes from the net and its arguments, as it does for a consumer that has nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from zooport.export_core.caffe2.arguments import arguments_of

if TYPE_CHECKING:
    from zooport.export_core.caffe2.executors import Executor, LoadedNets
    from zooport.export_core.formats.base import Array

ANCHORS, STRIDES, OFFSET = "anchors_", "anchor_strides", "anchor_offset"
"""Arguments of a RetinaNet's net: each level's cell anchors, and where its cells lie, in plain numbers."""

Arrays = Mapping[str, "Array"]
Reader = Callable[[Arrays, Mapping[str, Any], tuple[int, int]], dict[str, "Array"]]


class Caffe2Predictor:
    """Runs a net on one image after the other.

    Args:
        nets: loaded by an executor.
        predict: the NetDef, for its arguments.
        fields: names of the fields to return.
        executor: closed with this, if it is given.
    """

    def __init__(
        self, nets: LoadedNets, predict: Any, fields: Sequence[str], executor: Executor | None = None
    ) -> None:
        self._executor = executor
        self._nets = nets
        self._arguments = arguments_of(predict)
        self._fields = list(fields)

    def __call__(self, image: Array) -> dict[str, Array]:
        """Return the fields for an image, float32 (C, H, W), 0-255, in the config's channel order."""
        _, height, width = image.shape
        data = padded(image, self._arguments["size_divisibility"])
        im_info = np.array([[height, width, 1.0]], np.float32)
        found = self._nets.run({"data": data, "im_info": im_info})
        read = READERS[self._arguments["meta_architecture"].decode()]
        fields = read(found, self._arguments, (height, width))
        return {name: fields[name] for name in self._fields}

    def close(self) -> None:
        """End what runs the net."""
        if self._executor is not None:
            self._executor.close()


def padded(image: Array, divisibility: int) -> Array:
    """Return (1, C, H', W'): zeros at the right and bottom up to multiples of ``divisibility`` (0: none)."""
    step = max(1, divisibility)
    sides = [(0, 0), *((0, -length % step) for length in image.shape[1:])]
    return np.pad(image, sides)[None].astype(np.float32, copy=False)


def _instances(found: Arrays, arguments: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Array]:
    order = np.argsort(-found["score_nms"], kind="stable")  # the net gives them class by class
    boxes = found["bbox_nms"].reshape(-1, 4)[order]
    classes = found["class_nms"][order].astype(np.int64)
    fields = {"pred_boxes": boxes, "scores": found["score_nms"][order], "pred_classes": classes}
    if "mask_fcn_probs" in found:
        masks = found["mask_fcn_probs"][order]
        own = classes if masks.shape[1] > 1 else np.zeros_like(classes)
        fields["pred_masks"] = masks[np.arange(len(own)), own][:, None]
    if "kps_score" in found:
        fields |= _keypoints(found["kps_score"][order], boxes)
    if "keypoints_out" in found:
        fields["pred_keypoints"] = _as_keypoints(found["keypoints_out"][order])
    return fields | _semantic(found, arguments, size)


def _keypoints(heatmaps: Array, boxes: Array) -> dict[str, Array]:
    import torch

    from zooport.export_core.modeling.roi_heads.keypoint_head import HeatmapDecoder

    decoded = HeatmapDecoder()(torch.from_numpy(heatmaps), torch.from_numpy(boxes))
    return {"pred_keypoints": decoded.numpy(), "pred_keypoint_heatmaps": heatmaps}


def highest_points(heatmaps: Array, boxes: Array) -> Array:
    """Return keypoints float32 (N, K, 3) as a net with ``keypoints_out`` finds them in heatmaps.

    Args:
        heatmaps: logits, float32 (N, K, S, S).
        boxes: float32 (N, 4).
    """
    import torch

    from zooport.export_core.caffe2.arguments import make_operator
    from zooport.export_core.caffe2.reference.regions import heatmap_keypoints
    from zooport.export_core.caffe2.reference.registry import Call

    arguments = {"should_output_softmax": 1}
    operator = make_operator("HeatmapMaxKeypoint", ["maps", "boxes"], ["points"], arguments)
    inputs = [torch.from_numpy(heatmaps), torch.from_numpy(boxes)]
    points: Any = heatmap_keypoints(Call.of(operator, inputs))
    return _as_keypoints(points.numpy())


def _as_keypoints(points: Array) -> Array:
    """Return (N, K, 3), x, y and probability, of points (N, 4, K): x, y, logit and probability."""
    return np.ascontiguousarray(points.transpose(0, 2, 1)[:, :, [0, 1, 3]])


def _semantic(found: Arrays, arguments: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Array]:
    if "sem_seg" not in found:
        return {}
    return {"sem_seg": np.ascontiguousarray(found["sem_seg"][0, :, : size[0], : size[1]])}


def _proposals(found: Arrays, arguments: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Array]:
    order = np.argsort(-found["rpn_roi_probs"], kind="stable")[: arguments["post_nms_topk"]]
    boxes = found["rpn_rois"][order, 1:]
    return {"proposal_boxes": boxes, "objectness_logits": found["rpn_roi_probs"][order]}


def _dense(found: Arrays, arguments: Mapping[str, Any], size: tuple[int, int]) -> dict[str, Array]:
    """Decode and select as the eager model does."""
    import torch

    from zooport.export_core.modeling.anchors import AnchorGenerator
    from zooport.export_core.modeling.boxes import BoxCoder
    from zooport.export_core.modeling.dense_detection import DenseSelector

    strides = arguments[STRIDES]
    generator = AnchorGenerator([[1.0]], [[1.0]], strides, arguments[OFFSET])
    corners = [arguments[f"{ANCHORS}{level}"] for level in range(len(strides))]
    generator.cells = [torch.tensor(level).reshape(-1, 4) for level in corners]
    maps = [torch.from_numpy(found[f"feature_{level}"]) for level in range(len(strides))]
    coder = BoxCoder(arguments["bbox_reg_weights"])
    selector = DenseSelector(
        arguments["score_threshold"],
        arguments["topk_candidates"],
        arguments["nms_threshold"],
        arguments["max_detections_per_image"],
    )
    boxes, scores, classes = [], [], []
    for level, anchors in enumerate(generator(maps)):
        per_cell = len(generator.cells[level])
        logits, deltas = (
            _by_anchor(torch.from_numpy(found[f"{name}_{level}"]), per_cell)
            for name in ("box_cls", "box_delta")
        )
        best, chosen, labels = selector.candidates(logits.sigmoid())
        boxes.append(coder(deltas[chosen], anchors[chosen]))
        scores.append(best)
        classes.append(labels)
    selected = selector(torch.cat(boxes), torch.cat(scores), torch.cat(classes))
    return {name: value.numpy() for name, value in selected.items()}


def _by_anchor(values: Any, anchors: int) -> Any:
    """Return (H * W * A, K) for a map (1, A * K, H, W)."""
    _, channels, height, width = values.shape
    split = values.reshape(anchors, channels // anchors, height, width)
    return split.permute(2, 3, 0, 1).reshape(-1, channels // anchors)


READERS: dict[str, Reader] = {
    "GeneralizedRCNN": _instances,
    "PanopticFPN": _instances,
    "ProposalNetwork": _proposals,
    "RetinaNet": _dense,
    "SemanticSegmentor": _semantic,
}
"""Meta-architecture -> how the net's outputs become fields."""
