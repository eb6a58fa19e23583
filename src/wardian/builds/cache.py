"""The layers of steps that were carried out before, by key. May be deleted at any time.

    <directory>/<tenant>/<key>.tar      what differs from the root image after a step
    <directory>/<tenant>/<key>.root     the digest of the root image that was composed of it

Tenants have a directory each: what a command of one wrote is nothing that another should be handed, even
when both said the same words. A layer is everything that differs from the root image, so the deepest one is
enough. The least recently used go when all of them together outgrow the bound.
"""

from __future__ import annotations

import os
from pathlib import Path

BYTES_MAX = 16 << 30


class LayerCache:
    """One directory of layers."""

    def __init__(self, directory: Path, *, bytes_max: int = BYTES_MAX) -> None:
        self._directory = directory
        self._bytes_max = bytes_max

    def find(self, tenant: str, key: str) -> Path | None:
        """The layer with this key, marked as used now."""
        path = self.place(tenant, key)
        try:
            os.utime(path)
        except FileNotFoundError:
            return None
        return path

    def place(self, tenant: str, key: str) -> Path:
        """Where the layer with this key belongs. Whoever makes it renames it there whole."""
        return self._directory / tenant / f"{key}.tar"

    def alias(self, layer: Path, tenant: str, key: str) -> Path:
        """Let a layer stand for another key, too: the step of that key changed no file."""
        path = self.place(tenant, key)
        if not path.exists():
            os.link(layer, path)
        return path

    def composed(self, tenant: str, key: str) -> str | None:
        """The digest of the image that was composed of the layer with this key."""
        try:
            return self._composed(tenant, key).read_text()
        except FileNotFoundError:
            return None

    def note_composed(self, tenant: str, key: str, digest: str) -> None:
        """Remember that digest."""
        path = self._composed(tenant, key)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(digest)
        draft.rename(path)

    def _composed(self, tenant: str, key: str) -> Path:
        return self.place(tenant, key).with_suffix(".root")

    def tidy(self) -> None:
        """Remove what a server that was killed left half-written. Not while a build goes on."""
        for path in self._directory.glob("*/*"):
            if path.name.startswith(".") or path.suffix not in (".tar", ".root"):
                path.unlink(missing_ok=True)

    def prune(self) -> None:
        """Remove the least recently used layers until the rest is within the bound."""
        found = sorted(
            ((stat.st_mtime_ns, stat.st_size, path) for path, stat in self._layers()), reverse=True
        )
        total = 0
        for _, size, path in found:
            total += size
            if total > self._bytes_max:
                path.unlink(missing_ok=True)
                path.with_suffix(".root").unlink(missing_ok=True)

    def _layers(self) -> list[tuple[Path, os.stat_result]]:
        layers = []
        for path in self._directory.glob("*/*.tar"):
            try:
                layers.append((path, path.stat()))
            except FileNotFoundError:
                continue
        return layers
