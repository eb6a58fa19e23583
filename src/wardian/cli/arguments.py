"""What several commands take: ids, labels, variables, and the server that is meant."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from wardian.cli import remote
from wardian.cli.remote import Address
from wardian.model.errors import Invalid

Id = Annotated[str, typer.Argument(metavar="ID", help="The sandbox, or the beginning of its id.")]
Ids = Annotated[
    list[str], typer.Argument(metavar="ID...", help="The sandboxes, or the beginnings of their ids.")
]
Seconds = Annotated[
    int | None, typer.Option("--timeout", "-t", min=1, help="Seconds it may live from now on.")
]
User = Annotated[str | None, typer.Option("--user", "-u", help="Run as this user (default: user).")]
Directory = Annotated[
    str | None, typer.Option("--cwd", "-w", help="Working directory (default: the home directory).")
]
Variables = Annotated[
    list[str], typer.Option("--env", "-e", metavar="NAME=VALUE", help="Set a variable. May be repeated.")
]


def address(context: typer.Context) -> Address:
    """The server that the options of the command group name."""
    url, key, data = context.obj
    return remote.find_server(url, key, data)


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """``NAME=VALUE`` strings as a mapping. Raises :class:`Invalid` for anything else."""
    found = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise Invalid(f"{option} wants NAME=VALUE, not {text!r}")
        found[name] = value
    return found


def value_of(text: str | None) -> Any:
    """JSON as what it is; anything else as text."""
    if text is None:
        return None
    try:
        return json.loads(text)
    except ValueError:
        return text
