"""An image in which something is that its build was lent is refused, however it is written there."""

from __future__ import annotations

import base64
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wardian.builds.lent import SHORTEST, LentSecretKept, check, forms
from wardian.images.erofs import make_image

SECRET = "p@ss/wörd"


@pytest.mark.parametrize(
    "content",
    [
        SECRET.encode(),
        b"https_proxy=http://me:" + quote(SECRET, safe="").encode() + b"@h:1",
        b"Basic " + base64.b64encode(f"me:{SECRET}".encode()),
        b"x" * 5000 + base64.b64encode(f"user:{SECRET}@".encode()),
    ],
)
def test_a_file_that_holds_it_is_named(tmp_path: Path, content: bytes) -> None:
    (tree := tmp_path / "tree").mkdir()
    (tree / "innocent").write_bytes(b"x" * 10_000)
    make_image(tree, tmp_path / "clean")
    check(tmp_path / "clean", {"the password": SECRET, "short": "x" * (SHORTEST - 1)})
    (tree / "kept.conf").write_bytes(content)
    make_image(tree, tmp_path / "image")
    with pytest.raises(LentSecretKept, match=r"/kept\.conf holds what this build was lent: the password"):
        check(tmp_path / "image", {"the password": SECRET})


@given(st.text(min_size=12), st.binary(max_size=10), st.binary(max_size=10))
def test_base64_is_found_in_the_middle_of_anything(secret: str, before: bytes, after: bytes) -> None:
    encoded = base64.b64encode(before + secret.encode("utf-8", "replace") + after)
    assert any(shape in encoded for shape in forms(secret.encode("utf-8", "replace").decode()))
