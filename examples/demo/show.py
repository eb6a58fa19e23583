"""A table that grows by a row with each step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table


class Show:
    """A table that grows by a row with each step."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.table = Table(box=box.SIMPLE_HEAVY, pad_edge=False)
        self.table.add_column("step", no_wrap=True)
        self.table.add_column("time", justify="right", no_wrap=True)
        self.table.add_column("what was seen")

    @contextmanager
    def running(self) -> Iterator[None]:
        """Draw the table as it grows on a terminal; once, at the end, elsewhere."""
        with Live(self.table, console=self.console, refresh_per_second=20):
            yield

    def step(self, name: str, act: Callable[[], Any], see: Callable[[Any], str]) -> Any:
        """Do one step, measure it, and tell what came of it."""
        started = time.perf_counter()
        result = act()
        elapsed_ms = (time.perf_counter() - started) * 1000
        self.table.add_row(name, f"{elapsed_ms:,.1f} ms", see(result))
        return result
