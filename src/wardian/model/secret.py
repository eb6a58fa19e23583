"""A secret as everybody may see it: all but its value. Values live in ``wardian.vault`` and nowhere else."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from wardian.model.errors import Invalid

ID_PREFIX = "sec_"
NAME_BYTES_MAX = 128
VALUE_BYTES_MAX = 64 * 1024
METADATA_MAX, KEY_BYTES_MAX, TEXT_BYTES_MAX, METADATA_BYTES_MAX = 32, 128, 1024, 8192

_NOT_IN_NAMES = re.compile(r"[{}/\x00-\x1f\x7f-\x9f]")


@dataclass(frozen=True, slots=True)
class Secret:
    """What is told of a secret. Times are microseconds since the epoch; versions count from 1."""

    id: str
    tenant: str
    name: str
    version: int
    metadata: Mapping[str, str]
    created_at: int
    updated_at: int


@dataclass(frozen=True, slots=True)
class Place:
    """What a value belongs to."""

    tenant: str
    secret_id: str
    version: int

    def bound(self, purpose: str) -> bytes:
        """The associated data of a seal: unambiguous, because no part can hold a NUL."""
        return "\0".join((purpose, self.tenant, self.secret_id, str(self.version))).encode()


@dataclass(frozen=True, slots=True)
class Sealed:
    """A value at rest: ``key_id`` names the master key that ``data_key`` is sealed with."""

    key_id: str
    data_key: bytes = field(repr=False)
    value: bytes = field(repr=False)


def checked_name(name: str) -> str:
    """The canonical, lower-case form of a new secret's name. Raises :class:`Invalid`."""
    name = name.strip().lower()
    if not 1 <= len(name.encode(errors="replace")) <= NAME_BYTES_MAX or _NOT_IN_NAMES.search(name):
        raise Invalid(
            f"a secret's name has 1 to {NAME_BYTES_MAX} bytes, and no '{{', '}}', '/' or control character",
            code="bad_secret_name",
        )
    if name.startswith(ID_PREFIX):
        raise Invalid(f"names that begin with {ID_PREFIX} are kept for ids", code="bad_secret_name")
    return name


def checked_value(value: str) -> bytes:
    """The bytes of a value. Raises :class:`Invalid`, without a word of it."""
    try:
        data = value.encode()
    except UnicodeEncodeError:
        raise Invalid("the secret's value is not valid Unicode", code="bad_secret_value") from None
    if not 1 <= len(data) <= VALUE_BYTES_MAX:
        raise Invalid(f"a secret's value has 1 to {VALUE_BYTES_MAX} bytes", code="bad_secret_value")
    return data


def checked_metadata(metadata: Mapping[str, str]) -> Mapping[str, str]:
    """``metadata`` if it is within bounds. Raises :class:`Invalid`."""
    sizes = [(len(key.encode()), len(value.encode())) for key, value in metadata.items()]
    if (
        len(sizes) > METADATA_MAX
        or any(key > KEY_BYTES_MAX or value > TEXT_BYTES_MAX for key, value in sizes)
        or sum(map(sum, sizes)) > METADATA_BYTES_MAX
    ):
        raise Invalid(
            f"metadata has at most {METADATA_MAX} entries, keys of {KEY_BYTES_MAX} and values of "
            f"{TEXT_BYTES_MAX} bytes, {METADATA_BYTES_MAX} in all",
            code="bad_metadata",
        )
    return metadata
