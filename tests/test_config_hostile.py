"""A config from a stranger runs nothing, hangs nothing and fills no memory: it is refused in one line."""

import math
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zooport.export_core.config import load_config
from zooport.export_core.config.arithmetic import ArithmeticRefusedError, evaluate
from zooport.export_core.failures import Failure


def refused(folder: Path, text: str) -> Failure:
    path = folder / "config.yaml"
    path.write_text(text)
    with pytest.raises(Failure) as caught:
        load_config(path)
    assert caught.value.code == "config.invalid"
    assert str(path) in caught.value.message
    assert "\n" not in str(caught.value)
    return caught.value


CALLS = [
    "!!python/object/apply:os.system ['touch {canary}']",
    "!!python/object/apply:subprocess.check_output [['touch', '{canary}']]",
    "!!python/object/new:os.system ['touch {canary}']",
    '!!python/object/apply:eval [\'__import__("os").system("touch {canary}")\']',
    '!!python/object/apply:eval [\'open("{canary}", "w")\']',
    "!!python/object/apply:eval [\"[open('{canary}', 'w') for x in [1]]\"]",
    '!!python/object/apply:exec [\'open("{canary}", "w")\']',
    '!!python/object/apply:builtins.eval [\'open("{canary}", "w")\']',
    '!!python/object/apply:eval {{args: [\'open("{canary}", "w")\']}}',
    "!!python/object/apply:eval ['1', '2']",
    "!!python/object/apply:eval '1 + 1'",
    "!!python/object:os.stat_result {{}}",
    "!!python/name:os.system",
    "!!python/module:os",
    "!!python/bytes 'AAAA'",
    "!custom {{a: 1}}",
    "!custom x",
    "!!binary AAAA",
    "!!set {{a: null}}",
    "!!omap [a: 1]",
]


@pytest.mark.parametrize("value", CALLS)
def test_tags_construct_nothing(tmp_path: Path, value: Any) -> None:
    canary = tmp_path / "canary"
    failure = refused(tmp_path, f"MODEL:\n  WEIGHTS: {value.format(canary=canary)}\n")
    assert not canary.exists()
    assert "line 2" in failure.message


EXPRESSIONS = [
    "().__class__",
    "x",
    "'a'",
    "'a' * 3",
    "lambda: 1",
    "[x for x in [1] if x]",
    "{1: 2}",
    "{x for x in [1]}",
    "(x for x in [1])",
    "sum([1])",
    "range(3)",
    "[x for x in range(10**9)]",
    "[x for x in range(1, 2, 0)]",
    "1 if 1 else 2",
    "1 << 9",
    "1 @ 2",
    "not 1",
    "True",
    "1j",
    "9**9**9",
    "2**64 * 2",
    "1e308 * 10",
    "1e999",
    "0.0**-1",
    "(-8)**(1/3)",
    "1/0",
    "1 % 0",
    "[0] * 10**9",
    "[[0] * 1000] * 1000",
    "[1] * 1.5",
    "[1] + 1",
    "-[1]",
    "[a for a, b in [[1]]]",
    "[a.b for a.b in [1]]",
    "[0 for a in range(8000) for b in range(8000)]",
    "[0 for a in range(8000) for b in range(8000) for c in []]",
    "[[a] * 8000 for a in range(8000)]",
    "(" * 300 + "1" + ")" * 300,
    "-" * 4000 + "1",
    "+".join(["1"] * 4000),
    "1 +",
    "",
]


@pytest.mark.parametrize("expression", EXPRESSIONS, ids=lambda text: text[:30])
def test_only_small_arithmetic_is_evaluated(expression: str) -> None:
    with pytest.raises(ArithmeticRefusedError) as caught:
        evaluate(expression)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("2**(1.0/3)", 2 ** (1 / 3)),
        (" 7 // 2 + 7 % 4 - -1", 7),
        ("(1, (2, 3))", [1, [2, 3]]),
        ("[[0.5, 1.0]] * 2 + [[3]]", [[0.5, 1.0], [0.5, 1.0], [3]]),
        ("[[x, x * 2**0.5] for x in [32, 64]]", [[32, 32 * 2**0.5], [64, 64 * 2**0.5]]),
        ("[x * y for x in (1, 2) for y in [x, 10]]", [1, 10, 4, 20]),
        ("[[x * k for k in range(3)] for x in range(2, 6, 2)]", [[0, 2, 4], [0, 4, 8]]),
        ("[a + b for a, b in [(1, 2), (3, 4)]]", [3, 7]),
    ],
)
def test_arithmetic_has_pythons_values(expression: str, value: Any) -> None:
    assert evaluate(expression) == value


@given(
    st.recursive(
        st.integers(-99, 99).map(str) | st.floats(0.1, 9).map(str),
        lambda inner: st.builds(
            "({} {} {})".format, inner, st.sampled_from(["+", "-", "*", "/", "//", "%"]), inner
        ),
        max_leaves=8,
    )
)
def test_arithmetic_agrees_with_python(expression: str) -> None:
    try:
        expected = eval(expression)
    except ZeroDivisionError:
        with pytest.raises(ArithmeticRefusedError):
            evaluate(expression)
    else:
        assert math.isclose(evaluate(expression), expected)


def billion_laughs(levels: int) -> str:
    lines = ["l0: &l0 [a, a, a, a, a, a, a, a, a, a]"]
    lines += [f"l{n}: &l{n} [{', '.join([f'*l{n - 1}'] * 10)}]" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


def merge_bomb(levels: int) -> str:
    lines = ["l0: &l0 {a: 1, b: 2}"]
    lines += [f"l{n}: &l{n} {{<<: [{', '.join([f'*l{n - 1}'] * 10)}], k{n}: 1}}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


BOMBS = {
    "aliases": billion_laughs(12),
    "merges": merge_bomb(12),
    "itself": "MODEL: &m {RPN: *m}\n",
    "deep lists": "SEED: " + "[" * 5000 + "]" * 5000 + "\n",
    "deep open lists": "SEED: " + "[" * 400_000,
    "deep mappings": "".join(f"{' ' * n}k:\n" for n in range(1000)),
    "deep literal": "SEED: '" + "(" * 9000 + ")" * 9000 + "'\n",
    "deep signs": "SEED: '" + "-" * 15000 + "1'\n",
    "long number": "SEED: " + "9" * 50_000 + "\n",
    "long sexagesimal": "SEED: " + "59:" * 50_000 + "59\n",
    "big integer": f"SEED: {2**70}\n",
    "big literal": f"SEED: '{2**70}'\n",
    "large": "#" * (2**20 + 1),
    "spaces": "MODEL:\n  WEIGHTS: a" + " " * 500_000 + "b\n  X_WEIGHTS: a" + " " * 500_000 + "b\n",
    "two documents": "SEED: 1\n---\nSEED: 2\n",
    "scalar": "text\n",
    "list": "- 1\n",
    "empty": "",
    "number as key": "1: 2\n",
    "list as key": "? [1]\n: 2\n",
    "mapping as key": "? {a: 1}\n: 2\n",
    "merged list": "<<: [1]\n",
    "unknown alias": "SEED: *nobody\n",
    "NaN": "SOLVER: {BASE_LR: .nan}\n",
    "no number": "SEED: !!float ''\n",
    "no bool": "SEED: !!bool maybe\n",
    "tab": "MODEL:\n\tSEED: 1\n",
    "control character": "SEED: \x01\n",
    "lazy": "model: {_target_: os.system}\n",
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_and_nonsense_are_refused(tmp_path: Path, name: str) -> None:
    refused(tmp_path, BOMBS[name])


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_bytes(b"SEED: \xff\xfe\x00")
    with pytest.raises(Failure, match="UTF-8"):
        load_config(path)


def test_a_key_given_twice_is_reported(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("SEED: 1\nMODEL: {MASK_ON: true}\nSEED: 2\n")
    config = load_config(path)
    assert config.SEED == 2
    assert "given twice" in config.notes[0]
    assert "line 3" in config.notes[0]


def test_merge_keys_of_yaml_work(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(
        "EXTRA: &shared {NMS_THRESH: 0.6, PRE_NMS_TOPK_TEST: 7}\n"
        "MODEL: {RPN: {<<: *shared, NMS_THRESH: 0.5}}\n"
    )
    config = load_config(path)
    assert (config.MODEL.RPN.NMS_THRESH, config.MODEL.RPN.PRE_NMS_TOPK_TEST) == (0.5, 7)
    (note,) = config.notes  # what the keys were merged from is no part of the config
    assert "EXTRA" in note


def test_all_of_it_fits_into_little_memory_and_time(tmp_path: Path) -> None:
    paths = []
    for number, text in enumerate(BOMBS.values()):
        paths.append(tmp_path / f"{number}.yaml")
        paths[-1].write_text(text)
    code = (
        "import sys\nfrom pathlib import Path\nfrom zooport.export_core.config import load_config\n"
        "from zooport.export_core.failures import Failure\n"
        "for path in sys.argv[1:]:\n"
        "    try:\n        load_config(Path(path))\n    except Failure:\n        continue\n"
    )

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (512 * 2**20, 512 * 2**20))

    command = [sys.executable, "-c", code, *map(str, paths)]
    subprocess.run(command, check=True, preexec_fn=limit, timeout=60)
