"""What a build was lent must not stay: an image is searched before it is anybody's.

The host's passwords and tokens are in the environment and under /run while steps run, so a command that
writes its configuration down (``env > file``, a lock file with the URLs of an index) would keep them. Whoever
wants to steal them can: they are lent to whoever may build. This is against accidents.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from wardian.builds.errors import BuildFailed
from wardian.sandboxes.inspecting import Places, placed
from wardian.snapshots.needles import Needle
from wardian.snapshots.scan import FileSource, scan


class LentSecretKept(BuildFailed):
    """The image would hold what the host lent to its build."""

    code = "lent_secret_kept"


def check(image: Path, secrets: Mapping[str, str]) -> None:
    """Raise :class:`LentSecretKept` when an image holds one of ``secrets``, by their names. Blocks.

    It reads all of the image, if there are secrets at all.
    """
    needles = [Needle(name, secret.encode()) for name, secret in secrets.items()]
    if not needles:
        return
    with FileSource(image) as source:
        hits = scan([source], needles).hits
    if hits:
        raise LentSecretKept(
            f"the image would hold what its build was lent: {placed(hits[0], Places(image))}",
            hint="a command wrote its environment or settings down: keep it from that, or remove the file",
        )
