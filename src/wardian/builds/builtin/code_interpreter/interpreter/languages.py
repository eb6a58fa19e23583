"""Which languages there are here, and how a kernel of each is made."""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from jupyter_client.kernelspec import KernelSpecManager

from . import programs
from .jupyter import JupyterKernel
from .kernels import Kernel
from .pipes import PipedKernel
from .processes import KernelProcess, watch
from .zygote import Zygote

BUILT_IN = ("python", "javascript", "typescript", "bash")
ALIASES = {"js": "javascript", "ts": "typescript", "python3": "python", "ir": "r"}
DEFAULT = "python"

SETTABLE = frozenset({"python", "javascript", "typescript", "bash", "java", "r"})
"""In whose running kernels variables can be set."""

FORGETFUL = frozenset({"python", "bash", "r"})
"""Whose running kernels can start their random numbers afresh."""


class UnknownLanguage(Exception):
    """No kernel for that language is installed; the message names those that are."""


@dataclass(frozen=True, slots=True)
class Languages:
    """The built-in languages, and every kernel that Jupyter finds installed (R, Java, ...)."""

    zygote: Zygote

    def canonical(self, name: str | None) -> str:
        """The one name of a language. UnknownLanguage when it cannot be had here."""
        language = (name or DEFAULT).lower()
        language = ALIASES.get(language, language)
        if language in BUILT_IN:  # what else there is takes a search of the disk
            return language
        if language not in (known := self.known()):
            raise UnknownLanguage(
                f"Language {name!r} is not available in this template; available: {', '.join(known)}. "
                "Others are available in templates in which their Jupyter kernel is installed."
            )
        return language

    def known(self) -> Sequence[str]:
        """Every language there is a kernel for. Java's is ours, as soon as there is a JDK."""
        others = {*self._installed(), *(("java",) if shutil.which("java") else ())}
        return (*BUILT_IN, *sorted(others - {*BUILT_IN}))

    async def start(self, language: str, cwd: str, env: Mapping[str, str]) -> Kernel:
        """A new kernel of a canonical language."""
        if language in ("javascript", "typescript"):
            return await PipedKernel.start(partial(programs.node, language, cwd, env))
        if language in ("python", "bash"):
            return await PipedKernel.start(partial(self.zygote.fork, language, cwd, env))
        if (argv := self._installed().get(language)) is not None:
            return await JupyterKernel.start(partial(_spawn, argv, cwd, env))
        return await PipedKernel.start(partial(programs.java, cwd, env))

    @staticmethod
    def _installed() -> dict[str, Sequence[str]]:
        specs = KernelSpecManager().get_all_specs()
        found = {name.lower(): tuple(spec["spec"]["argv"]) for name, spec in specs.items()}
        return {ALIASES.get(name, name): argv for name, argv in sorted(found.items())}


async def _spawn(argv: Sequence[str], cwd: str, env: Mapping[str, str], file: str) -> KernelProcess:
    command = [word.replace("{connection_file}", file) for word in argv]
    return watch(
        await asyncio.create_subprocess_exec(
            *command, cwd=cwd, env=env, stdin=asyncio.subprocess.DEVNULL, start_new_session=True
        )
    )


def setting(language: str, env: Mapping[str, str | None], *, become: bool = False) -> str:
    """Code that sets variables in a running kernel, and removes those that are None.

    With ``become`` a clone of a snapshot gets a new owner, and its random numbers start afresh if they can.
    Empty where a language has no way to do either.
    """
    match language:
        case "python":
            verb = "become" if become else "set_env"
            return f'__import__("interpreter.inside").inside.{verb}({dict(env)!r})'
        case "javascript" | "typescript":
            changes = json.dumps(env)
            return (
                f"for (const [name, value] of Object.entries({changes}))"
                " value === null ? delete process.env[name] : (process.env[name] = value);"
            )
        case "java":
            return f"//env {json.dumps(env)}"
        case "bash":
            return "; ".join((*_in_bash(env), *((f"RANDOM={_seed()}",) if become else ())))
        case "r":
            return "\n".join((*_in_r(env), *((f"set.seed({_seed()})",) if become else ())))
    return ""


def _in_bash(env: Mapping[str, str | None]) -> Iterator[str]:
    for name, value in env.items():
        if name.isidentifier():
            yield f"unset {name}" if value is None else f"export {name}={shlex.quote(value)}"


def _in_r(env: Mapping[str, str | None]) -> Iterator[str]:
    for name, value in env.items():
        if value is None:
            yield f"Sys.unsetenv({json.dumps(name)})"
        else:
            yield f"do.call(Sys.setenv, setNames(list({json.dumps(value)}), {json.dumps(name)}))"


def _seed() -> int:
    """From the machine's own entropy: this process has been cloned, too."""
    return int.from_bytes(os.urandom(3))
