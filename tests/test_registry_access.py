"""Opening a registry: where it is, what is refused, and what other processes do to it meanwhile."""

from __future__ import annotations

import os
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from zooport.export_core.failures import Failure
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.database import Place
from zooport.tests.registry_support import LOCKER, begin, fail, python, run_of, succeed, wait_for_line

OPENER = """
import sys
from zooport.jobs.registry import open_registry
print("ready", flush=True)
sys.stdin.readline()
with open_registry(sys.argv[1]) as registry:
    print(len(registry.runs()), flush=True)
"""
#: Rights do not stop root.
not_root = pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")


def codes_of(url: str | Path, **options: bool) -> str:
    with pytest.raises(Failure) as caught:
        open_registry(str(url), **options)
    assert "\n" not in caught.value.message
    return caught.value.code


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "zooport.db"
    open_registry(str(file)).close()
    return file


def test_fresh_file_is_made_and_found_again(tmp_path: Path) -> None:
    file = tmp_path / "zooport.db"
    with open_registry(f"sqlite:///{file}") as registry:
        begin(registry, ["a"])
    with open_registry(str(file), create=False) as registry:
        assert len(registry.exports()) == 1


def test_place_comes_from_the_environment_and_else_is_in_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ZOOPORT_REGISTRY", raising=False)
    assert Place.parse(None).file == tmp_path / "zooport.db"
    monkeypatch.setenv("ZOOPORT_REGISTRY", "sqlite:///other.db")
    assert Place.parse(None).file == tmp_path / "other.db"
    assert Place.parse("named.db").file == tmp_path / "named.db"


@pytest.mark.parametrize("name", ["a b.db", "50%.db", "what?.db", "c#sharp.db", "caf\u00e9.db"])
def test_file_may_have_any_name(tmp_path: Path, name: str) -> None:
    with open_registry(str(tmp_path / name)) as registry:
        begin(registry, ["a"])
    assert [path.name for path in tmp_path.glob("*.db")] == [name]


def test_password_is_not_shown() -> None:
    assert "secret" not in str(Place.parse("postgresql://user:secret@host/zoo"))


def test_missing_registry_is_not_made_for_a_question(tmp_path: Path) -> None:
    assert codes_of(tmp_path / "zooport.db", create=False) == "registry.missing"
    assert list(tmp_path.iterdir()) == []


def test_empty_file_holds_no_registry(tmp_path: Path) -> None:
    file = tmp_path / "zooport.db"
    file.touch()
    assert codes_of(file, create=False) == "registry.missing"
    open_registry(str(file)).close()
    open_registry(str(file), create=False).close()


def test_missing_directory(tmp_path: Path) -> None:
    assert codes_of(tmp_path / "none" / "zooport.db") == "registry.unavailable"


def test_directory_in_place_of_a_file(tmp_path: Path) -> None:
    assert codes_of(tmp_path) == "registry.unavailable"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a place where nobody may write")
def test_place_where_nobody_may_write() -> None:
    assert codes_of("/proc/zooport.db") == "registry.unavailable"


def test_registry_that_may_only_be_read_answers(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_registry(str(file)) as registry:
        begin(registry, ["a"])
    monkeypatch.setattr(os, "access", lambda _path, mode: mode != os.W_OK)
    with open_registry(str(file), create=False) as registry:
        assert len(registry.exports()) == 1
        with pytest.raises(Failure) as caught:
            begin(registry, ["b"], manifest=Path("/zoo/other.yaml"))
    assert caught.value.code == "registry.unavailable"
    assert [path.name for path in file.parent.iterdir()] == [file.name]


@not_root
def test_directory_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert codes_of(tmp_path / "zooport.db") == "registry.unavailable"


def test_file_of_another_kind(tmp_path: Path) -> None:
    file = tmp_path / "zooport.db"
    file.write_text("models:\n" * 1000, encoding="utf-8")
    assert codes_of(file) == "registry.invalid"
    assert file.read_text(encoding="utf-8") == "models:\n" * 1000


def test_database_of_another_program(tmp_path: Path) -> None:
    file = tmp_path / "photos.db"
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE TABLE photos (id INTEGER)")
    assert codes_of(file) == "registry.invalid"


def test_database_of_another_program_that_uses_alembic(tmp_path: Path) -> None:
    file = tmp_path / "photos.db"
    with sqlite3.connect(file) as connection:
        connection.executescript(
            "CREATE TABLE alembic_version (version_num TEXT); INSERT INTO alembic_version VALUES ('0002')"
        )
    assert codes_of(file) == "registry.invalid"


def test_damaged_file(file: Path) -> None:
    with open_registry(str(file)) as registry:
        begin(registry, [f"m{number}" for number in range(500)])
    content = bytearray(file.read_bytes())
    content[4096:] = os.urandom(len(content) - 4096)
    file.write_bytes(content)
    with pytest.raises(Failure) as caught, open_registry(str(file)) as registry:
        registry.exports()
    assert caught.value.code == "registry.invalid"
    assert str(file) in caught.value.message


def test_truncated_file(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:5000])
    with pytest.raises(Failure) as caught, open_registry(str(file)) as registry:
        registry.exports()
    assert caught.value.code == "registry.invalid"


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:", "nosuch://host/db", "://"])
def test_url_that_names_nothing(url: str) -> None:
    assert codes_of(url) == "registry.invalid"


def test_database_driver_that_is_not_installed() -> None:
    with pytest.raises(Failure) as caught:
        open_registry("mysql+mysqldb://host/db")
    assert caught.value.code == "dependency.missing"
    assert "MySQLdb" in caught.value.hint


def test_timeout_that_is_not_a_number(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOOPORT_REGISTRY_TIMEOUT", "soon")
    assert codes_of(file) == "config.invalid"


def test_writer_waits_for_a_lock_and_then_says_who_is_locked(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_REGISTRY_TIMEOUT", "0.2")
    with python(LOCKER, file, "write") as locker, open_registry(str(file)) as registry:
        assert wait_for_line(locker) == "locked"
        with pytest.raises(Failure) as caught:
            begin(registry, ["a"])
        assert caught.value.code == "registry.locked"
        assert caught.value.retryable
        assert str(file) in caught.value.message
        assert registry.exports() == []  # reading goes on
        locker.communicate("\n")
        assert len(begin(registry, ["a"])) == 1


def test_lock_that_stops_reading(file: Path) -> None:
    with python(LOCKER, file, "journal") as locker:
        assert wait_for_line(locker) == "locked"
        with pytest.raises(Failure) as caught:
            open_registry(str(file), busy_timeout=0.1)
        assert caught.value.code == "registry.locked"
        locker.communicate("\n")


def test_registry_deleted_in_the_middle_of_a_run(file: Path) -> None:
    with open_registry(str(file)) as registry:
        (job,) = begin(registry, ["a"])
        file.unlink()
        with pytest.raises(Failure) as caught:
            succeed(registry, job)
    assert caught.value.code == "registry.missing"
    assert not file.exists()


def test_registry_replaced_in_the_middle_of_a_run(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    open_registry(str(other)).close()
    with open_registry(str(file)) as registry:
        (job,) = begin(registry, ["a"])
        other.rename(file)
        with pytest.raises(Failure, match="replaced"):
            succeed(registry, job)


def test_failed_write_leaves_no_trace(file: Path) -> None:
    with open_registry(str(file)) as registry:
        jobs = begin(registry, ["a"])
        registry.finish_run(run_of(jobs[0]))
        with pytest.raises(Exception, match="UNIQUE"):
            registry.begin_run("/zoo/two.yaml", "", jobs, [], run_id="r-2")  # an id is taken already
        assert len(registry.runs()) == 1
        assert len(registry.exports()) == 1


def test_readers_see_whole_states_while_a_run_is_written(file: Path) -> None:
    def read(_: int) -> set[tuple[str, bool]]:
        with open_registry(str(file), create=False) as registry:
            return {(row.status, row.code is None) for _ in range(20) for row in registry.exports()}

    with ThreadPoolExecutor(4) as pool, open_registry(str(file)) as registry:
        jobs = begin(registry, [f"m{number}" for number in range(20)])
        readings = [pool.submit(read, number) for number in range(4)]
        for job in jobs:
            fail(registry, job)
        seen = set().union(*(reading.result() for reading in readings))
    assert seen <= {("pending", True), ("running", True), ("failed", False)}


def test_processes_that_make_the_same_registry_at_once(tmp_path: Path) -> None:
    file = tmp_path / "zooport.db"
    openers = [python(OPENER, file) for _ in range(2)]
    for opener in openers:
        assert wait_for_line(opener) == "ready"
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write("\n")
        opener.stdin.flush()
    answers = [opener.communicate()[0].strip() for opener in openers]
    assert answers == ["0", "0"]
