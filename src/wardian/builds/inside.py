"""What a build asks of the machine it works in: run a command, look a path up, find a user.

The machine is as hostile as any: what it says is bounded, and decides nothing but what becomes of itself.
"""

from __future__ import annotations

import asyncio
import posixpath
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from wardian.builds.copying import BadDestination, Standing
from wardian.guest.guest import Exit, Guest, Output, Process, ProcessConfig
from wardian.model.errors import NotFound, Unavailable, WardianError

LINE_MAX = 2000
"""Characters of one line of output; what is longer is cut."""

TAIL_LINES = 20
_TABLE_MAX = 1 << 20

Say = Callable[[str], None]


@dataclass(slots=True)
class Lines:
    """Output as it comes, made into lines: each is said once, and the last ones are kept."""

    say: Say
    last: deque[str] = field(default_factory=lambda: deque(maxlen=TAIL_LINES))
    _open: dict[str, bytearray] = field(default_factory=dict)

    def feed(self, output: Output) -> None:
        pending = self._open.setdefault(output.channel, bytearray())
        pending += output.data
        *whole, rest = pending.split(b"\n")
        for line in whole:
            self._line(line)
        self._open[output.channel] = rest[: 4 * LINE_MAX]  # the rest of an endless line is lost

    def finish(self) -> None:
        for rest in self._open.values():
            if rest:
                self._line(rest)
        self._open.clear()

    def _line(self, raw: bytes | bytearray) -> None:
        """Progress bars draw one line over and over: only what it ended as is said."""
        text = raw.rstrip(b"\r").rsplit(b"\r", 1)[-1].decode("utf-8", "replace")
        text = "".join(c for c in text if c.isprintable() or c == "\t")[:LINE_MAX]
        self.last.append(text)
        self.say(text)


async def run(
    guest: Guest,
    argv: Sequence[str],
    *,
    user: str,
    env: Mapping[str, str] | None = None,
    hidden: Mapping[str, str] | None = None,
    cwd: str | None = None,
    lines: Lines | None = None,
) -> Exit:
    """Run a command to its end. Cancelled, or when its output cannot be followed, it is killed.

    ``hidden`` goes into its environment, too, but not into the label that the machine keeps of it.
    """
    config = ProcessConfig(argv[0], tuple(argv[1:]), env or {}, cwd)
    process = await guest.exec(config, user=user, env=hidden or {})
    events = process.subscribe()
    try:
        async for event in events:
            if isinstance(event, Exit):
                if lines is not None:
                    lines.finish()
                return event
            if lines is not None:
                lines.feed(event)
    except BaseException:
        await asyncio.shield(asyncio.ensure_future(_strike(process)))
        raise
    raise Unavailable("the machine lost a command", code="process_lost")


async def _strike(process: Process) -> None:
    if process.exit is None:
        try:
            await process.signal(signal.SIGKILL, group=True)
        except WardianError:
            return  # it ended by itself, or the machine did


async def end_strays(guest: Guest) -> None:
    """End what a step left running in the background: a layer is files, and they must hold still."""
    if (await guest.stats())["processes"]:
        await run(guest, ("/bin/sh", "-c", "kill -9 -1"), user="root")


class Standings:
    """Where paths of the machine lead. Remembers, as long as nothing changes there."""

    def __init__(self, guest: Guest) -> None:
        self._guest = guest
        self._known: dict[str, Standing] = {"/": Standing("/", "directory")}

    async def __call__(self, path: str) -> Standing:
        """What ``path`` is once its symlinks are followed; below what is missing, nothing is looked up."""
        if (known := self._known.get(path)) is not None:
            return known
        above, name = posixpath.split(path)
        parent = await self(above)
        if parent.kind == "file":
            raise BadDestination(f"{above} is a file, so {path} cannot be below it")
        found = Standing(posixpath.join(parent.path, name), "absent")
        if parent.kind == "directory":
            found = await self._look(found.path)
        self._known[path] = found
        return found

    async def _look(self, path: str) -> Standing:
        try:
            entry = await self._guest.stat(path, user="root")
        except NotFound:
            return Standing(path, "absent")
        target = entry.symlink_target
        if entry.type == "directory" and target is not None:
            if not target.startswith("/") or posixpath.normpath(target) != target:
                raise BadDestination(f"{path} is a symlink that leads nowhere one could name")
            return Standing(target, "directory")
        return Standing(path, "directory" if entry.type == "directory" else "file")


@dataclass(frozen=True, slots=True)
class Account:
    """A user as the machine's own tables have it."""

    uid: int
    gid: int


async def account(guest: Guest, owner: str) -> Account | None:
    """Who ``user``, ``user:group``, ``uid`` or ``uid:gid`` is. None: the tables do not know."""
    user, _, group = owner.partition(":")
    users = await _table(guest, "/etc/passwd")
    found: Account | None = None
    for row in users:
        if len(row) >= 4 and user in (row[0], row[2]) and row[2].isdecimal() and row[3].isdecimal():
            found = Account(int(row[2]), int(row[3]))
            break
    if found is None and user.isdecimal():
        found = Account(int(user), int(user) if not group else 0)
    if found is None or not group:
        return _bounded(found)
    if group.isdecimal():
        return _bounded(Account(found.uid, int(group)))
    for row in await _table(guest, "/etc/group"):
        if len(row) >= 3 and row[0] == group and row[2].isdecimal():
            return _bounded(Account(found.uid, int(row[2])))
    return None


def _bounded(found: Account | None) -> Account | None:
    return found if found is not None and max(found.uid, found.gid) < 1 << 31 else None


async def _table(guest: Guest, path: str) -> list[list[str]]:
    try:
        _, chunks = await guest.read(path, length=_TABLE_MAX, user="root")
    except NotFound:
        return []
    data = b"".join([chunk async for chunk in chunks])
    return [line.split(":") for line in data.decode("utf-8", "replace").splitlines()]
