"""Secrets at rest: sealed with a key that lies beside the database, not in it (AES-256-GCM).

Who has a copy of the database alone has none of them. A sealed text is bound to its *context* (what it is
for): moved elsewhere it does not open.
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wardian.model.errors import WardianError

KEY_BYTES = 32
_NONCE_BYTES = 12


class Unsealable(WardianError):
    """A sealed text that this key, in this context, does not open."""

    code = "unsealable"


class Seal:
    """Seals and opens short texts."""

    def __init__(self, key: bytes) -> None:
        self._cipher = AESGCM(key)

    @classmethod
    def kept_in(cls, path: Path) -> Self:
        """With the key in a file, made when there is none. Only the file's owner may read it."""
        if not path.exists():
            draft = path.with_suffix(".new")
            draft.unlink(missing_ok=True)
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(KEY_BYTES))
                file.flush()
                os.fsync(file.fileno())
            draft.rename(path)
        return cls(path.read_bytes())

    def seal(self, text: str, context: str) -> str:
        nonce = os.urandom(_NONCE_BYTES)
        return base64.b64encode(nonce + self._cipher.encrypt(nonce, text.encode(), context.encode())).decode()

    def open(self, sealed: str, context: str) -> str:
        """Raises :class:`Unsealable`."""
        try:
            data = base64.b64decode(sealed, validate=True)
            nonce, body = data[:_NONCE_BYTES], data[_NONCE_BYTES:]
            return self._cipher.decrypt(nonce, body, context.encode()).decode()
        except (ValueError, InvalidTag):
            raise Unsealable("a sealed text does not open: it was changed, or the key was") from None
