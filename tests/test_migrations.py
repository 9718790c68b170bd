"""Every schema that zooport ever had is upgraded to the newest, with what was in it.

``tests/data/registry`` keeps one registry per revision, as SQL (``sqlite3 old.db .dump``). Whoever adds a
revision adds the dump of a registry of the one before.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine
from sqlalchemy.dialects import postgresql
from sqlalchemy.schema import CreateIndex, CreateTable

from zooport.cli import run
from zooport.export_core.failures import Failure
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.records import ExportFilter
from zooport.jobs.registry.revisions import head
from zooport.jobs.registry.schema import HEAD, metadata

DUMPS = Path(__file__).parent / "data" / "registry"
VERSIONS = Path(__file__).parents[1] / "migrations" / "versions"
REVISIONS = sorted(path.name.split("_")[0] for path in VERSIONS.glob("0*.py"))


def restore(revision: str, folder: Path) -> Path:
    file = folder / "zooport.db"
    connection = sqlite3.connect(file)
    connection.executescript((DUMPS / f"{revision}.sql").read_text(encoding="utf-8"))
    connection.close()
    return file


def set_revision(file: Path, revision: str) -> None:
    with sqlite3.connect(file) as connection:
        connection.execute("UPDATE alembic_version SET version_num = ?", (revision,))


def test_code_reads_the_newest_revision() -> None:
    assert head() == HEAD == REVISIONS[-1]


def test_migrations_make_the_tables_that_the_code_declares(tmp_path: Path) -> None:
    file = tmp_path / "zooport.db"
    open_registry(str(file)).close()
    with create_engine(f"sqlite:///{file}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_tables_can_be_made_on_postgresql() -> None:
    dialect = postgresql.dialect()
    for table in metadata.tables.values():
        assert "CREATE TABLE" in str(CreateTable(table).compile(dialect=dialect))
        for index in table.indexes:
            assert "CREATE INDEX" in str(CreateIndex(index).compile(dialect=dialect))
            assert len(str(index.name)) < 64


def test_every_older_revision_has_a_dump() -> None:
    assert sorted(path.stem for path in DUMPS.glob("*.sql")) == REVISIONS[:-1]


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_older_registry_is_refused_with_the_command_that_upgrades_it(revision: str, tmp_path: Path) -> None:
    file = restore(revision, tmp_path)
    before = file.read_bytes()
    with pytest.raises(Failure) as caught:
        open_registry(str(file))
    assert caught.value.code == "registry.outdated"
    assert caught.value.hint == f"zooport db upgrade --registry sqlite:///{file}"
    assert file.read_bytes() == before
    assert run(caught.value.hint.split()[1:]) == 0
    open_registry(str(file), create=False).close()


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_upgraded_registry_holds_what_it_held(revision: str, tmp_path: Path) -> None:
    file = restore(revision, tmp_path)
    assert run(["db", "upgrade", "--registry", str(file)]) == 0
    with open_registry(str(file)) as registry:
        rows = {row.model: row for row in registry.exports()}
        assert rows["mask_rcnn"].status == "succeeded"
        assert rows["mask_rcnn"].cached
        assert rows["mask_rcnn"].metrics["bbox/AP"].exported == 39.5
        assert (rows["cascade"].status, rows["cascade"].attempt) == ("failed", 2)
        assert [row.model for row in registry.exports(filter_by_code("checkpoint.*"))] == ["cascade"]
        assert [attempt.code for attempt in registry.export("cascade").attempts] == [
            "worker.crashed",
            "checkpoint.mismatch",
        ]
        assert [run.status for run in registry.runs()] == ["failed", "failed"]
        registry.recover_stale_runs()


def filter_by_code(glob: str) -> ExportFilter:
    return ExportFilter(code=glob)


@pytest.mark.parametrize("revision", REVISIONS[:-1])
def test_upgraded_tables_equal_fresh_ones(revision: str, tmp_path: Path) -> None:
    file = restore(revision, tmp_path)
    assert run(["db", "upgrade", "--registry", str(file)]) == 0
    with create_engine(f"sqlite:///{file}").connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_newer_registry_asks_for_a_newer_zooport(tmp_path: Path) -> None:
    file = tmp_path / "zooport.db"
    open_registry(str(file)).close()
    set_revision(file, "9999")
    for attempt in (lambda: open_registry(str(file)), lambda: open_registry(str(file), create=False)):
        with pytest.raises(Failure) as caught:
            attempt()
        assert caught.value.code == "registry.outdated"
        assert "newer zooport" in caught.value.message


def test_newer_registry_is_not_touched_by_upgrade(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zooport.db"
    open_registry(str(file)).close()
    set_revision(file, "9999")
    assert run(["db", "upgrade", "--registry", str(file)]) == 2
    assert "newer zooport" in capsys.readouterr().err


def test_failed_upgrade_leaves_the_old_schema(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = restore("0001", tmp_path)
    with sqlite3.connect(file) as connection:
        connection.execute("CREATE INDEX ix_exports_latest_code ON exports (format)")  # in the upgrade's way
    assert run(["db", "upgrade", "--registry", str(file)]) != 0
    assert "ix_exports_latest_code" in capsys.readouterr().err
    with sqlite3.connect(file) as connection:
        assert connection.execute("SELECT version_num FROM alembic_version").fetchall() == [("0001",)]
        assert "code" not in [column[1] for column in connection.execute("PRAGMA table_info(exports)")]


def test_upgrade_makes_a_registry_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "zooport.db"
    assert run(["db", "upgrade", "--registry", str(file)]) == 0
    assert f"none -> {HEAD}" in capsys.readouterr().out
    assert run(["db", "upgrade", "--registry", str(file)]) == 0
    assert "already" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("revision", "state"), [(HEAD, "current"), ("0001", "older: zooport db upgrade"), ("9999", "newer")]
)
def test_current_says_what_is_to_be_done(
    revision: str, state: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "zooport.db"
    open_registry(str(file)).close()
    set_revision(file, revision)
    assert run(["db", "current", "--registry", str(file), "-o", "csv"]) == 0
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith(f"sqlite:///{file},{revision},{HEAD},{state}")
