"""The arguments of a net: what a consumer must know of the model besides its weights."""

from __future__ import annotations

import io
import pickle
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import ModuleType
from typing import TYPE_CHECKING, Any

from zooport.export_core.formats.caffe2_network import divisors_of
from zooport.export_core.formats.caffe2_results import ANCHORS, OFFSET, STRIDES

if TYPE_CHECKING:
    from zooport.export_core.config import Config

_ANCHOR_MODULE = "detectron2.modeling.anchor_generator"
# How the files of torch.save begin that are no ZIP archives; torch.load knows them by it.
_MAGIC, _PROTOCOL = 0x1950A86A20F9469CFC6C, 1001
_SYSTEM = {
    "protocol_version": _PROTOCOL,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}


def net_arguments(model: Any, config: Config) -> dict[str, Any]:
    """Return the arguments that detectron2's loader reads, and plain numbers for those who have none."""
    divisibility = model.backbone.size_divisibility
    arguments: dict[str, Any] = {
        "size_divisibility": int(divisibility) if divisibility > 1 else 0,
        "device": "cpu",
        "meta_architecture": config.MODEL.META_ARCHITECTURE,
    }
    if config.MODEL.META_ARCHITECTURE == "RetinaNet":
        return arguments | _of_retinanet(model)
    if config.MODEL.META_ARCHITECTURE == "PanopticFPN":
        return arguments | _of_panoptic(config)
    if config.MODEL.META_ARCHITECTURE == "ProposalNetwork":
        arguments["post_nms_topk"] = model.proposal_generator.post_nms_topk
    return arguments


def _of_retinanet(model: Any) -> dict[str, Any]:
    selector, generator = model.selector, model.anchor_generator
    return {
        "score_threshold": selector.score_thresh,
        "topk_candidates": selector.topk_candidates,
        "nms_threshold": selector.nms.iou_threshold,
        "max_detections_per_image": selector.topk,
        "bbox_reg_weights": divisors_of(model.box_coder),
        "serialized_anchor_generator": _as_detectron2(generator),
        STRIDES: list(generator.strides),
        OFFSET: generator.offset,
        **{f"{ANCHORS}{level}": cell.numpy() for level, cell in enumerate(generator.cells)},
    }


def _of_panoptic(config: Config) -> dict[str, Any]:
    node: Mapping[str, Any] = config.MODEL.PANOPTIC_FPN.COMBINE
    return {
        "combine_overlap_threshold": float(node["OVERLAP_THRESH"]),
        "combine_stuff_area_limit": int(node["STUFF_AREA_LIMIT"]),
        "combine_instances_confidence_threshold": float(node["INSTANCES_CONFIDENCE_THRESH"]),
    }


def _as_detectron2(generator: Any) -> bytes:
    """Return the anchor generator as detectron2's loader wants it: a pickled module of a class of its own.

    Who reads it runs what it holds: zooport itself never does, and takes the plain numbers.
    """
    with _detectron2_classes() as (generator_class, list_class):
        cells = list_class()
        for index, cell in enumerate(generator.cells):
            cells.register_buffer(str(index), cell.clone())
        stand_in = generator_class()
        stand_in.cell_anchors = cells
        stand_in.strides = list(generator.strides)
        stand_in.num_features = len(generator.strides)
        stand_in.offset = generator.offset
        return _saved(stand_in)


def _saved(value: Any) -> bytes:
    """Return an object with float32 tensors as torch.load reads it, in the layout of torch before 1.6.

    Not the ZIP archive of torch.save: where one lies near the end of a file, viewers such as Netron open it
    instead of the net. Nor torch.save's own way to this layout, which writes addresses of memory.
    """
    import torch

    storages: list[Any] = []

    class Pickler(pickle.Pickler):
        def persistent_id(self, part: Any) -> Any:
            if not isinstance(part, torch.storage.TypedStorage):
                return None
            untyped = part._untyped_storage  # its own methods warn that they will go
            storages.append(untyped)
            return "storage", torch.FloatStorage, str(len(storages) - 1), "cpu", untyped.nbytes() // 4, None

    buffer = io.BytesIO()
    for part in (_MAGIC, _PROTOCOL, _SYSTEM):
        pickle.dump(part, buffer, protocol=2)
    Pickler(buffer, protocol=2).dump(value)
    pickle.dump([str(index) for index in range(len(storages))], buffer, protocol=2)
    for storage in storages:
        buffer.write(struct.pack("<q", storage.nbytes() // 4) + bytes(storage.tolist()))
    return buffer.getvalue()


@contextmanager
def _detectron2_classes() -> Iterator[tuple[Any, Any]]:
    """While a module is pickled: classes that bear the names of two of detectron2's."""
    import torch

    names = ["detectron2", "detectron2.modeling", _ANCHOR_MODULE]
    before = {name: sys.modules.get(name) for name in names}
    classes = [type(name, (torch.nn.Module,), {}) for name in ("DefaultAnchorGenerator", "BufferList")]
    module = ModuleType(_ANCHOR_MODULE)
    for each in classes:
        each.__module__ = _ANCHOR_MODULE
        setattr(module, each.__name__, each)
    sys.modules |= {name: ModuleType(name) for name in names[:2]} | {_ANCHOR_MODULE: module}
    try:
        yield classes[0], classes[1]
    finally:
        for name, known in before.items():
            if known is None:
                del sys.modules[name]
            else:
                sys.modules[name] = known
