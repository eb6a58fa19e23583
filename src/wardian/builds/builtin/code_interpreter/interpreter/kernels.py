"""What a kernel is to the rest: something that executes code and answers in Jupyter's messages."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol


class KernelDied(Exception):
    """The kernel's process ended, or its channel did, while something was asked of it."""


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(frozen=True, slots=True)
class Message:
    """One of Jupyter's output messages: ``stream``, ``display_data``, ``execute_result``, ``error``,
    ``execute_input``. ``at`` is when it was sent, ISO 8601."""

    kind: str
    content: Mapping[str, Any]
    at: str = field(default_factory=_now)


class Kernel(Protocol):
    """One interpreter with its state. Executes one thing at a time; callers take turns."""

    @property
    def alive(self) -> bool:
        """Whether its process runs."""

    def execute(self, code: str, *, silent: bool = False) -> AsyncIterator[Message]:
        """Run ``code`` and yield what it says, until the kernel is idle again. KernelDied if it ends.

        ``silent`` runs do not count and show no result.
        """

    def interrupt(self) -> None:
        """Stop what is being executed, as Ctrl-C would."""

    async def stop(self) -> None:
        """End the kernel, whatever it does. Idempotent."""
