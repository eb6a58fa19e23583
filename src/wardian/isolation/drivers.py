"""The drivers of one host, by name: which of them work, why the others do not, and which one to use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from wardian.isolation.port import Capabilities, Driver, IsolationLevel
from wardian.model.errors import Unavailable, Unsupported, WardianError
from wardian.model.isolation import Isolation, Wanted

Make = Callable[[], Driver]
"""Puts a driver together. Raises a :class:`WardianError` when its programs are not there."""


class IsolationUnavailable(Unsupported):
    """No driver of this host makes what is wanted."""

    code = "isolation_unavailable"


@dataclass(frozen=True, slots=True)
class Found:
    """A driver and what its probe said. None: it could not even be put together."""

    driver: Driver | None
    host: Capabilities


class Drivers:
    """Every driver this server knows. Those named first are preferred among equally strong ones."""

    def __init__(self, found: Sequence[Found]) -> None:
        self._found = {each.host.driver: each for each in found}

    @classmethod
    async def probe(cls, makers: Mapping[str, Make]) -> Drivers:
        """Put every driver together and try it. Never raises for one that does not work."""
        return cls(await asyncio.gather(*(_try(name, make) for name, make in makers.items())))

    @property
    def hosts(self) -> Sequence[Capabilities]:
        """What the probes said, of working and other drivers."""
        return [each.host for each in self._found.values()]

    @property
    def usable(self) -> Sequence[Capabilities]:
        """What the probes of those said that work, those that ``auto`` takes first."""
        automatic = Isolation.AUTO.levels
        rank = {level: place for place, level in enumerate(automatic)}
        able = [host for host in self.hosts if host.usable]
        return sorted(able, key=lambda host: rank.get(host.level, len(automatic)))

    def check_usable(self) -> None:
        """Raise :class:`Unavailable` if none of them works."""
        if not self.usable:
            reasons = "; ".join(f"{host.driver}: {host.reason}" for host in self.hosts)
            remedy = next((host.remedy for host in self.hosts if host.remedy), "run `wardian doctor`")
            raise Unavailable(
                f"this host cannot run sandboxes: {reasons}", code="isolation_unusable", hint=remedy
            )

    def choose(self, wanted: Wanted, *, rather: str = "") -> Driver:
        """The driver for something new: the best level that will do, ``rather`` the one of that name.

        Raises :class:`IsolationUnavailable` with every driver's reason, or ``BelowMinimum``.
        """
        levels = wanted.levels
        fitting = sorted(
            (found for found in self._found.values() if found.host.usable and found.host.level in levels),
            key=lambda found: (found.host.driver != rather, levels.index(found.host.level)),
        )
        for found in fitting:
            if found.driver is not None:
                return found.driver
        raise self._unavailable(wanted)

    def restoring(self, name: str, wanted: Wanted) -> Driver:
        """The driver that captured some memory, which no other can restore.

        Raises :class:`IsolationUnavailable` if it does not work, ``BelowMinimum`` or ``OtherIsolation`` if
        that is not what is wanted.
        """
        host = self.host(name)
        driver = self.named(name)
        if driver is None or not host.usable:
            raise IsolationUnavailable(
                f"this memory was captured by the driver '{name}', which does not work here: {host.reason}",
                hint=host.remedy or "boot it from its files instead (memory: false)",
            )
        wanted.check(host.level, f"what the driver '{name}' captured")
        return driver

    def host(self, name: str) -> Capabilities:
        """What the probe of a driver said; of one that is not known, that it is not."""
        found = self._found.get(name)
        return _absent(name, "this server has no such driver", "") if found is None else found.host

    def level(self, driver: Driver) -> IsolationLevel:
        """How strong the machines of ``driver`` are on this host."""
        return self.host(driver.name).level

    def named(self, name: str) -> Driver | None:
        """A driver, whether its probe succeeded or not: what it made before may still be there."""
        found = self._found.get(name)
        return None if found is None else found.driver

    async def sweep(self, known: Mapping[str, Collection[str]]) -> list[str]:
        """Destroy every machine that is not ``known``, by driver; return their ids."""
        swept: list[str] = []
        for name, found in self._found.items():
            if found.driver is not None:
                swept += await found.driver.sweep(set(known.get(name, ())))
        return swept

    async def close(self) -> None:
        """Let go of everything in this process. Machines go on running."""
        for found in self._found.values():
            if found.driver is not None:
                await found.driver.close()

    def _unavailable(self, wanted: Wanted) -> IsolationUnavailable:
        asked = f"isolation '{wanted.asked or Isolation.AUTO}'"
        least = f", at least '{wanted.minimum}'," if wanted.minimum is not None else ""
        state = "; ".join(
            f"{host.driver}: {f'works, as {host.level}' if host.usable else host.reason}"
            for host in self.hosts
        )
        able = ", ".join(dict.fromkeys(host.level for host in self.usable))
        return IsolationUnavailable(
            f"{asked}{least} cannot be had on this host ({state})",
            hint=f"ask for {able}" if able and wanted.minimum is None else "run `wardian doctor` on the host",
        )


async def _try(name: str, make: Make) -> Found:
    try:
        driver = make()
    except WardianError as error:
        return Found(None, _absent(name, error.message, error.hint or ""))
    return Found(driver, await driver.probe())


def _absent(name: str, reason: str, remedy: str) -> Capabilities:
    # The weakest level, lest anybody take it for more.
    level = IsolationLevel.MICROVM_EMULATED
    return Capabilities(name, level, usable=False, reason=reason, remedy=remedy)
