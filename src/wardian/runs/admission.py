"""What is let in: the bounds on how many runs there are, and what each may use."""

from __future__ import annotations

from sqlalchemy import Connection

from wardian.model.agent import Version, budget_of
from wardian.model.errors import Conflict, LimitExceeded
from wardian.model.run import Run, RunState
from wardian.runs.works import RunWorks
from wardian.store import agents, budgets, runs

OPEN_MAX = 1000
"""Runs of a tenant that have not ended."""
DEPTH_MAX = 16
"""How far down a tree of runs may go."""


def admit(works: RunWorks, conn: Connection, run: Run, version: Version) -> None:
    """Add a run, with the budget that its agent has for each. Raises :class:`LimitExceeded`."""
    if runs.count_open(conn, run.tenant) >= OPEN_MAX:
        raise LimitExceeded(
            f"you have {OPEN_MAX} runs that have not ended, which is the limit", hint="cancel some"
        )
    if len(run.line) >= DEPTH_MAX:
        raise LimitExceeded(f"a tree of runs is {DEPTH_MAX} deep at most", hint="end the recursion")
    if run.line:
        _check_tree(conn, run)
    runs.add(conn, run)
    for unit, most in version.limits.budget.items():
        budgets.put(conn, budget_of(run.tenant, run.id, unit, most))
    if version.limits.budget:
        works.heed(run.tenant)


def _check_tree(conn: Connection, run: Run) -> None:
    root = runs.get(conn, run.root_id)
    version = None if root is None else agents.version(conn, root.agent_id, root.version)
    if version is not None and runs.count_tree(conn, run.root_id) >= version.limits.tree:
        raise LimitExceeded(
            f"{version.limits.tree} runs came of {run.root_id}, which is its agent's limit",
            code="tree_full",
            hint="freeze the agent with a bigger --tree, or begin fewer",
        )


class NoRoom(Conflict):
    """As many of its parent's runs work as may."""


def check_room(conn: Connection, run: Run) -> None:
    """Raise :class:`NoRoom` for a run that may not begin to work now."""
    if run.state is not RunState.QUEUED or run.parent_id is None:
        return
    parent = runs.get(conn, run.parent_id)
    version = None if parent is None else agents.version(conn, parent.agent_id, parent.version)
    if version is not None and runs.count_working(conn, run.parent_id) >= version.limits.at_once:
        raise NoRoom(f"{version.limits.at_once} runs of {run.parent_id} work")


__all__ = ["NoRoom", "admit", "check_room"]
