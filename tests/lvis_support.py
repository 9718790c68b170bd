"""An LVIS dataset with predictions, made of random numbers that every version of Python makes alike.

``python tests/lvis_support.py FILE`` writes what the package ``lvis`` (0.5.3) measures on it, which the tests
compare with; that needs an environment with ``lvis``, and nothing of zooport.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

IMAGES, CATEGORIES = 24, 9
SIZE = 240  # of every image, in pixels; so that there are large objects


def lvis_document() -> dict[str, Any]:
    """Objects of all areas; categories present, absent or unknown in an image, and partly annotated ones."""
    random = Random(1)
    categories = [{"id": 2 * k + 1, "name": f"c{k}", "frequency": "rcf"[k % 3]} for k in range(CATEGORIES)]
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for index in range(IMAGES):
        image = (index * 7) % IMAGES + 100  # not in the order of the ids
        present = [each["id"] for each in categories if random.random() < 0.4]
        others = [each["id"] for each in categories if each["id"] not in present]
        images.append(
            {
                "id": image,
                "coco_url": f"http://images.cocodataset.org/val2017/{image:012}.jpg",
                "height": SIZE,
                "width": SIZE,
                "neg_category_ids": [each for each in others if random.random() < 0.5],
                "not_exhaustive_category_ids": [each for each in present if random.random() < 0.3],
            }
        )
        for category in present:
            for _ in range(1 + int(random.random() * 4)):
                box = _box(random)
                # Some lie on each other and are of different sizes: an object can hide in an area range.
                for area in (0.2, 2.0) if random.random() < 0.3 else (1.0,):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": image,
                            "category_id": category,
                            "bbox": box,
                            "area": area * box[2] * box[3],
                            "segmentation": [_corners(box)],
                        }
                    )
                    box = [box[0] + 1, *box[1:]]
    return {"images": images, "categories": categories, "annotations": annotations}


def lvis_predictions(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Moved objects with scores that are often equal, and noise: in one image more than 300 detections."""
    random = Random(2)
    rows: list[dict[str, Any]] = []
    for entry in document["annotations"]:
        for _ in range(int(random.random() * 3)):
            x, y, width, height = entry["bbox"]
            shift = random.random() * 0.3
            moved = [x + shift * width / 2, y, width * (1 - shift / 2), height]
            rows.append(_row(entry["image_id"], entry["category_id"], moved, random))
    for image in document["images"]:
        for _ in range(320 if image["id"] == 107 else 30):
            category = document["categories"][int(random.random() * CATEGORIES)]
            rows.append(_row(image["id"], category["id"], _box(random), random))
    return rows


def _row(image: int, category: int, box: list[float], random: Random) -> dict[str, Any]:
    score = round(random.random(), 2)
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def _box(random: Random) -> list[float]:
    longest = (20, 60, 200)[int(random.random() * 3)]
    width, height = (4 + random.random() * longest for _ in range(2))
    return [random.random() * (SIZE - width), random.random() * (SIZE - height), width, height]


def _corners(box: list[float]) -> list[float]:
    x, y, width, height = box
    return [x, y, x + width, y, x + width, y + height, x, y + height]


def segmentation(row: dict[str, Any]) -> dict[str, Any]:
    """The mask of a detection, which fills its box, as compressed run lengths."""
    from pycocotools import mask as mask_util

    rle = mask_util.merge(mask_util.frPyObjects([_corners(row["bbox"])], SIZE, SIZE))
    return {"size": rle["size"], "counts": rle["counts"].decode("ascii")}


def measure(folder: Path) -> dict[str, float]:
    """Return what the package ``lvis`` says, in points."""
    import numpy as np
    from lvis import LVIS, LVISEval, LVISResults  # type: ignore[import-not-found]

    np.float = float  # type: ignore[attr-defined]  # which lvis 0.5.3 still calls so
    document = lvis_document()
    path = folder / "lvis.json"
    path.write_text(json.dumps(document))
    found: dict[str, float] = {}
    for kind in ("bbox", "segm"):
        rows = lvis_predictions(document)
        if kind == "segm":
            rows = [
                {**{key: row[key] for key in row if key != "bbox"}, "segmentation": segmentation(row)}
                for row in rows
            ]
        truth = LVIS(str(path))
        evaluation = LVISEval(truth, LVISResults(truth, rows, max_dets=300), kind)
        evaluation.run()
        results = {name: value for name, value in evaluation.get_results().items() if name.startswith("AP")}
        precision = evaluation.eval["precision"][:, :, :, 0]
        for index, category in enumerate(document["categories"]):
            defined = precision[:, :, index][precision[:, :, index] > -1]
            if defined.size:
                results[f"AP-{category['name']}"] = defined.mean()
        found |= {f"{kind}/{name}": 100 * float(value) for name, value in results.items() if value > -1}
    return found


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.write_text(json.dumps(measure(target.parent), indent=1) + "\n")
    (target.parent / "lvis.json").unlink()
