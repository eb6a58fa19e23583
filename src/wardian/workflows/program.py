"""What a workflow is written with: the decorators, the run that it is, and the sandboxes that it drives."""

from __future__ import annotations

import functools
import hashlib
import inspect
import re
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast, overload

from wardian.model.errors import Invalid
from wardian.runs.lib.wardian_run import Run

P = ParamSpec("P")
T = TypeVar("T")


class CommandFailed(Exception):
    """A command in a sandbox did not end with 0; ``done`` is what it said."""

    def __init__(self, command: str, done: Done) -> None:
        super().__init__(f"{command[:200]!r} ended with {done.exit}: {done.stderr[-2000:]}")
        self.done = done


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended. Of what it said, the last 128 KiB of each channel."""

    exit: int
    stdout: str
    stderr: str


@dataclass(frozen=True, slots=True)
class Workflow:
    """A function that runs are of. ``digest`` is of the file that it is in: other code is another version."""

    name: str
    do: Callable[[Any], Any]
    digest: str

    def __call__(self, input: Any) -> Any:
        """As any function: without a run, its steps are just done."""
        return self.do(input)


class Driving(Run):
    """A run of a workflow."""

    def __init__(self, call: Callable[[str, str, Any], Any], waits: Callable[[str], None]) -> None:
        super().__init__(call)
        self._while_waiting = waits

    def _waits(self, state: str) -> None:
        self._while_waiting(state)

    @property
    def asked(self) -> frozenset[str]:
        """The keys of all that the program has asked for."""
        return frozenset(
            f"{name}#{number}" if number > 1 else name
            for name, count in self._counts.items()
            for number in range(1, count + 1)
        )

    def sandbox(self, template: str = "base", name: str = "box") -> Box:
        """A sandbox of the run's own; the same name again is another one. It ends with the run."""
        key = self._key(name)
        self._call("POST", "/boxes", {"key": key, "template": template})
        return Box(self, key)


class Box:
    """A sandbox that a run drives. What is done in it is a step, committed with its machine."""

    def __init__(self, run: Driving, key: str) -> None:
        self._run, self.key = run, key

    def run(
        self,
        command: str,
        *,
        files: Mapping[str, str] | None = None,
        timeout: float = 3600,
        check: bool = True,
        name: str = "run",
    ) -> Done:
        """Write ``files`` (paths and texts) and run a command with bash. Raises :class:`CommandFailed`."""
        done = Done(**self._do("/boxes/run", name, command=command, files=files, timeout=timeout))
        if check and done.exit != 0:
            raise CommandFailed(command, done)
        return done

    def write(self, path: str, text: str, name: str = "write") -> None:
        self._do("/boxes/run", name, files={path: text})

    def read(self, path: str, name: str = "read") -> str:
        """The text of a file, of 128 KiB at most."""
        return cast(str, self._do("/boxes/read", name, path=path))

    def _do(self, where: str, name: str, **more: Any) -> Any:
        key = self._run._key(f"{self.key}.{name}")
        return self._run._waited(where, {"key": key, "box": self.key, **more})["result"]


driven: ContextVar[Driving | None] = ContextVar("driven", default=None)
"""The run that this thread drives."""


class _Current:
    """``run``: whichever run the workflow is that asks."""

    def __getattr__(self, name: str) -> Any:
        return getattr(current(), name)


run = cast(Driving, _Current())


def current() -> Driving:
    """Raises :class:`Invalid` outside of a workflow."""
    found = driven.get()
    if found is None:
        raise Invalid(
            "no workflow runs here",
            code="no_workflow",
            hint="`wardian workflow serve FILE` runs those of a file",
        )
    return found


@overload
def step(do: Callable[P, T]) -> Callable[P, T]: ...
@overload
def step(*, tries: int = 1, name: str | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]: ...
def step(do: Any = None, *, tries: int = 1, name: str | None = None) -> Any:
    """Have a function done once in each run: its result, which is JSON, is committed. It may raise ``tries``
    times before that is raised to the workflow. Its arguments are part of what it is asked."""

    def decorated(do: Callable[..., Any]) -> Callable[..., Any]:
        key = name or do.__name__

        @functools.wraps(do)
        def once(*arguments: Any, **named: Any) -> Any:
            if (run := driven.get()) is None:
                return do(*arguments, **named)
            if not named:
                return run.step(key, do, *arguments, tries=tries)
            return run.step(key, lambda given, more: do(*given, **more), list(arguments), named, tries=tries)

        return once

    return decorated if do is None else decorated(do)


@overload
def workflow(do: Callable[[Any], Any]) -> Workflow: ...
@overload
def workflow(*, name: str | None = None) -> Callable[[Callable[[Any], Any]], Workflow]: ...
def workflow(do: Any = None, *, name: str | None = None) -> Any:
    """Make a function of the run's input a workflow. What it returns, as JSON, is the run's result."""

    def decorated(do: Callable[[Any], Any]) -> Workflow:
        source = Path(inspect.getsourcefile(do) or "").read_bytes()
        digest = "sha256:" + hashlib.sha256(source).hexdigest()
        return Workflow(name or re.sub(r"[^a-z0-9]+", "-", do.__name__.lower()).strip("-"), do, digest)

    return decorated if do is None else decorated(do)


__all__ = [
    "Box",
    "CommandFailed",
    "Done",
    "Driving",
    "Workflow",
    "current",
    "driven",
    "run",
    "step",
    "workflow",
]
