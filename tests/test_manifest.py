"""A manifest becomes targets; an error names the file, the line, the key and what was expected."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from zooport.export_core import demo, formats
from zooport.export_core.failures import Failure
from zooport.jobs import manifest as reading
from zooport.jobs.limits import STAGES, TOTAL
from zooport.jobs.manifest import Manifest, load_manifest
from zooport.jobs.manifest_spec import TimeoutSpec
from zooport.jobs.scan import scan
from zooport.jobs.yaml_lines import MAX_VALUES, YamlError, read_yaml

GOOD = """\
datasets:
  shapes: {annotations: data/val.json, images: data/val, limit: 5}
models:
  - name: one
    config: one/config.yaml
    weights: one/model_final.pth
    overrides: {MODEL.ROI_HEADS.SCORE_THRESH_TEST: 0.05}
    dataset: shapes
  - name: team/two
    config: /absolute/config.yaml
    weights: ~/two.pkl
    formats: [torchscript-script]
    sample_image: two.jpg
formats: [torchscript-trace, torchscript-script]
tolerance: {AP: 0.2}
timeout: 60
"""


@pytest.fixture(autouse=True)
def known_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    formats = {"torchscript-trace": ["batch"], "torchscript-script": [], "onnx": ["batch", "opset"]}
    monkeypatch.setattr(reading, "_known_options", lambda: formats)


def read(folder: Path, text: str) -> Manifest:
    path = folder / "zoo.yaml"
    path.write_text(text)
    return load_manifest(path)


def complaint(folder: Path, text: str) -> str:
    with pytest.raises(Failure) as caught:
        read(folder, text)
    assert caught.value.code == "manifest.invalid"
    assert "\n" not in caught.value.message
    assert str(folder / "zoo.yaml") in caught.value.message
    return caught.value.message


def test_every_stage_can_have_a_timeout() -> None:
    assert TimeoutSpec.model_fields.keys() == {*STAGES, TOTAL}


def test_each_model_is_a_target_in_each_of_its_formats(tmp_path: Path) -> None:
    manifest = read(tmp_path, GOOD)
    named = [(target.checkpoint.name, target.format) for target in manifest.targets]
    assert named == [
        ("one", "torchscript-trace"),
        ("one", "torchscript-script"),
        ("team/two", "torchscript-script"),
    ]


def test_paths_are_relative_to_the_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    (tmp_path / "zoo.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    manifest = load_manifest(Path("zoo.yaml"))
    first, last = manifest.targets[0], manifest.targets[-1]
    assert first.checkpoint.config == tmp_path / "one/config.yaml"
    assert first.checkpoint.weights == tmp_path / "one/model_final.pth"
    assert first.dataset is not None
    assert first.dataset.annotations == tmp_path / "data/val.json"
    assert last.checkpoint.config == Path("/absolute/config.yaml")
    assert last.checkpoint.weights == Path("/home/somebody/two.pkl")
    assert last.sample_image == tmp_path / "two.jpg"
    assert manifest.output == tmp_path / "artifacts"


def test_the_home_of_nobody_is_a_name_like_any_other(tmp_path: Path) -> None:
    first, *_ = read(tmp_path, GOOD.replace("one/config.yaml", "~nobodyhere/c.yaml", 1)).targets
    assert first.checkpoint.config == tmp_path / "~nobodyhere/c.yaml"
    assert read(tmp_path, GOOD + 'output: "~nobodyhere/out"').output == tmp_path / "~nobodyhere/out"


def test_every_setting_reaches_the_target(tmp_path: Path) -> None:
    first, last = (read(tmp_path, GOOD).targets[index] for index in (0, -1))
    assert first.checkpoint.overrides == {"MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.05}
    assert first.dataset is not None
    assert first.dataset.limit == 5
    assert first.tolerance == {"AP": 0.2}
    assert first.timeout == 60
    assert last.dataset is None


def test_the_demo_manifest_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_known_options", lambda: {name: [] for name in formats.names()})
    manifest = load_manifest(demo.MANIFEST)
    assert len({target.checkpoint.name for target in manifest.targets}) == 8
    assert len(manifest.targets) == 8 * len({target.format for target in manifest.targets})
    assert all(target.checkpoint.weights.is_file() for target in manifest.targets)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("weights: one/model_final.pth", "wieghts: one/model_final.pth", 6, "models[0].wieghts"),
        ("weights: one/model_final.pth", "wieghts: one/model_final.pth", 6, "did you mean 'weights'"),
        ("    config: one/config.yaml\n", "", 4, "models[0].config: this key is missing"),
        ("config: one/config.yaml", "config: [a, b]", 5, "models[0].config: expected a string"),
        ("name: one", "name: 12", 4, "models[0].name: expected a string, got 12"),
        ("name: one", "name: ../one", 4, "models[0].name: expected a name such as"),
        ("name: one", "name: /one", 4, "models[0].name: expected a name such as"),
        ("name: team/two", "name: one", 9, "already named on line 4"),
        ("dataset: shapes", "dataset: shape", 8, "models[0].dataset: expected a key of datasets or a name"),
        ("dataset: shapes", "dataset: shape", 8, "did you mean 'shapes'"),
        ("limit: 5", "limit: 0", 2, "datasets.shapes.limit: expected greater than 0, got 0"),
        ("limit: 5", "limit: 1.5", 2, "datasets.shapes.limit: expected a integer"),
        ("limit: 5", "first: 5", 2, "datasets.shapes.first: unknown key"),
        ("annotations: data/val.json, ", "", 2, "datasets.shapes.annotations: this key is missing"),
        ("[torchscript-trace, torch", "[torchscript-trac, torch", 14, "did you mean 'torchscript-trace'"),
        ("[torchscript-script]", "[onnx, onnx]", 12, "models[1].formats[1]: format 'onnx' is named twice"),
        ("[torchscript-script]", "[]", 12, "models[1].formats: expected a list of formats"),
        ("tolerance: {AP: 0.2}", "tolerance: {AP: -1}", 15, "tolerance.AP: expected greater than"),
        ("tolerance: {AP: 0.2}", "tolerance: {AP: .nan}", 15, "tolerance.AP: expected a finite number"),
        ("timeout: 60", "timeout: 0", 16, "timeout: expected seconds above 0"),
        ("timeout: 60", "timeout: soon", 16, "timeout: expected seconds above 0, or a mapping"),
        ("timeout: 60", "timeout: {export: -1}", 16, "timeout.export: expected greater than 0"),
        ("timeout: 60", "timeout: {exports: 3}", 16, "timeout.exports: unknown key, did you mean 'export'"),
        ("timeout: 60", "timeout: !!int ''", 16, "'': "),
        ("timeout: 60", 'output: "a\\0b"', 16, "holds a null character"),
        ("timeout: 60", "retries: -1", 16, "retries: expected greater than or equal to 0"),
        ("timeout: 60", "memory: 6", 16, "memory: expected an amount of memory with its unit"),
        ("name: one", "memory: 6 Gigs\n    name: one", 4, "models[0].memory: expected an amount of memory"),
        ("timeout: 60", "timeouts: 60", 16, "did you mean 'timeout'"),
        ("overrides: {", "overrides: [{", 8, "expected ',' or ']'"),
        ("overrides: {MODEL.ROI_HEADS.SCORE_THRESH_TEST: 0.05}", "overrides: [a]", 7, "expected a mapping"),
        ("datasets:", "? [a]\n: b\ndatasets:", 1, "a key has to be text"),
        ("timeout: 60", "timeout: 60\ntimeout: 70", 17, "'timeout' is given twice"),
        ("timeout: 60", "timeout: !!python/object/apply:os.system [ls]", 16, "refused"),
        ("timeout: 60", "output: !!python/name:os.system x", 16, "refused"),
    ],
)
def test_an_error_names_line_key_and_expectation(
    tmp_path: Path, old: str, new: str, line: int, said: str
) -> None:
    assert old in GOOD
    message = complaint(tmp_path, GOOD.replace(old, new, 1))
    assert f" line {line}:" in message
    assert said in message


@pytest.mark.parametrize("text", ["", "- a", "word", "models: []", "models: 3", "formats: [onnx]", "{", "\t"])
def test_what_is_no_manifest_is_refused(tmp_path: Path, text: str) -> None:
    complaint(tmp_path, text)


def test_several_errors_are_told_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("config:", "cfg:").replace("timeout: 60", "timeout: soon")
    message = complaint(tmp_path, text)
    assert "models[0].config" in message
    assert "models[0].cfg" in message
    assert "more" in message


@pytest.mark.parametrize("content", [b"models: \xff", None])
def test_a_manifest_that_cannot_be_read_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "zoo.yaml").write_bytes(content)
    with pytest.raises(Failure) as caught:
        load_manifest(tmp_path / "zoo.yaml")
    assert caught.value.code == "manifest.invalid"
    assert str(tmp_path / "zoo.yaml") in caught.value.message


def test_a_model_without_formats_is_told_so(tmp_path: Path) -> None:
    text = "models: [{name: a, config: b, weights: c}]"
    assert "models[0]: expected a list of formats" in complaint(tmp_path, text)


def test_missing_files_are_not_the_manifests_business(tmp_path: Path) -> None:
    assert read(tmp_path, GOOD).targets  # nothing of what it names is there


class TestLimits:
    """Seconds, bytes and tries, for every model or for one."""

    ONE = "models: [{name: a, config: b, weights: c%s}]\nformats: [torchscript-trace]\n"

    def test_without_any_the_defaults_hold(self, tmp_path: Path) -> None:
        (target,) = read(tmp_path, self.ONE % "").targets
        assert (target.timeout, target.deadlines, target.retries, target.memory) == (86400.0, {}, 2, None)

    def test_stages_have_their_own_seconds(self, tmp_path: Path) -> None:
        text = self.ONE % "" + "timeout: {load: 60, evaluate: 1800.5}\nretries: 0"
        (target,) = read(tmp_path, text).targets
        assert target.deadlines == {"load": 60, "evaluate": 1800.5}
        assert (target.timeout, target.retries) == (86400.0, 0)
        (target,) = read(tmp_path, self.ONE % "" + "timeout: {total: 5}").targets
        assert (target.timeout, target.deadlines) == (5, {})

    @pytest.mark.parametrize(
        ("text", "size"), [("6GiB", 6 << 30), ("1.5 gib", 3 << 29), ("500MB", 500_000_000), ("1234B", 1234)]
    )
    def test_memory_has_a_unit(self, tmp_path: Path, text: str, size: int) -> None:
        (target,) = read(tmp_path, self.ONE % "" + f"memory: {text}").targets
        assert target.memory == size

    def test_a_model_has_its_own_memory(self, tmp_path: Path) -> None:
        (target,) = read(tmp_path, self.ONE % ", memory: 8GiB" + "memory: 1GiB").targets
        assert target.memory == 8 << 30


class TestOptions:
    """Options go to the formats that have them."""

    def options(
        self, folder: Path, options: str, formats: str = "torchscript-trace, onnx"
    ) -> dict[str, object]:
        text = f"models: [{{name: a, config: b, weights: c, options: {options}}}]\nformats: [{formats}]"
        return {target.format: target.options for target in read(folder, text).targets}

    def test_an_option_goes_to_every_format_that_has_it(self, tmp_path: Path) -> None:
        options = self.options(tmp_path, "{batch: 2, opset: 17}")
        assert options == {"torchscript-trace": {"batch": 2}, "onnx": {"batch": 2, "opset": 17}}

    def test_an_option_of_one_format_wins(self, tmp_path: Path) -> None:
        for order in ("{batch: 2, onnx: {batch: 4}}", "{onnx: {batch: 4}, batch: 2}"):
            options = self.options(tmp_path, order)
            assert options == {"torchscript-trace": {"batch": 2}, "onnx": {"batch": 4}}

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            (
                "{btach: 2}",
                "models[0].options.btach: no format of this model has an option 'btach'",
            ),
            (
                "{onnx: {opst: 2}}",
                "options.onnx.opst: onnx has no option 'opst', did you mean 'opset'",
            ),
            ("{onnx: 3}", "models[0].options.onnx: expected a mapping"),
            ("{opset: 3}", "models[0].options: "),
            ("{onnx: {batch: -3}}", "models[0].options: "),
            ("{torchscript-script: {}}", "this model is not exported to torchscript-script"),
        ],
    )
    def test_an_option_that_nobody_has_is_an_error(self, tmp_path: Path, options: str, said: str) -> None:
        with pytest.raises(Failure) as caught:
            self.options(tmp_path, options)
        assert said in caught.value.message


def folder_with(root: Path, *files: str) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    for name in files:
        (root / name).write_text("")
    return root


class TestScan:
    """Every folder that holds a config and weights is a model, or is reported."""

    def chosen(self, folder: Path) -> tuple[str, str]:
        (found,) = scan(folder)
        assert not found.problem
        return found.config.name, found.weights.name

    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            (["config.yaml", "model_final.pth"], ("config.yaml", "model_final.pth")),
            (["other.yml", "weights.pkl"], ("other.yml", "weights.pkl")),
            (
                ["config.yaml", "min.yaml", "model_final.pkl", "x.pth"],
                ("config.yaml", "model_final.pkl"),
            ),
            (["config.yml", "b.yaml", "w.safetensors"], ("config.yml", "w.safetensors")),
            (["a.yaml", "model_0000999.pth", "model_0010000.pth"], ("a.yaml", "model_0010000.pth")),
            (["a.yaml", "model_0000999.pth", "model_final.pth"], ("a.yaml", "model_final.pth")),
            (["a.yaml", "w.pth", "metrics.json", "log.txt", ".hidden.pth"], ("a.yaml", "w.pth")),
        ],
    )
    def test_the_rule_chooses(self, tmp_path: Path, files: list[str], expected: tuple[str, str]) -> None:
        assert self.chosen(folder_with(tmp_path, *files)) == expected

    def test_detectron2_says_which_checkpoint_is_the_last(self, tmp_path: Path) -> None:
        folder_with(tmp_path, "config.yaml", "model_0000999.pth", "model_0001999.pth", "best.pth")
        (tmp_path / "last_checkpoint").write_text("model_0000999.pth")
        assert self.chosen(tmp_path) == ("config.yaml", "model_0000999.pth")

    @pytest.mark.parametrize(
        "files",
        [
            ["a.yaml", "b.yaml", "model_final.pth"],
            ["config.yaml", "config.yml", "model_final.pth"],
            ["config.yaml", "model_final.pth", "model_final.pkl"],
            ["config.yaml", "best.pth", "model_0000999.pth"],
        ],
    )
    def test_what_could_be_either_is_reported_and_not_chosen(self, tmp_path: Path, files: list[str]) -> None:
        (found,) = scan(folder_with(tmp_path, *files))
        assert found.problem
        assert files[0] in found.problem or files[1] in found.problem

    @pytest.mark.parametrize("files", [["config.yaml"], ["model_final.pth"], ["notes.txt"], []])
    def test_half_a_model_is_none(self, tmp_path: Path, files: list[str]) -> None:
        assert list(scan(folder_with(tmp_path, *files))) == []

    def test_names_are_the_relative_paths(self, tmp_path: Path) -> None:
        root = tmp_path / "zoo"
        for folder in ("", "b", "a/deep/er", ".hidden", "old/one"):
            folder_with(root / folder, "config.yaml", "model_final.pth")
        assert [each.name for each in scan(root, ["./old/"])] == ["zoo", "a/deep/er", "b"]

    def test_links_are_followed_and_loops_end(self, tmp_path: Path) -> None:
        folder_with(tmp_path / "store" / "real", "config.yaml", "model_final.pth")
        root = folder_with(tmp_path / "zoo")
        (root / "linked").symlink_to(tmp_path / "store" / "real")
        (root / "loop").symlink_to(root)
        assert [each.name for each in scan(root)] == ["linked"]

    @pytest.mark.parametrize("form", ["{scan: zoo, dataset: shapes}", "[{scan: zoo, dataset: shapes}]"])
    def test_a_manifest_can_scan(self, tmp_path: Path, form: str) -> None:
        for name in ("a", "b"):
            folder_with(tmp_path / "zoo" / name, "config.yaml", "model_final.pth")
        datasets = "datasets: {shapes: {annotations: a.json, images: i}}"
        targets = read(tmp_path, f"models: {form}\nformats: [onnx]\n{datasets}").targets
        assert [target.checkpoint.name for target in targets] == ["a", "b"]
        assert all(target.dataset is not None for target in targets)

    def test_an_ambiguous_folder_is_refused_and_the_others_are_not(self, tmp_path: Path) -> None:
        folder_with(tmp_path / "zoo" / "good", "config.yaml", "model_final.pth")
        folder_with(tmp_path / "zoo" / "unclear", "a.yaml", "b.yaml", "model_final.pth")
        good, unclear = read(tmp_path, "models: {scan: zoo}\nformats: [onnx]").targets
        assert good.refusal is None
        assert unclear.refusal is not None
        assert unclear.refusal.code == "manifest.invalid"
        assert "a.yaml, b.yaml" in unclear.refusal.message

    @pytest.mark.parametrize(
        ("form", "place", "said"),
        [
            ("{scan: nowhere}", "models.scan", "expected a folder"),
            ("[{scan: nowhere}]", "models[0].scan", "expected a folder"),
            ("{scan: empty}", "models.scan", "no folder below"),
            ("{scan: empty, name: x}", "models.name", "unknown key"),
            ("{scan: 4}", "models.scan", "expected a string"),
        ],
    )
    def test_errors_of_a_scan_are_placed(self, tmp_path: Path, form: str, place: str, said: str) -> None:
        (tmp_path / "empty").mkdir()
        message = complaint(tmp_path, f"models: {form}\nformats: [onnx]")
        assert f" line 1: {place}: " in message
        assert said in message

    def test_names_of_two_scans_are_told_apart_by_a_prefix(self, tmp_path: Path) -> None:
        for zoo in ("x", "y"):
            folder_with(tmp_path / zoo / "same", "config.yaml", "model_final.pth")
        both = "models: [{scan: x}, {scan: y%s}]\nformats: [onnx]"
        assert "'same' is already named" in complaint(tmp_path, both % "")
        targets = read(tmp_path, both % ", prefix: y/").targets
        assert [target.checkpoint.name for target in targets] == ["same", "y/same"]

    @pytest.mark.skipif(os.getuid() == 0, reason="root reads every folder")
    def test_an_unreadable_folder_is_an_error(self, tmp_path: Path) -> None:
        folder_with(tmp_path / "zoo" / "closed").chmod(0)
        assert "cannot read" in complaint(tmp_path, "models: {scan: zoo}\nformats: [onnx]")


class TestYaml:
    """Plain values with their lines; nothing hostile costs much."""

    def test_lines_are_known(self) -> None:
        document = read_yaml("a: 1\nb:\n  - x\n  - {c: 2}\n")
        assert document.value == {"a": 1, "b": ["x", {"c": 2}]}
        assert document.line(("a",)) == 1
        assert document.line(("b", 1, "c")) == 4
        assert document.line(("b", 1, "missing")) == 4

    def test_merges_and_anchors_work(self) -> None:
        document = read_yaml("base: &base {x: 1, y: 2}\nmodel: {<<: *base, y: 3}\nlist: [*base]")
        assert document.value["model"] == {"x": 1, "y": 3}
        assert document.value["list"] == [{"x": 1, "y": 2}]

    def test_dates_and_versions_stay_text(self) -> None:
        assert read_yaml("a: 2026-01-02").value == {"a": "2026-01-02"}

    def test_an_alias_bomb_is_refused(self) -> None:
        rows = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
        rows += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
        with pytest.raises(YamlError, match=str(MAX_VALUES)):
            read_yaml("\n".join(rows))

    @pytest.mark.parametrize("text", ["[" * 100_000, "a: " + "{a: " * 5000, "&a [*a]"])
    def test_depth_is_bounded(self, text: str) -> None:
        with pytest.raises(YamlError):
            read_yaml(text)
