"""The vault's pair of keys: with the public one anybody seals, with the private one only the bridge opens.

The private key comes from the operator (``WARDIAN_VAULT_KEY``, or the output of
``WARDIAN_VAULT_KEY_COMMAND``), or else from a file that only the bridge's user can read, made at its first
start. It is never stored beside what it seals.
"""

from __future__ import annotations

import base64
import binascii
import shlex
import subprocess
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey

from wardian.model.errors import Invalid, Unavailable
from wardian.store import private
from wardian.store.sealing import KEY_BYTES, new_key

COMMAND_TIMEOUT_S = 30


class BadVaultKey(Invalid):
    code = "bad_vault_key"


@dataclass(frozen=True, slots=True)
class SealingKey:
    """What seals and cannot open (X25519), and the name by which rows remember it."""

    raw: bytes

    @property
    def id(self) -> str:
        return sha256(b"wardian vault key\0" + self.raw).hexdigest()[:16]

    @property
    def public(self) -> X25519PublicKey:
        return X25519PublicKey.from_public_bytes(self.raw)


@dataclass(frozen=True, slots=True)
class MasterKey:
    """256 bits: what opens (X25519)."""

    secret: bytes = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.secret) != KEY_BYTES:
            raise BadVaultKey(f"a vault key has {KEY_BYTES} bytes, not {len(self.secret)}")

    @property
    def private(self) -> X25519PrivateKey:
        return X25519PrivateKey.from_private_bytes(self.secret)

    @property
    def sealing(self) -> SealingKey:
        return SealingKey(self.private.public_key().public_bytes_raw())

    @property
    def id(self) -> str:
        return self.sealing.id

    @property
    def former_id(self) -> str:
        """What it was called when it sealed by itself, before there was a public key."""
        return sha256(b"wardian vault key\0" + self.secret).hexdigest()[:16]


def parse(text: str) -> MasterKey:
    """A key as people write it: 64 hexadecimal digits, or base64. Raises :class:`BadVaultKey`."""
    text = text.strip()
    try:
        secret = bytes.fromhex(text) if len(text) == 2 * KEY_BYTES else base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise BadVaultKey(
            "the vault key is neither 64 hexadecimal digits nor base64", hint="`openssl rand -base64 32`"
        ) from None
    return MasterKey(secret)


def from_command(command: str) -> MasterKey:
    """The key that ``command`` prints (a key service's client). Raises :class:`Unavailable`."""
    try:
        ran = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=COMMAND_TIMEOUT_S, check=True
        )
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        # Neither what it printed nor the command itself: either may hold a secret.
        raise Unavailable(
            f"the vault key's command failed: {type(error).__name__}", code="vault_key_unavailable"
        ) from None
    return parse(ran.stdout)


def from_file(path: Path, *, may_make: bool) -> MasterKey:
    """The key in ``path``; a new one when there is none and nothing has been sealed yet.

    Raises :class:`Unavailable` when it is gone or others can read it, :class:`BadVaultKey`.
    """

    def make() -> bytes:
        if not may_make:
            raise Unavailable(
                f"the vault's key file {path} is gone, and without it its secrets cannot be opened",
                code="vault_key_missing",
                hint="restore the file or set WARDIAN_VAULT_KEY; if the key is lost, so are the secrets",
            )
        return base64.b64encode(new_key()) + b"\n"

    return parse(private.kept(path, make).decode(errors="replace"))
