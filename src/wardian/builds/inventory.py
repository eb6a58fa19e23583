"""Which packages a root image holds, by the records their installers keep. Nothing of the image is run.

The image was written by whoever built it, so what it says of itself is taken as that: names and versions of
the form they should have, and no more of them than one would believe.
"""

from __future__ import annotations

import json
import posixpath
import re
import stat
from collections.abc import Mapping

from wardian.images.erofs import Image, Node

DPKG = "/var/lib/dpkg/status"
FILE_MAX = 64 << 20
PACKAGES_MAX = 20_000
_DEBIAN = re.compile(
    r"^Package: ([a-z0-9][a-z0-9+.-]+)$.*?^Version: ([0-9A-Za-z.+:~-]+)$", re.MULTILINE | re.DOTALL
)
_INSTALLED = re.compile(r"^Status: \S+ ok installed$", re.MULTILINE)
_DIST_INFO = re.compile(r"([A-Za-z0-9][A-Za-z0-9._]*)-([A-Za-z0-9][A-Za-z0-9.!+_]*)\.dist-info")
_NODE_NAME = re.compile(r"(?:@[a-z0-9._~-]+/)?[a-z0-9._~-]+", re.IGNORECASE)
_NODE_VERSION = re.compile(r"[0-9A-Za-z.+-]{1,64}")


def inventory(image: Image) -> Mapping[str, Mapping[str, str]]:
    """Versions by kind (``debian``, ``python``, ``node``) and name; kinds without packages are left out."""
    found: dict[str, dict[str, str]] = {"debian": {}, "python": {}, "node": {}}
    for node in image.walk():
        if node.path == DPKG:
            found["debian"] = _debian(_text(image, node))
        elif stat.S_ISDIR(node.mode) and (match := _DIST_INFO.fullmatch(posixpath.basename(node.path))):
            name = re.sub(r"[-_.]+", "-", match[1]).lower()
            _add(found["python"], name, match[2])
        elif node.path.endswith("/package.json") and node.path.count("/node_modules/") == 1:
            _node(found["node"], image, node)
    return {kind: dict(sorted(versions.items())) for kind, versions in found.items() if versions}


def _text(image: Image, node: Node) -> str:
    if not stat.S_ISREG(node.mode) or node.size > FILE_MAX:
        return ""
    return image.read(node).decode("utf-8", "replace")


def _debian(status: str) -> dict[str, str]:
    versions: dict[str, str] = {}
    for paragraph in status.split("\n\n"):
        match = _DEBIAN.search(paragraph)
        if match and _INSTALLED.search(paragraph):
            _add(versions, match[1], match[2])
    return versions


def _node(versions: dict[str, str], image: Image, node: Node) -> None:
    """A package's own description, not one that lies deeper inside of it."""
    name = posixpath.dirname(node.path).rpartition("/node_modules/")[2]
    if not _NODE_NAME.fullmatch(name):
        return
    try:
        version = json.loads(_text(image, node) or "{}").get("version")
    except (ValueError, AttributeError, RecursionError):
        return
    if isinstance(version, str) and _NODE_VERSION.fullmatch(version):
        _add(versions, name, version)


def _add(versions: dict[str, str], name: str, version: str) -> None:
    """Note a version; where one is there in several, all are said."""
    if len(versions) >= PACKAGES_MAX:
        return
    known = versions.get(name)
    if known is None:
        versions[name] = version
    elif version not in known.split(", "):
        versions[name] = ", ".join(sorted([*known.split(", "), version]))
