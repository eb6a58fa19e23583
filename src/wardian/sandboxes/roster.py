"""Who is here: the owners of this node's sandboxes, how one is added, and when its time is up."""

from __future__ import annotations

from collections.abc import Callable

from sqlalchemy import Connection

from wardian.model.errors import LimitExceeded, WardianError
from wardian.model.sandbox import EndReason, OnTimeout, Sandbox, SandboxSpec, State
from wardian.sandboxes.acts import end as ending
from wardian.sandboxes.acts import network, pause, resume
from wardian.sandboxes.alarms import Alarms
from wardian.sandboxes.origins import Origin, insert, new_sandbox
from wardian.sandboxes.owner import Hooks, Owner, not_found
from wardian.sandboxes.sampler import Sampler
from wardian.sandboxes.workshop import Workshop
from wardian.store import sandboxes

RESUME_TIMEOUT_S = 300  # where traffic or a caller resumes without saying for how long

HIDDEN = frozenset({State.CREATING, State.KILLING, State.ENDED})
"""States of a sandbox that a caller is told does not exist."""

_EXPIRING = frozenset({State.RUNNING, State.FROZEN})


class Roster:
    """The sandboxes of one node that have not ended, by id. ``watch`` is told of every change."""

    def __init__(self, works: Workshop) -> None:
        self._works = works
        self.owners: dict[str, Owner] = {}
        self.watch: Callable[[Owner], None] = lambda owner: None
        self.alarms = Alarms(self._ring, now_us=works.now_us)
        self.sampler = Sampler(self.owners.values, every_s=works.options.sample_every_s, now_us=works.now_us)
        self._hooks = Hooks(changed=self.changed, resume=_resume_on_traffic, lost=ending.end)

    def owner(self, tenant: str, sandbox_id: str) -> Owner:
        """A sandbox of a tenant's. Raises NotFound, also while it is made or ended."""
        owner = self.owners.get(sandbox_id)
        if owner is None or owner.sandbox.tenant != tenant or owner.sandbox.state in HIDDEN:
            raise not_found(sandbox_id)
        return owner

    def adopt(self, sandbox: Sandbox) -> None:
        """Take over a sandbox that an earlier server left."""
        self.owners[sandbox.id] = Owner(self._works, sandbox, self._hooks)

    async def add(self, tenant: str, origin: Origin, spec: SandboxSpec) -> tuple[Owner, bool]:
        """Write the row and intent of a new sandbox. False: its idempotency key names one that is there."""
        works = self._works
        sandbox = new_sandbox(works, tenant, origin, spec)
        owner = Owner(works, sandbox, self._hooks)

        def transaction(conn: Connection) -> Sandbox | None:
            works.lease.fence(conn)
            if spec.idempotency_key is not None:
                found = sandboxes.find_by_idempotency_key(conn, tenant, spec.idempotency_key)
                if found is not None:
                    return found
            self._check_quota(conn, tenant)
            insert(conn, sandbox, node_id=works.lease.node_id)
            return None

        self.owners[sandbox.id] = owner
        try:
            found = await works.database.write(transaction)
        except BaseException:
            self.owners.pop(sandbox.id, None)
            raise
        if found is not None:
            del self.owners[sandbox.id]
            if (maker := self.owners.get(found.id)) is None:
                raise not_found(found.id)
            return maker, False  # perhaps still being created
        _log_creation(owner)
        return owner, True

    def _check_quota(self, conn: Connection, tenant: str) -> None:
        most = self._works.options.sandboxes_max
        if sandboxes.count(conn, tenant, set(State) - {State.ENDED}) >= most:
            raise LimitExceeded(
                f"you have {most} sandboxes, which is the limit", hint="kill some, then try again"
            )

    def changed(self, owner: Owner) -> None:
        """Follow an owner's change: its alarm, and whether it is still anybody's."""
        sandbox = owner.sandbox
        if sandbox.state is State.ENDED:
            self.owners.pop(sandbox.id, None)
            self.sampler.forget(sandbox.id)
            self._works.outbound.forget(sandbox.id)
        if sandbox.state in _EXPIRING:
            self.alarms.set(sandbox.id, sandbox.end_at)
        elif sandbox.state in (State.PAUSED, State.ENDED):
            self.alarms.clear(sandbox.id)
        self.watch(owner)

    def _ring(self, sandbox_id: str) -> None:
        if (owner := self.owners.get(sandbox_id)) is not None:
            owner.soon(lambda: self._expire(owner))

    async def _expire(self, owner: Owner) -> None:
        sandbox = owner.sandbox
        if sandbox.state not in _EXPIRING or sandbox.end_at > self._works.now_us():
            return
        if sandbox.spec.on_timeout is OnTimeout.KILL:
            await ending.end(owner, EndReason.EXPIRED)
            return
        try:
            await pause.pause(owner, memory=sandbox.spec.pause_memory)
        except WardianError as error:
            # Killing it would lose what its owner asked to keep. It goes on, and is tried again.
            owner.log.append("sandbox.pause_retry", detail=str(error))
            retry_us = int(self._works.options.pause_retry_s * 1e6)
            await owner.change(end_at=self._works.now_us() + retry_us)
            raise


async def _resume_on_traffic(owner: Owner) -> None:
    await resume.resume(owner, max(RESUME_TIMEOUT_S, owner.sandbox.spec.timeout_s))


def _log_creation(owner: Owner) -> None:
    sandbox = owner.sandbox
    owner.log.append(
        "sandbox.create",
        tenant=sandbox.tenant,
        template=sandbox.template_id,
        build=sandbox.build_id,
        tree=sandbox.tree,
        root=sandbox.template_digest,
        driver=sandbox.driver,
        parent=sandbox.parent_id,
        timeout_s=sandbox.spec.timeout_s,
        env_names=sorted(sandbox.spec.env),
    )
    network.log_special_rules(owner)
