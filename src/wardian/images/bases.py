"""Bases: what the first step of a build stands on, as root images in the catalog."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from wardian.images.base import Report, base_recipe
from wardian.images.catalog import BuiltImage, Catalog
from wardian.model.errors import Unsupported


class Bases:
    """Makes bases, or finds them in the catalog. Every method blocks, for seconds or minutes: use a thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def debian(self, suite: str, packages: Iterable[str], report: Report) -> BuiltImage:
        """A Debian of that suite with all that ``base`` has, and these packages."""
        recipe = base_recipe()
        names = tuple(sorted({*recipe.packages, *packages}))
        if suite != recipe.suite or names != tuple(sorted(recipe.packages)):
            recipe = replace(recipe, name="debian", suite=suite, packages=names)
        return self._catalog.build(recipe, report)

    def image(self, reference: str, *, username: str, password: str, report: Report) -> BuiltImage:
        """An OCI image as a root image."""
        raise Unsupported(f"this server cannot fetch images: {reference}", code="no_images")
