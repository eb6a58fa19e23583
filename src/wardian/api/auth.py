"""Who is asking: API keys.

A key is ``e2b_`` and 40 hexadecimal digits, so that every SDK's own check of its form passes. Only its digest
is stored. A key that was found good is believed for :data:`BELIEVED_S` before the store is asked again: so
long may a revoked key still open the door.
"""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from hmac import compare_digest

from wardian.model.errors import Unauthenticated
from wardian.store.keys import ApiKey

KEY_FORM = re.compile(r"e2b_[0-9a-f]{40}")
BELIEVED_S = 5.0
KEYS_REMEMBERED_MAX = 4096

FindKey = Callable[[str], Awaitable[ApiKey | None]]
"""The record of a valid key, or None: asks the store."""


class BadKey(Unauthenticated):
    code = "invalid_api_key"


class NoKey(Unauthenticated):
    code = "missing_api_key"


def new_key() -> str:
    """A fresh key: 160 bits from the system's generator."""
    return f"e2b_{secrets.token_hex(20)}"


@dataclass(frozen=True, slots=True)
class _Belief:
    digest: bytes
    key: ApiKey
    until: float  # of the monotonic clock


class Keyring:
    """Checks keys. One per server; only used from its event loop."""

    def __init__(self, find_key: FindKey, clock: Callable[[], float] = time.monotonic) -> None:
        self._find_key = find_key
        self._clock = clock
        self._beliefs: dict[bytes, _Belief] = {}

    async def key_of(self, headers: Mapping[bytes, bytes], *, bearer: bool = False) -> ApiKey:
        """The key with which a request is made, on behalf of its tenant. Header names are lower-case.

        ``bearer`` also takes ``Authorization: Bearer``. Raises :class:`NoKey` or :class:`BadKey`.
        """
        key = key_in(headers, bearer=bearer)
        if key is None:
            raise NoKey(
                "API key is missing", hint="send it in the X-API-KEY header; `wardian serve` prints it"
            )
        if not KEY_FORM.fullmatch(key):
            raise BadKey("Invalid API key", hint="a key is 'e2b_' and 40 hexadecimal digits")
        digest = sha256(key.encode()).digest()
        # Found by a part of the digest, believed only if all of it is the same, in constant time.
        place = digest[:8]
        belief = self._beliefs.get(place)
        if belief and compare_digest(belief.digest, digest) and self._clock() < belief.until:
            return belief.key
        found = await self._find_key(key)
        if found is None:
            self._beliefs.pop(place, None)
            raise BadKey("Invalid API key", hint="`wardian serve` prints a valid one")
        if len(self._beliefs) >= KEYS_REMEMBERED_MAX:
            self._beliefs.clear()
        self._beliefs[place] = _Belief(digest, found, self._clock() + BELIEVED_S)
        return found


def key_in(headers: Mapping[bytes, bytes], *, bearer: bool = False) -> str | None:
    """The key a request carries, unchecked."""
    if (value := headers.get(b"x-api-key")) is not None:
        return value.decode("latin-1").strip()
    if bearer and (value := headers.get(b"authorization")) is not None:
        scheme, _, token = value.decode("latin-1").partition(" ")
        return token.strip() if scheme.lower() == "bearer" else None
    return None
