"""The sandboxes that a workflow drives. What a step did in one is committed with its machine, and undone with
it: a workflow that begins again finds each sandbox as its last commit left it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import Any

from sqlalchemy import Connection

from wardian.guest.guest import Exit, Process, ProcessConfig
from wardian.model.agent import Checkpoint
from wardian.model.errors import Conflict, Invalid, LimitExceeded, NotFound, Unavailable
from wardian.model.run import Box, Run, RunEvent, RunState, Step, StepState
from wardian.model.sandbox import OnTimeout, Sandbox, SandboxSpec, State
from wardian.runs.commits import Commits, Superseded, check_key, drop_machines, taken
from wardian.runs.words import Tail, once
from wardian.runs.works import SANDBOX_S, Environment, RunWorks
from wardian.store import boxes, runs

BOXES_MAX = 16
"""Of one run."""
OUTPUT_MAX = 128 << 10
"""Bytes of a command's output, on each channel, of which the end is kept; and of a file that is read."""
COMMAND_S_MAX = 24 * 3600
FILES_MAX = 64


@dataclass(frozen=True, slots=True)
class Command:
    """What is done in a box: ``files`` are written, then ``command``, if there is one, is run by bash."""

    command: str = ""
    files: Mapping[str, str] | None = None
    timeout_s: float = 3600

    def check(self) -> None:
        """Raises :class:`Invalid`."""
        if not self.command and not self.files:
            raise Invalid("give a command, or files", code="bad_command")
        if "\0" in self.command or len(self.files or {}) > FILES_MAX:
            raise Invalid(f"a command has no NUL, and {FILES_MAX} files at most", code="bad_command")
        if not 0 < self.timeout_s <= COMMAND_S_MAX:
            raise Invalid(f"a command may take up to {COMMAND_S_MAX} seconds", code="bad_command")


class Boxes:
    """Of all workflows of a server. ``environment`` is what a sandbox's processes find in theirs."""

    def __init__(self, works: RunWorks, commits: Commits, environment: Environment) -> None:
        self._works, self._commits, self._environment = works, commits, environment
        self._opening: dict[tuple[str, str], asyncio.Lock] = {}
        self.tell: Callable[[str], None] = lambda run_id: None

    async def open(self, run: Run, key: str, template: str) -> Box:
        """The sandbox of that name, awake, as the last step that was committed in it left it."""
        check_key(key)
        async with self._opening.setdefault((run.id, key), asyncio.Lock()):
            known = await self._works.database.read(lambda conn: boxes.get(conn, run.id, key))
            if known is None:
                await self._check_count(run)
            elif known.template != template:
                raise Invalid(f"{key[:64]!r} is a sandbox of {known.template}", code="step_changed")
            elif known.epoch == run.epoch:
                return known
            elif known.resting:
                await self._works.sandboxes.connect(run.tenant, known.sandbox_id, SANDBOX_S)
                return await self._put(run, replace(known, epoch=run.epoch, resting=False))
            return await self._make(run, key, template, known)

    async def _check_count(self, run: Run) -> None:
        if len(await self._works.database.read(lambda conn: boxes.of_run(conn, run.id))) >= BOXES_MAX:
            raise LimitExceeded(f"a workflow drives {BOXES_MAX} sandboxes at most", hint="use one again")

    async def _make(self, run: Run, key: str, template: str, known: Box | None) -> Box:
        """From its last commit, or from its template; the one before is not what it was any more."""
        if known is not None:
            await self._works.kill(run, known.sandbox_id)
        spec = SandboxSpec(
            template=template,
            timeout_s=SANDBOX_S,
            metadata={"wardian.run": run.id, "wardian.agent": run.agent, "wardian.box": key},
            on_timeout=OnTimeout.PAUSE,
            run=run.id,
            run_line=run.line,
            agent=run.agent,
            driven=True,
            idempotency_key=f"box:{run.id}:{run.epoch}:{key}",
        )
        snapshot_id = None if known is None else known.snapshot_id
        sandbox = await self._works.machine(run, spec, snapshot_id)
        return await self._put(run, Box(run.id, key, template, sandbox.id, run.epoch, snapshot_id))

    async def _put(self, run: Run, box: Box) -> Box:
        def transaction(conn: Connection) -> None:
            taken(conn, run)
            boxes.put(conn, box)

        await self._works.database.write(transaction, durable=True)
        return box

    async def run(self, run: Run, name: str, key: str, command: Command) -> Step | None:
        """Do something in a box, as a step: once, whatever happens; None: it is under way."""
        command.check()
        asked = {"box": name, **asdict(command)}
        known = await self._works.database.read(lambda conn: runs.step(conn, run.id, key))
        if known is not None and known.state is StepState.DONE:
            return await self._commits.begin(run, None, key, asked)
        box = await self._box(run, name)

        async def work() -> Step:
            await self._commits.begin(run, None, key, asked)
            try:
                result = await self._do(run, box, command)
                return await self._commits.commit_in(run, await self._box(run, name), key, result)
            except (NotFound, Unavailable) as error:
                await self._lose(run, error)
                raise Superseded("a sandbox of the run was lost; the run begins again") from error

        return await self._commits.under_way(run, key, work)

    async def _lose(self, run: Run, error: Exception) -> None:
        """The run has to begin again, with its sandboxes as their last commits left them."""
        with suppress(Conflict):
            lost = await self._works.get(run.id)
            if lost.epoch == run.epoch:
                await self._works.change(run.id, RunEvent.LOSE, worker=None, leased_until=None)
                self._works.log(run.id, "run.lost", why=str(error)[:1000])
        self.tell(run.id)

    async def read(self, run: Run, name: str, key: str, path: str) -> Step | None:
        """The text of a file in a box, as a step."""
        step = await self._commits.begin(run, None, key, {"box": name, "path": path})
        if step.state is StepState.DONE:
            return step
        sandbox = await self._sandbox(await self._box(run, name))
        async with self._works.sandboxes.guest(sandbox.id) as guest:
            entry, pieces = await guest.read(path, length=OUTPUT_MAX + 1, user=sandbox.surroundings.user)
            data = b"".join([piece async for piece in pieces])
        if len(data) > OUTPUT_MAX:
            raise LimitExceeded(
                f"{path[:128]} has {entry.size} bytes, and a step's result {OUTPUT_MAX} at most",
                hint="work on it in the sandbox",
            )
        return await self._commits.commit(run, None, key, data.decode(errors="replace"), Checkpoint.NEVER)

    async def _box(self, run: Run, name: str) -> Box:
        box = await self._works.database.read(lambda conn: boxes.get(conn, run.id, name))
        if box is None or box.epoch != run.epoch:
            raise NotFound(f"sandbox {name[:64]!r} was not opened", code="box_not_open")
        return box

    async def _sandbox(self, box: Box) -> Sandbox:
        sandbox = await self._works.sandboxes.locate(box.sandbox_id)
        if sandbox is None:
            raise _gone()
        return sandbox

    async def _do(self, run: Run, box: Box, command: Command) -> Mapping[str, Any]:
        sandbox = await self._sandbox(box)
        user = sandbox.surroundings.user
        async with self._works.sandboxes.guest(sandbox.id) as guest:
            for path, text in (command.files or {}).items():
                await guest.write(path, once(text.encode()), user=user)
            if not command.command:
                return {"exit": 0, "stdout": "", "stderr": ""}
            config = ProcessConfig(
                cmd="/bin/bash", args=("-l", "-c", command.command), envs={}, cwd=None, tag=f"box:{run.id}"
            )
            process = await guest.exec(config, user=user, env=self._environment(sandbox))
            return await _outcome(process, command.timeout_s)

    # ── rest and end

    async def rest(self, run: Run) -> None:
        """Put the run's sandboxes to sleep as they are."""
        for box in await self._works.database.read(lambda conn: boxes.of_run(conn, run.id)):
            if box.epoch != run.epoch:
                continue  # it was not asked for this time: it is what its last commit left
            sandbox = await self._works.sandboxes.locate(box.sandbox_id)
            if sandbox is not None and sandbox.state is not State.PAUSED:
                await self._works.sandboxes.pause(run.tenant, box.sandbox_id)
            await self._put(run, replace(box, resting=True))

    async def clear(self, run: Run) -> None:
        """A run is over. What did not succeed may be retried, from the commits of its boxes."""
        found = await self._works.database.read(lambda conn: boxes.of_run(conn, run.id))
        for box in found:
            self._opening.pop((run.id, box.key), None)
            await self._works.kill(run, box.sandbox_id)
        if not found:
            return

        def transaction(conn: Connection) -> list[str]:
            self._works.lease.fence(conn)
            for box in found:
                boxes.change(conn, run.id, box.key, resting=False)
            if run.state is not RunState.SUCCEEDED:
                return []
            return drop_machines(conn, run.id, [box.snapshot_id for box in found])

        await self._works.sandboxes.drop_snapshots(await self._works.database.write(transaction))


async def _outcome(process: Process, timeout_s: float) -> Mapping[str, Any]:
    """How a command ended, and the ends of what it said."""
    tails = {"stdout": Tail(OUTPUT_MAX), "stderr": Tail(OUTPUT_MAX)}
    try:
        async with asyncio.timeout(timeout_s):
            async for event in process.subscribe():
                if isinstance(event, Exit):
                    code = event.exit_code if event.exited else 128 + (event.signal or 0)
                    return {"exit": code, **{name: tail.text() for name, tail in tails.items()}}
                tails[event.channel].add(event.data)
    except TimeoutError:
        await process.signal(9)
        return {"exit": 124, **{name: tail.text() for name, tail in tails.items()}}
    raise _gone()


def _gone() -> NotFound:
    return NotFound("the sandbox is gone", code="sandbox_not_found")


__all__ = ["Boxes", "Command"]
