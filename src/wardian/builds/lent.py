"""What a build was lent must not stay: an image is looked through before it is anybody's.

The host's passwords and tokens are in the environment and under /run while steps run, so a command that
writes its configuration down (``env > file``, a lock file with the URLs of an index) would keep them. Whoever
wants to steal them can: they are lent to whoever may build. This is against accidents.
"""

from __future__ import annotations

import base64
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import quote

from wardian.builds.errors import BuildFailed
from wardian.images.erofs import Image

SHORTEST = 6
"""Shorter ones are everywhere, and no secrets."""


DIGITS_LEAST = 8
"""Fewer digits of base64 in a row may be there by chance."""


class LentSecretKept(BuildFailed):
    """The image would hold what the host lent to its build."""

    code = "lent_secret_kept"


def check(image: Path, secrets: Mapping[str, str]) -> None:
    """Raise :class:`LentSecretKept` when a file of the image holds one of ``secrets``, by their names.

    As it is, as it stands in a URL, and in base64. Reads every file, if there are secrets at all.
    """
    wanted = {name: tuple(forms(secret)) for name, secret in secrets.items() if len(secret) >= SHORTEST}
    if not wanted:
        return
    with Image(image) as files:
        for node in files.walk():
            if not stat.S_ISREG(node.mode) and not stat.S_ISLNK(node.mode):
                continue
            content = files.read(node)
            for name, shapes in wanted.items():
                if any(shape in content for shape in shapes):
                    raise LentSecretKept(
                        f"{node.path} holds what this build was lent: {name}",
                        hint="a command wrote its environment or settings into a file: keep it from that, "
                        "or remove the file",
                    )


def forms(secret: str) -> Iterator[bytes]:
    """How a secret may stand in a file: in base64 also in the middle of something, at any offset."""
    raw = secret.encode()
    yield raw
    yield quote(secret, safe="").encode()
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + raw)
        # The digits at both ends depend on what stands beside the secret.
        end = -4 if (before + len(raw)) % 3 else len(encoded)
        own = encoded[(0, 2, 3)[before] : end]
        if len(own) >= DIGITS_LEAST:
            yield own
