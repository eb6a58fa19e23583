"""How a value is sealed: AES-256-GCM under a data key of its own, which is sealed to the vault's public key.

To seal the data key: an X25519 key for this once, its secret with the vault's key through HKDF-SHA256, and
AES-256-GCM. Who seals keeps nothing that could open it again. Both seals authenticate whose value it is:
tenant, id and version. So a row moved to another tenant, another secret or another version does not open,
and a new key means sealing the small data keys anew, never the values.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from wardian.model.secret import Place, Sealed
from wardian.store import sealing
from wardian.store.sealing import KEY_BYTES
from wardian.vault.keys import SealingKey


def seal(key: SealingKey, place: Place, value: bytes) -> Sealed:
    data_key = sealing.new_key()
    return Sealed(key.id, lock(key, data_key, place), sealing.seal(data_key, value, place.bound("value")))


def lock(key: SealingKey, data_key: bytes, place: Place) -> bytes:
    """A data key, sealed."""
    once = X25519PrivateKey.generate()
    shown = once.public_key().public_bytes_raw()
    shared = derive(once.exchange(key.public), shown, key)
    return shown + sealing.seal(shared, data_key, place.bound("key"))


def derive(secret: bytes, shown: bytes, key: SealingKey) -> bytes:
    """The key that both sides of one exchange come to."""
    return HKDF(SHA256(), KEY_BYTES, salt=shown + key.raw, info=b"wardian vault").derive(secret)
