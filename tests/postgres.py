"""A Postgres of Debian's for tests: in a temporary directory, on a socket, gone with whoever started it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psycopg
from psycopg.conninfo import conninfo_to_dict

RELEASES = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
USER = "postgres"
"""Debian's package makes it; initdb refuses root."""

QUICK = ("--fsync=off", "--full_page_writes=off", "--listen_addresses=", "--max_connections=200")
READY = "database system is ready to accept connections"


@dataclass(frozen=True)
class Postgres:
    """A running server; ``pid`` is that of its first process."""

    socket: Path
    pid: int
    _numbers: Iterator[int]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self.socket), safe='')}"

    def new_database(self, name: str | None = None, *, template: str = "template1") -> str:
        """The address of a new one."""
        name = name or f"test{next(self._numbers)}"
        self.do(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    @contextmanager
    def away(self, address: str) -> Iterator[None]:
        """While this lasts, the database at that address cannot be reached."""
        name = conninfo_to_dict(address)["dbname"]
        self.do(f"ALTER DATABASE {name} ALLOW_CONNECTIONS false")
        try:
            self.do(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'")
            yield
        finally:
            self.do(f"ALTER DATABASE {name} ALLOW_CONNECTIONS true")

    def do(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Runs while this lasts."""
    assert RELEASES, "Debian's postgresql is not installed: make setup"
    directory = Path(tempfile.mkdtemp(prefix="wardian-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, USER, pwd.getpwnam(USER).pw_gid)
        program = str(RELEASES[-1] / "initdb")
        options = ["--no-sync", "--auth=trust", f"--username={USER}", "--locale=C", "--encoding=UTF8"]
        command = [*as_user(), program, *options, "--pgdata", str(directory / "data")]
        subprocess.run(command, check=True, capture_output=True, cwd=directory)
        with _serving(directory) as server:
            yield Postgres(directory, server.pid, count(1))
    finally:
        shutil.rmtree(directory)


@contextmanager
def _serving(directory: Path) -> Iterator[subprocess.Popen[str]]:
    ends_with_us = as_user("--pdeathsig", "QUIT")
    program, data = str(RELEASES[-1] / "postgres"), str(directory / "data")
    command = [*ends_with_us, program, "-D", data, "-k", str(directory), *QUICK]
    server = subprocess.Popen(command, cwd=directory, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    with server, server.stderr as said:
        assert any(READY in line for line in said), "Postgres did not start"
        reading = threading.Thread(target=deque, args=(said, 0), daemon=True)
        reading.start()  # it would stop when nobody reads what it says
        try:
            yield server
        finally:
            server.send_signal(signal.SIGQUIT)
            reading.join()


def as_user(*options: str) -> Sequence[str]:
    """What makes the command behind it run as an ordinary user."""
    if os.geteuid() != 0:
        return ["setpriv", *options] if options else []
    group = str(pwd.getpwnam(USER).pw_gid)
    return ["setpriv", f"--reuid={USER}", f"--regid={group}", "--clear-groups", *options]
