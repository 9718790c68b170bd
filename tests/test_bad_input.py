"""One run over every kind of bad input beside a good one: each fails alone, typed, in a line naming it."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core import demo
from zooport.jobs import submission
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter, ExportRow
from zooport.jobs.runner import RunSettings

pytestmark = [pytest.mark.alone, pytest.mark.slow]
MODEL = demo.ZOO / "retinanet_fpn"
OTHER = demo.ZOO / "faster_rcnn_fpn"
DATA = demo.ZOO / "data"
TRAP = "trap"

#: Model -> code of its failure, and what the message has to name.
EXPECTED = {
    "no-config": ("config.invalid", "no-config/config.yaml"),
    "no-weights": ("checkpoint.missing", "no-weights/model.pth"),
    "truncated-pth": ("checkpoint.corrupt", "truncated-pth/model.pth: truncated"),
    "truncated-pkl": ("checkpoint.corrupt", "truncated-pkl/model.pkl: truncated"),
    "pickle-with-command": ("checkpoint.unsafe", "pickle-with-command/model.pkl"),
    "yaml-with-command": ("config.invalid", "yaml-with-command/config.yaml"),
    "yaml-with-eval": ("config.invalid", "yaml-with-eval/config.yaml"),
    "another-architecture": ("checkpoint.mismatch", "backbone.top_block.p6.weight"),
    "nan": ("checkpoint.nonfinite", "head.cls_score.bias"),
    "unknown-category": ("dataset.invalid", "category_id 999"),
    "no-images": ("dataset.invalid", "lists no images"),
    "missing-image": ("dataset.invalid", "gone.png"),
    "in-the-way": ("resource.disk", "in-the-way"),
}


class Command:
    """Unpickled by Python itself it runs a command."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.trap}'",)


@dataclass(frozen=True)
class Finished:
    folder: Path
    code: int
    rows: dict[str, ExportRow]


def models(folder: Path) -> Iterator[tuple[str, str | None, str, bytes | None, str]]:
    """Name, config, name and content of the weights, dataset."""
    config, weights = (MODEL / "config.yaml").read_text("utf-8"), (MODEL / "model_final.pth").read_bytes()
    other, pickled = (OTHER / "config.yaml").read_text("utf-8"), (OTHER / "model_final.pkl").read_bytes()
    trap = folder / TRAP
    yield "no-config", None, "model.pth", weights, ""
    yield "no-weights", config, "model.pth", None, ""
    yield "truncated-pth", config, "model.pth", weights[: len(weights) // 2], ""
    yield "truncated-pkl", other, "model.pkl", pickled[: len(pickled) // 2], ""
    yield "pickle-with-command", other, "model.pkl", pickle.dumps({"model": Command(trap)}), ""
    command = f"EVIL: !!python/object/apply:os.system ['touch {trap}']"
    yield "yaml-with-command", f"{config}\n{command}\n", "model.pth", weights, ""
    command = f"STEPS: !!python/object/apply:eval [\"__import__('os').system('touch {trap}')\"]"
    yield "yaml-with-eval", f"{config}\n{command}\n", "model.pth", weights, ""
    yield "another-architecture", config, "model.pkl", pickled, ""
    yield "nan", config, "model.pth", with_nan(folder), ""
    yield "in-the-way", config, "model.pth", weights, ""
    for name in ("unknown-category", "no-images", "missing-image", "good"):
        yield name, config, "model.pth", weights, name


def with_nan(folder: Path) -> bytes:
    import torch

    contents = torch.load(MODEL / "model_final.pth", weights_only=True)
    state = contents.get("model", contents)
    state["head.cls_score.bias"][0] = float("nan")
    torch.save(contents, folder / "nan.pth")
    return (folder / "nan.pth").read_bytes()


def write_datasets(folder: Path) -> list[str]:
    annotations: dict[str, Any] = json.loads((DATA / "annotations/instances_val.json").read_text("utf-8"))
    first, second = annotations["images"][:2]
    kept = [one for one in annotations["annotations"] if one["image_id"] in {first["id"], second["id"]}]
    small = annotations | {"images": [first, second], "annotations": kept}
    changed = {
        "good": small,
        "unknown-category": small | {"annotations": [kept[0] | {"category_id": 999}, *kept[1:]]},
        "no-images": small | {"images": [], "annotations": []},
        "missing-image": small | {"images": [first, second | {"file_name": "gone.png"}]},
    }
    for name, content in changed.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    return [f"  {name}: {{annotations: {name}.json, images: {DATA / 'val'}}}" for name in changed]


def write_manifest(folder: Path) -> Path:
    lines = ["datasets:", *write_datasets(folder), "models:"]
    for name, config, file, weights, dataset in models(folder):
        (folder / name).mkdir()
        if config is not None:
            (folder / name / "config.yaml").write_text(config, encoding="utf-8")
        if weights is not None:
            (folder / name / file).write_bytes(weights)
        entry = f"name: {name}, config: {name}/config.yaml, weights: {name}/{file}"
        lines.append(f"  - {{{entry}{f', dataset: {dataset}' if dataset else ''}}}")
    lines.append("formats: [torchscript-script]")
    manifest = folder / "zoo.yaml"
    manifest.write_text("\n".join(lines), encoding="utf-8")
    (folder / "artifacts").mkdir()
    (folder / "artifacts" / "in-the-way").write_text("a file where a directory belongs", encoding="utf-8")
    return manifest


@contextmanager
def joined(address: str | None, workers: int | None, server: object) -> Iterator[int]:
    """Use the Ray that is there."""
    yield workers or 2


@pytest.fixture(scope="module")
def finished(one_ray: None, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("bad")
    registry = str(folder / "registry.db")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        patch.setattr("zooport.jobs.runner.joined", joined)
        request = submission.Request(registry, RunSettings(workers=2), retries=0)
        code = submission.submit(write_manifest(folder), request)
    with open_registry(registry, create=False) as opened:
        rows = {row.model: row for row in opened.exports(ExportFilter())}
    return Finished(folder, code, rows)


def test_every_input_has_a_row_and_the_run_failed(finished: Finished) -> None:
    assert finished.code == 1
    assert set(finished.rows) == {*EXPECTED, "good"}


def test_the_good_one_beside_them_is_verified(finished: Finished) -> None:
    row = finished.rows["good"]
    assert (row.status, row.code) == ("succeeded", None)
    assert row.metrics["bbox/AP"].delta == pytest.approx(0, abs=0.01)
    assert row.artifact is not None
    assert (Path(row.artifact) / "model.ts").is_file()


@pytest.mark.parametrize("model", EXPECTED)
def test_a_bad_one_is_typed_in_one_line_that_names_it(finished: Finished, model: str) -> None:
    row, (code, named) = finished.rows[model], EXPECTED[model]
    assert (row.status, row.code) == ("failed", code), row.message
    assert row.message is not None
    assert named in row.message
    assert "\n" not in row.message
    assert len(row.message) < 500
    assert row.artifact is None
    assert row.log is not None


def test_nothing_that_was_read_ran(finished: Finished) -> None:
    assert not (finished.folder / TRAP).exists()
    pickle.loads((finished.folder / "pickle-with-command" / "model.pkl").read_bytes())  # the trap does work
    assert (finished.folder / TRAP).exists()


def test_nothing_unfinished_is_left(finished: Finished) -> None:
    artifacts = finished.folder / "artifacts"
    assert not list(artifacts.rglob(".*.staging"))
    assert [path.parent.parent.name for path in artifacts.rglob("model.ts")] == ["good"]
    assert (artifacts / "in-the-way").read_text("utf-8") == "a file where a directory belongs"
