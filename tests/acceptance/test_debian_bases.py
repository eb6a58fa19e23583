"""Debian bases from the real archive: the same again from a lock's versions, and errors that name things.

Needs the host's Debian mirror. Under a minute on a quiet machine.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from wardian.images.bases import Bases
from wardian.images.catalog import Catalog, base_image
from wardian.model.errors import NotFound

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_the_same_files_come_again_from_every_version(tmp_path: Path) -> None:
    """With what the manifest of `base` lists, asked for in another way and built from nothing."""
    base = base_image()
    assert base.manifest.archives.keys() == base.manifest.packages.keys()
    pinned = [f"{name}={version}" for name, version in base.manifest.packages.items()]
    again = Bases(Catalog(tmp_path)).debian("bookworm", pinned)
    assert again.manifest.recipe != base.manifest.recipe
    assert again.manifest.packages == base.manifest.packages
    assert again.manifest.tree == base.manifest.tree


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("package", "words"),
    [
        ("wardian-absent", r"Debian bookworm has no package 'wardian-absent'"),
        ("less=0.1", r"no longer has less 0\.1: it has \d"),
    ],
)
def test_what_the_archive_does_not_have_is_named(tmp_path: Path, package: str, words: str) -> None:
    with pytest.raises(NotFound, match=words):
        Bases(Catalog(tmp_path)).debian("bookworm", [package])
