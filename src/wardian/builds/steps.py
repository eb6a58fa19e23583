"""Carrying one step out in a running machine."""

from __future__ import annotations

import posixpath
import re
import shlex
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass

from wardian.builds import copying, inside
from wardian.builds.copying import Placed
from wardian.builds.errors import BuildFailed
from wardian.builds.inside import Account, Lines, Say, Standings
from wardian.builds.keys import Keyed, absolute
from wardian.builds.trees import DIRECTORY, Tree
from wardian.guest.guest import Guest
from wardian.images.erofs import TIMESTAMP
from wardian.model.build import KEPT, StepKind
from wardian.model.errors import Invalid

ENVIRONMENT: Mapping[str, str] = {
    "DEBIAN_FRONTEND": "noninteractive",
    "PYTHONDONTWRITEBYTECODE": "1",  # what an import would leave depends on the clock
    "PYTHONHASHSEED": "0",
    "SOURCE_DATE_EPOCH": str(TIMESTAMP),  # also lets Python's compiler write bytecode that is checked by hash
}
"""What every command of a build finds in its environment, so that it writes the same files each time."""

MODE = re.compile(r"[0-7]{3,4}")
USER_NAME = re.compile(r"[a-z_][a-z0-9_.-]{0,31}\$?", re.IGNORECASE)
MAKE_USER = 'useradd --create-home --shell /bin/bash "$1" || adduser -D -s /bin/sh "$1"'

OpenTree = Callable[[str], AbstractAsyncContextManager[Tree]]
"""Opens what a step's ``files`` names."""


@dataclass(frozen=True, slots=True)
class Hand:
    """What carries steps out in one machine. ``secrets`` are variables that the image must not keep."""

    guest: Guest
    open_tree: OpenTree
    say: Say
    secrets: Mapping[str, str]

    async def carry_out(self, keyed: Keyed, place: str) -> bool:
        """Do the step; returns whether it may have changed a file. Raises :class:`BuildFailed`."""
        try:
            match keyed.step.kind:
                case StepKind.RUN:
                    await self._run(keyed, place)
                    return True
                case StepKind.COPY:
                    await self._copy(keyed)
                    return True
                case StepKind.WORKDIR:
                    return await self._workdir(keyed)
                case StepKind.USER:
                    return await self._user(keyed, place)
                case StepKind.ENV:
                    return False  # only what comes after it is different
        except Invalid as error:
            raise BuildFailed(error.message, place=place, step=keyed.step, hint=error.hint) from error

    async def _run(self, keyed: Keyed, place: str) -> None:
        step, around = keyed.step, keyed.surroundings
        command, user = command_of(step.args), step.user or around.user
        lines = Lines(self.say)
        try:
            ended = await inside.run(
                self.guest,
                step.args,
                user=user,
                env=around.env,
                hidden={**ENVIRONMENT, **self.secrets},
                cwd=around.workdir,
                lines=lines,
            )
        except Invalid as error:
            words = error.message
            if error.code == "invalid_username":
                words = f"unauthenticated: invalid username: '{user}'"
            message = f"failed to run command '{command}': command failed: {words}"
            raise BuildFailed(message, place=place, step=step, hint=error.hint) from error
        if not ended.exited or ended.exit_code:
            message = f"failed to run command '{command}': {ended.status}"
            raise BuildFailed(message, place=place, step=step, output=tuple(lines.last))
        await inside.end_strays(self.guest)

    async def _copy(self, keyed: Keyed) -> None:
        source, destination, owner, mode = keyed.step.args
        if mode and not MODE.fullmatch(mode):
            raise Invalid(f"{mode!r} is not an octal mode such as 0755")
        around = keyed.surroundings
        who = None if owner == KEPT else await self._account(owner or around.user)
        into = destination in ("", ".") or destination.endswith(("/", "/."))
        async with self.open_tree(keyed.step.files) as tree:
            placed = await copying.lay_out(
                tree.items, source, absolute(around, destination), into=into, stand=Standings(self.guest)
            )
            await self._lay(placed, tree, who, int(mode, 8) if mode else None)

    async def _lay(
        self, placed: Sequence[Placed], tree: Tree | None, who: Account | None, mode: int | None = None
    ) -> None:
        """Put what is placed into the machine, as ``who``'s; None leaves everything whose it is."""
        owner = None if who is None else (who.uid, who.gid)
        await self.guest.unpack(copying.records(tree, placed, owner=owner, mode=mode))

    async def _account(self, owner: str) -> Account:
        found = await inside.account(self.guest, owner)
        if found is None:
            raise Invalid(f"the machine knows no user or group {owner!r}", hint="make it with a RUN first")
        return found

    async def _workdir(self, keyed: Keyed) -> bool:
        """Make the directory, and what is missing above it, the present user's."""
        around = keyed.surroundings
        path = absolute(around, keyed.step.args[0])
        stand = Standings(self.guest)
        there = await stand(path)
        if there.kind == "file":
            raise Invalid(f"{path} is a file")
        missing = []
        while there.kind == "absent":
            missing.append(there.path)
            path = posixpath.dirname(path)
            there = await stand(path)
        if missing:
            placed = [Placed(path, DIRECTORY, None) for path in reversed(missing)]
            await self._lay(placed, None, await self._account(around.user))
        return bool(missing)

    async def _user(self, keyed: Keyed, place: str) -> bool:
        """Make the user, if it is missing. A group is not made: nobody says who else is in it."""
        user = keyed.step.args[0]
        if await inside.account(self.guest, user) is not None:
            return False
        name, colon, group = user.partition(":")
        if not USER_NAME.fullmatch(name):
            raise Invalid(f"{name!r} cannot be a user's name")
        if await inside.account(self.guest, name) is None:
            await self._make_user(name, keyed, place)
        if colon and await inside.account(self.guest, user) is None:
            raise Invalid(f"there is no group {group!r}", hint="make it with a RUN first: groupadd")
        return True

    async def _make_user(self, name: str, keyed: Keyed, place: str) -> None:
        lines = Lines(self.say)
        ended = await inside.run(
            self.guest, ("/bin/sh", "-c", MAKE_USER, "sh", name), user="root", lines=lines
        )
        if ended.exit_code or not ended.exited:
            message = f"the user {name!r} is not there and cannot be made: {ended.status}"
            raise BuildFailed(message, place=place, step=keyed.step, output=tuple(lines.last))


def command_of(argv: Sequence[str]) -> str:
    """A command as its author wrote it: what a shell was given, or the arguments."""
    if len(argv) > 2 and argv[-2] == "-c":
        return argv[-1]
    return shlex.join(argv)
