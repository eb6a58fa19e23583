"""``wardian template``: what sandboxes can be made from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote

import typer
from rich.text import Text

from wardian.cli import remote
from wardian.cli.arguments import address, pairs
from wardian.cli.output import EXIT_CODES, Json, errors, note, out, print_json, table
from wardian.cli.remote import Address
from wardian.model.isolation import isolation_of

BASE = "base"

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="Build templates from a manifest, list and compare them.",
)

Reference = Annotated[str, typer.Argument(help="A template: [namespace/]name[:tag], or its id.")]


@app.command("ls", epilog=EXIT_CODES)
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List the templates a sandbox can be created from."""
    with errors(as_json=as_json):
        found = remote.run(_get(address(context), "/templates"))
        if as_json:
            print_json(found)
            return
        columns = ("TEMPLATE", "ID", "STATUS", "CPUS", "MEMORY", "DISK", "UPDATED")
        rows = [
            (
                ", ".join(item.get("aliases") or []) or "-",
                item["templateID"],
                item["buildStatus"],
                str(item["cpuCount"]),
                f"{item['memoryMB']} MiB",
                f"{item['diskSizeMB']} MiB",
                item["updatedAt"][:19].replace("T", " "),
            )
            for item in found
        ]
        table(columns, rows)


@app.command("rm", epilog=EXIT_CODES)
def remove(context: typer.Context, template: Reference, *, as_json: Json = False) -> None:
    """Delete a template and all its builds. Refused while a sandbox stands on it."""
    with errors(as_json=as_json):
        remote.run(_call(address(context), "DELETE", f"/templates/{quote(template, safe='')}"))


@app.command(epilog=EXIT_CODES)
def tag(
    context: typer.Context,
    template: Reference,
    tags: Annotated[list[str], typer.Argument(help="Tags to give it.")],
    *,
    as_json: Json = False,
) -> None:
    """Give a build more tags: `tag web:default stable 1.4` makes `web:stable` and `web:1.4` name it, too."""
    with errors(as_json=as_json):
        body = {"target": template, "tags": tags}
        told = remote.run(_call(address(context), "POST", "/templates/tags", body))
        if as_json:
            print_json(told)


@app.command(epilog=EXIT_CODES)
def inspect(context: typer.Context, template: Reference, *, as_json: Json = False) -> None:
    """Show what a template is made of, and what runs in it."""
    with errors(as_json=as_json):
        told = remote.run(_build_of(address(context), template))
        if as_json:
            print_json(told)
            return
        around, lock = told["surroundings"], told["lock"] or {}
        rows = [
            ("template", f"{', '.join(told['names'])} ({told['templateID']})"),
            ("build", told["buildID"]),
            ("files", told["tree"]),
            ("image", told["image"]),
            ("base", ", ".join(f"{k} {v}" for k, v in (lock.get("base") or {}).items()) or "-"),
            ("packages", ", ".join(f"{len(v)} {k}" for k, v in (lock.get("packages") or {}).items()) or "-"),
            ("resources", _resources(told["resources"])),
            ("user", around["user"]),
            ("directory", around["workdir"] or "the user's home"),
            ("environment", " ".join(f"{k}={v}" for k, v in around["env"].items()) or "-"),
            ("start", told["start"] or "-"),
            ("ready", told["ready"] or "-"),
        ]
        for what, value in rows:
            out.print(f"{what:12} {value}", soft_wrap=True, markup=False)


@app.command(epilog=EXIT_CODES)
def explain(
    context: typer.Context,
    old: Reference,
    new: Reference,
    *,
    paths: Annotated[
        int, typer.Option("--paths", min=0, max=1000, help="How many of the paths that differ are shown.")
    ] = 20,
    as_json: Json = False,
) -> None:
    """Say what differs between two templates, and why: files, packages, base, steps, environment, start.

    Ends with 0 when they are the same bytes, run in the same way, and with 1 when they are not.
    """
    from wardian.builds import explaining

    with errors(as_json=as_json):
        one, other, files = remote.run(_differences(address(context), old, new, paths))
        settings = explaining.settings(one, other)
        same_files = one["tree"] == other["tree"]
        why = [] if same_files else explaining.reasons(one, other)
        if as_json:
            print_json(
                {"same": same_files and not settings, "files": files, "why": why, "settings": settings}
            )
        elif same_files:
            out.print(f"the same files, byte for byte: {one['tree']}", soft_wrap=True)
        else:
            _print_list("files", explaining.files(files))
            _print_list("why", why)
        for line in () if as_json else settings:
            out.print(line, soft_wrap=True, markup=False)
    if settings or not same_files:
        raise typer.Exit(1)


@app.command(epilog=EXIT_CODES)
def build(
    context: typer.Context,
    directory: Annotated[
        str, typer.Argument(metavar="[DIR]", help="The directory with the manifest (or: base).")
    ] = ".",
    *,
    name: Annotated[str | None, typer.Option("--name", "-n", help="The template's name.")] = None,
    tags: Annotated[list[str] | None, typer.Option("--tag", "-t", help="A tag; may be repeated.")] = None,
    file: Annotated[str | None, typer.Option("--file", "-f", help="The manifest, in that directory.")] = None,
    arguments: Annotated[
        list[str] | None, typer.Option("--build-arg", help="NAME=value for an ARG; may be repeated.")
    ] = None,
    cpus: Annotated[int | None, typer.Option(help="Cores of each sandbox.")] = None,
    memory: Annotated[int | None, typer.Option(help="Memory of each sandbox, in MiB.")] = None,
    disk: Annotated[int | None, typer.Option(help="What each sandbox may write, in MiB.")] = None,
    isolation: Annotated[
        str | None, typer.Option(help="What it is built in, and its sandboxes get: auto, microvm, gvisor.")
    ] = None,
    builtin: Annotated[
        bool, typer.Option("--builtin", help="DIR is the name of a template that comes with Wardian.")
    ] = False,
    house: Annotated[
        bool, typer.Option("--house", help="For every tenant, as the house's own: the operator's key only.")
    ] = False,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Do every step again.")] = False,
    locked: Annotated[bool, typer.Option("--locked", help="Build what wardian.lock says, or fail.")] = False,
    as_json: Json = False,
) -> None:
    """Build a template from the manifest in a directory: wardian.toml, Dockerfile or pyproject.toml.

    The server does the work, in sandboxes; what has not changed since the last time is not done again.
    Writes `wardian.lock` beside the manifest: with `--locked`, the same bytes come of it, or an error.

    `wardian template build --house --builtin code-interpreter-v1` (or `desktop`) builds what comes with
    Wardian, for every tenant. Nobody but the operator can change what is built with `--house`.

    `wardian template build base` is another thing: it builds the image of the base template on this host,
    from Debian's packages (half a minute, once), and needs no server.
    """
    with errors(as_json=as_json):
        if directory == BASE and not Path(BASE).is_dir():
            from wardian.cli.base_image import build_base  # late: other commands make no images

            build_base(as_json=as_json)
            return
        from wardian.builds import builtin as builtins  # late: other commands read no manifests
        from wardian.cli import building

        wanted = building.Wanted(
            directory=builtins.directory(directory) if builtin else Path(directory),
            file=file,
            name=name,
            tags=tags or (),
            arguments=pairs(arguments or (), "--build-arg"),
            cpus=cpus,
            memory_mib=memory,
            disk_mib=disk,
            isolation=None if isolation is None else isolation_of(isolation),
            cached=not no_cache,
            locked=locked,
            house=house,
            lock=_builtin_lock(directory) if builtin else None,
        )
        started = time.monotonic()
        outcome = remote.run(building.build(address(context), wanted, quiet=as_json))
        facts = building.facts_of(outcome)
        if as_json:
            print_json(facts)
            return
        out.print(", ".join(facts["names"]) or facts["templateID"], soft_wrap=True)
        warm = ", warm" if facts["warm"] else ""
        note(f"{facts['tree']}{warm}, {time.monotonic() - started:.1f} s; lock: {facts['lock']}")


def _builtin_lock(name: str) -> Path:
    from wardian.images.catalog import default_cache  # late: the same

    place = default_cache() / "locks"
    place.mkdir(parents=True, exist_ok=True)
    return place / f"{name}.lock"


async def _get(server: Address, path: str) -> Any:
    async with remote.connect(server) as there:
        return (await there.call("GET", path)).json()


async def _call(server: Address, method: str, path: str, body: Any = None) -> Any:
    async with remote.connect(server) as there:
        answer = await there.call(method, path, body=body)
        return answer.json() if answer.content else None


async def _build_of(server: Address, reference: str) -> dict[str, Any]:
    told: dict[str, Any] = await _get(server, f"/wardian/builds/{quote(reference)}")
    return told


def _print_list(title: str, lines: Sequence[str]) -> None:
    out.print(Text(f"{title}:", style="bold"))
    for line in lines:
        out.print(f"  {line}", soft_wrap=True, markup=False)


async def _differences(
    server: Address, old: str, new: str, paths: int
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """What is told of both builds, and of what differs in their files."""
    async with remote.connect(server) as there:
        one, other = [
            (await there.call("GET", f"/wardian/builds/{quote(each)}")).json() for each in (old, new)
        ]
        query = {"old": one["buildID"], "new": other["buildID"], "paths": paths}
        return one, other, (await there.call("GET", "/wardian/differences", query=query)).json()


def _resources(told: dict[str, Any]) -> str:
    return f"{told['cpu_count']} cores, {told['memory_mib']} MiB memory, {told['disk_mib']} MiB disk"
