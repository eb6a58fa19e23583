"""An image in which something is that its build was lent is refused, however it is written there."""

from __future__ import annotations

import base64
import gzip
from pathlib import Path
from urllib.parse import quote

import pytest

from wardian.builds.lent import LentSecretKept, check
from wardian.images.erofs import make_image

SECRET = "p@ss/wörd"


@pytest.mark.parametrize(
    "content",
    [
        SECRET.encode(),
        b"https_proxy=http://me:" + quote(SECRET, safe="").encode() + b"@h:1",
        b"Basic " + base64.b64encode(f"me:{SECRET}".encode()),
        b"x" * 5000 + gzip.compress(SECRET.encode() * 100),
    ],
)
def test_a_file_that_holds_it_is_named(tmp_path: Path, content: bytes) -> None:
    (tree := tmp_path / "tree").mkdir()
    (tree / "innocent").write_bytes(b"x" * 10_000)
    make_image(tree, tmp_path / "clean.erofs")
    check(tmp_path / "clean.erofs", {"the password": SECRET, "too short to tell": "x"})
    (tree / "kept.conf").write_bytes(content)
    make_image(tree, tmp_path / "image.erofs")
    with pytest.raises(LentSecretKept, match=r"was lent: the password .*/kept\.conf") as caught:
        check(tmp_path / "image.erofs", {"the password": SECRET})
    assert SECRET not in str(caught.value)
