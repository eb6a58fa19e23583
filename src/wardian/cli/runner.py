"""``wardian runner``: the code that runs agents, released beside the environments that are frozen."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer

from wardian.cli import remote
from wardian.cli.arguments import address
from wardian.cli.output import EXIT_CODES, Json, errors, note, out, print_json, table
from wardian.cli.remote import Address

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Runners: the code that runs agents, released at any time, beside environments that are frozen.",
)

Name = Annotated[str, typer.Argument(metavar="NAME", help="The runner's name, or its id.")]
Which = Annotated[str, typer.Argument(metavar="RELEASE", help="A release's digest, or how it begins.")]


@app.command(epilog=EXIT_CODES)
def release(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="With a runner.toml in it.")],
    *,
    name: Annotated[str | None, typer.Option(help="The runner; else the manifest says.")] = None,
    canary: Annotated[
        int | None, typer.Option(help="How many percent of new runs get it; all, if not said.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a release of a directory and print its digest. New runs get it."""
    from wardian.runners.archive import pack
    from wardian.runners.tree import read_directory

    with errors(as_json=as_json):
        packed = pack(read_directory(directory))
        told = remote.run(_release(address(context), packed, {"name": name, "canary": canary}))
        if as_json:
            print_json(told)
            return
        share = f"{told['share']} percent of new runs get it" if canary else "new runs get it"
        note(f"{told['name']}: version {told['releases'][0]['version']}; {share}")
        out.print(told["releases"][0]["release"])


@app.command("ls", epilog=EXIT_CODES)
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List runners by name."""
    with errors(as_json=as_json):
        found = remote.run(remote.ask(address(context), "GET", "/wardian/runners"))
        if as_json:
            print_json(found)
            return
        rows = [(each["name"], each["releases"][0]["version"], each["current"][:16]) for each in found]
        table(("NAME", "VERSION", "RELEASE"), rows)


@app.command(epilog=EXIT_CODES)
def show(context: typer.Context, name: Name, *, as_json: Json = False) -> None:
    """Show a runner's releases, the newest first, and who gets which."""
    with errors(as_json=as_json):
        _show(remote.run(remote.ask(address(context), "GET", _path(name))), as_json=as_json)


@app.command(epilog=EXIT_CODES)
def use(context: typer.Context, name: Name, release: Which, *, as_json: Json = False) -> None:
    """Let new runs get a release: an older one, to go back. Runs under way keep theirs."""
    with errors(as_json=as_json):
        body = {"release": release}
        told = remote.run(remote.ask(address(context), "POST", f"{_path(name)}/current", body))
        _show(told, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def canary(
    context: typer.Context,
    name: Name,
    release: Annotated[str | None, typer.Argument(metavar="[RELEASE]")] = None,
    *,
    share: Annotated[int, typer.Option(help="Percent of new runs; 0 ends it.")] = 10,
    as_json: Json = False,
) -> None:
    """Let a share of new runs get a release. Where it alone fails, it is rolled back."""
    with errors(as_json=as_json):
        body = {"release": release, "share": share}
        told = remote.run(remote.ask(address(context), "POST", f"{_path(name)}/canary", body))
        _show(told, as_json=as_json)


@app.command(epilog=EXIT_CODES)
def swap(
    context: typer.Context,
    sandbox: Annotated[str, typer.Argument(help="The sandbox's id.")],
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="The runner; else the one it has.")
    ] = None,
    *,
    release: Annotated[str | None, typer.Option(help="A release of it; else the current one.")] = None,
    as_json: Json = False,
) -> None:
    """Put a release beside a sandbox's environment: now, or when a paused one is resumed."""
    with errors(as_json=as_json):
        told = remote.run(_swap(address(context), sandbox, {"runner": name, "release": release}))
        if as_json:
            print_json(told)
        elif told["state"] == "at_resume":
            note(f"version {told['version']} is put in when the sandbox is resumed")
        else:
            note(f"version {told['version']} is at {told['path']} ({told['ms']} ms)")


@app.command("rm", epilog=EXIT_CODES)
def remove(
    context: typer.Context,
    name: Name,
    release: Annotated[str | None, typer.Argument(metavar="[RELEASE]", help="One release of it.")] = None,
    *,
    as_json: Json = False,
) -> None:
    """Remove a release, or a runner with all of them. Refused for what something needs."""
    with errors(as_json=as_json):
        path = _path(name) if release is None else f"{_path(name)}/releases/{quote(release, safe='')}"
        remote.run(remote.ask(address(context), "DELETE", path))
        if as_json:
            print_json({"name": name, "release": release, "removed": True})


async def _release(server: Address, packed: bytes, query: Any) -> Any:
    async with remote.connect(server) as there:
        return (await there.call("POST", "/wardian/runners", content=packed, query=query)).json()


async def _swap(server: Address, sandbox: str, body: Any) -> Any:
    async with remote.connect(server) as there:
        found = (await there.sandbox(sandbox))["sandboxID"]
        return (await there.call("POST", f"/wardian/sandboxes/{quote(found)}/runner", body=body)).json()


def _show(told: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(told)
        return
    rows = [
        (
            each["release"][:16],
            each["version"],
            each["language"],
            datetime.fromtimestamp(each["createdAt"] / 1e6).strftime("%Y-%m-%d %H:%M:%S"),
            _standing(told, each["release"]),
        )
        for each in told["releases"]
    ]
    table(("RELEASE", "VERSION", "LANGUAGE", "RELEASED", ""), rows)
    if (back := told["rolledBack"]) is not None:
        note(f"canary {back['release'][:16]} was rolled back after run {back['run']}: {back['why']}")


def _standing(told: Any, release: str) -> str:
    if release == told["current"]:
        return "current"
    if release == told["canary"]:
        return f"canary, {told['share']} %"
    return "previous" if release == told["previous"] else ""


def _path(name: str) -> str:
    return f"/wardian/runners/{quote(name, safe='')}"
