"""Giving a machine what its steps need to reach the host's package indexes, for as long as they run."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from wardian.guest.guest import Guest
from wardian.images.indexes import PLACE, Indexes
from wardian.model.build import Lock
from wardian.model.errors import WardianError


@asynccontextmanager
async def equipped(guest: Guest, indexes: Indexes, lock: Lock | None) -> AsyncIterator[Mapping[str, str]]:
    """Lay the files under /run, and take them away again. The variables that go with them.

    With a lock, pip and apt are held to its versions.
    """
    files, env = dict(indexes.files), dict(indexes.env)
    if lock is not None:
        files |= {"constraints.txt": _constraints(lock), "preferences": _preferences(lock)}
        constraints = f"{PLACE}/constraints.txt"
        env |= {"PIP_CONSTRAINT": constraints, "UV_CONSTRAINT": constraints}
        held = f'Dir::Etc::Preferences "{PLACE}/preferences";\n'
        files["apt.conf"] = files.get("apt.conf", b"") + held.encode()
        env["APT_CONFIG"] = f"{PLACE}/apt.conf"
    for name, content in sorted(files.items()):
        await guest.write(f"{PLACE}/{name}", _once(content), user="root")
    try:
        yield env
    finally:
        try:
            await asyncio.shield(asyncio.ensure_future(guest.remove(PLACE, user="root")))
        except WardianError:
            pass  # the machine is gone, and with it what lay under its /run


async def _once(content: bytes) -> AsyncIterator[bytes]:
    yield content


def _constraints(lock: Lock) -> bytes:
    """pip's constraints file. What is there in two versions is nothing one could hold to."""
    versions = lock.packages.get("python", {})
    return "".join(f"{name}=={v}\n" for name, v in sorted(versions.items()) if "," not in v).encode()


def _preferences(lock: Lock) -> bytes:
    versions = lock.packages.get("debian", {})
    return "".join(
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"
        for name, version in sorted(versions.items())
        if "," not in version
    ).encode()
