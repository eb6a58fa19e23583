"""A worker: takes runs of workflows from a server, and carries each through in a thread of its own.

It may be killed at any instant. Nobody hears of it for as long as a lease lasts then, and another worker
begins its runs again.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from wardian.model.errors import Conflict
from wardian.runs.lib.wardian_run import RunError
from wardian.workflows.program import Driving, Workflow, driven

PARK_S = 5.0
"""How long an answer is waited for before the run is put to rest."""
CLAIM_S = 20.0
TRIES, PAUSE_S, PAUSE_MAX_S = 30, 0.1, 5.0
_TIMEOUT = httpx.Timeout(60, connect=5)
_LEFT = ("run_superseded", "run_not_found")
"""What the server says to a worker that has a run no more."""

_STEPS = ("/steps", "/boxes/run", "/boxes/read")

_log = logging.getLogger(__name__)


class Parked(BaseException):
    """The run rests: whoever begins it again goes through the program once more."""


class _Stopped(BaseException):
    """It was told to stop while it waited for a run."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A run, as it was taken."""

    run_id: str
    workflow: str
    epoch: int
    input: Any
    lease_s: float
    steps: Mapping[str, bool]
    """The keys of those that were begun, and whether they were committed."""

    def check(self, asked: frozenset[str], key: str | None = None) -> None:
        """Raise Conflict if a program that asked for these steps, and now for ``key``, is not the one that
        committed the others: it does one after another."""
        forgotten = sorted(each for each, done in self.steps.items() if done and each not in asked)
        if forgotten and key not in self.steps:
            instead = "" if key is None else f", and asks for {key} now"
            raise Conflict(
                f"it committed {', '.join(forgotten[:8])} before{instead}", code="workflow_changed"
            )


class Worker:
    """Works for one server. With ``adopt``, runs that began with other code are taken as well."""

    def __init__(
        self, url: str, key: str, workflows: Sequence[Workflow], *, at_once: int = 8, adopt: bool = False
    ) -> None:
        self._workflows = {each.name: each for each in workflows}
        self._at_once, self._adopt = at_once, adopt
        self._http = httpx.Client(base_url=url, headers={"X-API-KEY": key}, timeout=_TIMEOUT, trust_env=False)
        self._name = f"{socket.gethostname()}:{os.getpid()}"
        self._stopping = threading.Event()
        self._claiming = False
        self.told: Callable[[str], None] = lambda text: None
        """Who is told what it does."""

    def stop(self) -> None:
        """Take no more runs; those under way are carried on until they rest. For a signal's handler: it ends
        the wait for a run. What was taken at that very moment is another worker's, after the lease."""
        self._stopping.set()
        if self._claiming:
            raise _Stopped

    def serve(self) -> None:
        """Until it is stopped. Raises :class:`RunError` for what the server refuses."""
        free = threading.Semaphore(self._at_once)
        with self._http, ThreadPoolExecutor(self._at_once, thread_name_prefix="workflow") as threads:
            versions = {name: self._register(each) for name, each in self._workflows.items()}
            while not self._stopping.is_set():
                if not free.acquire(timeout=0.5):
                    continue
                try:
                    claimed = self._claim(versions)
                except _Stopped:
                    break
                if claimed is None:
                    free.release()
                    continue
                self.told(f"{claimed.workflow}: run {claimed.run_id}, epoch {claimed.epoch}")
                threads.submit(self._carry, claimed).add_done_callback(lambda _: free.release())

    def _register(self, workflow: Workflow) -> Sequence[int]:
        """Let the agent of that name be this code; the versions whose runs are ours."""
        path = f"/wardian/agents/{quote(workflow.name, safe='')}"
        try:
            told = self._ask("GET", path)
        except RunError as error:
            if error.code != "agent_not_found":
                raise
            told = {"version": 0, "versions": []}
        ours = [each for each in told["versions"] if each["outside"] and each["entry"] == workflow.digest]
        if not ours:
            told = self._ask("PUT", path, {"outside": True, "entry": workflow.digest})
            ours = told["versions"]
        elif ours[0]["version"] != told["version"]:
            self._ask("POST", f"{path}/version", {"version": ours[0]["version"]})
        taken = ours if not self._adopt else [*ours, *(e for e in told["versions"] if e["outside"])]
        self.told(f"{workflow.name} is version {ours[0]['version']}, {workflow.digest[:19]}")
        return sorted({int(each["version"]) for each in taken})

    def _claim(self, versions: Mapping[str, Sequence[int]]) -> Claimed | None:
        body = {"worker": self._name, "versions": versions, "wait": CLAIM_S}
        try:
            self._claiming = True
            told = self._ask("POST", "/wardian/work", body)
        except RunError as error:
            if error.code != "unreachable":
                raise
            self.told(str(error))
            return None
        finally:
            self._claiming = False
        if told is None:
            return None
        return Claimed(
            told["runID"],
            told["agent"],
            told["epoch"],
            told["input"],
            told["lease"],
            told["steps"],
        )

    # ── one run

    def _carry(self, claimed: Claimed) -> None:
        over = threading.Event()
        beating = threading.Thread(target=self._beat, args=(claimed, over), daemon=True)
        beating.start()
        try:
            self._drive(claimed)
        except Parked:
            self.told(f"{claimed.workflow}: run {claimed.run_id} rests")
        except RunError as error:
            self.told(f"{claimed.workflow}: run {claimed.run_id} was left: {error}")
        except Exception:
            _log.exception("run %s", claimed.run_id)
        finally:
            over.set()

    def _drive(self, claimed: Claimed) -> None:
        waiting_since: list[float] = []

        def call(method: str, path: str, body: Any) -> Any:
            if path in _STEPS:
                claimed.check(run.asked, body["key"])
            return self._speak(claimed, method, path, body)

        def waits(state: str) -> None:
            if state == "waiting":
                waiting_since.append(time.monotonic())
                if time.monotonic() - waiting_since[0] > PARK_S:
                    waiting_since.clear()
                    if call("POST", "/park", {})["parked"]:
                        raise Parked

        run = Driving(call, waits)
        token = driven.set(run)
        try:
            result = self._workflows[claimed.workflow].do(claimed.input)
            claimed.check(run.asked)
            call("POST", "/result", {"result": result})
        except RunError as error:
            if error.code in _LEFT or error.code == "unreachable":
                raise
            self._fail(claimed, error.code, str(error))
        except Conflict as error:
            self._fail(claimed, error.code, str(error))
        except Exception as error:
            told = "".join(traceback.format_exception(error)[-4:])
            self._fail(claimed, "workflow_failed", told)
        else:
            call("POST", "/end", {})
            self.told(f"{claimed.workflow}: run {claimed.run_id} succeeded")
        finally:
            driven.reset(token)

    def _fail(self, claimed: Claimed, code: str, message: str) -> None:
        self._speak(claimed, "POST", "/end", {"code": code, "message": message[-4000:]})
        self.told(f"{claimed.workflow}: run {claimed.run_id} failed: {code}")

    def _beat(self, claimed: Claimed, over: threading.Event) -> None:
        while not over.wait(claimed.lease_s / 3):
            try:
                self._speak(claimed, "POST", "/beat", {})
            except RunError as error:
                if error.code in _LEFT:
                    return

    def _speak(self, claimed: Claimed, method: str, path: str, body: Any) -> Any:
        where = f"/wardian/work/{claimed.run_id}{path}"
        return self._ask(method, where, body, {"Wardian-Epoch": str(claimed.epoch)})

    def _ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] = {}) -> Any:
        """Every call may be made again. Raises :class:`RunError`; ``unreachable`` after some time."""
        pause = PAUSE_S
        for left in reversed(range(TRIES)):
            try:
                answer = self._http.request(method, path, json=body, headers=headers)
            except httpx.TransportError as error:
                why = RunError("unreachable", f"{self._http.base_url}: {error}")
            else:
                if answer.is_success:
                    return answer.json() if answer.content else None
                why = _refusal(answer)
                if answer.status_code < 500:
                    raise why
            if not left or self._stopping.wait(pause * random.uniform(0.5, 1.0)):
                raise why
            pause = min(pause * 2, PAUSE_MAX_S)
        raise AssertionError


def _refusal(answer: httpx.Response) -> RunError:
    try:
        said = answer.json()
        return RunError(said["error_code"], said["message"])
    except (ValueError, KeyError, TypeError):
        return RunError("refused", f"{answer.status_code}: {answer.text[:200]}")


__all__ = ["Worker"]
