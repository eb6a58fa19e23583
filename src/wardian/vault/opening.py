"""How a value is opened. Only the bridge's process does it, which alone has the key: a contract says so."""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey

from wardian.model.secret import Place, Sealed
from wardian.store import sealing
from wardian.store.sealing import KEY_BYTES
from wardian.vault.keys import MasterKey, SealingKey
from wardian.vault.seal import derive, lock


def unseal(key: MasterKey, place: Place, sealed: Sealed) -> bytes:
    """The value. Raises :class:`~wardian.store.sealing.Unsealable`."""
    return sealing.unseal(_unlock(key, sealed.data_key, place), sealed.value, place.bound("value"))


def reseal(old: MasterKey, new: SealingKey, place: Place, sealed: Sealed) -> Sealed:
    """The same value, its data key sealed to another key. Raises as :func:`unseal` does.

    Also what the old key sealed before there was a public one: its data key is under the key itself.
    """
    if sealed.key_id == old.former_id:
        data_key = sealing.unseal(old.secret, sealed.data_key, place.bound("key"))
    else:
        data_key = _unlock(old, sealed.data_key, place)
    return Sealed(new.id, lock(new, data_key, place), sealed.value)


def _unlock(key: MasterKey, locked: bytes, place: Place) -> bytes:
    shown, body = locked[:KEY_BYTES], locked[KEY_BYTES:]
    try:
        secret = key.private.exchange(X25519PublicKey.from_public_bytes(shown))
    except ValueError:
        raise sealing.Unsealable("a sealed secret does not open: it was changed") from None
    return sealing.unseal(derive(secret, shown, key.sealing), body, place.bound("key"))
