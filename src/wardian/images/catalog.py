"""The images this host has, in one cache directory that may be deleted at any time.

    packages/<key>.tar, .json   what mmdebstrap made of a recipe's packages, and the archives they came in
    images/<sha256>/            rootfs.erofs and manifest.json; named after the digest of the image file
    recipes/<key>               the digest of the image a recipe gave: the only way to an image by name
    fetching-*/                 what is being fetched; removed with its process, or by the next one

Everything is written beside its place and renamed into it, so a killed build leaves only rubbish that the
next one removes. One build runs at a time. :meth:`Catalog.prune` removes what nobody needs any more.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

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
from wardian.images.digests import file_digest
from wardian.images.oci.config import ImageConfig
from wardian.isolation.port import RootImage
from wardian.model.errors import Conflict, Unavailable
from wardian.store.durable import sync

ROOTFS, MANIFEST = "rootfs.erofs", "manifest.json"


@dataclass(frozen=True, slots=True)
class Manifest:
    """What an image is made of. Digests are ``sha256:<hex>``; ``tree`` is that of its files.

    ``packages`` are exact versions by name, ``archives`` the digests of the Debian archives they came in, and
    ``layer`` the cache key of their package layer. ``source`` and ``config`` are an OCI image's: where it
    came from, by digest, and how it wants to be run (:class:`ImageConfig` as JSON).
    """

    name: str
    suite: str
    recipe: str
    digest: str
    tree: str
    size_bytes: int
    packages: Mapping[str, str]
    archives: Mapping[str, str] = field(default_factory=dict)
    layer: str = ""
    source: str = ""
    config: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class BuiltImage:
    """An image in the cache: what a driver boots, and what it is made of."""

    root: RootImage
    manifest: Manifest

    @property
    def config(self) -> ImageConfig:
        """How the image wants to be run; nothing in particular, unless it came from elsewhere."""
        facts = self.manifest.config
        return ImageConfig.from_json(facts) if facts is not None else ImageConfig()


Make = Callable[[Path], Manifest]
"""Writes an image to the path it is given, and says what it is made of; digests and size are filled in."""


def default_cache() -> Path:
    """Where images are kept: ``WARDIAN_CACHE``, else the system's place for root, else the user's own."""
    if given := os.environ.get("WARDIAN_CACHE"):
        return Path(given)
    if os.geteuid() == 0:
        return Path("/var/cache/wardian")
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "wardian"


class Catalog:
    """The images in one cache directory.

        images/<digest>/        an image, and a manifest of it
        recipes/<key>           its digest
        recipes/<key>.json      the manifest that it has under this key

    Two keys may come to the same files and differ in their manifests: in how an image wants to be run, say.
    """

    def __init__(self, cache: Path | None = None) -> None:
        self.cache = cache or default_cache()

    def find(self, recipe: Recipe) -> BuiltImage | None:
        """The image of ``recipe`` if it is built. Reads two small files."""
        return self.find_key(recipe.key)

    def find_key(self, key: str) -> BuiltImage | None:
        """The image that was made under ``key``."""
        pointer = self.cache / "recipes" / key
        try:
            directory = self.cache / "images" / pointer.read_text().strip()
            own = pointer.with_suffix(".json")
            text = (own if own.exists() else directory / MANIFEST).read_text()
            manifest = Manifest(**json.loads(text))
            if (directory / ROOTFS).stat().st_size != manifest.size_bytes:
                return None
        except FileNotFoundError:
            return None
        return BuiltImage(RootImage(directory / ROOTFS, manifest.digest), manifest)

    def build(self, recipe: Recipe, report: Report = lambda words, fraction: None) -> BuiltImage:
        """The image of ``recipe``, built if need be (half a minute, then two seconds, then nothing)."""
        return self.make(recipe.key, lambda out: self._from_packages(recipe, out, report), report)

    def make(self, key: str, make: Make, report: Report = lambda words, fraction: None) -> BuiltImage:
        """The image under ``key``, made if need be. A key is a hexadecimal digest of all that decides."""
        if found := self.find_key(key):
            return found
        with self._lock():
            if found := self.find_key(key):  # made while we waited for our turn
                return found
            with self._scratch() as scratch:
                (made := scratch / "image").mkdir()
                manifest = make(made / ROOTFS)
                report("checking the image", 0.98)
                self._keep(key, made, manifest)
            found = self.find_key(key)
            assert found is not None
        report("done", 1.0)
        return found

    def prune(self, keep: Collection[str]) -> list[str]:
        """Remove every image whose digest is not in ``keep``, but for ``base``; return what was removed.

        With them go the names that led to them and the package layers that only they were made of. Who has
        an image open, or a hard link to it (:class:`Roots`), keeps it.
        """
        with self._lock():
            base = self.find(base_recipe())
            kept = {digest.removeprefix("sha256:") for digest in keep}
            kept |= {base.manifest.digest.removeprefix("sha256:")} if base else set()
            images = {path.name: path for path in self.cache.glob("images/*")}
            gone = [path for name, path in images.items() if name not in kept]
            layers = {_layer_of(path) for name, path in images.items() if name in kept}
            for pointer in self.cache.glob("recipes/*"):
                if not pointer.suffix and pointer.read_text().strip() not in kept:
                    pointer.unlink()
                    pointer.with_suffix(".json").unlink(missing_ok=True)
            for path in gone:
                shutil.rmtree(path)
            for path in self.cache.glob("packages/*"):
                if path.stem not in layers:
                    path.unlink()
        return sorted(f"sha256:{path.name}" for path in gone)

    def verify(self, image: BuiltImage) -> None:
        """Read the whole image. Raises :class:`Conflict` when it is not what its manifest says."""
        if (found := file_digest(image.root.path)) != image.manifest.digest:
            raise Conflict(
                f"{image.root.path} is damaged: {found} instead of {image.manifest.digest}",
                code="image_damaged",
                hint=f"remove {image.root.path.parent} and build it again",
            )

    def _from_packages(self, recipe: Recipe, out: Path, report: Report) -> Manifest:
        layer = self.cache / "packages" / f"{recipe.packages_key}.tar"
        archives = layer.with_suffix(".json")
        scratch = out.parent.parent
        if not (layer.exists() and archives.exists()):
            digests = build_packages(recipe, scratch / layer.name, report)
            (scratch / archives.name).write_text(json.dumps(digests))
            _publish(scratch / layer.name, layer)
            _publish(scratch / archives.name, archives)
        report("unpacking the root file system", 0.85)
        tree = scratch / "tree"
        tree.mkdir()
        unpack(layer, recipe.files, tree)
        report("writing the image", 0.91)
        erofs.make_image(tree, out, prefix=as_root())
        return Manifest(
            name=recipe.name,
            suite=recipe.suite,
            recipe=f"sha256:{recipe.key}",
            digest="",
            tree="",
            size_bytes=0,
            packages=installed_packages(layer),
            archives=json.loads(archives.read_text()),
            layer=recipe.packages_key,
        )

    def _keep(self, key: str, made: Path, manifest: Manifest) -> None:
        with erofs.Image(made / ROOTFS) as image:
            tree = image.tree_digest()
        size, digest = (made / ROOTFS).stat().st_size, file_digest(made / ROOTFS)
        full = json.dumps(asdict(replace(manifest, digest=digest, tree=tree, size_bytes=size)), indent=1)
        (made / MANIFEST).write_text(full)
        name = digest.removeprefix("sha256:")
        place = self.cache / "images" / name
        if place.exists():  # damaged, or made by another recipe too; who has it open keeps what they have
            shutil.rmtree(place)
        _publish(made, place)
        for suffix, text in ((".json", full), ("", f"{name}\n")):
            (draft := made.with_name("pointer")).write_text(text)
            _publish(draft, (self.cache / "recipes" / key).with_suffix(suffix))

    @contextmanager
    def room(self) -> Iterator[Path]:
        """A directory for what is being fetched, removed afterwards; what dead processes left goes first.

        Needs no turn: others may build meanwhile.
        """
        self.cache.mkdir(parents=True, exist_ok=True)
        for left in self.cache.glob("fetching-*"):
            with _held(left) as ours:
                if ours:
                    shutil.rmtree(left, ignore_errors=True)
        room = Path(tempfile.mkdtemp(prefix="fetching-", dir=self.cache))
        with _held(room):
            try:
                yield room
            finally:
                shutil.rmtree(room, ignore_errors=True)

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


@contextmanager
def _held(directory: Path) -> Iterator[bool]:
    """Hold a directory for as long as this process lives. False if another does, or it is gone."""
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        yield False
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        held = True
    except OSError:
        held = False
    try:
        yield held
    finally:
        os.close(descriptor)


def _layer_of(image: Path) -> str:
    """The key of the package layer that the image in this directory was made of, if any."""
    layer: str = json.loads((image / MANIFEST).read_text()).get("layer", "")
    return layer


def _publish(made: Path, place: Path) -> None:
    """Move a finished file or directory into its place, durably: contents first, then the name."""
    for path in sorted(made.rglob("*")) if made.is_dir() else [made]:
        sync(path)
    place.parent.mkdir(parents=True, exist_ok=True)
    made.rename(place)
    sync(place.parent)


def _remove(directory: Path) -> None:
    if as_root():  # a tree unpacked in a user namespace belongs to ids that only exist there
        subprocess.run([*as_root(), "rm", "-rf", str(directory)], check=True)
    shutil.rmtree(directory, ignore_errors=True)
