"""The image of the base template, built on this host without a server."""

from __future__ import annotations

import time

from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from wardian.cli.output import err, note, out, print_json
from wardian.images.base import base_recipe
from wardian.images.catalog import BuiltImage, Catalog


def build_base(*, as_json: bool) -> None:
    """Build the image, unless there is one, and say what it is."""
    started = time.monotonic()
    image = _base_image()
    facts = {
        "name": "base",
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


def _base_image() -> BuiltImage:
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
