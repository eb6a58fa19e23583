"""Which release of its runner a run gets, and what happens when that does not start.

A run gets the release that is current when a machine is first made for it, or the canary, by its share; then
it keeps it. A release that does not work is tried once more on a fresh machine. A canary that fails twice is
held against the current release: if that one works, in the same environment, the canary is to blame and is
rolled back, for all. Otherwise the environment is, and the run has failed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection

from wardian.guest.guest import Guest
from wardian.model.agent import Version
from wardian.model.run import Run
from wardian.model.runner import Release, Runner
from wardian.model.sandbox import Sandbox
from wardian.runners.proving import RunnerFault
from wardian.runners.service import Runners, Standing
from wardian.runners.store import ReleaseDamaged
from wardian.runs.works import RunWorks
from wardian.store import runs

TRIES = 2
"""Machines that a release is tried on, for one run."""


class WontStart(RunnerFault):
    """No machine will help."""

    code = "runner_does_not_start"


class Fitting:
    """Gives runs their runners."""

    def __init__(self, works: RunWorks, runners: Runners) -> None:
        self._works, self._runners = works, runners

    async def fit(self, run: Run, version: Version, sandbox: Sandbox, guest: Guest) -> Standing | None:
        """What stands beside the run's environment from now on; None: its agent names no runner.

        Raises :class:`RunnerFault` if another machine should be tried, :class:`WontStart` if none.
        """
        if not version.runner:
            return None
        runner, releases = await self._runners.get(run.tenant, version.runner)
        known = dict(run.runner or {})
        numbered = {each.number: each for each in releases}
        # Another runner's may have been put in by hand, in a machine that is gone.
        release = numbered.get(known.get("number", 0)) or numbered[runner.chosen_for(run.id)]
        told = {
            "name": runner.name,
            "release": release.digest,
            "version": release.version,
            "number": release.number,
        }
        await self._note(run, known | told)
        try:
            standing = await self._runners.put(sandbox, guest, runner, release)
        except ReleaseDamaged as error:
            raise WontStart(str(error)) from error
        except RunnerFault as fault:
            await self._failed(run, runner, release, known | told, fault)
            raise
        if (suspect := known.get("suspect")) is not None:
            blamed = numbered[suspect["number"]]
            await self._runners.roll_back(runner, blamed, suspect["why"], run.id)
            self._works.log(
                run.id, "run.runner_rolled_back", release=blamed.digest, to=release.digest, why=suspect["why"]
            )
        return standing

    def forget(self, run_id: str) -> None:
        """A run is over."""
        self._runners.forget(run_id)

    async def _failed(
        self, run: Run, runner: Runner, release: Release, known: dict[str, Any], fault: RunnerFault
    ) -> None:
        """Note that a release did not work for a run. Raises :class:`WontStart` if nothing is left."""
        why = f"{fault.code}: {fault}"
        self._works.log(run.id, "run.runner_failed", release=release.digest, why=why[:1000])
        tries = known.get("tries", 0) + 1
        if tries < TRIES:
            await self._note(run, known | {"tries": tries})
        elif release.number == runner.canary and "suspect" not in known:
            suspect = {"number": release.number, "why": why[:1000]}
            await self._note(run, {"number": runner.current, "suspect": suspect})
        else:
            await self._note(run, known | {"tries": tries})
            back = "" if runner.previous is None else ", or go back: `wardian runner use`"
            raise WontStart(
                f"release {release.shown} of runner {runner.name} does not start: {why}",
                hint=f"release one that does{back}; then `wardian run retry {run.id}`",
            )

    async def _note(self, run: Run, told: Mapping[str, Any]) -> None:
        def transaction(conn: Connection) -> None:
            self._works.lease.fence(conn)
            runs.change(conn, run.id, runner=told)

        await self._works.database.write(transaction)


__all__ = ["Fitting", "WontStart"]
