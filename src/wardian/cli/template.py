"""``wardian template``: what sandboxes can be made from."""

from __future__ import annotations

import time
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from wardian.cli import remote
from wardian.cli.output import EXIT_CODES, Json, err, errors, note, out, print_json, table
from wardian.cli.remote import Address
from wardian.cli.sandbox import address
from wardian.images.base import base_recipe
from wardian.images.catalog import BuiltImage, Catalog
from wardian.model.errors import NotFound

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    help="List templates, and build the image of the base one.",
)


@app.command("ls", epilog=EXIT_CODES)
def list_(context: typer.Context, *, as_json: Json = False) -> None:
    """List the templates a sandbox can be created from."""
    with errors(as_json=as_json):
        found = remote.run(_list(address(context)))
        if as_json:
            print_json(found)
            return
        columns = ("TEMPLATE", "ID", "CPUS", "MEMORY", "DISK", "CREATED")
        rows = [
            (
                ", ".join(item.get("aliases") or []) or "-",
                item["templateID"],
                str(item["cpuCount"]),
                f"{item['memoryMB']} MiB",
                f"{item['diskSizeMB']} MiB",
                item["createdAt"][:19].replace("T", " "),
            )
            for item in found
        ]
        table(columns, rows)


async def _list(server: Address) -> list[dict[str, Any]]:
    async with remote.connect(server) as there:
        found: list[dict[str, Any]] = (await there.call("GET", "/templates")).json()
        return found


@app.command(epilog=EXIT_CODES)
def build(
    name: Annotated[str, typer.Argument(help="The template whose image to build.")] = "base",
    *,
    as_json: Json = False,
) -> None:
    """Build a template's image on this host, from Debian's packages; needs no server.

    Takes about half a minute once and nothing the next time. Images are kept in WARDIAN_CACHE
    (default /var/cache/wardian, or ~/.cache/wardian when not root).
    """
    with errors(as_json=as_json):
        if name != "base":
            raise NotFound(f"no recipe for a template {name!r}", hint="there is `base`")
        started = time.monotonic()
        image = _build()
        facts = {
            "name": name,
            "path": str(image.root.path),
            "digest": image.manifest.digest,
            "tree": image.manifest.tree,
            "sizeBytes": image.manifest.size_bytes,
            "packages": len(image.manifest.packages),
        }
        if as_json:
            print_json(facts)
            return
        out.print(str(image.root.path), soft_wrap=True)
        size = f"{image.manifest.size_bytes / 1e6:.0f} MB"
        note(f"{size}, {len(image.manifest.packages)} packages, {time.monotonic() - started:.1f} s")


def _build() -> BuiltImage:
    catalog, recipe = Catalog(), base_recipe()
    if found := catalog.find(recipe):
        return found
    columns = (SpinnerColumn(), TextColumn("{task.description:38}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("starting", total=1.0)

        def report(words: str, fraction: float) -> None:
            progress.update(task, description=words, completed=fraction)
            if not err.is_terminal:
                note(f"  {fraction:4.0%}  {words}")

        return catalog.build(recipe, report)
