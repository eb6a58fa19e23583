"""How a value is sealed: AES-256-GCM under a data key of its own, which is sealed under the master key.

Both seals authenticate whose value it is: tenant, id and version. So a row moved to another tenant, another
secret or another version does not open, and a new master key means sealing the small data keys anew, never
the values.
"""

from __future__ import annotations

import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from wardian.model.errors import WardianError
from wardian.model.secret import Place, Sealed
from wardian.vault.keys import MasterKey

NONCE_BYTES = 12


class Broken(WardianError):
    """What is stored was changed, or belongs elsewhere."""

    code = "vault_broken"


def seal(master: MasterKey, place: Place, value: bytes) -> Sealed:
    data_key = AESGCM.generate_key(256)
    return Sealed(
        master.id,
        _encrypt(master.secret, data_key, place.bound("key")),
        _encrypt(data_key, value, place.bound("value")),
    )


def unseal(master: MasterKey, place: Place, sealed: Sealed) -> bytes:
    """The value. Raises :class:`Broken`."""
    data_key = _decrypt(master.secret, sealed.data_key, place.bound("key"))
    return _decrypt(data_key, sealed.value, place.bound("value"))


def reseal(old: MasterKey, new: MasterKey, place: Place, sealed: Sealed) -> Sealed:
    """The same value, its data key under another master key. Raises :class:`Broken`."""
    data_key = _decrypt(old.secret, sealed.data_key, place.bound("key"))
    return Sealed(new.id, _encrypt(new.secret, data_key, place.bound("key")), sealed.value)


def _encrypt(key: bytes, plain: bytes, bound: bytes) -> bytes:
    nonce = os.urandom(NONCE_BYTES)
    return nonce + AESGCM(key).encrypt(nonce, plain, bound)


def _decrypt(key: bytes, sealed: bytes, bound: bytes) -> bytes:
    try:
        return AESGCM(key).decrypt(sealed[:NONCE_BYTES], sealed[NONCE_BYTES:], bound)
    except (InvalidTag, ValueError):
        raise Broken("a sealed secret does not open: it was changed, or is not where it belongs") from None
