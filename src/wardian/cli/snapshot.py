"""``wardian snapshot``: how large is it, are there secrets in it, and who says so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from wardian.cli import remote
from wardian.cli.arguments import address
from wardian.cli.output import EXIT_CODES, ExitCode, Json, errors, note, out, print_json
from wardian.cli.remote import Address
from wardian.model.errors import Invalid

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Show snapshots, search them for secrets, and show what the server attests of them.",
)

Id = Annotated[str, typer.Argument(metavar="ID", help="The snapshot's id, or its name.")]


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, snapshot: Id, *, as_json: Json = False) -> None:
    """Show how large a kept snapshot is, and what it takes on the server's disk.

    Memory that was never touched, and disk never written, is part of the size and takes nothing. What nobody
    used for a while takes less, if the server compresses it: `wardian serve --snapshots-compress-after-s`.
    """
    with errors(as_json=as_json):
        told = remote.run(_call(address(context), "GET", quote(snapshot, safe="")))
        if as_json:
            print_json(told)
            return
        for name, value in (
            ("snapshot", told["snapshotID"]),
            ("names", ", ".join(told["names"]) or "-"),
            ("holds", "memory and files" if told["memory"] else "files"),
            ("size", f"{told['sizeBytes'] / 1e6:.1f} MB"),
            ("on disk", f"{told['storedBytes'] / 1e6:.1f} MB"),
            ("digest", told["digest"]),
        ):
            out.print(f"{name:10} {value}", markup=False, soft_wrap=True)


@app.command(epilog=EXIT_CODES)
def scan(context: typer.Context, snapshot: Id, *, as_json: Json = False) -> None:
    """Search a kept snapshot, memory and files, for every secret of yours; ends with 1 if one is found.

    Every snapshot was searched when it was made. This does it anew, for the secrets there are by now.
    """
    with errors(as_json=as_json):
        told = remote.run(_call(address(context), "POST", f"{quote(snapshot, safe='')}/scan"))
        _show(told, as_json=as_json)
    if told["document"]["hits"]:
        raise typer.Exit(ExitCode.FAILED)


@app.command(epilog=EXIT_CODES)
def attestation(context: typer.Context, snapshot: Id, *, as_json: Json = False) -> None:
    """Show what was attested of a snapshot last. `--json` gives the signed document itself."""
    with errors(as_json=as_json):
        told = remote.run(_call(address(context), "GET", f"{quote(snapshot, safe='')}/attestation"))
        _show(told, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def verify(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An attestation, as `--json` gave it.")],
    *,
    key: Annotated[str, typer.Option(help="The server's public key, in base64, from somewhere you trust.")],
    as_json: Json = False,
) -> None:
    """Check that an attestation was signed with a server's key and not changed. Needs no server."""
    from wardian.snapshots.attest import verify as verified  # late: it brings the search engine with it

    with errors(as_json=as_json):
        try:
            told = json.loads(file.read_text())
        except (OSError, ValueError) as error:
            raise Invalid(f"{file} is no attestation: {error}", code="bad_attestation") from None
        verified(told, key)
        _show(told, as_json=as_json)


async def _call(server: Address, method: str, path: str) -> dict[str, Any]:
    async with remote.connect(server) as there:
        told: dict[str, Any] = (await there.call(method, f"/wardian/snapshots/{path}")).json()
        return told


def _show(told: Mapping[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(dict(told))
        return
    document = told["document"]
    size = sum(document["sources"].values()) / 1e6
    streams = document["streams"]
    rows = (
        ("snapshot", document["snapshot"]),
        ("digest", document["digest"]),
        ("result", document["result"]),
        (
            "searched",
            f"{size:.1f} MB, and {streams['bytes'] / 1e6:.1f} MB from {streams['inflated']} streams",
        ),
        ("for", f"{len(document['searched'])} values"),
        ("too short", ", ".join(document["unsearchable"]) or "-"),
        ("not opened", f"{streams['cut']} streams, over the limits" if streams["cut"] else "-"),
        ("key", told["key"]),
    )
    for name, value in rows:
        out.print(f"{name:10} {value}", markup=False, soft_wrap=True)
    for hit in document["hits"]:
        where = hit["place"] or f"{hit['source']} at {hit['offset']:#x}"
        inside = "".join(f" in {each}" for each in reversed(hit["inside"]))
        note(f"{hit['needle']} ({hit['form']}{', torn' if hit['torn'] else ''}) in {where}{inside}")
