"""A dataset in the layout of Pascal VOC with predictions, made of random numbers that are alike everywhere.

``voc_metrics.json`` among the evaluation data is what detectron2's ``PascalVOCDetectionEvaluator`` measures
on them: :func:`write_voc` is its folder and :func:`voc_predictions` what a model said. null is NaN, which it
has for a class without objects in 2012.
"""

from __future__ import annotations

from pathlib import Path
from random import Random

CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa"),
    *("train", "tvmonitor"),
)
IMAGES = [f"{number:06}" for number in range(30, 0, -1)]
WIDTH, HEIGHT = 90, 70
Box = tuple[int, int, int, int]


def voc_objects() -> dict[str, list[tuple[str, Box, bool]]]:
    """Image -> class, corners from 1 on, and whether it is difficult; some classes have no object."""
    random = Random(3)
    found: dict[str, list[tuple[str, Box, bool]]] = {}
    for image in IMAGES:
        found[image] = [
            (CLASSES[int(random.random() * 17)], _box(random), random.random() < 0.2)
            for _ in range(1 + int(random.random() * 6))
        ]
    return found


def voc_predictions() -> dict[str, list[tuple[int, float, list[float]]]]:
    """Image -> class index, score, corners from 0 on; no two scores round to the same three digits."""
    random = Random(4)
    scores = [number / 1000 + 0.0002 for number in range(1, 1000)]
    random.shuffle(scores)
    found: dict[str, list[tuple[int, float, list[float]]]] = {}
    for image, objects in voc_objects().items():
        rows = []
        for name, corners, _ in objects:
            for _ in range(int(random.random() * 3)):
                moved = [value - 1 + (random.random() - 0.5) * 6 for value in corners]
                rows.append((CLASSES.index(name), scores.pop(), moved))
        for _ in range(4):
            box = [float(value - 1) for value in _box(random)]
            rows.append((int(random.random() * 20), scores.pop(), box))
        found[image] = rows
    return found


def write_voc(folder: Path) -> None:
    """Write the lists and XML files of ``VOCdevkit/VOC2007``, and black images."""
    from PIL import Image

    for name in ("Annotations", "JPEGImages", "ImageSets/Main"):
        (folder / name).mkdir(parents=True)
    (folder / "ImageSets/Main/test.txt").write_text("".join(f"{name}\n" for name in IMAGES))
    for image, objects in voc_objects().items():
        Image.new("L", (WIDTH, HEIGHT)).save(folder / "JPEGImages" / f"{image}.jpg")
        (folder / "Annotations" / f"{image}.xml").write_text(voc_xml(image, objects))


def voc_xml(image: str, objects: list[tuple[str, Box, bool]]) -> str:
    """The annotations of one image."""
    parts = [
        f"<object><name>{name}</name><pose>Left</pose><truncated>0</truncated>"
        f"<difficult>{int(difficult)}</difficult><bndbox><xmin>{corners[0]}</xmin><ymin>{corners[1]}</ymin>"
        f"<xmax>{corners[2]}</xmax><ymax>{corners[3]}</ymax></bndbox></object>\n"
        for name, corners, difficult in objects
    ]
    size = f"<size><width>{WIDTH}</width><height>{HEIGHT}</height><depth>3</depth></size>"
    head = f"<folder>VOC2007</folder><filename>{image}.jpg</filename>{size}<segmented>0</segmented>"
    return f"<annotation>{head}\n{''.join(parts)}</annotation>\n"


def _box(random: Random) -> Box:
    left, top = 1 + int(random.random() * (WIDTH - 30)), 1 + int(random.random() * (HEIGHT - 30))
    return left, top, left + 5 + int(random.random() * 24), top + 5 + int(random.random() * 24)
