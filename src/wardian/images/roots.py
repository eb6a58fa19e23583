"""The root images that a server's sandboxes stand on, kept for as long as its data directory is.

The image cache may be deleted at any time; a paused sandbox must not go with it. So an image is linked
here, or copied from another file system, when it is first used.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Set
from pathlib import Path

from wardian.images.catalog import BuiltImage, Catalog
from wardian.isolation.port import RootImage
from wardian.model.errors import Unavailable

_DRAFT = ".adopting-"


class Roots:
    """One directory of root images, by digest."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, digest: str) -> RootImage:
        """The image with this digest. Raises :class:`Unavailable`."""
        path = self._path(digest)
        if not path.exists():
            raise Unavailable(
                f"the root image {digest} is gone from {self._directory}",
                code="root_image_missing",
                hint="it cannot be made again bit by bit; put it back from a copy of the data directory",
            )
        return RootImage(path, digest)

    def known(self, digest: str) -> RootImage | None:
        """The image with this digest, if it is here."""
        path = self._path(digest)
        return RootImage(path, digest) if path.exists() else None

    def adopt(self, image: BuiltImage, catalog: Catalog) -> RootImage:
        """Keep ``image``. Checked against its digest the first time."""
        path = self._path(image.root.digest)
        if not path.exists():
            catalog.verify(image)
            self._directory.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=_DRAFT, dir=self._directory) as scratch:
                draft = Path(scratch) / "image"
                try:
                    os.link(image.root.path, draft)
                except OSError:
                    shutil.copyfile(image.root.path, draft)
                draft.rename(path)
        return RootImage(path, image.root.digest)

    def take(self, image: Path, digest: str) -> RootImage:
        """Keep a file that was just written beside the roots, on the same file system, by its name."""
        path = self._path(digest)
        self._directory.mkdir(parents=True, exist_ok=True)
        if path.exists():
            image.unlink()
        else:
            image.rename(path)
        return RootImage(path, digest)

    def collect(self, used: Set[str]) -> None:
        """Remove every image whose digest is not among ``used``, and drafts that a killed server left.

        Machines that have one open keep it. Not while an image is adopted.
        """
        for draft in self._directory.glob(f"{_DRAFT}*"):
            shutil.rmtree(draft, ignore_errors=True)
        for path in self._directory.glob("*.erofs"):
            if f"sha256:{path.stem}" not in used:
                path.unlink(missing_ok=True)

    def _path(self, digest: str) -> Path:
        return self._directory / f"{digest.removeprefix('sha256:')}.erofs"
