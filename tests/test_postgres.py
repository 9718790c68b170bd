"""The registry on PostgreSQL: concurrent drivers, what a server does, and what its URL looks like.

What holds on every database is tested with ``registry_url`` in the registry's other tests.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import create_engine

from zooport import cli
from zooport.export_core.failures import Failure
from zooport.jobs.registry import open_registry
from zooport.jobs.registry.database import Place, connect
from zooport.jobs.registry.records import ExportFilter
from zooport.jobs.registry.revisions import upgrade
from zooport.jobs.registry.schema import HEAD, metadata
from zooport.jobs.registry.writer import Registry
from zooport.jobs.values import ExportResult, Status
from zooport.tests.postgres_server import Server, running
from zooport.tests.registry_support import begin, fail, python, run_of, succeed, wait_for_line

pytestmark = pytest.mark.alone

MAKER = """
import sys
from zooport.jobs.registry import open_registry
print("ready", flush=True)
sys.stdin.readline()
with open_registry(sys.argv[1]) as registry:
    print(len(registry.runs()), flush=True)
"""


@pytest.fixture
def url(postgres: Server) -> str:
    return postgres.registry()


@pytest.fixture
def registry(url: str) -> Iterator[Registry]:
    with open_registry(url) as opened:
        yield opened


def test_migrations_make_the_tables_that_the_code_declares(url: str) -> None:
    with create_engine(url).connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []


def test_all_text_is_compared_by_its_bytes(url: str, postgres: Server) -> None:
    query = (
        "SELECT table_name, column_name, collation_name FROM information_schema.columns"
        " WHERE table_schema = 'public' AND data_type IN ('text', 'character varying')"
        " AND table_name <> 'alembic_version'"
    )
    found = postgres.execute(query, Place.parse(url).url.database or "")
    assert len(found) > 30
    assert {collation for _, _, collation in found} == {"C"}


def test_an_older_schema_is_refused_and_upgraded(
    postgres: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    place = Place.parse(postgres.empty())
    engine = connect(place, 10)
    assert upgrade(place, engine, "0002") == (None, "0002")
    with engine.begin() as connection:
        for run, moment in (("r-b", "2026-01-01"), ("r-a", "2026-01-02")):
            connection.exec_driver_sql(
                "INSERT INTO runs (id, kind, status, manifest_path, manifest_text, host, pid, process,"
                f" created_at) VALUES ('{run}', 'submit', 'failed', '/z', '', 'h', 1, '', '{moment}')"
            )
    engine.dispose()
    with pytest.raises(Failure) as caught:
        open_registry(str(place))
    assert caught.value.code == "registry.outdated"
    assert cli.run(["db", "upgrade", "--registry", str(place)]) == 0
    assert f"0002 -> {HEAD}" in capsys.readouterr().out
    with open_registry(str(place)) as registry:
        assert [run.id for run in registry.runs()] == ["r-a", "r-b"]
        assert len(begin(registry, ["a"])) == 1
        assert registry.runs()[1].id == "r-a"


def test_processes_that_make_the_same_registry_at_once(postgres: Server) -> None:
    url = postgres.empty()
    makers = [python(MAKER, url) for _ in range(3)]
    for maker in makers:
        assert wait_for_line(maker) == "ready"
    for maker in makers:
        assert maker.stdin is not None
        maker.stdin.write("\n")
        maker.stdin.flush()
    assert [maker.communicate()[0].strip() for maker in makers] == ["0"] * 3


def test_of_drivers_of_one_manifest_one_begins(url: str) -> None:
    together = Barrier(6, timeout=60)

    def drive(_: int) -> str:
        with open_registry(url) as registry:
            together.wait()
            try:
                return run_of(begin(registry, ["a", "b"])[0])
            except Failure as failure:
                return failure.code

    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(drive, range(6)))
    assert results.count("run.conflict") == 5
    with open_registry(url) as registry:
        assert len(registry.runs()) == 1
        assert len(registry.exports()) == 2


def test_drivers_of_different_manifests_run_side_by_side(url: str) -> None:
    together = Barrier(5, timeout=60)

    def drive(number: int) -> None:
        with open_registry(url) as registry:
            together.wait()
            jobs = begin(registry, [f"m{n}" for n in range(6)], manifest=Path(f"/zoo/{number}.yaml"))
            for job in jobs:
                succeed(registry, job) if number % 2 else fail(registry, job)
            registry.finish_run(run_of(jobs[0]))

    with ThreadPoolExecutor(5) as pool:
        list(pool.map(drive, range(5)))
    with open_registry(url) as registry:
        runs = registry.runs()
        assert sorted(run.status for run in runs) == ["failed"] * 3 + ["succeeded"] * 2
        assert all(run.total == 6 for run in runs)
        assert len(registry.exports()) == 30
        shared = {row.model for row in registry.exports(ExportFilter(statuses=("succeeded",)))}
        assert shared == {f"m{n}" for n in range(6)}


def test_a_reader_sees_one_state(url: str) -> None:
    with open_registry(url) as writer, open_registry(url) as reader:
        (job,) = begin(writer, ["a"])
        with reader._database.reading() as connection:
            assert connection.exec_driver_sql("SELECT status FROM exports").scalar_one() == "pending"
            succeed(writer, job)
            assert connection.exec_driver_sql("SELECT status FROM exports").scalar_one() == "pending"
        assert reader.exports()[0].status == "succeeded"


def test_a_driver_that_was_taken_for_dead_changes_nothing(registry: Registry, url: str) -> None:
    (job,) = begin(registry, ["a"])
    registry.start_attempt(job.id)
    with open_registry(url) as other, pytest.MonkeyPatch.context() as patch:
        patch.setattr("zooport.jobs.registry.drivers.birth", lambda _: None)
        assert other.recover_stale_runs() == [run_of(job)]
    assert registry.finish_attempt(job.id, ExportResult(job.id, 1.0)) is Status.FAILED
    assert registry.export(job.id).row.code == "worker.crashed"


def test_a_lock_is_waited_for_and_then_named(
    url: str, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOOPORT_REGISTRY_TIMEOUT", "0.2")
    with open_registry(url) as impatient, registry._database.writing(alone=True):
        with pytest.raises(Failure) as caught:
            begin(impatient, ["a"])
        assert caught.value.code == "registry.locked"
        assert caught.value.retryable
        assert impatient.exports() == []  # reading goes on


def test_odd_names_are_kept_and_found(registry: Registry) -> None:
    names = ["a-b", "a_b", "aB", "A-b", "a b", "\u00e4", "a%b", "\U0001f600"]
    job, *_ = begin(registry, names)
    fail(registry, job, message="no text of PostgreSQL: \0 \ud800")
    assert registry.export(job.id).row.message == "no text of PostgreSQL: \\x00 \\ud800"
    kept = {row.model for row in registry.exports()}
    assert len(kept) == len(names)
    assert {row.model for row in registry.exports(ExportFilter(model="a*"))} == {
        "a-b",
        "a_b",
        "aB",
        "a b",
        "a%b",
    }
    assert [row.model for row in registry.exports(ExportFilter(model="a_b"))] == ["a_b"]


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_every_usual_scheme_is_read(url: str, scheme: str) -> None:
    with open_registry(url.replace("postgresql+psycopg", scheme, 1), create=False) as registry:
        assert registry.runs() == []


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda url: url.replace("/zoo_", "/nowhere_"), "does not exist"),
        (lambda url: url.replace("host=", "host=/nowhere"), "No such file"),
        (lambda url: url.replace("zooport@", "stranger:secret@"), "stranger"),
    ],
)
def test_what_cannot_be_reached_is_one_line(
    url: str, damage: object, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert callable(damage)
    assert cli.run(["list", "--registry", damage(url)]) == 2
    error = capsys.readouterr().err
    assert "registry.unavailable" in error
    assert said in error
    assert "secret" not in error
    assert len(error.strip().splitlines()) == 1


def test_a_database_of_another_program_is_refused(postgres: Server) -> None:
    url = postgres.empty()
    postgres.execute("CREATE TABLE photos (id INTEGER)", Place.parse(url).url.database or "")
    with pytest.raises(Failure) as caught:
        open_registry(url)
    assert caught.value.code == "registry.invalid"


def test_an_empty_database_holds_no_registry_yet(postgres: Server) -> None:
    with pytest.raises(Failure) as caught:
        open_registry(postgres.empty(), create=False)
    assert caught.value.code == "registry.missing"


def test_a_role_that_may_only_read_asks_and_writes_nothing(url: str, postgres: Server) -> None:
    database = Place.parse(url).url.database or ""
    with open_registry(url) as registry:
        begin(registry, ["a"])
    if not postgres.execute("SELECT 1 FROM pg_roles WHERE rolname = 'reader'"):
        postgres.execute("CREATE ROLE reader LOGIN")
    postgres.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader", database)
    with open_registry(url.replace("zooport@", "reader@"), create=False) as reader:
        assert len(reader.exports()) == 1
        with pytest.raises(Failure) as caught:
            begin(reader, ["b"], manifest=Path("/zoo/other.yaml"))
    assert caught.value.code == "registry.unavailable"
    assert "permission denied" in caught.value.message


@pytest.mark.slow
def test_a_server_that_stops_is_named_and_joined_again(postgres: Server) -> None:
    with running(postgres.programs) as server:
        url = server.url("postgres")
        with open_registry(url) as registry:
            first, second = begin(registry, ["a", "b"])
            succeed(registry, first)
            server.stop()
            with pytest.raises(Failure) as caught:
                succeed(registry, second)
            assert caught.value.code == "registry.unavailable"
            server.start()
            assert [row.status for row in registry.exports()] == ["succeeded", "pending"]
            succeed(registry, second)


def test_without_its_driver_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psycopg", None)
    with pytest.raises(Failure) as caught:
        open_registry("postgresql://host/zoo")
    assert caught.value.code == "dependency.missing"
    assert "zooport[postgres]" in caught.value.hint


DRIVER = """
import sys
from pathlib import Path
from zooport.jobs import submission
from zooport.jobs.hosts import HostSettings
from zooport.jobs.runner import RunSettings
from zooport.tests.fake_stages import FAKE

request = submission.Request(sys.argv[1], RunSettings(workers=2), hosts=HostSettings("", FAKE, preload=()))
raise SystemExit(submission.submit(Path(sys.argv[2]), request))
"""


@pytest.mark.slow
def test_two_drivers_with_a_ray_each_share_a_registry(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    names = [f"sleep-{number}-0.1" for number in range(8)]
    for name in names:
        (tmp_path / f"{name}.pth").write_text(name)
    (tmp_path / "config.yaml").write_text("VERSION: 2")
    drivers = []
    for half in (0, 1):
        lines = [f"  - {{name: {name}, config: config.yaml, weights: {name}.pth}}" for name in names[half::2]]
        manifest = tmp_path / f"zoo{half}.yaml"
        manifest.write_text("\n".join(["models:", *lines, "formats: [torchscript-trace]"]))
        drivers.append(subprocess.Popen([sys.executable, "-c", DRIVER, url, str(manifest)]))
    assert [driver.wait(180) for driver in drivers] == [0, 0]
    with open_registry(url, create=False) as registry:
        assert {row.model: row.status for row in registry.exports()} == dict.fromkeys(names, "succeeded")
        assert [run.status for run in registry.runs()] == ["succeeded"] * 2
    assert cli.run(["verify", "--registry", url]) == 0
    assert "8 intact" in capsys.readouterr().out
