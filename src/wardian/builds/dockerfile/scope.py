"""What a Dockerfile has set where: build arguments, variables, and what only the base image can know."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from wardian.builds.dockerfile.words import pieces
from wardian.builds.expand import expand, expand_known

PLATFORM: Mapping[str, str] = {
    "TARGETPLATFORM": "linux/amd64",
    "TARGETOS": "linux",
    "TARGETARCH": "amd64",
    "BUILDPLATFORM": "linux/amd64",
    "BUILDOS": "linux",
    "BUILDARCH": "amd64",
}
"""Arguments that have a value as soon as they are declared."""


@dataclass(slots=True)
class Scope:
    """The variables of one stage, or (``bare``) of what stands before the first.

    An ENV goes before an ARG of the same name. ``env`` holds None for what depends on the base image.
    """

    escape: str
    args: dict[str, str] = field(default_factory=dict)
    env: dict[str, str | None] = field(default_factory=dict)
    bare: bool = False

    def later(self, word: str) -> str:
        """A word for the builder to expand: arguments are replaced, variables are left standing."""
        return self._words(word, self.args, self._is_no_argument)

    def now(self, word: str) -> str | None:
        """A word with everything replaced; None when that takes what only the base image knows."""
        unknown: list[str] = []

        def is_unknown(name: str) -> bool:
            if self.env.get(name) is not None or (name in self.args and name not in self.env) or self.bare:
                return False
            unknown.append(name)
            return True

        values = {**self.args, **{name: value for name, value in self.env.items() if value is not None}}
        found = self._words(word, values, is_unknown)
        return None if unknown else expand(found, {})

    def _is_no_argument(self, name: str) -> bool:
        return name in self.env or name not in self.args

    def _words(self, word: str, values: Mapping[str, str], unknown: Callable[[str], bool]) -> str:
        return "".join(
            expand_known(piece, values, unknown, self.escape)
            if may_expand
            else expand_known(piece.replace("$", f"{self.escape}$"), {}, unknown, self.escape)
            for piece, may_expand in pieces(word, self.escape)
        )

    def visible_arguments(self) -> Mapping[str, str]:
        """The arguments that commands find in their environment."""
        return {name: value for name, value in self.args.items() if name not in self.env}
