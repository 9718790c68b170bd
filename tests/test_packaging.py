"""The distribution is complete, and the layers of the house import only what is below them."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from zooport.export_core import formats
from zooport.export_core.isolation import PRELOAD

pytestmark = pytest.mark.alone

ROOT = Path(__file__).resolve().parents[1]
NOT_SHIPPED = {"benchmarks", "build", "dist", "docs", "examples", "tests"}
DEMO_MODELS = {
    "cascade_mask_rcnn_fpn",
    "faster_rcnn_c4",
    "faster_rcnn_fpn",
    "keypoint_rcnn_fpn",
    "mask_rcnn_dcn_fpn",
    "mask_rcnn_fpn",
    "panoptic_fpn",
    "retinanet_fpn",
}


def shipped_modules() -> list[Path]:
    return [
        path
        for path in sorted(ROOT.rglob("*.py"))
        if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        and path.relative_to(ROOT).parts[0] not in NOT_SHIPPED
        and not path.parts[-2].endswith(".egg-info")
    ]


def module_name(path: Path) -> str:
    parts = ("zooport", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: Path) -> Iterator[str]:
    """Every dotted name that a file imports, at its top or inside a function."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def imports_of(layer: str, forbidden: tuple[str, ...]) -> list[str]:
    return [
        f"{module_name(path)} imports {name}"
        for path in shipped_modules()
        if is_within(module_name(path), (layer,))
        for name in imported_names(path)
        if is_within(name, forbidden)
    ]


def test_package_list_equals_folders_with_code() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = settings["tool"]["setuptools"]["packages"]
    folders = {".".join(("zooport", *path.parent.relative_to(ROOT).parts)) for path in shipped_modules()}
    assert sorted(listed) == sorted(folders)


def test_imports_are_absolute() -> None:
    relative = [
        f"{module_name(path)}:{node.lineno}"
        for path in shipped_modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_core_knows_neither_ray_nor_registry() -> None:
    above = (
        "zooport.jobs",
        "zooport.cli",
        "zooport.commands",
        "zooport.migrations",
        "ray",
        "sqlalchemy",
        "alembic",
        "typer",
    )
    assert imports_of("zooport.export_core", above) == []


def test_jobs_do_not_know_the_command_line() -> None:
    assert imports_of("zooport.jobs", ("zooport.cli", "zooport.commands", "typer")) == []


def test_what_a_fork_server_is_to_import_exists() -> None:
    # It passes over what is absent, so a renamed module would only make every job slower.
    assert [name for name in PRELOAD if importlib.util.find_spec(name) is None] == []


def test_formats_do_not_import_each_other() -> None:
    families = {name.split("-")[0] for name in formats.names()}
    offenders = []
    for path in shipped_modules():
        name = module_name(path)
        own = next((f for f in families if name.startswith(f"zooport.export_core.formats.{f}_")), None)
        others = tuple(f"zooport.export_core.formats.{family}_" for family in families - {own})
        if own is not None:
            offenders += [
                f"{name} imports {used}" for used in imported_names(path) if used.startswith(others)
            ]
    assert families, "no format is registered"
    assert offenders == []


def test_torchscript_stays_in_its_format() -> None:
    users = {
        module_name(path)
        for path in shipped_modules()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.jit")
        or (isinstance(node, ast.Import) and any(is_within(a.name, ("torch.jit",)) for a in node.names))
        or (isinstance(node, ast.ImportFrom) and is_within(node.module or "", ("torch.jit",)))
    }
    strangers = {name for name in users if not name.startswith("zooport.export_core.formats.torchscript")}
    # torch's converter to ONNX takes loops over data from compiled functions alone.
    assert strangers == {"zooport.export_core.formats.onnx_stand_ins"}


def test_command_line_imports_nothing_heavy() -> None:
    heavy = [
        "torch",
        "torchvision",
        "ray",
        "sqlalchemy",
        "alembic",
        "pydantic",
        "numpy",
        "onnx",
        "onnxruntime",
        "PIL",
        "yaml",
    ]
    program = f"import json, sys, zooport.cli; print(json.dumps([m for m in {heavy} if m in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


@pytest.mark.slow
def test_wheel_holds_every_file_of_the_package(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    sources = {path.relative_to(ROOT).as_posix() for path in shipped_modules()}
    data = {
        path.relative_to(ROOT).as_posix()
        for folder in (ROOT / "export_core", ROOT / "jobs", ROOT / "migrations")
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    needed = sources | data | {"export_core/py.typed", "export_core/demo/zoo.yaml"}
    assert {f"zooport/{name}" for name in needed} - names == set()
    for model in DEMO_MODELS:
        assert f"zooport/export_core/demo/zoo/{model}/config.yaml" in names
    assert not any(name.startswith("zooport/tests/") for name in names)
    assert wheel.stat().st_size < 25_000_000


@pytest.mark.slow
def test_installed_command_runs_outside_the_repository(
    installed: Path, run_zooport: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    where = "import zooport; print(zooport.__file__)"
    python = installed.with_name("python")
    done = subprocess.run([python, "-c", where], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert str(ROOT) not in done.stdout
    assert str(installed.parents[1]) in done.stdout
    done = run_zooport("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "export" in done.stdout
