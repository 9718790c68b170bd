"""Configs merge as detectron2 merges them: defaults, bases, overrides, types."""

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from zooport.export_core.config import declare_defaults, default_config, load, load_config, projects_of
from zooport.export_core.failures import Failure

DATA = Path(__file__).parent / "data" / "config"


def write(folder: Path, text: str, name: str = "config.yaml") -> Path:
    path = folder / name
    path.write_text(text)
    return path


def refused(path: Path, overrides: Any = ()) -> Failure:
    with pytest.raises(Failure) as caught:
        load_config(path, overrides)
    assert caught.value.code == "config.invalid"
    assert "\n" not in str(caught.value)
    return caught.value


def test_defaults_are_detectron2s() -> None:
    assert default_config().to_dict() == json.loads((DATA / "detectron2_defaults.json").read_text())


def test_a_base_is_merged_below_its_child() -> None:
    config = load_config(DATA / "mask_rcnn.yaml")
    assert config.MODEL.MASK_ON is True
    assert config.MODEL.RESNETS.DEPTH == 18
    assert config.MODEL.ROI_HEADS.NAME == "StandardROIHeads"
    assert config.SOLVER.STEPS == [900]
    assert config.SOLVER.BASE_LR == 0.02
    assert config.INPUT.MIN_SIZE_TRAIN == [160, 192, 224]
    assert config.DATASETS.TRAIN == ["shapes_train"]
    assert config.MODEL.RPN.NMS_THRESH == 0.7
    assert config.unknown == ()
    assert config.notes == ()


def test_of_several_bases_the_later_wins_and_the_arithmetic_tag_is_computed() -> None:
    config = load_config(DATA / "retinanet.yaml")
    assert config.SOLVER.STEPS == [100, 200]
    assert config.INPUT.MIN_SIZE_TEST == 160
    sizes = config.MODEL.ANCHOR_GENERATOR.SIZES
    assert [row[0] for row in sizes] == [16, 64]
    assert sizes[1][2] == pytest.approx(64 * 2 ** (2 / 3))


def test_a_base_below_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, "SEED: 7\n", "base.yaml")
    inner = tmp_path / "inner"
    inner.mkdir()
    assert load_config(write(inner, "_BASE_: ~/base.yaml\n")).SEED == 7


def test_bases_in_a_circle_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "_BASE_: b.yaml\n", "a.yaml")
    write(tmp_path, "_BASE_: a.yaml\n", "b.yaml")
    assert "a.yaml -> b.yaml -> a.yaml" in refused(tmp_path / "a.yaml").message


def test_bases_that_multiply_are_refused(tmp_path: Path) -> None:
    for level in range(12):
        write(tmp_path, f"_BASE_: [{level + 1}.yaml, {level + 1}.yaml]\n", f"{level}.yaml")
    write(tmp_path, "SEED: 1\n", "12.yaml")
    assert "more than" in refused(tmp_path / "0.yaml").message


def test_a_missing_base_names_both_files(tmp_path: Path) -> None:
    failure = refused(write(tmp_path, "_BASE_: gone.yaml\n"))
    assert "gone.yaml" in failure.message
    assert "config.yaml" in failure.message


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("_BASE_: https://example.org/base.yaml\n", "address"),
        ("_BASE_: /dev/zero\n", "not a file"),
        ("_BASE_: 3\n", "path"),
        ("_BASE_: ~nobody-of-this-name/base.yaml\n", "cannot be read"),
        ('_BASE_: "a\\0b"\n', "no usable path"),
        ("_BASE_: other.py\n", "Python configs are not run"),
    ],
)
def test_bases_that_are_no_local_yaml_files_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    assert complaint in refused(write(tmp_path, text)).message


OVERRIDES = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": 0.3,
    "MODEL.MASK_ON": True,
    "INPUT.MIN_SIZE_TRAIN": [320, 352],
    "SOLVER.BASE_LR": 0.001,
    "MODEL.WEIGHTS": "2024",
    "SOLVER.WEIGHT_DECAY_BIAS": 0.1,
}


@pytest.mark.parametrize(
    "overrides",
    [
        OVERRIDES,
        {
            "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.3",
            "MODEL.MASK_ON": "True",
            "INPUT.MIN_SIZE_TRAIN": "(320, 352)",
            "SOLVER.BASE_LR": "1e-3",
            "MODEL.WEIGHTS": "2024",
            "SOLVER.WEIGHT_DECAY_BIAS": "0.1",
        },
        [
            *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", "0.3", "MODEL.MASK_ON", "True"),
            *("INPUT.MIN_SIZE_TRAIN", "(320, 352)", "SOLVER.BASE_LR", "1e-3"),
            *("MODEL.WEIGHTS", "2024", "SOLVER.WEIGHT_DECAY_BIAS", "0.1"),
        ],
        {
            "MODEL": {"ROI_HEADS": {"SCORE_THRESH_TEST": 0.3}, "MASK_ON": True, "WEIGHTS": "2024"},
            "INPUT.MIN_SIZE_TRAIN": (320, 352),
            "SOLVER": {"BASE_LR": 0.001, "WEIGHT_DECAY_BIAS": 0.1},
        },
    ],
    ids=["typed", "text", "command line", "nested"],
)
def test_overrides_are_typed_however_they_are_given(overrides: Any) -> None:
    config = load_config(DATA / "mask_rcnn.yaml", overrides)
    assert {key: config.lookup(key) for key in OVERRIDES} == OVERRIDES
    assert config.digest() == load_config(DATA / "mask_rcnn.yaml", OVERRIDES).digest()


def test_an_int_stands_for_a_float_and_nothing_else_is_bent(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, "SOLVER: {BASE_LR: 1, STEPS: null}\nMODEL: {FPN: {NORM: null}}\n"))
    assert type(config.SOLVER.BASE_LR) is float
    assert config.SOLVER.STEPS is None
    assert config.MODEL.FPN.NORM == ""


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("MODEL.RESNETS.DEPTH", "50.5", "an integer"),
        ("MODEL.RESNETS.DEPTH", "fifty", "an integer"),
        ("MODEL.RESNETS.DEPTH", True, "an integer"),
        ("MODEL.MASK_ON", 1, "true or false"),
        ("MODEL.RPN.NMS_THRESH", "high", "a number"),
        ("MODEL.RPN.NMS_THRESH", None, "a number"),
        ("MODEL.RPN.NMS_THRESH", float("nan"), "NaN"),
        ("INPUT.MIN_SIZE_TRAIN", 800, "a list"),
        ("MODEL.PIXEL_MEAN", ["a", "b", "c"], "a list of numbers"),
        ("MODEL.RPN.IN_FEATURES", [2, 3], "a list of texts"),
        ("MODEL.META_ARCHITECTURE", 3, "text"),
        ("MODEL.RPN", 3, "a mapping"),
        ("MODEL.RPN.NMS_THRESH", {"A": 1}, "one value"),
    ],
)
def test_a_value_of_another_type_is_refused_with_what_was_expected(
    key: str, value: Any, expected: Any
) -> None:
    failure = refused(DATA / "mask_rcnn.yaml", {key: value})
    assert key in failure.message
    assert expected in failure.message
    assert "mask_rcnn.yaml" in failure.message


@pytest.mark.parametrize(
    ("text", "key", "nearest"),
    [
        ("MODEL: {RPN: {NMS_TRESH: 0.5}}", "MODEL.RPN.NMS_TRESH", "MODEL.RPN.NMS_THRESH"),
        ("MODEL: {mask_on: true}", "MODEL.mask_on", "MODEL.MASK_ON"),
        ("OUTPUTDIR: x", "OUTPUTDIR", "OUTPUT_DIR"),
        ("MODEL: {ROI_HEAD: {NUM_CLASSES: 5}}", "MODEL.ROI_HEAD", "MODEL.ROI_HEADS"),
        ("MODLE: {MASK_ON: true}", "MODLE", "MODEL"),
        ("NMS_THRESH_TEST: 0.5", "NMS_THRESH_TEST", "MODEL.ROI_HEADS.NMS_THRESH_TEST"),
        ("VERSION: 2\nMODEL: {WEIGHT: x}", "MODEL.WEIGHT", "MODEL.WEIGHTS"),
    ],
)
def test_an_unknown_key_names_its_file_and_the_nearest_known_key(
    tmp_path: Path, text: str, key: str, nearest: str
) -> None:
    path = write(tmp_path, text + "\n")
    failure = refused(path)
    assert f"{path}: unknown key {key}" == failure.message
    assert nearest in failure.hint
    assert failure.details["key"] == key


def test_an_unknown_key_in_a_base_names_the_base(tmp_path: Path) -> None:
    write(tmp_path, "MODEL: {RPN: {NMS_TRESH: 0.5}}\n", "base.yaml")
    assert "base.yaml" in refused(write(tmp_path, "_BASE_: base.yaml\n")).message


def test_an_override_of_an_unknown_key_is_refused() -> None:
    failure = refused(DATA / "mask_rcnn.yaml", ["MODEL.ROI_HEAD.NUM_CLASSES", "5"])
    assert "MODEL.ROI_HEADS.NUM_CLASSES" in failure.hint


@pytest.mark.parametrize(
    "overrides", [["MODEL.MASK_ON"], "MODEL.MASK_ON", ["", "1"], ["MODEL..MASK_ON", "1"]]
)
def test_overrides_that_are_no_pairs_are_refused(overrides: Any) -> None:
    refused(DATA / "mask_rcnn.yaml", overrides)


def test_whole_unknown_nodes_are_kept_and_listed(tmp_path: Path) -> None:
    text = """
    MODEL:
      POINT_HEAD: {NUM_FC: 3, SIZES: "(1, 2)", DEEPER: {X: 1e-3}}
      DENSEPOSE_ON: true
    MY_TOOL: {LEVEL: high}
    """
    config = load_config(
        write(tmp_path, text), {"MODEL.POINT_HEAD.NUM_FC": "4", "MY_TOOL": {"EXTRA": {"Y": 1}}}
    )
    assert config.MODEL.POINT_HEAD.to_dict() == {"NUM_FC": 4, "SIZES": [1, 2], "DEEPER": {"X": 0.001}}
    assert config.MY_TOOL.EXTRA.Y == 1
    assert config.unknown == ("MODEL.POINT_HEAD", "MODEL.DENSEPOSE_ON", "MY_TOOL")
    assert projects_of(config.unknown) == ("PointRend", "DensePose")
    (note,) = config.notes
    assert all(key in note for key in config.unknown)


def test_declared_keys_are_known_and_typed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_declared", {})
    declare_defaults({"MODEL": {"MY_NECK": {"WIDTH": 8}, "FPN": {"EXTRA": 0.5}}})
    declare_defaults({"MODEL": {"MY_NECK": {"WIDTH": 8}}})
    config = load_config(write(tmp_path, "MODEL: {FPN: {EXTRA: 1}}\n"))
    assert (config.MODEL.MY_NECK.WIDTH, config.MODEL.FPN.EXTRA) == (8, 1.0)
    assert config.unknown == ()
    assert "MY_NECK" not in default_config().MODEL
    assert "an integer" in refused(DATA / "mask_rcnn.yaml", {"MODEL.MY_NECK.WIDTH": "wide"}).message
    with pytest.raises(ValueError, match="already"):
        declare_defaults({"MODEL": {"MASK_ON": True}})


def test_version_one_keys_are_read_under_todays_names() -> None:
    config = load_config(DATA / "version1.yaml")
    assert config.MODEL.WEIGHTS == "old.pkl"
    assert config.MODEL.ROI_HEADS.NMS_THRESH_TEST == 0.4
    assert config.MODEL.ANCHOR_GENERATOR.SIZES == [[24, 48]]
    assert config.TEST.AUG.ENABLED is False
    assert config.VERSION == 2
    assert any("MODEL.WEIGHT is read as MODEL.WEIGHTS" in note for note in config.notes)


@pytest.mark.parametrize("version", ["3", "latest", "-1", "true"])
def test_a_version_that_does_not_exist_is_refused(tmp_path: Path, version: Any) -> None:
    assert "VERSION" in refused(write(tmp_path, f"VERSION: {version}\n")).message


def test_a_config_is_a_value() -> None:
    config = load_config(DATA / "mask_rcnn.yaml")
    twin = pickle.loads(pickle.dumps(config))
    assert twin == config
    assert hash(twin) == hash(config)
    assert twin.digest() == config.digest()
    assert len({config, twin}) == 1
    assert (twin.notes, twin.unknown) == (config.notes, config.unknown)
    assert config != load_config(DATA / "mask_rcnn.yaml", {"SEED": 3})


def test_a_config_cannot_be_changed() -> None:
    config = load_config(DATA / "mask_rcnn.yaml")
    with pytest.raises(AttributeError, match="immutable"):
        config.MODEL.MASK_ON = False
    with pytest.raises(TypeError):
        config["SEED"] = 3
    config.MODEL.RPN.IN_FEATURES.append("p9")
    config.to_dict()["MODEL"].clear()
    assert config.MODEL.RPN.IN_FEATURES == ["res4"]


def test_looking_for_a_key_that_is_not_there_names_it_in_full() -> None:
    config = default_config()
    with pytest.raises(AttributeError, match=r"MODEL\.RPN\.NOTHING"):
        _ = config.MODEL.RPN.NOTHING
    with pytest.raises(KeyError, match=r"MODEL\.RPN\.NOTHING"):
        config.lookup("MODEL.RPN.NOTHING")
    assert config.lookup("MODEL.RPN.NOTHING", None) is None
    assert config.MODEL.lookup("RPN.NMS_THRESH") == 0.7


def test_a_dump_is_plain_yaml_that_loads_to_the_same_config(tmp_path: Path) -> None:
    config = load_config(DATA / "retinanet.yaml", {"MODEL.ROI_BOX_CASCADE_HEAD.IOUS": [0.4, 0.5, 0.6]})
    text = config.dump()
    assert "&" not in text
    assert yaml.safe_load(text) == config.to_dict()
    assert load_config(write(tmp_path, text)) == config


def test_the_digest_is_of_meaning_not_of_spelling(tmp_path: Path) -> None:
    one = load_config(write(tmp_path, "MODEL: {PIXEL_STD: [1, 1, 1]}\nVERSION: 2\n", "a.yaml"))
    other = load_config(write(tmp_path, "MODEL:\n  PIXEL_STD: (1.0, 1.0, 1.0)\n", "b.yaml"))
    assert one.digest() == other.digest() == default_config().digest()
    assert len(one.digest()) == 64


def test_loading_a_config_needs_no_torch() -> None:
    code = "import sys, zooport.export_core.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
