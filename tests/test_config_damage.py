"""A dump whose ``*_WEIGHTS`` lines a search-and-replace hit is understood; other damage is not guessed at."""

import re
from pathlib import Path
from typing import Any

import pytest

from zooport.export_core.config import default_config, load_config
from zooport.export_core.failures import Failure

DUMP = """MODEL:
  RETINANET:
    BBOX_REG_WEIGHTS: &id002
    - 1.5
    - 1.0
    - 1.0
    - 1.0
    NORM: ''
  ROI_BOX_CASCADE_HEAD:
    BBOX_REG_WEIGHTS:
    - &id001
      - 10.0
      - 10.0
      - 5.0
      - 5.0
    - - 20.0
      - 20.0
      - 10.0
      - 10.0
  ROI_BOX_HEAD:
    BBOX_REG_WEIGHTS: *id001
    FED_LOSS_FREQ_WEIGHT_POWER: 0.5
  RPN:
    BBOX_REG_WEIGHTS: *id002
    NMS_THRESH: 0.6
  WEIGHTS: somewhere.pkl
"""


def replaced(pattern: str, text: str = DUMP) -> str:
    return re.sub(pattern, "WEIGHTS: model_final.pth", text)


def load(folder: Path, text: str) -> Any:
    path = folder / "config.yaml"
    path.write_text(text)
    return load_config(path)


def test_an_undamaged_dump_needs_no_repair(tmp_path: Path) -> None:
    config = load(tmp_path, DUMP)
    assert config.notes == ()
    assert config.MODEL.RPN.BBOX_REG_WEIGHTS == [1.5, 1.0, 1.0, 1.0]


def test_what_sed_leaves_of_a_dump_is_repaired_and_reported(tmp_path: Path) -> None:
    config = load(tmp_path, replaced(r"WEIGHTS: .*"))
    assert config.MODEL.WEIGHTS == "model_final.pth"
    assert config.MODEL.RETINANET.BBOX_REG_WEIGHTS == [1.5, 1.0, 1.0, 1.0]
    assert config.MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS == [10.0, 10.0, 5.0, 5.0]
    # What the alias stood for is gone from the file: the default is used, and said.
    assert config.MODEL.RPN.BBOX_REG_WEIGHTS == [1.0, 1.0, 1.0, 1.0]
    assert config.MODEL.RPN.NMS_THRESH == 0.6
    for key in ("RETINANET", "ROI_BOX_HEAD", "RPN"):
        assert sum(f"MODEL.{key}.BBOX_REG_WEIGHTS" in note for note in config.notes) == 1
    assert len(config.notes) == 3
    assert all("model_final.pth" in note and "\n" not in note for note in config.notes)


def test_a_greedier_replacement_that_hit_nested_lists_is_repaired(tmp_path: Path) -> None:
    config = load(tmp_path, replaced(r"WEIGHTS:.*"))
    assert config.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS == [
        [10.0, 10.0, 5.0, 5.0],
        [20.0, 20.0, 10.0, 10.0],
    ]


def test_items_that_yaml_folded_into_the_text_are_used(tmp_path: Path) -> None:
    text = 'MODEL:\n  WEIGHTS: a.pth\n  RPN:\n    BBOX_REG_WEIGHTS: "a.pth - 2.0 - 2.0 - 1.0 - 1.0"\n'
    config = load(tmp_path, text)
    assert config.MODEL.RPN.BBOX_REG_WEIGHTS == [2.0, 2.0, 1.0, 1.0]
    default = default_config().MODEL.RPN.BBOX_REG_WEIGHTS
    assert default == load(tmp_path, text.replace(" - 1.0", "")).MODEL.RPN.BBOX_REG_WEIGHTS


@pytest.mark.parametrize(
    "text",
    [
        # Text that is not that of MODEL.WEIGHTS.
        "MODEL:\n  WEIGHTS: a.pth\n  RPN: {BBOX_REG_WEIGHTS: b.pth}\n",
        # Text that merely begins like it.
        "MODEL:\n  WEIGHTS: a.pth\n  RPN: {BBOX_REG_WEIGHTS: a.pth.old}\n",
        # No MODEL.WEIGHTS to compare with.
        "MODEL:\n  RPN: {BBOX_REG_WEIGHTS: a.pth}\n",
        # Another key.
        "MODEL:\n  WEIGHTS: a.pth\n  RPN: {IN_FEATURES: a.pth}\n",
        # A key of that name without a list of numbers as its default.
        "MODEL:\n  WEIGHTS: a.pth\n  RPN: {LOSS_WEIGHT: a.pth}\n",
        # A list below, but not of numbers.
        "MODEL:\n  WEIGHTS: a.pth\n  RPN:\n    BBOX_REG_WEIGHTS: a.pth\n    - x\n    - y\n",
    ],
)
def test_anything_else_of_a_wrong_type_stays_an_error(tmp_path: Path, text: str) -> None:
    with pytest.raises(Failure) as caught:
        load(tmp_path, text)
    assert caught.value.code == "config.invalid"
