"""How a value is sealed: AES-256-GCM under a data key of its own, which is sealed to the vault's public key.

To seal the data key: an X25519 key for this once, its secret with the vault's key through HKDF-SHA256, and
AES-256-GCM. Who seals keeps nothing that could open it again. Both seals authenticate whose value it is:
tenant, id and version. So a row moved to another tenant, another secret or another version does not open,
and a new key means sealing the small data keys anew, never the values.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardian.model.secret import Place, Sealed
from wardian.store import sealing
from wardian.store.sealing import KEY_BYTES
from wardian.vault.keys import MasterKey, SealingKey


def seal(key: SealingKey, place: Place, value: bytes) -> Sealed:
    data_key = sealing.new_key()
    return Sealed(key.id, _lock(key, data_key, place), sealing.seal(data_key, value, place.bound("value")))


def unseal(key: MasterKey, place: Place, sealed: Sealed) -> bytes:
    """The value. Raises :class:`~wardian.store.sealing.Unsealable`."""
    return sealing.unseal(_unlock(key, sealed.data_key, place), sealed.value, place.bound("value"))


def reseal(old: MasterKey, new: SealingKey, place: Place, sealed: Sealed) -> Sealed:
    """The same value, its data key sealed to another key. Raises as :func:`unseal` does."""
    return Sealed(new.id, _lock(new, _unlock(old, sealed.data_key, place), place), sealed.value)


def _lock(key: SealingKey, data_key: bytes, place: Place) -> bytes:
    once = X25519PrivateKey.generate()
    shown = once.public_key().public_bytes_raw()
    shared = _derive(once.exchange(key.public), shown, key)
    return shown + sealing.seal(shared, data_key, place.bound("key"))


def _unlock(key: MasterKey, locked: bytes, place: Place) -> bytes:
    shown, body = locked[:KEY_BYTES], locked[KEY_BYTES:]
    try:
        secret = key.private.exchange(X25519PublicKey.from_public_bytes(shown))
    except ValueError:
        raise sealing.Unsealable("a sealed secret does not open: it was changed") from None
    return sealing.unseal(_derive(secret, shown, key.sealing), body, place.bound("key"))


def _derive(secret: bytes, shown: bytes, key: SealingKey) -> bytes:
    return HKDF(SHA256(), KEY_BYTES, salt=shown + key.raw, info=b"wardian vault").derive(secret)
