"""What scenarios work with, made when first asked for and cleared away at the end."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bench.clients import Endpoint
from bench.island import Islands, Maker
from bench.peers import Peers, Root, without_hybrid_cgroups
from bench.qemu import PlainQemu
from bench.server import Pools, Server
from wardian.app.drivers import drivers_of, qemu_tools
from wardian.config import Settings
from wardian.images.base import base_recipe
from wardian.images.catalog import BuiltImage, Catalog
from wardian.isolation.gvisor import GvisorDriver
from wardian.isolation.qemu import QemuDriver

REPOSITORY = Path(__file__).resolve().parent.parent
GVISOR, MICROVM, BY_HAND = GvisorDriver.name, QemuDriver.name, "QEMU by hand"
"""The kinds of machines there are in this process."""


class Lab:
    """One run's servers, peers and scratch directory."""

    def __init__(self, scratch: Path, console: Console, *, quick: bool, postgres: str | None = None) -> None:
        self.scratch = scratch
        self.quick = quick
        self.postgres = postgres
        self._console = console
        self._stack = ExitStack()
        self._servers: dict[Pools, Server] = {}
        self._plain: Endpoint | None = None
        self.plain_pid = 0
        self._peers: Peers | None = None
        self._islands: dict[str, Islands] = {}
        self._image: BuiltImage | None = None

    def close(self) -> None:
        """Stop everything."""
        self._stack.close()

    def rounds(self, *, quick: int, full: int) -> int:
        """How many rounds a scenario shall take."""
        return quick if self.quick else full

    @contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[], None]]:
        """A progress bar; call what is yielded once per step."""
        columns = (
            TextColumn("{task.description:<26}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with Progress(*columns, console=self._console, transient=not self._console.is_terminal) as bar:
            task = bar.add_task(what, total=total)
            yield lambda: bar.advance(task)

    def server(self, pools: Pools) -> Server:
        """A Wardian server with these pools."""
        if pools not in self._servers:
            server = Server(self.scratch / f"server-{pools.hot}-{pools.created}", pools)
            self._stack.callback(server.close)
            self._servers[pools] = server
        return self._servers[pools]

    def named(self, pools: Pools) -> Server:
        """A Wardian server with a domain of its own, and the proxy that leads to it."""
        options = ("--domain", "wardian.test", "--tls-port", "0", "--proxy-port", "0")
        server = Server(self.scratch / "server-named", pools, *options)
        self._stack.callback(server.close)
        return server

    def plain(self) -> Endpoint:
        """The server that does nothing."""
        if self._plain is None:
            directory = Path("/dev/shm") / f"bench-{os.getpid()}"
            directory.mkdir()
            process = subprocess.Popen(
                (sys.executable, "-m", "bench.plain", str(directory)), stdout=subprocess.PIPE, cwd=REPOSITORY
            )
            assert process.stdout is not None
            self.plain_pid = process.pid
            self._stack.callback(directory.rmdir)
            self._stack.callback(lambda: (directory / "file").unlink(missing_ok=True))
            self._stack.callback(process.stdout.close)
            self._stack.callback(process.wait)
            self._stack.callback(process.kill)
            port = int(process.stdout.readline())
            self._plain = Endpoint(f"http://127.0.0.1:{port}", "none")
        return self._plain

    def peers(self) -> Peers:
        """The other runtimes, on the same base image."""
        if self._peers is None:
            shield = self._stack.enter_context(without_hybrid_cgroups())
            root = Root.unpack(self._built().root.path, self.scratch)
            self._peers = Peers.on(root, self.scratch, shield)
        return self._peers

    def islands(self, kind: str = GVISOR) -> Islands:
        """Machines in this process, of one kind."""
        if kind not in self._islands:
            root = self._built().root
            self._islands[kind] = Islands(self.scratch, root, self._maker(kind, self.scratch / kind))
            self._stack.callback(self._islands[kind].close)
        return self._islands[kind]

    def _maker(self, kind: str, directory: Path) -> Maker:
        settings = Settings(data_dir=directory)
        if kind != BY_HAND:
            return drivers_of(settings)[kind]()
        driver = drivers_of(settings)[MICROVM]()
        assert isinstance(driver, QemuDriver)
        return PlainQemu(directory, qemu_tools(settings), driver)

    def _built(self) -> BuiltImage:
        if self._image is None:
            self._image = Catalog().build(base_recipe())
        return self._image


__all__ = ["BY_HAND", "GVISOR", "MICROVM", "Lab", "Pools"]
