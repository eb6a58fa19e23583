"""What the command line says and how it ends: one place for streams, JSON and exit codes.

Results go to standard output, everything else to standard error. With ``--json`` a result is one JSON
document and an error is one JSON object with ``code``, ``message`` and ``hint``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import IntEnum
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from wardian.model.errors import Kind, WardianError

EXIT_CODES = """\
Exit codes: 0 done; 1 failed; 2 wrong usage; 3 not found; 4 server not reachable; 5 key missing or refused;
6 not possible in the present state, or over a limit; 7 nothing failed, but not all could be shown. `exec`
and `shell` end with the command's own code, 128 + n after signal n; there, 125 means that Wardian itself
failed, 126 and 127 that the command could not be run."""

Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.")]

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


PIPE_WIDTH = 10_000
"""Columns of a pipe: a console that is none has 80 otherwise, and cuts what is longer."""


class ExitCode(IntEnum):
    """How a command ends. Programs may rely on these; see EXIT_CODES."""

    DONE = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    UNREACHABLE = 4
    REFUSED = 5
    CONFLICT = 6
    NOT_SHOWN = 7


EXITS = {
    Kind.INVALID: ExitCode.USAGE,
    Kind.NOT_FOUND: ExitCode.NOT_FOUND,
    Kind.UNAUTHENTICATED: ExitCode.REFUSED,
    Kind.FORBIDDEN: ExitCode.REFUSED,
    Kind.CONFLICT: ExitCode.CONFLICT,
    Kind.LIMIT: ExitCode.CONFLICT,
}


class Unreachable(WardianError):
    """No server answers at the address."""

    kind, code = Kind.UNAVAILABLE, "server_unreachable"


def exit_code(error: WardianError) -> ExitCode:
    """The exit code that tells a script what kind of error it was."""
    if isinstance(error, Unreachable):
        return ExitCode.UNREACHABLE
    return EXITS.get(error.kind, ExitCode.FAILED)


def print_json(value: Any) -> None:
    """One JSON document on standard output: indented for people, on one line for pipes."""
    indent = 2 if out.is_terminal else None
    sys.stdout.write(json.dumps(value, indent=indent, ensure_ascii=False) + "\n")
    sys.stdout.flush()


def note(text: str) -> None:
    """A remark for people, on standard error."""
    err.print(Text(text, style="dim"))


def when(at_us: int) -> str:
    """Microseconds since the epoch, by the clock of whoever reads it."""
    return datetime.fromtimestamp(at_us / 1e6).strftime("%Y-%m-%d %H:%M:%S")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A plain table on standard output: in a pipe, columns are as wide as they must be, and on a terminal the
    first one, by which a row is named."""
    grid = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        named = max([len(column), *(len(row[0]) for row in rows)]) if not number else None
        grid.add_column(column, no_wrap=True, min_width=named)
    for row in rows:
        grid.add_row(*(Text(cell) for cell in row))
    to = out if out.is_terminal else Console(highlight=False, width=PIPE_WIDTH)
    to.print(grid)


def fail(error: WardianError, *, as_json: bool = False, code: int | None = None) -> NoReturn:
    """Say what went wrong and what to do next, and end with the right code."""
    if as_json:
        said = {"code": error.code, "message": error.message, "hint": error.hint}
        sys.stderr.write(json.dumps({"error": said}) + "\n")
    else:
        err.print(Text.assemble(("error: ", "bold red"), error.message), soft_wrap=True)
        if error.hint:
            err.print(Text.assemble(("hint:  ", "bold"), error.hint), soft_wrap=True)
    raise typer.Exit(exit_code(error) if code is None else code)


@contextmanager
def errors(*, as_json: bool = False, code: int | None = None) -> Iterator[None]:
    """Turn every error of ours inside into a message and an exit code (``code``, or that of its kind)."""
    try:
        yield
    except WardianError as error:
        fail(error, as_json=as_json, code=code)
