"""Contexts: where code is run and what it leaves behind stays. Each has a kernel, and one thing at a time."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence

from . import lines
from .kernels import Kernel, KernelDied
from .languages import FORGETFUL, Languages, setting
from .lines import Line
from .sandbox import Owner, owner

HOME = "/home/user"
DEFAULTS = ("python", "javascript")
"""Whose contexts are there from the start; those of other languages are made when first asked for."""

REHEARSALS = {"python": '__import__("interpreter.inside").inside.rehearse()', "javascript": "1 + 1"}
"""Code that does nothing, the way real code does it."""

GRACE_S = 5.0
"""How long an interrupted kernel has to become idle; then it is replaced."""

PENDING_MAX = 64 * 1024 * 1024
"""Bytes of output that a client may be behind."""

_log = logging.getLogger(__name__)


class Execution:
    """Code that runs in a context, or waits for its turn. Ask for its lines one after the other."""

    def __init__(self, context: Context, code: str, env: Mapping[str, str], *, silent: bool) -> None:
        self._context = context
        self._silent = silent
        self._queue: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._pending = 0
        self._abandoned = asyncio.Event()
        self._task = asyncio.create_task(self._run(code, env), name=f"execution in {context.id}")

    async def next_line(self) -> bytes | None:
        """The next encoded line, None after the last one."""
        line = await self._queue.get()
        self._pending -= len(line or b"")
        return line

    def abandon(self) -> None:
        """Nobody listens any more: what still runs is interrupted, what has not begun never does."""
        self._abandoned.set()

    async def _run(self, code: str, env: Mapping[str, str]) -> None:
        try:
            async with self._context.turn:
                if not self._abandoned.is_set():
                    await self._attended(code, env)
        except Exception as error:
            _log.exception("an execution failed")
            self._put(lines.error("InterpreterError", str(error)))
        finally:
            self._put(lines.END)
            self._queue.put_nowait(None)

    async def _attended(self, code: str, env: Mapping[str, str]) -> None:
        """Execute; when abandoned, interrupt, and give the kernel a moment before it is replaced."""
        work = asyncio.create_task(self._execute(code, env))
        leaving = asyncio.create_task(self._abandoned.wait())
        await asyncio.wait({work, leaving}, return_when=asyncio.FIRST_COMPLETED)
        leaving.cancel()
        if not work.done():
            self._context.interrupt()
            await asyncio.wait({work}, timeout=GRACE_S)
        if not work.done():
            work.cancel()
            await asyncio.wait({work})
            await self._context.renew()
            return
        work.result()

    async def _execute(self, code: str, env: Mapping[str, str]) -> None:
        async with contextlib.aclosing(self._context.output(code, env, silent=self._silent)) as output:
            async for line in output:
                self._put(line)

    def _put(self, line: Line) -> None:
        if self._abandoned.is_set():
            return
        data = lines.encode(line)
        self._pending += len(data)
        self._queue.put_nowait(data)
        if self._pending > PENDING_MAX:
            reason = f"more than {PENDING_MAX} bytes of output wait for a reader; the execution was ended"
            self._queue.put_nowait(lines.encode(lines.error("OutputLimitExceeded", reason)))
            self._abandoned.set()


class Context:
    """A kernel, where it runs, and whose turn it is. ``turn`` is held while anything is executed."""

    def __init__(self, languages: Languages, language: str, cwd: str) -> None:
        self.id = str(uuid.uuid4())
        self.language = language
        self.cwd = cwd
        self.turn = asyncio.Lock()
        self._languages = languages
        self._kernel: Kernel | None = None
        self._owner = Owner()
        self._used = False
        self._remembers = language not in FORGETFUL

    def begin(self, code: str, env: Mapping[str, str], *, silent: bool = False) -> Execution:
        """Run ``code`` with variables that are set for it alone, when its turn comes.

        A ``silent`` execution is nobody's: it neither counts nor says anything.
        """
        return Execution(self, code, env, silent=silent)

    def rehearse(self) -> Execution:
        """Go the way of an execution, so that the first real one finds everything in place."""
        return self.begin(REHEARSALS.get(self.language, ""), {}, silent=True)

    async def start(self) -> None:
        """Start the kernel, with the owner's environment."""
        self._owner = owner()
        self._used = False
        self._kernel = await self._languages.start(self.language, self.cwd, self._environment())

    async def stop(self) -> None:
        """End the kernel, whatever it does."""
        if self._kernel is not None:
            kernel, self._kernel = self._kernel, None
            await kernel.stop()

    async def renew(self) -> None:
        """A fresh kernel in place of the one that is there."""
        await self.stop()
        await self.start()

    def interrupt(self) -> None:
        """Stop what is being executed."""
        if self._kernel is not None:
            self._kernel.interrupt()

    async def output(self, code: str, env: Mapping[str, str], *, silent: bool) -> AsyncGenerator[Line]:
        """Execute ``code`` and yield its lines. A kernel that dies is replaced, and the lines say so."""
        kernel = await self._ready()
        try:
            await self._set(kernel, env)
            self._used = self._used or not silent
            async for message in kernel.execute(code, silent=silent):
                if (line := lines.line_of(message)) is not None:
                    yield line
            base = self._environment()
            await self._set(kernel, {name: base.get(name) for name in env})
        except KernelDied:
            await self.renew()
            yield lines.error("KernelDied", "the kernel ended in this code; the context was restarted")

    async def _ready(self) -> Kernel:
        """The kernel, belonging to whoever owns the sandbox now.

        One that ended between executions is replaced; so is one that nobody has used yet, where it could not
        be told to forget its random numbers.
        """
        now = owner()
        if self._kernel is None:
            await self.start()
        elif not self._kernel.alive or (now != self._owner and not self._used and self._remembers):
            await self.renew()
        elif now != self._owner:
            gone = {name: os.environ.get(name) for name in self._owner.env if name not in now.env}
            self._owner = now
            await self._run_silently(self._kernel, setting(self.language, {**gone, **now.env}, become=True))
        assert self._kernel is not None
        return self._kernel

    async def _set(self, kernel: Kernel, env: Mapping[str, str | None]) -> None:
        if env:
            await self._run_silently(kernel, setting(self.language, env))

    async def _run_silently(self, kernel: Kernel, code: str) -> None:
        if code:
            async for _ in kernel.execute(code, silent=True):
                pass

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._owner.env}


class Contexts:
    """All contexts, by id. One of each language is its default."""

    def __init__(self, languages: Languages) -> None:
        self.languages = languages
        self._contexts: dict[str, Context] = {}
        self._defaults: dict[str, Context] = {}
        self._making = asyncio.Lock()

    async def start(self) -> None:
        """Make and warm the default contexts."""
        for language in DEFAULTS:
            self._defaults[language] = await self._make(language, HOME)
        for _ in range(2):  # what happens once in a kernel's life, and then what happens every time
            for execution in self.rehearse():
                while await execution.next_line() is not None:
                    pass

    def rehearse(self) -> Sequence[Execution]:
        """Keep the default contexts ready to answer at once: an execution in each."""
        return [context.rehearse() for context in self._defaults.values()]

    def list(self) -> Sequence[Context]:
        """Oldest first."""
        return list(self._contexts.values())

    def find(self, context_id: str) -> Context | None:
        """The context with that id."""
        return self._contexts.get(context_id)

    async def default(self, language: str | None) -> Context:
        """The default context of a language, made when it is not there. UnknownLanguage if it cannot be."""
        name = self.languages.canonical(language)
        async with self._making:
            if (context := self._defaults.get(name)) is None:
                context = self._defaults[name] = await self._make(name, HOME)
        return context

    async def create(self, language: str | None, cwd: str | None) -> Context:
        """A new context; its directory is made when it is missing. UnknownLanguage, OSError."""
        name, place = self.languages.canonical(language), os.path.join(HOME, cwd or "")
        await asyncio.to_thread(os.makedirs, place, exist_ok=True)
        return await self._make(name, place)

    async def remove(self, context: Context) -> None:
        """End a context and forget it."""
        self._contexts.pop(context.id, None)
        if self._defaults.get(context.language) is context:
            del self._defaults[context.language]
        await context.stop()

    async def _make(self, language: str, cwd: str) -> Context:
        context = Context(self.languages, language, cwd)
        await context.start()
        self._contexts[context.id] = context
        return context

    async def stop(self) -> None:
        """End all of them."""
        await asyncio.gather(*(context.stop() for context in self._contexts.values()))
