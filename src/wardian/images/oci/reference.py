"""References to OCI images: what they may look like, and what they mean in full."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from wardian.model.errors import Forbidden, Invalid, Unsupported

LOCAL = ("oci", "oci-archive", "docker-archive")
REFUSED = ("containers-storage", "dir", "docker-daemon", "ostree", "sif", "tarball")
HUB = "docker.io"
HTTPS = 443

_DOMAIN = r"(?:localhost|[a-z0-9-]+(?:\.[a-z0-9-]+)+(?::\d{1,5})?|[a-z0-9.-]+:\d{1,5}|localhost:\d{1,5})"
_PATH = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*"
_REGISTRY = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?(?P<path>{_PATH})"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/@:+-]{0,255}")


@dataclass(frozen=True, slots=True)
class Reference:
    """``transport`` is docker, or one of LOCAL; ``registry`` is "" but for docker.

    ``name`` is, of docker, the full name without tag and digest; of the others, the absolute path.
    """

    transport: str
    registry: str
    name: str
    tag: str = ""
    digest: str = ""

    def __str__(self) -> str:
        """As skopeo wants it."""
        if self.transport == "docker":
            # skopeo takes one of the two, and the digest is the stricter.
            return (
                f"docker://{self.name}@{self.digest}" if self.digest else f"docker://{self.name}:{self.tag}"
            )
        return f"{self.transport}:{self.name}{':' if self.tag else ''}{self.tag}"

    def at(self, digest: str) -> str:
        """The same image for ever: by digest, where it can be asked for by that."""
        return f"docker://{self.name}@{digest}" if self.transport == "docker" else f"{self}@{digest}"

    @property
    def place(self) -> tuple[str, int]:
        """Where the registry is asked: host and port."""
        host, colon, port = self.registry.rpartition(":")
        return (host, int(port)) if colon else (self.registry, HTTPS)


def parse(text: str) -> Reference:
    """What a reference means. ``python:3.11`` is ``docker://docker.io/library/python:3.11``.

    Raises :class:`Invalid`, and :class:`Unsupported` for places that images are not taken from.
    """
    transport, colon, rest = text.partition(":")
    if colon and transport in REFUSED:
        raise Unsupported(
            f"images are not taken from {transport}:",
            code="image_transport",
            hint="from a registry (docker://), oci:, oci-archive: or docker-archive:",
        )
    if colon and transport in LOCAL:
        path, _, tag = rest.partition(":")
        if not path.startswith("/") or "\0" in path or (tag and not _TAG.fullmatch(tag)):
            raise Invalid(
                f"{text[:200]!r} is no reference to an image",
                code="invalid_reference",
                hint=f"write {transport}:/absolute/path or {transport}:/absolute/path:tag",
            )
        return Reference(transport, "", path, tag)
    match = _REGISTRY.fullmatch(text.removeprefix("docker://"))
    if not match:
        raise Invalid(
            f"{text[:200]!r} is no reference to an image",
            code="invalid_reference",
            hint="such as python:3.11 or docker://registry.example/team/image:tag",
        )
    domain, path = match["domain"] or HUB, match["path"]
    if domain == HUB and "/" not in path:
        path = f"library/{path}"
    digest = match["digest"] or ""
    return Reference(
        "docker", domain, f"{domain}/{path}", match["tag"] or ("" if digest else "latest"), digest
    )


def check_place(reference: Reference, directory: Path | None) -> None:
    """Raise :class:`Forbidden` for a local image that is not below ``directory`` (None: there are none)."""
    place = Path(reference.name).resolve()
    if directory is None or not place.is_relative_to(directory.resolve()):
        below = f"below {directory}" if directory else "from registries only"
        raise Forbidden(f"{reference} may not be read: images are taken {below}", code="image_place")
