"""``wardian secret``: values go in from a hidden prompt or a pipe, and never come out."""

from __future__ import annotations

import sys
from typing import Annotated, Any
from urllib.parse import quote

import typer

from wardian.cli import remote
from wardian.cli.arguments import address, pairs
from wardian.cli.output import EXIT_CODES, Json, errors, note, print_json, table
from wardian.cli.remote import Address
from wardian.model.errors import Invalid, Kind, WardianError
from wardian.model.secret import VALUE_BYTES_MAX

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Keep, list and remove secrets. Their values are sealed on the server and never shown again.",
)

Name = Annotated[str, typer.Argument(help="The secret's name, or its id.")]


@app.command("set", epilog=EXIT_CODES)
def set_(
    context: typer.Context,
    name: Name,
    *,
    metadata: Annotated[
        list[str],
        typer.Option("--metadata", "-m", metavar="NAME=VALUE", help="Attach a label. May be repeated."),
    ] = [],  # noqa: B006 - typer copies it
    as_json: Json = False,
) -> None:
    """Set a secret's value, from a hidden prompt, or from standard input when that is no terminal.

    A secret that exists gets a new version. A newline at the end of the input is not part of the value.
    """
    with errors(as_json=as_json):
        labels = pairs(metadata, "--metadata") if metadata else None
        told = remote.run(_set(address(context), name, _value(), labels))
        if as_json:
            print_json(told)
            return
        note(f"{told['name']}, version {told['currentVersion']} ({told['secretID']})")


def _value() -> str:
    """The value, from where nobody sees it pass."""
    if sys.stdin.isatty():
        value: str = typer.prompt("Value", hide_input=True, confirmation_prompt=True, err=True)
        return value
    data = sys.stdin.buffer.read(VALUE_BYTES_MAX + 2)
    try:
        return data.decode().removesuffix("\n")
    except UnicodeDecodeError:
        raise Invalid("the value is not UTF-8 text", code="bad_secret_value") from None


async def _set(server: Address, name: str, value: str, metadata: dict[str, str] | None) -> dict[str, Any]:
    body: dict[str, Any] = {"value": value}
    if metadata is not None:
        body["metadata"] = metadata
    async with remote.connect(server) as there:
        try:
            answer = await there.call("POST", f"/secrets/{quote(name, safe='')}", body=body)
        except WardianError as error:
            if error.kind is not Kind.NOT_FOUND:
                raise
            answer = await there.call("POST", "/secrets", body={"name": name, **body})
        told: dict[str, Any] = answer.json()
        return told


@app.command("ls", epilog=EXIT_CODES)
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List secrets by name, without their values."""
    with errors(as_json=as_json):
        found = remote.run(_list(address(context)))
        if as_json:
            print_json(found)
            return
        rows = [
            (
                item["name"],
                item["secretID"],
                str(item["currentVersion"]),
                item["updatedAt"][:19].replace("T", " "),
            )
            for item in found
        ]
        table(("NAME", "ID", "VERSION", "UPDATED"), rows)


async def _list(server: Address) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    token: str | None = None
    async with remote.connect(server) as there:
        while True:
            page = await there.call("GET", "/secrets", query={"nextToken": token})
            found += page.json()
            token = page.headers.get("X-Next-Token")
            if not token:
                return found


@app.command("rm", epilog=EXIT_CODES)
def remove(context: typer.Context, name: Name, *, as_json: Json = False) -> None:
    """Remove a secret with all its versions."""
    with errors(as_json=as_json):
        remote.run(_remove(address(context), name))
        if as_json:
            print_json({"name": name, "removed": True})


async def _remove(server: Address, name: str) -> None:
    async with remote.connect(server) as there:
        await there.call("DELETE", f"/secrets/{quote(name, safe='')}")
