"""Variables in manifests: ``$X``, ``${X}``, ``${X:-default}``, ``${X:+instead}``, ``\\$``.

Two places expand them. A manifest's parser knows the manifest's own arguments; what a base image brings is
known only when that image is there. So the parser leaves such names standing (:func:`expand_known`), and the
builder expands what is left (:func:`expand`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
DEPTH_MAX = 8
_SPECIAL = re.compile(r"[\\$}]")

Lookup = Callable[[str], str | None]


class BadExpansion(ValueError):
    """A ``$`` that begins nothing we know."""


def expand(text: str, values: Mapping[str, str]) -> str:
    """``text`` with its variables replaced; one that is not set is empty. Raises :class:`BadExpansion`."""
    return _Expansion(values, None, "\\").of(text)


def expand_known(text: str, values: Mapping[str, str], unknown: Callable[[str], bool], escape: str) -> str:
    """Replace what is known, and leave the names that are ``unknown`` for :func:`expand` to replace later.

    ``escape`` is the manifest's escape character. What is meant literally comes out escaped.
    """
    return _Expansion(values, unknown, escape).of(text)


@dataclass(frozen=True, slots=True)
class _Expansion:
    values: Mapping[str, str]
    unknown: Callable[[str], bool] | None
    escape: str

    def of(self, text: str, depth: int = 0) -> str:
        if depth > DEPTH_MAX:
            raise BadExpansion(f"defaults within defaults, more than {DEPTH_MAX} deep")
        parts: list[str] = []
        at = 0
        while at < len(text):
            if text[at] == self.escape and text[at + 1 : at + 2] in ("$", "}", self.escape):
                parts.append(self._literal(text[at + 1]))
                at += 2
            elif text.startswith("${", at):
                end = self._closing(text, at + 2)
                parts.append(self._braced(text[at + 2 : end], depth))
                at = end + 1
            elif text[at] == "$" and (name := NAME.match(text, at + 1)) is not None:
                parts.append(self._value(name[0]))
                at = name.end()
            else:
                parts.append(self._literal(text[at]))
                at += 1
        return "".join(parts)

    def _literal(self, text: str) -> str:
        return text if self.unknown is None else _SPECIAL.sub(r"\\\g<0>", text)

    def _value(self, name: str) -> str:
        if self._is_unknown(name):
            return f"${{{name}}}"
        return self._literal(self.values.get(name, ""))

    def _is_unknown(self, name: str) -> bool:
        return self.unknown is not None and self.unknown(name)

    def _closing(self, text: str, at: int) -> int:
        open_braces = 1
        while at < len(text):
            if text[at] == self.escape:
                at += 1
            elif text.startswith("${", at):
                open_braces += 1
                at += 1
            elif text[at] == "}":
                open_braces -= 1
                if not open_braces:
                    return at
            at += 1
        raise BadExpansion("'${' without its '}'")

    def _braced(self, inside: str, depth: int) -> str:
        name = NAME.match(inside)
        if name is None:
            raise BadExpansion(f"'${{{inside}}}' names no variable")
        rest = inside[name.end() :]
        if not rest:
            return self._value(name[0])
        operator, word = rest[:2], rest[2:]
        if operator not in (":-", ":+"):
            raise BadExpansion(f"'${{{inside}}}': of modifiers, ':-' and ':+' are understood")
        word = self.of(word, depth + 1)
        if self._is_unknown(name[0]):
            return f"${{{name[0]}{operator}{word}}}"
        value = self.values.get(name[0], "")
        if operator == ":-":
            return self._literal(value) if value else word
        return word if value else ""
