"""Hostile and broken files: none runs anything, none allocates what it declares, each ends typed.

All files are read in one process whose memory is limited and whose every import, call of the system and
opening of a file for writing is recorded.
"""

import json
import pickletools
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from zooport.export_core.checkpoints import read_weights
from zooport.export_core.failures import Failure
from zooport.tests.checkpoint_corpus import CORRUPT, UNSAFE, corpus, good_files

FILES = corpus()
SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]

READER = """
import codecs, json, resource, sys
from pathlib import Path
from zooport.export_core.checkpoints import read_weights
from zooport.export_core.failures import Failure

folder, good = Path(sys.argv[1]), Path(sys.argv[2])
codecs.lookup("cp437"), codecs.lookup("unicode_escape")  # imported on first use
for path in good.iterdir():
    assert len(read_weights(path).arrays) == 2
events, answers = [], {}
WATCHED = ("exec", "compile", "import", "os.", "subprocess.", "shutil.", "socket.", "pickle.", "marshal.")

def watch(event, arguments):
    wrote = event == "open" and (isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
    if wrote or event.startswith(WATCHED):
        events.append([event, repr(arguments)[:200]])

before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
sys.addaudithook(watch)
for path in sorted(folder.iterdir(), key=lambda path: int(path.stem)):
    events.clear()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        read_weights(path)
        answer = ["read", ""]
    except Failure as failure:
        answer = [failure.code, str(failure)]
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak
    answers[path.stem] = [*answer, list(events), grown]
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Name -> code, message, recorded events and growth of the peak memory (KiB) of reading that file."""
    folder, good = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("good")
    for number, (data, _) in enumerate(FILES.values()):
        (folder / f"{number}.pth").write_bytes(data)
    for name, data in good_files().items():
        (good / name).write_bytes(data)
    work = tmp_path_factory.mktemp("work")
    command = [sys.executable, "-c", READER, str(folder), str(good)]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    assert list(work.iterdir()) == []
    found = json.loads(done.stdout)
    return {name: found[str(number)] for number, name in enumerate(FILES)}


@pytest.mark.parametrize("name", FILES)
def test_a_hostile_file_ends_typed_runs_nothing_and_takes_no_memory(answers: Any, name: str) -> None:
    code, message, events, grown = answers[name]
    assert code == FILES[name][1], message
    assert "\n" not in message
    assert len(message) < 600
    assert events == []
    # Twice the largest file, and nothing near what the files declare.
    assert grown < 150 * 1024


def test_the_corpus_covers_every_protocol_and_kind() -> None:
    assert len(FILES) > 150
    assert {data[1] for data, _ in FILES.values() if data[:1] == b"\x80" and len(data) > 1} >= {2, 3, 4, 5}


@settings(max_examples=300, suppress_health_check=SUPPRESSED)
@given(data=st.data())
def test_changed_bytes_never_surprise(tmp_path: Path, data: st.DataObject) -> None:
    """A sound file with a few bytes changed is read, or ends typed; nothing else may come of it."""
    contents = bytearray(data.draw(st.sampled_from(list(good_files().values()))))
    for _ in range(data.draw(st.integers(1, 6))):
        contents[data.draw(st.integers(0, min(len(contents), 900) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / "changed"
    path.write_bytes(contents)
    code = None
    try:
        read_weights(path)
    except Failure as failure:
        code = failure.code
    assert code in (None, UNSAFE, CORRUPT)


OPERATIONS = [code.code.encode("latin-1") for code in pickletools.opcodes]


@settings(max_examples=300, suppress_health_check=SUPPRESSED)
@given(parts=st.lists(st.sampled_from(OPERATIONS) | st.binary(max_size=4), max_size=40))
def test_any_row_of_operations_ends_typed(tmp_path: Path, parts: list[bytes]) -> None:
    path = tmp_path / "operations"
    path.write_bytes(b"\x80\x04" + b"".join(parts) + b".")
    with pytest.raises(Failure) as caught:
        read_weights(path)
    assert caught.value.code in (UNSAFE, CORRUPT)
