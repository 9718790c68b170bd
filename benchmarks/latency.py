"""Seconds for one image on one thread: eager PyTorch against every format, for each official architecture.

Pictures of 800x1067, made-up weights (those of the parity tests), 1000 proposals, and a score threshold that
1000 boxes are above, about as many as of a trained model; and the demo zoo on images of its own. All runtimes
of a model take turns of some tenths of a second, one image at least, so that whatever else the machine does
meets them alike; what counts is processor time for an image, the median of the turns after the first.
``python benchmarks/latency.py [--only WORD...] [--formats NAME...] [--rounds N]``; the result is written
beside this file, where formats that were not measured keep their shares, and ``make docs`` copies it.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from zooport.benchmarks.coverage import description_of, networks_to_run
from zooport.export_core import formats, zoo
from zooport.export_core.config import load_config
from zooport.export_core.demo import ZOO
from zooport.export_core.failures import Failure
from zooport.export_core.isolation import run_isolated
from zooport.export_core.isolation.child import helpers
from zooport.export_core.isolation.memory import family
from zooport.export_core.modeling.roi_heads.box_predictor import DetectionSelector

HERE = "zooport.benchmarks.latency"  # as disposable processes import it
RESULT = Path(__file__).parent / "latency.json"
HEIGHT, WIDTH = 800, 1067
FORMATS = ("torchscript-trace", "torchscript-script", "onnx", "torch-export", "tensorflow")
THRESHOLDS = ("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "MODEL.RETINANET.SCORE_THRESH_TEST")
TURN = 0.3  # seconds that a turn of a small model takes, about
CANDIDATES = 1000  # boxes that reach suppression
Row = dict[str, Any]


def main() -> None:
    """Measure, print a table and write it down."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", default=[""], help="models whose name contains one of these")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    chosen = parser.parse_args()
    rows = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else []
    known: dict[str, Row] = {row["model"]: row for row in rows}
    for row in measured(chosen.only, chosen.formats, chosen.rounds):
        shares = known.get(row["model"], {}).get("shares", {})
        known[row["model"]] = {**row, "shares": {**shares, **row["shares"]}}
        RESULT.write_text(json.dumps(list(known.values()), indent=1) + "\n", encoding="utf-8")
    print_table(list(known.values()))


def measured(only: list[str], formats_: list[str], rounds: int) -> Iterator[Row]:
    """Yield a row for each chosen model."""
    official = {name: description_of(name) for name in sorted(networks_to_run(all_of_them=False))}
    demo = {path.parent.name: f"demo: {path.parent.name}" for path in sorted(ZOO.glob("*/config.yaml"))}
    for name, title in (official | demo).items():
        if not any(word in name for word in only):
            continue
        with tempfile.TemporaryDirectory(prefix="zooport-latency-") as scratch:
            log = Path(scratch, "log")
            try:
                seconds = run_isolated(
                    f"{HERE}:measure", name, formats_, rounds, Path(scratch), timeout=None, log=log
                )
            except Exception:
                print(log.read_text(encoding="utf-8", errors="replace"))
                raise
        print(title, {key: round(value, 4) for key, value in seconds.items()}, flush=True)
        eager = seconds.pop("eager")
        shares = {format_: round(value / eager, 3) for format_, value in seconds.items()}
        yield {"model": name, "architecture": title, "eager_s": round(eager, 4), "shares": shares}


def measure(
    name: str, formats_: list[str], rounds: int, scratch: Path, report: Callable[..., None]
) -> dict[str, float]:
    """Return the seconds of processor time for one image, "eager" and by format."""
    from zooport.export_core.pipeline import eager_predictor

    model, inputs = _demo_model(name) if (ZOO / name).exists() else _official_model(name)
    eager = eager_predictor(model)
    arrays = {key: value.numpy() for key, value in inputs.items()}
    fields = sorted(eager(**arrays))
    predictors = {"eager": eager}
    for format_ in formats_:
        folder = scratch / format_
        folder.mkdir()
        exporter = formats.get(format_)
        try:
            exporter.export(model, inputs, fields, folder, {})
        except Failure as failure:
            # Made-up scores are so near each other that rounding decides which are the best hundred. The
            # files are there, and take the same time whichever they are.
            if failure.code != "artifact.mismatch":
                raise
        predictors[format_] = exporter.load(folder, fields, {})
    turns: dict[str, list[float]] = {each: [] for each in predictors}
    calls = dict.fromkeys(predictors, 1)
    for _ in range(rounds + 1):
        for each, predictor in predictors.items():
            began = _processor_time()
            for _ in range(calls[each]):
                predictor(**arrays)
            turns[each].append((_processor_time() - began) / calls[each])
            # Alone, a call of a small model mostly waits for what the others left in the caches.
            calls[each] = max(1, round(TURN / turns[each][-1]))
    return {each: statistics.median(times[1:]) for each, times in turns.items()}


def _processor_time() -> float:
    """Return the seconds that this process and those working for it have computed; TensorFlow has its own."""
    own = time.process_time()
    for process in {*family(os.getpid()), *helpers()} - {os.getpid()}:
        for thread in Path(f"/proc/{process}/task").iterdir():
            own += int((thread / "schedstat").read_text().split()[0]) / 1e9
    return own


def _official_model(name: str) -> tuple[Any, Mapping[str, Any]]:
    from zooport.export_core.modeling.build import build_skeleton
    from zooport.tests import official_zoo

    path = zoo.find(name).config
    plain = load_config(path)
    config = load_config(path, {key: 0.0 for key in THRESHOLDS if plain.lookup(key, None) is not None})
    model = build_skeleton(config)
    weights = official_zoo.tame(name, official_zoo.weights_for(model, name, config))
    model.load_state_dict(weights, assign=True)
    model.requires_grad_(False).eval()
    inputs = official_zoo.inputs_of(name, HEIGHT, WIDTH)
    _set_thresholds(model, inputs)
    return model, inputs


def _set_thresholds(model: Any, inputs: Mapping[str, Any]) -> None:
    """Let no more than CANDIDATES boxes through: made-up scores are near each other, above or below."""

    def limit(selector: Any, arguments: tuple[Any, ...]) -> None:
        scores = arguments[1][:, :-1].flatten()
        if len(scores) > CANDIDATES:
            selector.score_thresh = float(scores.topk(CANDIDATES + 1)[0][-1])

    selectors = [module for module in model.modules() if isinstance(module, DetectionSelector)]
    hooks = [selector.register_forward_pre_hook(limit) for selector in selectors]
    if hooks:
        model([dict(inputs)])
    for hook in hooks:
        hook.remove()


def _demo_model(name: str) -> tuple[Any, Mapping[str, Any]]:
    import numpy as np
    import torch

    from zooport.export_core.evaluation.images import read_image, resize_shortest_edge
    from zooport.export_core.pipeline import load_checkpoint
    from zooport.export_core.sources import CheckpointSource

    weights = next((ZOO / name).glob("model_final.*"))
    config = load_config(ZOO / name / "config.yaml")
    model, _, _ = load_checkpoint(CheckpointSource(name, ZOO / name / "config.yaml", weights), config)
    picture = read_image(min((ZOO / "data" / "val").iterdir()), config.INPUT.FORMAT)
    picture = resize_shortest_edge(picture, config.INPUT.MIN_SIZE_TEST, config.INPUT.MAX_SIZE_TEST)
    image = np.ascontiguousarray(picture.transpose(2, 0, 1), dtype=np.float32)
    return model, {"image": torch.from_numpy(image)}


def print_table(rows: list[Row]) -> None:
    """Print seconds of eager PyTorch, and each format's share of them."""
    names = [name for name in formats.names() if any(name in row["shares"] for row in rows)]
    print(f"\n{'architecture':40s} {'eager':>9s}" + "".join(f"{name:>20s}" for name in names))
    for row in rows:
        shares = [row["shares"].get(name, float("nan")) for name in names]
        print(f"{row['architecture']:40s} {row['eager_s']:8.4f}s" + "".join(f"{one:20.2f}" for one in shares))


if __name__ == "__main__":
    main()
