"""The images this host has, in one cache directory that may be deleted at any time.

    packages/<key>.tar          what mmdebstrap made of a recipe's packages
    images/<sha256>/            rootfs.erofs and manifest.json; named after the digest of the image file
    recipes/<key>               the digest of the image a recipe gave: the only way to an image by name

Everything is written beside its place and renamed into it, so a killed build leaves only rubbish that the
next one removes. One build runs at a time.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from wardian.images import erofs
from wardian.images.base import (
    ExtraFile,
    Recipe,
    Report,
    as_root,
    base_recipe,
    build_packages,
    installed_packages,
    unpack,
)
from wardian.isolation.port import RootImage
from wardian.model.errors import Conflict, Unavailable

ROOTFS, MANIFEST = "rootfs.erofs", "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image is made of. Digests are ``sha256:<hex>``; ``tree`` is that of its files."""

    name: str
    suite: str
    recipe: str
    digest: str
    tree: str
    size_bytes: int
    packages: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in the cache: what a driver boots, and what it is made of."""

    root: RootImage
    manifest: Manifest


def default_cache() -> Path:
    """Where images are kept: ``WARDIAN_CACHE``, else the system's place for root, else the user's own."""
    if given := os.environ.get("WARDIAN_CACHE"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/cache/wardian")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wardian"


class Catalog:
    """The images in one cache directory."""

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or default_cache()

    def find(self, recipe: Recipe) -> BuiltImage | None:
        """The image of ``recipe`` if it is built. Reads two small files."""
        pointer = self.cache / "recipes" / recipe.key
        try:
            directory = self.cache / "images" / pointer.read_text().strip()
            manifest = Manifest(**json.loads((directory / MANIFEST).read_text()))
            if (directory / ROOTFS).stat().st_size != manifest.size_bytes:
                return None
        except FileNotFoundError:
            return None
        return BuiltImage(RootImage(directory / ROOTFS, manifest.digest), manifest)

    def build(self, recipe: Recipe, report: Report = lambda words, fraction: None) -> BuiltImage:
        """The image of ``recipe``, built if need be (half a minute, then two seconds, then nothing)."""
        with self._lock():
            if found := self.find(recipe):
                return found
            packages = self.cache / "packages" / f"{recipe.packages_key}.tar"
            if not packages.exists():
                with self._scratch() as scratch:
                    build_packages(recipe, scratch / "packages.tar", report)
                    _publish(scratch / "packages.tar", packages)
            return self._assemble(recipe, packages, report)

    def verify(self, image: BuiltImage) -> None:
        """Read the whole image. Raises :class:`Conflict` when it is not what its manifest says."""
        if (found := _file_digest(image.root.path)) != image.manifest.digest:
            raise Conflict(
                f"{image.root.path} is damaged: {found} instead of {image.manifest.digest}",
                code="image_damaged",
                hint=f"remove {image.root.path.parent} and build it again",
            )

    def _assemble(self, recipe: Recipe, packages: Path, report: Report) -> BuiltImage:
        with self._scratch() as scratch:
            report("unpacking the root file system", 0.85)
            tree = scratch / "tree"
            tree.mkdir()
            unpack(packages, recipe.files, tree)
            report("writing the image", 0.91)
            made = scratch / "image"
            made.mkdir()
            erofs.make_image(tree, made / ROOTFS, prefix=as_root())
            report("checking the image", 0.98)
            with erofs.Image(made / ROOTFS) as image:
                tree_digest = image.tree_digest()
            manifest = Manifest(
                name=recipe.name,
                suite=recipe.suite,
                recipe=f"sha256:{recipe.key}",
                digest=_file_digest(made / ROOTFS),
                tree=tree_digest,
                size_bytes=(made / ROOTFS).stat().st_size,
                packages=installed_packages(packages),
            )
            (made / MANIFEST).write_text(json.dumps(asdict(manifest), indent=1))
            name = manifest.digest.removeprefix("sha256:")
            place = self.cache / "images" / name
            if place.exists():  # damaged, or its pointer was lost; who has it open keeps what they have
                shutil.rmtree(place)
            _publish(made, place)
            (scratch / "pointer").write_text(name + "\n")
            _publish(scratch / "pointer", self.cache / "recipes" / recipe.key)
        report("done", 1.0)
        found = self.find(recipe)
        assert found is not None
        return found

    @contextmanager
    def _lock(self) -> Iterator[None]:
        self.cache.mkdir(parents=True, exist_ok=True)
        with (self.cache / "lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    @contextmanager
    def _scratch(self) -> Iterator[Path]:
        """A directory in the cache, removed afterwards; what killed builds left is removed first."""
        for left in self.cache.glob("building-*"):
            _remove(left)
        scratch = Path(tempfile.mkdtemp(prefix="building-", dir=self.cache))
        try:
            yield scratch
        finally:
            _remove(scratch)


def base_image(cache: Path | None = None) -> BuiltImage:
    """The image of the ``base`` template. Raises :class:`Unavailable` when it has not been built here."""
    if found := Catalog(cache).find(base_recipe()):
        return found
    raise Unavailable(
        "the base image has not been built on this host",
        code="image_missing",
        hint="run `wardian template build base` (about half a minute)",
    )


def with_files(recipe: Recipe, files: Mapping[str, ExtraFile]) -> Recipe:
    """``recipe`` with more files laid over it, by path from the root; later ones win."""
    return replace(recipe, files={**recipe.files, **{path.lstrip("/"): file for path, file in files.items()}})


def _publish(made: Path, place: Path) -> None:
    """Move a finished file or directory into its place, durably: contents first, then the name."""
    for path in sorted(made.rglob("*")) if made.is_dir() else [made]:
        _sync(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    made.rename(place)
    _sync(place.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(directory: Path) -> None:
    if as_root():  # a tree unpacked in a user namespace belongs to ids that only exist there
        subprocess.run([*as_root(), "rm", "-rf", str(directory)], check=True)
    shutil.rmtree(directory, ignore_errors=True)


def _file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
