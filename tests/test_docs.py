"""The documentation says what the code does: every command, option and failure code is in it."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from zooport.export_core.failures import CODES
from zooport.jobs import manifest_spec
from zooport.jobs.dataset_spec import DATASETS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", ["failures.md", "zoo.md", "reliability.md", "onnx.md"])
def test_generated_pages_are_what_the_code_says(generate: ModuleType, page: str) -> None:
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == generate.rewritten(page), "run: make docs"


def test_every_row_of_the_fault_matrix_is_a_test_and_every_test_a_row() -> None:
    rows = json.loads((ROOT / "docs" / "reliability.json").read_text(encoding="utf-8"))
    source = (ROOT / "tests" / "test_reliability.py").read_text(encoding="utf-8")
    assert list(rows) == re.findall(r"^def (test_\w+)\(", source, re.M), "run: make reliability"
    assert all(row["fault"] and row["sees"] and row["recorded"] for row in rows.values())


def test_every_failure_family_is_explained() -> None:
    page = (ROOT / "docs" / "failures.md").read_text(encoding="utf-8")
    assert {name.split(".")[0] for name in CODES} - set(re.findall(r"`(\w+)\.\*`", page)) == set()


def test_every_command_and_option_is_documented(generate: ModuleType) -> None:
    sections = dict(
        re.findall(
            r"^### (.+?)$(.*?)(?=^### |^<!-- end)", (ROOT / "docs" / "cli.md").read_text("utf-8"), re.M | re.S
        )
    )
    commands = dict(generate.commands())
    assert sorted(sections) == sorted(commands), "run: make docs"
    missing = [
        f"{name} {option}"
        for name, command in commands.items()
        for parameter in command.params
        for option in (*parameter.opts, *parameter.secondary_opts)
        if parameter.param_type_name == "option" and f"{option}" not in sections[name]
    ]
    assert missing == [], "run: make docs"


@pytest.mark.parametrize(
    "page", [path.relative_to(ROOT).as_posix() for path in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]]
)
def test_links_lead_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)[^)]*\)", text)
    assert [target for target in targets if not (ROOT / page).parent.joinpath(target).exists()] == []


def test_readme_shows_only_commands_and_options_that_exist(generate: ModuleType) -> None:
    commands = dict(generate.commands())
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", readme, re.M | re.S)
    shell = "\n".join(text for language, text in blocks if not language)
    shown = re.findall(r"^zooport (.*?)(?:  .*)?$", shell, re.M)
    shown += re.findall(r"^\| `zooport (.+?)`", readme, re.M)
    assert len(shown) > 10
    for line in shown:
        name = next((one for one in commands if f"zooport {line} ".startswith(f"{one} ")), None)
        assert name is not None, f"zooport {line}"
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--?[a-z][a-z-]*", line)) <= known, f"zooport {line}"


def test_every_key_of_a_manifest_is_documented() -> None:
    text = (ROOT / "docs" / "manifest.md").read_text(encoding="utf-8")
    sections = dict(re.findall(r"^## (.+?)$(.*?)(?=^## |\Z)", text, re.M | re.S))
    documented = {title: set(re.findall(r"^\| `(\w+)` \|", body, re.M)) for title, body in sections.items()}
    common = set(manifest_spec._Common.model_fields)
    expected = {
        "Top level": set(manifest_spec.ManifestSpec.model_fields),
        "A model": set(manifest_spec.ModelSpec.model_fields),
        "A folder: `scan`": set(manifest_spec.ScanSpec.model_fields) - common,
        "The official zoo: `zoo`": set(manifest_spec.ZooSpec.model_fields) - common,
        "A dataset": {key for kind in DATASETS.values() for key in kind.model_fields},
    }
    assert {title: documented[title] for title in expected} == expected
