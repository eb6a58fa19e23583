"""Secrets at rest: sealed with a key that lies beside the database, not in it (AES-256-GCM).

Who has a copy of the database alone has none of them. What is sealed is bound to its *context* (what it
is for): moved elsewhere it does not open.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wardian.model.errors import WardianError
from wardian.store import private

KEY_BYTES = 32
_NONCE_BYTES = 12


class Unsealable(WardianError):
    """What this key, in this context, does not open."""

    code = "unsealable"


def new_key() -> bytes:
    return os.urandom(KEY_BYTES)


def seal(key: bytes, plain: bytes, context: bytes) -> bytes:
    """A nonce of its own, and what was sealed: 28 bytes more than ``plain``."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, context)


def unseal(key: bytes, sealed: bytes, context: bytes) -> bytes:
    """What :func:`seal` was given. Raises :class:`Unsealable`."""
    try:
        return AESGCM(key).decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], context)
    except (ValueError, InvalidTag):
        raise Unsealable(
            "what was sealed does not open: it was changed, is not where it belongs, or the key is another"
        ) from None


class Seal:
    """Seals and opens short texts with one key."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    @classmethod
    def kept_in(cls, path: Path) -> Self:
        """With the key in a file, made when there is none. Raises :class:`~wardian.store.private.Exposed`."""
        return cls(private.kept(path, new_key))

    def seal(self, text: str, context: str) -> str:
        return base64.b64encode(seal(self._key, text.encode(), context.encode())).decode()

    def open(self, sealed: str, context: str) -> str:
        """Raises :class:`Unsealable`."""
        try:
            data = base64.b64decode(sealed, validate=True)
        except ValueError:
            raise Unsealable("a sealed text is not even base64: it was changed") from None
        return unseal(self._key, data, context.encode()).decode()
