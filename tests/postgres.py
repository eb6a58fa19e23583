"""A Postgres of Debian's for tests: in a temporary directory, on a socket, gone with whoever started it."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import quote

import psycopg

PROGRAMS = max(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name), default=None)
USER = "postgres"
"""Debian's package makes it; initdb refuses root."""

QUICK = {"fsync": "off", "full_page_writes": "off", "listen_addresses": "''", "max_connections": "200"}
READY = "database system is ready to accept connections"


@dataclass(frozen=True)
class Postgres:
    """A running server; ``pid`` is that of its first process."""

    socket: Path
    pid: int
    _numbers: Iterator[int]

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://{USER}@/{database}?host={quote(str(self.socket), safe='')}"

    def new_database(self, template: str = "template1") -> str:
        """The address of a new one."""
        name = f"test{next(self._numbers)}"
        self.do(f"CREATE DATABASE {name} TEMPLATE {template}")
        return self.url(name)

    def do(self, statement: str) -> None:
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(statement)  # type: ignore[arg-type]


@contextmanager
def postgres() -> Iterator[Postgres]:
    """Runs while this lasts."""
    assert PROGRAMS is not None, "Debian's postgresql is not installed: make setup"
    directory = Path(tempfile.mkdtemp(prefix="wardian-postgres-"))
    try:
        if os.geteuid() == 0:
            shutil.chown(directory, USER, pwd.getpwnam(USER).pw_gid)
        initdb = [PROGRAMS / "initdb", "--no-sync", "--auth=trust", f"--username={USER}", "--encoding=UTF8"]
        subprocess.run(
            [*as_user(), *initdb, "--locale=C", "--pgdata", directory / "data"],
            check=True,
            capture_output=True,
            cwd=directory,
        )
        with _serving(directory) as server:
            yield Postgres(directory, server.pid, count(1))
    finally:
        shutil.rmtree(directory)


@contextmanager
def _serving(directory: Path) -> Iterator[subprocess.Popen[str]]:
    assert PROGRAMS is not None
    settings = [f"--{name}={value.strip(chr(39))}" for name, value in QUICK.items()]
    server = subprocess.Popen(
        # It dies with us, even if nobody can stop it.
        [*as_user("--pdeathsig", "QUIT"), PROGRAMS / "postgres", "-D", directory / "data", "-k", directory, *settings],
        cwd=directory,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    try:
        said = []
        for line in server.stderr:
            said.append(line)
            if READY in line:
                break
        else:
            raise AssertionError("".join(said))
        reading = threading.Thread(target=_drain, args=(server,), daemon=True)
        reading.start()
        yield server
    finally:
        server.send_signal(signal.SIGQUIT)
        server.wait(30)
        reading.join()
        server.stderr.close()


def _drain(server: subprocess.Popen[str]) -> None:
    assert server.stderr is not None
    for _ in server.stderr:
        pass


def as_user(*options: str) -> Sequence[str]:
    """What makes the command behind it run as an ordinary user."""
    if os.geteuid() != 0:
        return ["setpriv", *options] if options else []
    group = str(pwd.getpwnam(USER).pw_gid)
    return ["setpriv", f"--reuid={USER}", f"--regid={group}", "--clear-groups", *options]
