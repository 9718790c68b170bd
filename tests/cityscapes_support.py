"""A dataset in the layout of Cityscapes with predictions, made of random numbers that are alike everywhere.

``python tests/cityscapes_support.py FILE`` writes what the package ``cityscapesscripts`` (2.3.0) measures on
it, which the tests compare with; that needs an environment with that package, and nothing of zooport.
"""

from __future__ import annotations

import json
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 160, 90
LABELS = [24, 25, 26, 27, 28, 31, 32, 33]
NAMES = ["person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle"]
IMAGES = [f"{city}_{number:06}_000019" for city in ("ulm", "bonn") for number in range(6)]
Box = tuple[int, int, int, int]  # left, top, right, bottom; the last two past the end


def city_of(image: str) -> str:
    return image.partition("_")[0]


def instance_maps() -> dict[str, Any]:
    """Image -> int32 (H, W): road and building, void, groups, small and large instances; no train."""
    random = Random(5)
    maps = {}
    for image in IMAGES:
        ids = np.full((HEIGHT, WIDTH), 7, dtype=np.int32)
        ids[:30] = 11
        ids[80:] = 1
        for number in range(9):
            left, top, right, bottom = _box(random, 6 if number < 3 else 40)
            label = [24, 25, 26, 27, 28, 32, 33, 29, 30][int(random.random() * 9)]
            group = random.random() < 0.2
            ids[top:bottom, left:right] = label if group else 1000 * label + number
        left, top, right, bottom = _box(random, 30)
        ids[top:bottom, left:right] = 3
        maps[image] = ids
    return maps


def predictions() -> dict[str, list[tuple[int, float, Box]]]:
    """Image -> class index, score, and the box that the mask fills; some twice, scores often equal."""
    random = Random(6)
    found = {}
    for image, ids in instance_maps().items():
        rows: list[tuple[int, float, Box]] = []
        for number in np.unique(ids[ids >= 24]).tolist():
            label = number if number < 1000 else number // 1000
            rows_of, columns_of = np.nonzero(ids == number)
            box = (columns_of.min(), rows_of.min(), columns_of.max() + 1, rows_of.max() + 1)
            for _ in range(int(random.random() * 3) + (number < 1000)):
                left, top, right, bottom = (int(value) for value in box)
                moved = (left + int(random.random() * 4), top, right, bottom + int(random.random() * 3))
                if label in LABELS and moved[0] < right:
                    rows.append((LABELS.index(label), round(random.random(), 1), moved))
        rows += [(int(random.random() * 8), round(random.random(), 1), _box(random, 30)) for _ in range(4)]
        found[image] = rows
    return found


def mask_of(box: Box) -> Any:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


def write_cityscapes(folder: Path) -> None:
    """Write ``leftImg8bit/val`` and ``gtFine/val``."""
    for image, ids in instance_maps().items():
        shown, truth = (folder / name / "val" / city_of(image) for name in ("leftImg8bit", "gtFine"))
        shown.mkdir(parents=True, exist_ok=True)
        truth.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (WIDTH, HEIGHT)).save(shown / f"{image}_leftImg8bit.png")
        Image.fromarray(ids.astype(np.uint16)).save(truth / f"{image}_gtFine_instanceIds.png")


def _box(random: Random, largest: int) -> Box:
    width, height = (3 + int(random.random() * largest) for _ in range(2))
    left, top = int(random.random() * (WIDTH - width)), int(random.random() * (HEIGHT - height))
    return left, top, left + width, top + height


def measure(folder: Path) -> dict[str, float]:
    """Return what the package ``cityscapesscripts`` says, in points."""
    official: Any = import_module("cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling")
    np.in1d = np.isin  # type: ignore[attr-defined]  # which cityscapesscripts 2.3.0 still calls so
    official.writeDict2JSON = lambda *_: None  # its intermediate files hold what json cannot write
    write_cityscapes(folder)
    results = folder / "results"
    results.mkdir()
    for image, rows in predictions().items():
        lines = []
        for number, (index, score, box) in enumerate(rows):
            Image.fromarray(mask_of(box).astype(np.uint8) * 255).save(results / f"{image}_{number}.png")
            lines.append(f"{image}_{number}.png {LABELS[index]} {float(np.float32(score))}\n")
        (results / f"{image}_pred.txt").write_text("".join(lines))
    arguments = official.args
    arguments.predictionPath, arguments.predictionWalk = str(results), None
    arguments.JSONOutput, arguments.quiet = False, True
    arguments.gtInstancesFile = str(folder / "gtInstances.json")
    truth = [str(path) for path in sorted((folder / "gtFine/val").glob("*/*_instanceIds.png"))]
    found = [official.getPrediction(path, arguments) for path in truth]
    averages = official.evaluateImgLists(found, truth, arguments)["averages"]
    metrics = {"AP": averages["allAp"], "AP50": averages["allAp50%"]}
    metrics |= {f"AP-{name}": each["ap"] for name, each in averages["classes"].items()}
    return {f"segm/{name}": 100 * float(value) for name, value in metrics.items() if not np.isnan(value)}


if __name__ == "__main__":
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as scratch:
        measured = measure(Path(scratch))
    target.write_text(json.dumps(measured, indent=1) + "\n")
