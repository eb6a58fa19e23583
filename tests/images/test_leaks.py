"""The search for secrets finds them: or the tests that find none would say nothing."""

from __future__ import annotations

import base64
import bz2
import gzip
import io
import lzma
import zipfile
from pathlib import Path

import zstandard
from tests.images.leaks import leaks

from wardian.images.erofs import make_image

TOKEN = "hunter2/token"


def test_secrets_are_found_wherever_they_are(tmp_path: Path) -> None:
    """In a file across its blocks, in a link, in a name; not where packages carry them themselves."""
    tree = tmp_path / "tree"
    (tree / "usr/share/doc").mkdir(parents=True)
    (tree / "conf").write_bytes(b"x" * 4090 + b"hunter2-token" + b"x" * 4096)
    (tree / "link").symlink_to("/run/hunter2-token")
    (tree / "hunter2-token.txt").touch()
    (tree / "usr/share/doc/pip").write_bytes(b"hunter2-token")
    make_image(tree, tmp_path / "image")
    secrets: dict[str, str | bytes] = {"TOKEN": "hunter2-token", "CA": b"-----BEGIN", "PORT": "80"}
    paths = ["/conf", "/hunter2-token.txt", "/link"]
    assert leaks(tmp_path / "image", secrets, but_for=["/usr/share/doc/"]) == [
        (path, "TOKEN") for path in paths
    ]
    assert ("/usr/share/doc/pip", "TOKEN") in leaks(tmp_path / "image", secrets)


def test_secrets_are_found_however_they_are_written(tmp_path: Path) -> None:
    """Quoted, in base64 at any offset, and packed in every common way."""
    (tree := tmp_path / "tree").mkdir()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("member", TOKEN)
    contents = {
        "quoted": b"http://me:hunter2%2Ftoken@host",
        "gz": gzip.compress(TOKEN.encode()),
        "bz2": bz2.compress(TOKEN.encode()),
        "xz": lzma.compress(TOKEN.encode()),
        "zst": zstandard.compress(TOKEN.encode()),
        "zip": zipped.getvalue(),
        "damaged.gz": gzip.compress(b"x")[:-4],
    }
    for shift in range(3):
        contents[f"base64 {shift}"] = base64.b64encode(f"{'u' * shift}{TOKEN}:x".encode())
    for name, content in contents.items():
        (tree / name).write_bytes(content)
    make_image(tree, tmp_path / "image")
    found = leaks(tmp_path / "image", {"TOKEN": TOKEN})
    assert [path for path, _ in found] == sorted(f"/{name}" for name in contents if name != "damaged.gz")
