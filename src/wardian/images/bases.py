"""Bases: what the first step of a build stands on, as root images in the catalog."""

from __future__ import annotations

from collections.abc import Iterable

from wardian.images.base import Report, debian_recipe
from wardian.images.catalog import BuiltImage, Catalog


class Bases:
    """Makes bases, or finds them in the catalog. Every method blocks, for seconds or minutes: use a thread."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    def debian(
        self, suite: str, packages: Iterable[str], report: Report = lambda words, fraction: None
    ) -> BuiltImage:
        """A Debian of that suite with all that ``base`` has, and these packages (``name``, ``name=version``).

        With every package of an earlier image's manifest pinned, its very files come again. Raises
        :class:`Invalid` for what can be no package, :class:`NotFound` for a package or a version that the
        archive does not have.
        """
        return self._catalog.build(debian_recipe("debian", suite, packages), report)
