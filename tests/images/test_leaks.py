"""The search for secrets finds them: or the tests that find none would say nothing."""

from __future__ import annotations

from pathlib import Path

from tests.images.leaks import leaks

from wardian.images.erofs import make_image


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
