"""A driver's machines on this host: making room for one, finding it again, sweeping up, letting go."""

from __future__ import annotations

import asyncio
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Set
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from wardian.isolation.host import cgroup as cgroups
from wardian.isolation.host.directory import MachineDirectory
from wardian.isolation.host.held import Held
from wardian.isolation.host.kept import Greeting, Kept, ask_keeper, destroy_remains
from wardian.isolation.host.process import HeldProcess
from wardian.isolation.host.records import are_recorded
from wardian.isolation.port import MachineGone
from wardian.model.errors import Conflict

_H = TypeVar("_H", bound=Held)
_K = TypeVar("_K", bound=Kept)
_T = TypeVar("_T")


def new_id() -> str:
    """An id that no other machine has."""
    return f"m{secrets.token_hex(8)}"


def groups_below(parent: str, state_dir: Path) -> str:
    """The name below which the control groups of the machines of ``state_dir`` are."""
    return f"{parent}-{hashlib.sha256(os.fsencode(state_dir)).hexdigest()[:12]}"


class Holding(Generic[_H]):
    """The machines that this process holds, by id."""

    def __init__(self) -> None:
        self.held: dict[str, _H] = {}

    def hold(self, machine: _H) -> None:
        """Until it ends or is let go."""
        self.held[machine.id] = machine

        def drop() -> None:
            if self.held.get(machine.id) is machine:  # it may have a successor
                del self.held[machine.id]

        machine.on_end(drop)

    def check_free(self, machine_id: str) -> None:
        """Raise :class:`Conflict` if it is held already."""
        if machine_id in self.held:
            raise Conflict(f"machine {machine_id} is attached already", code="already_attached")

    async def let_go(self) -> None:
        """Of all of them. They go on running."""
        for machine in list(self.held.values()):
            await machine.let_go()


@dataclass(frozen=True, slots=True)
class Room:
    """A place for one machine: its id, its directory, its control group."""

    machine_id: str
    directory: MachineDirectory
    cgroup: cgroups.Cgroup


class Machines(Holding[_K]):
    """Machines below keepers, in ``state_dir/machines`` and in control groups of that directory's own.

    ``make`` is called with what a keeper gave out.
    """

    def __init__(
        self,
        state_dir: Path,
        cgroup_parent: str,
        make: Callable[[str, MachineDirectory, cgroups.Cgroup, Greeting], _K],
    ) -> None:
        super().__init__()
        self._directory = state_dir / "machines"
        self._parent = groups_below(cgroup_parent, state_dir)
        self._make = make
        self._hierarchies: cgroups.Hierarchies | None = None

    @asynccontextmanager
    async def room(self, limits: cgroups.Limits) -> AsyncIterator[Room]:
        """Room for a new machine. What fails or is cancelled within leaves nothing."""
        room = self._room(new_id())
        try:
            room.directory.create()
            yield room
            room.cgroup.create(limits)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(destroy_remains(room.directory, room.cgroup)))
            raise

    async def attach(
        self,
        record: Mapping[str, Any],
        processes: Callable[[_K], Mapping[str, HeldProcess]],
        settle: Callable[[_K], Awaitable[_T]],
    ) -> tuple[_K, _T]:
        """Hold the machine of a record, if its ``processes`` are the recorded ones, and after ``settle``.

        Raises :class:`MachineGone` and what ``settle`` raises; the machine goes on running.
        """
        self.check_free(record["id"])
        machine = await self._reach(record["id"])
        if not are_recorded(processes(machine), record):
            await machine.let_go()
            machine.link.close()
            raise MachineGone(f"machine {record['id']} is not the one that was recorded")
        try:
            settled = await settle(machine)
        except BaseException:
            await asyncio.shield(asyncio.ensure_future(machine.let_go()))
            machine.link.close()
            raise
        self.hold(machine)
        return machine, settled

    async def sweep(self, known: Set[str]) -> list[str]:
        """Destroy every machine that is not ``known``, half-made ones too; return their ids."""
        found = {path.name for path in self._directory.glob("*")}
        for parent in self._groups().parents(self._parent):
            found |= {path.name for path in parent.glob("*") if path.is_dir()}
        doomed = sorted(found - known)
        for machine_id in doomed:
            if machine_id in self.held:
                await self.held[machine_id].kill()  # its link belongs to whoever got the machine
                continue
            try:
                machine = await self._reach(machine_id)
            except MachineGone:
                continue  # and what it had left is removed
            await machine.kill()
            machine.link.close()
        return doomed

    async def close(self) -> None:
        """Let go of everything in this process."""
        await self.let_go()
        if self._hierarchies is not None:
            self._hierarchies.tidy(self._parent)
            self._hierarchies = None

    async def _reach(self, machine_id: str) -> _K:
        """A machine made by an earlier process. If it is dead, clean up after it and raise
        :class:`MachineGone`."""
        room = self._room(machine_id)
        try:
            greeting = await ask_keeper(room.directory)
        except OSError as error:
            await destroy_remains(room.directory, room.cgroup)
            raise MachineGone(f"machine {machine_id} is gone") from error
        return self._make(machine_id, room.directory, room.cgroup, greeting)

    def _room(self, machine_id: str) -> Room:
        group = self._groups().group(self._parent, machine_id)
        return Room(machine_id, MachineDirectory(self._directory / machine_id), group)

    def _groups(self) -> cgroups.Hierarchies:
        if self._hierarchies is None:
            hierarchies = cgroups.discover(Path("/proc/self/mountinfo").read_text().splitlines())
            hierarchies.prepare(self._parent)
            self._hierarchies = hierarchies
        return self._hierarchies


__all__ = ["Holding", "Machines", "Room", "groups_below", "new_id"]
