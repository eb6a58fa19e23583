"""What everybody who works on runs has: the tables, the sandboxes, a log for each run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from wardian.model.agent import Version
from wardian.model.errors import NotFound
from wardian.model.run import FINAL, Run, RunEvent, next_state
from wardian.model.sandbox import Sandbox, SandboxSpec
from wardian.recorder.log import Recorder, SandboxLog
from wardian.sandboxes.leases import NodeLease
from wardian.sandboxes.service import Sandboxes
from wardian.store import agents, runs
from wardian.store.database import Database

_DURABLE = frozenset(
    {RunEvent.SUCCEED, RunEvent.FAIL, RunEvent.CANCEL, RunEvent.WAIT, RunEvent.RETRY, RunEvent.REWIND}
)
SANDBOX_S = 24 * 3600
"""What a run's sandbox is made for; at its end it is paused, and the run goes on with it."""

Environment = Callable[[Sandbox], Mapping[str, str]]
"""What the processes of a sandbox find in theirs."""

Also = Callable[[Connection, Run], object]


def run_not_found(run_id: str) -> NotFound:
    """An id that is unknown, or another tenant's."""
    return NotFound(
        f"run '{run_id[:64]}' not found", code="run_not_found", hint="`wardian run ls` lists yours"
    )


@dataclass(frozen=True, slots=True)
class RunWorks:
    """One for a server. ``checkpoint`` is where tests stop the clock; ``heed`` lets the bridge know that a
    tenant has budgets."""

    database: Database
    sandboxes: Sandboxes
    recorder: Recorder
    lease: NodeLease
    now_us: Callable[[], int]
    checkpoint: Callable[[str], None] = lambda name: None
    heed: Callable[[str], None] = lambda tenant: None
    logs: dict[str, SandboxLog] = field(default_factory=dict)

    async def get(self, run_id: str) -> Run:
        """A run of anybody's, as it is now."""
        run = await self.database.read(lambda conn: runs.get(conn, run_id))
        if run is None:
            raise run_not_found(run_id)
        return run

    async def find(self, tenant: str, run_id: str) -> Run:
        """A tenant's. Raises NotFound."""
        run = await self.database.read(lambda conn: runs.find(conn, tenant, run_id))
        if run is None:
            raise run_not_found(run_id)
        return run

    async def machine(self, run: Run, spec: SandboxSpec, snapshot_id: str | None) -> Sandbox:
        """A sandbox for a run, within its confines: what a snapshot was, or as ``spec`` says."""
        sandboxes, bound = self.sandboxes.within(run.confines.isolation), run.confines.egress
        if snapshot_id is not None:
            return await sandboxes.come_back(run.tenant, snapshot_id, spec, bound=bound)
        return await sandboxes.create(run.tenant, spec, bound=bound)

    async def kill(self, run: Run, sandbox_id: str) -> None:
        """End a sandbox of a run's, if there is still one."""
        with suppress(NotFound):
            await self.sandboxes.kill(run.tenant, sandbox_id)

    async def version(self, run: Run) -> Version:
        """The version of its agent that a run is of. Raises NotFound."""
        version = await self.database.read(lambda conn: agents.version(conn, run.agent_id, run.version))
        if version is None:
            raise NotFound(
                f"version {run.version} of agent {run.agent} was removed", code="version_not_found"
            )
        return version

    async def change(
        self, run_id: str, event: RunEvent, /, *, also: Also = lambda conn, run: None, **values: Any
    ) -> Run:
        """Apply an event, with ``values``, in one transaction with ``also``, which sees the run as it was.
        Conflict: the table forbids it."""

        def transaction(conn: Connection) -> Run:
            self.lease.fence(conn)
            before = runs.get(conn, run_id)
            if before is None:
                raise run_not_found(run_id)
            state = next_state(before.state, event)
            also(conn, before)
            ended = {"ended_at": self.now_us()} if state in FINAL else {}
            runs.change(conn, run_id, state=state, **ended, **values)
            after = runs.get(conn, run_id)
            assert after is not None
            return after

        run = await self.database.write(transaction, durable=event in _DURABLE)
        self.log(run_id, f"run.{event}", state=run.state.value, epoch=run.epoch, sandbox=run.sandbox_id)
        return run

    def log(self, run_id: str, type: str, /, **facts: Any) -> int:
        """Add to a run's log; the number of the record."""
        log = self.logs.get(run_id)
        if log is None:
            log = self.logs[run_id] = self.recorder.log(run_id)
        log.append(type, **facts)
        return log.seq

    def close_log(self, run_id: str) -> None:
        """Nothing more will be said of a run, for now."""
        if (log := self.logs.pop(run_id, None)) is not None:
            log.release()


__all__ = ["RunWorks", "run_not_found"]
