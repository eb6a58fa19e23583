"""``wardian volume``: volumes, and files between them and this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from wardian.cli import remote, volume_copy
from wardian.cli.arguments import address
from wardian.cli.output import EXIT_CODES, Json, errors, note, out, print_json, table
from wardian.cli.remote import Address, Remote
from wardian.model.errors import Invalid, NotFound

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Make, list and remove volumes, and copy files into and out of them.\n\n"
    "`wardian sandbox create --volume NAME:/path` mounts one.",
)

Name = Annotated[str, typer.Argument(help="The volume's name, or its id.")]


@app.command(epilog=EXIT_CODES)
def create(context: typer.Context, name: Name, *, as_json: Json = False) -> None:
    """Make an empty volume and print its id."""

    async def run(server: Address) -> dict[str, Any]:
        async with remote.connect(server) as there:
            made: dict[str, Any] = (await there.call("POST", "/volumes", body={"name": name})).json()
            return made

    with errors(as_json=as_json):
        made = remote.run(run(address(context)))
        if as_json:
            print_json({"volumeID": made["volumeID"], "name": made["name"]})
            return
        out.print(made["volumeID"])


@app.command("ls", epilog=EXIT_CODES)
def list_(
    context: typer.Context,
    place: Annotated[str, typer.Argument(metavar="[NAME[:PATH]]", help="List files in a volume.")] = "",
    *,
    as_json: Json = False,
) -> None:
    """List volumes, or the files in one."""
    with errors(as_json=as_json):
        if not place:
            volumes = remote.run(_volumes(address(context)))
            if as_json:
                print_json(volumes)
                return
            table(("NAME", "ID"), [(item["name"], item["volumeID"]) for item in volumes])
            return
        files = remote.run(_files(address(context), place))
        if as_json:
            print_json(files)
            return
        rows = [
            (
                f"{item['mode']:04o}",
                f"{item['uid']}:{item['gid']}",
                str(item["size"]),
                item["name"] + _suffix(item),
            )
            for item in files
        ]
        table(("MODE", "OWNER", "SIZE", "NAME"), rows)


@app.command("rm", epilog=EXIT_CODES)
def remove(context: typer.Context, name: Name, *, as_json: Json = False) -> None:
    """Remove a volume with all its files. Refused while a sandbox, running or paused, mounts it."""

    async def run(server: Address) -> None:
        async with remote.connect(server) as there:
            volume = await find(there, name)
            await there.call("DELETE", f"/volumes/{volume['volumeID']}")

    with errors(as_json=as_json):
        remote.run(run(address(context)))
        if as_json:
            print_json({"name": name, "removed": True})


@app.command(epilog=EXIT_CODES)
def cp(
    context: typer.Context,
    source: Annotated[str, typer.Argument(help="NAME:path in a volume, or a path here.")],
    target: Annotated[str, typer.Argument(help="The same; one of the two is in a volume.")],
    *,
    as_json: Json = False,
) -> None:
    """Copy a file, or a directory with all that is in it, into or out of a volume."""

    async def run(server: Address) -> int:
        from_volume, to_volume = volume_copy.parse_place(source), volume_copy.parse_place(target)
        if (from_volume.volume is None) == (to_volume.volume is None):
            raise Invalid("one side of a copy is in a volume (NAME:path), the other is here")
        async with remote.connect(server) as there:
            told = await find(there, str(from_volume.volume or to_volume.volume))
            volume = volume_copy.Content(there, told["volumeID"], (await _token(there, told)))
            if to_volume.volume is not None:
                return await volume.put(from_volume.path, to_volume.path)
            return await volume.get(from_volume.path, to_volume.path)

    with errors(as_json=as_json):
        count = remote.run(run(address(context)))
        if as_json:
            print_json({"files": count})
            return
        note(f"{count} file{'s' * (count != 1)}")


async def find(there: Remote, name: str) -> dict[str, Any]:
    """The volume of that name or id. Raises :class:`NotFound`."""
    volumes: list[dict[str, Any]] = (await there.call("GET", "/volumes")).json()
    for each in volumes:
        if name in (each["name"], each["volumeID"]):
            return each
    raise NotFound(f"no volume {name!r}", hint="`wardian volume ls` lists them")


async def _volumes(server: Address) -> list[dict[str, Any]]:
    async with remote.connect(server) as there:
        volumes: list[dict[str, Any]] = (await there.call("GET", "/volumes")).json()
        return volumes


async def _files(server: Address, place: str) -> list[dict[str, Any]]:
    name, _, path = place.partition(":")
    async with remote.connect(server) as there:
        volume = await find(there, name)
        content = volume_copy.Content(there, volume["volumeID"], await _token(there, volume))
        return await content.list(path or "/")


async def _token(there: Remote, volume: dict[str, Any]) -> str:
    return str((await there.call("GET", f"/volumes/{volume['volumeID']}")).json()["token"])


def _suffix(item: dict[str, Any]) -> str:
    if item["type"] == "symlink":
        return f" -> {item.get('target', '?')}"
    return "/" if item["type"] == "directory" else ""
