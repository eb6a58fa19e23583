"""How a value is sealed: AES-256-GCM under a data key of its own, which is sealed under the master key.

Both seals authenticate whose value it is: tenant, id and version. So a row moved to another tenant, another
secret or another version does not open, and a new master key means sealing the small data keys anew, never
the values.
"""

from __future__ import annotations

from wardian.model.secret import Place, Sealed
from wardian.store import sealing
from wardian.vault.keys import MasterKey


def seal(master: MasterKey, place: Place, value: bytes) -> Sealed:
    data_key = sealing.new_key()
    return Sealed(
        master.id,
        sealing.seal(master.secret, data_key, place.bound("key")),
        sealing.seal(data_key, value, place.bound("value")),
    )


def unseal(master: MasterKey, place: Place, sealed: Sealed) -> bytes:
    """The value. Raises :class:`~wardian.store.sealing.Unsealable`."""
    data_key = sealing.unseal(master.secret, sealed.data_key, place.bound("key"))
    return sealing.unseal(data_key, sealed.value, place.bound("value"))


def reseal(old: MasterKey, new: MasterKey, place: Place, sealed: Sealed) -> Sealed:
    """The same value, its data key under another master key. Raises as :func:`unseal` does."""
    data_key = sealing.unseal(old.secret, sealed.data_key, place.bound("key"))
    return Sealed(new.id, sealing.seal(new.secret, data_key, place.bound("key")), sealed.value)
