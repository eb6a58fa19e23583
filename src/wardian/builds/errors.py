"""What may go wrong with a manifest and with a build: two errors, both with the place."""

from __future__ import annotations

from wardian.model.build import Step
from wardian.model.errors import Invalid, WardianError

TEXT_MAX = 200
"""How much of a line an error repeats."""


class BadManifest(Invalid):
    """A manifest that cannot be built from. The message begins with ``<file>:<line>``, where there is one."""

    code = "bad_manifest"

    def __init__(
        self, message: str, *, file: str = "", line: int = 0, text: str = "", hint: str | None = None
    ) -> None:
        place = f"{file}:{line}: " if line else f"{file}: " if file else ""
        quoted = f"\n  {shortened(text)}" if text else ""
        super().__init__(f"{place}{message}{quoted}", hint=hint)
        self.line = line


class BuildFailed(WardianError):
    """A build that went wrong: which step, where in the manifest, and the last lines it said.

    ``place`` is the step's number, such as "2/7", or empty when no step was under way.
    """

    kind, code = Invalid.kind, "build_failed"

    def __init__(
        self,
        message: str,
        *,
        place: str = "",
        step: Step | None = None,
        output: tuple[str, ...] = (),
        hint: str | None = None,
    ) -> None:
        said = [message]
        if step is not None:
            where = f", line {step.line}" if step.line else ""
            said.append(f"in step {place}{where}: {shortened(step.text or describe(step))}")
        if output:
            said.append("the last it said:")
            said += [f"  {line}" for line in output]
        super().__init__("\n".join(said), hint=hint)
        self.place = place


def describe(step: Step) -> str:
    """A step in a manifest's words, where the manifest's own are not known."""
    return " ".join((step.kind.value.upper(), *step.args))


def shortened(text: str) -> str:
    """One line of at most :data:`TEXT_MAX` characters."""
    line = " ".join(text.split())
    return line if len(line) <= TEXT_MAX else line[: TEXT_MAX - 1] + "…"
