"""Image caches for tests: of their own, so that no build of anybody else's holds them up."""

from __future__ import annotations

import subprocess
from pathlib import Path

from wardian.images.catalog import base_image, default_cache


def own_cache(cache: Path) -> Path:
    """A new cache at ``cache`` in which `base` is, by hard links where they are possible."""
    assert base_image()
    cache.mkdir()
    kept = [default_cache() / name for name in ("images", "recipes", "packages")]
    linked = subprocess.run(["cp", "-al", *kept, cache], capture_output=True)
    if linked.returncode:  # another file system
        subprocess.run(["cp", "-a", *kept, cache], check=True)
    return cache
