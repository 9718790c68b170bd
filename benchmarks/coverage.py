"""Export every official architecture in every format, and write the README's coverage table from that run.

The models have made-up weights (those of the parity tests), so nothing is downloaded; each export is verified
against the eager model as any other. ``python benchmarks/coverage.py`` runs one network of each architecture,
some minutes on two cores; with ``--all`` every network, counting models that build the same one together.
``--only`` and ``--formats`` run a part again and keep what the last run found of the rest.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from zooport.export_core import formats, zoo
from zooport.export_core.config import Config
from zooport.export_core.modeling.build import build_skeleton
from zooport.tests import official_zoo

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "docs" / "coverage.json"
README = ROOT / "README.md"
MARKERS = ("<!-- coverage -->", "<!-- end of coverage -->")
BATCH = 6  # models at a time: their weights and artifacts are deleted before the next

# Made-up weights detect little in some networks; without a threshold each has something to compare.
OVERRIDES = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.0,
    "MODEL.RETINANET.SCORE_THRESH_TEST": 0.0,
    "INPUT.MIN_SIZE_TEST": 192,
    "INPUT.MAX_SIZE_TEST": 256,
}
Outcome = tuple[int, str | None]  # how many models, and the failure's code
FAMILIES = {
    "RetinaNet": "RetinaNet",
    "FCOS": "FCOS",
    "ProposalNetwork": "RPN",
    "SemanticSegmentor": "Semantic FPN",
    "PanopticFPN": "Panoptic FPN",
}


def main() -> None:
    """Run the networks, then write the result and the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--all", action="store_true", help="every network, not one of each architecture")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--formats", nargs="+", choices=formats.names(), default=formats.names())
    chosen = parser.parse_args()
    networks = {
        name: same for name, same in networks_to_run(all_of_them=chosen.all).items() if chosen.only in name
    }
    rows: list[dict[str, Any]] = []
    for batch in _batches(sorted(networks), BATCH):
        for row in run(batch, chosen.formats):
            rows.append({**row, "models": networks[row["model"]]})
            print(f"{row['model']}  {row['format']}  {row['status']}  {row['code'] or ''}", flush=True)
    if chosen.only or chosen.formats != formats.names():
        fresh = {(row["model"], row["format"]) for row in rows}
        before = json.loads(RESULT.read_text(encoding="utf-8"))
        rows += [row for row in before if (row["model"], row["format"]) not in fresh]
    rows.sort(key=lambda row: (row["model"], formats.names().index(row["format"])))
    RESULT.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    write_table(rows)


def networks_to_run(*, all_of_them: bool) -> dict[str, list[str]]:
    """Return a name for each network to run, and the models that are the same network."""
    networks: dict[str, list[str]] = defaultdict(list)
    for name in official_zoo.recorded():
        networks[official_zoo.SAME_NETWORK.get(name, name)].append(name)
    if all_of_them:
        return networks
    by_size = sorted(networks, key=lambda name: ("101" not in name and "152" not in name, name))
    one_of_each = {description_of(name): name for name in by_size}  # the last, so a small one
    return {name: [name] for name in one_of_each.values()}


def run(names: Sequence[str], into: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Export some models in some formats with ``zooport submit``; yield what the registry says."""
    with tempfile.TemporaryDirectory(prefix="zooport-coverage-") as folder:
        place = Path(folder)
        models = [_prepare(name, place) for name in names]
        manifest = {"models": models, "formats": list(into)}
        (place / "zoo.yaml").write_text(yaml.safe_dump(manifest), encoding="utf-8")
        _zooport(place, "submit", "zoo.yaml", check=False)
        for row in json.loads(_zooport(place, "list", "-o", "json")):
            path = row["artifact"] and Path(row["artifact"])
            description = json.loads((path / "model.json").read_text(encoding="utf-8")) if path else {}
            yield {
                "model": names[int(row["model"].removeprefix("model"))],
                "family": description_of(names[int(row["model"].removeprefix("model"))]),
                "format": row["format"],
                "status": row["status"],
                "code": row["code"],
                "message": row["message"],
                "deviation": description.get("verification", {}).get("largest_deviation_from_eager"),
            }


def _prepare(name: str, place: Path) -> Mapping[str, Any]:
    index = len(list(place.glob("*.pth")))
    config = official_zoo.config_of(name)
    weights = place / f"model{index}.pth"
    made_up = official_zoo.weights_for(build_skeleton(config), name, config)
    torch.save({"model": official_zoo.tame(name, made_up)}, weights)
    recorded = dict(official_zoo.recorded()[name]["overrides"])
    overrides = {
        key: value for key, value in {**recorded, **OVERRIDES}.items() if config.lookup(key, None) is not None
    }
    if config.MODEL.META_ARCHITECTURE == "FCOS":
        overrides["MODEL.FCOS.SCORE_THRESH_TEST"] = 0.0
    return {
        "name": f"model{index}",
        "config": str(zoo.find(name).config),
        "weights": weights.name,
        "overrides": overrides,
    }


def _zooport(place: Path, *arguments: str, check: bool = True) -> str:
    program = shutil.which("zooport", path=str(Path(sys.executable).parent)) or "zooport"
    done = subprocess.run([program, *arguments], cwd=place, check=check, capture_output=True, text=True)
    return done.stdout


def description_of(name: str) -> str:
    """Return the architecture of an official model in the field's words, from its config."""
    config = official_zoo.config_of(name)
    model = config.MODEL
    detector = _detector(config)
    where = "" if detector.endswith(" FPN") else f" on {_backbone(config)}"
    deformable = any(model.RESNETS.DEFORM_ON_PER_STAGE)
    return detector + where + (", deformable" if deformable else "")


def _detector(config: Config) -> str:
    model = config.MODEL
    if model.META_ARCHITECTURE in FAMILIES:
        cascade = "Cascade " if model.ROI_HEADS.NAME == "CascadeROIHeads" else ""
        return cascade + FAMILIES[model.META_ARCHITECTURE]
    if model.PROPOSAL_GENERATOR.NAME == "PrecomputedProposals":
        return "Fast R-CNN"
    cascade = "Cascade " if model.ROI_HEADS.NAME == "CascadeROIHeads" else ""
    kind = "Mask" if model.MASK_ON else "Keypoint" if model.KEYPOINT_ON else "Faster"
    return f"{cascade}{kind} R-CNN"


def _backbone(config: Config) -> str:
    model = config.MODEL
    if "regnet" in model.BACKBONE.NAME:
        return "RegNet FPN"
    if "fpn" in model.BACKBONE.NAME:
        return "FPN"
    return "DC5" if model.RESNETS.RES5_DILATION == 2 else "C4"


def write_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Replace the README's table between its markers."""
    names = formats.names()
    families: dict[str, dict[str, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        families[row["family"]][row["format"]].append((len(row["models"]), row["code"]))
    lines = [
        f"| architecture | {' | '.join(f'`{name}`' for name in names)} |",
        "| --- |" + " --- |" * len(names),
    ]
    for family in sorted(families):
        cells = [_cell(families[family][name]) for name in names]
        lines.append(f"| {family} | {' | '.join(cells)} |")
    before, rest = README.read_text(encoding="utf-8").split(MARKERS[0])
    after = rest.split(MARKERS[1])[1]
    table = "\n".join(lines)
    README.write_text(f"{before}{MARKERS[0]}\n\n{table}\n\n{MARKERS[1]}{after}", encoding="utf-8")


def _cell(outcomes: Sequence[Outcome]) -> str:
    verified = sum(count for count, code in outcomes if code is None)
    codes = sorted({code for _, code in outcomes if code is not None})
    return " ".join(
        [f"{verified} of {sum(count for count, _ in outcomes)}", *(f"`{code}`" for code in codes)]
    )


def _batches(names: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(names), size):
        yield names[start : start + size]


if __name__ == "__main__":
    main()
