"""How much memory a job is given: estimated from its checkpoint and image size, or as the manifest says.

The estimate errs on the large side: it is also the limit at which the job is stopped. What counts is memory
that the kernel could not take back (anonymous and shared memory of the job's processes), not mapped files.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zooport.export_core.config import Config

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
_UNITS = {"B": 1, "KIB": KIB, "MIB": MIB, "GIB": GIB, "KB": 10**3, "MB": 10**6, "GB": 10**9}
BASE = GIB
PER_CHECKPOINT_BYTE = 3.5
PER_PIXEL = 600
PER_POOLED_BYTE = 3
PER_ANNOTATION_BYTE = 20
LARGEST_IMAGE = 800 * 1333
UNKNOWN_ACTIVATIONS = 3 * GIB
EXPECTED = "an amount of memory with its unit, such as 6GiB or 500MB"
_SMALLEST = GIB // 2  # of a worker


def estimate(checkpoint: int, activations: int, annotations: int = 0) -> int:
    """Return the bytes that a process of a job is thought to hold at most.

    Linear in what is known before a job begins; the constants are bounds of what
    ``benchmarks/reservation.py`` measures. A checkpoint is held as it is read, as a model and as an artifact
    in the making; annotations are a tree of Python objects.

    Args:
        checkpoint: bytes of the weights file; 0 when they are not known.
        activations: bytes, of :func:`activations`; 0 when they are not known.
        annotations: bytes of the dataset's annotations; 0 without a dataset.
    """
    held = BASE + int(PER_CHECKPOINT_BYTE * checkpoint) + PER_ANNOTATION_BYTE * annotations
    return held + (activations or UNKNOWN_ACTIVATIONS)


def activations(config: Config) -> int:
    """Return the bytes that the features of one image are thought to take.

    They grow with the image, which has at most ``INPUT.MIN_SIZE_TEST`` times ``INPUT.MAX_SIZE_TEST`` pixels,
    and with what is cut out for the proposals: with a head that runs a whole stage of the backbone on each of
    a thousand proposals (C4) that is most of it.
    """
    shortest, longest = config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST
    # An image that keeps its size may have any.
    pixels = int(min(shortest, longest) * longest) if shortest else LARGEST_IMAGE
    return PER_PIXEL * pixels + PER_POOLED_BYTE * _pooled(config)


def _pooled(config: Config) -> int:
    """Bytes of the features that are cut out for all proposals of one image, in single precision."""
    model = config.MODEL
    channels = model.RESNETS.RES2_OUT_CHANNELS * (4 if "Res5" in model.ROI_HEADS.NAME else 8)
    if "fpn" in model.BACKBONE.NAME.lower():
        channels = model.FPN.OUT_CHANNELS
    return int(model.RPN.POST_NMS_TOPK_TEST * channels * model.ROI_BOX_HEAD.POOLER_RESOLUTION**2 * 4)


def parse(text: str) -> int:
    """Return the bytes that a text such as ``6GiB`` or ``500 MB`` means; ValueError for any other."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B|B)\s*", text, re.IGNORECASE)
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        raise ValueError(EXPECTED)
    return size


def shown(size: int) -> str:
    """Return bytes as people read them: ``6.0 GiB``."""
    unit, name = (GIB, "GiB") if size >= GIB else (MIB, "MiB")
    return f"{size / unit:.1f} {name}"


def exactly(size: int) -> str:
    """Return bytes as :func:`parse` reads them, with none lost: ``6GiB``, ``1234B``."""
    unit = next((name for name in ("GiB", "MiB", "KiB") if size % _UNITS[name.upper()] == 0), "B")
    return f"{size // _UNITS[unit.upper()]}{unit}"


def size_class(reservation: int, most: int = 0) -> int:
    """Return the memory, in bytes, that a worker for this reservation sets aside in Ray.

    Reservations are rounded up to 0.5, 0.75, 1, 1.5, 2, 3, 4, 6 ... GiB, so that a run needs few kinds of
    workers. No worker asks for more than ``most``, what the largest machine has (0: not known), because none
    would ever come. 0 stays 0: no reservation.
    """
    if reservation <= 0:
        return 0
    size = _SMALLEST
    while size < reservation:
        if size + size // 2 >= reservation:
            size += size // 2
            break
        size *= 2
    return min(size, most) if most else size
