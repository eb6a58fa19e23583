"""What the name behind a FROM means here."""

from __future__ import annotations

import re
from collections.abc import Callable

from wardian.model.build import Base, BaseKind

RELEASES = {"11": "bullseye", "12": "bookworm", "13": "trixie"}
_DEBIAN = re.compile(r"(?:docker\.io/)?(?:library/)?debian(?::([a-z0-9.]+?)(?:-slim)?)?")
_HOUSE = re.compile(r"(?:wardian/)([a-z0-9][a-z0-9._:-]*)")
_TRANSPORT = re.compile(r"(docker://|oci:|oci-archive:|docker-archive:)")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]{0,511}")


class BadBase(ValueError):
    """A base that we do not have."""


def base_of(name: str, is_template: Callable[[str], bool]) -> Base:
    """The base that ``name`` means. Raises :class:`BadBase`.

    ``debian:bookworm`` (with ``-slim`` or without) is built from Debian's own packages, so it needs no
    registry; ``base``, ``wardian/<template>`` and the names of known templates are templates.
    """
    if name.lower() == "scratch":
        raise BadBase(
            "there is nothing to run a step in on 'scratch'; begin FROM base or FROM debian:bookworm"
        )
    if (house := _HOUSE.fullmatch(name)) is not None:
        return Base(BaseKind.TEMPLATE, house[1])
    if name == "base" or is_template(name):
        return Base(BaseKind.TEMPLATE, name)
    if (debian := _DEBIAN.fullmatch(name)) is not None:
        return Base(BaseKind.DEBIAN, _suite(debian[1]))
    if _TRANSPORT.match(name):
        return Base(BaseKind.IMAGE, name)
    if not _IMAGE.fullmatch(name):
        raise BadBase(f"{name!r} is not the name of an image or a template")
    return Base(BaseKind.IMAGE, f"docker://{name}")


def _suite(tag: str | None) -> str:
    release = (tag or "").partition(".")[0]
    suite = RELEASES.get(release, release)
    if suite not in RELEASES.values():
        raise BadBase(f"name Debian's release, such as debian:bookworm, not {tag or 'latest'!r}")
    return suite
