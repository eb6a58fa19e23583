"""Path patterns as Docker has them (Go's ``filepath.Match``, with ``**`` for any number of directories)."""

from __future__ import annotations

import re


class BadPattern(ValueError):
    """A pattern with a ``[`` and no ``]``, or a ``\\`` at its end."""


def translate(pattern: str) -> str:
    """A regular expression for whole paths. ``*`` and ``?`` do not match a slash."""
    out: list[str] = []
    at = 0
    while at < len(pattern):
        character = pattern[at]
        if pattern.startswith("**/", at):
            out.append("(?:[^/]+/)*")
            at += 3
            continue
        if pattern.startswith("**", at):
            out.append(".*")
            at += 2
            continue
        if character == "*":
            out.append("[^/]*")
        elif character == "?":
            out.append("[^/]")
        elif character == "[":
            at, klass = _class(pattern, at)
            out.append(klass)
        elif character == "\\":
            at += 1
            if at == len(pattern):
                raise BadPattern("a '\\' at the end of a pattern")
            out.append(re.escape(pattern[at]))
        else:
            out.append(re.escape(character))
        at += 1
    return "".join(out)


def _class(pattern: str, at: int) -> tuple[int, str]:
    """The class that begins at ``at``: where it ends, and as a regular expression."""
    end = at + 1
    negated = pattern[end : end + 1] in ("^", "!")
    end += negated
    members: list[str] = []
    while end < len(pattern) and (pattern[end] != "]" or not members):
        if pattern[end] == "\\" and end + 1 < len(pattern):
            end += 1
            members.append(re.escape(pattern[end]))
        elif pattern[end] == "-" and members and pattern[end + 1 : end + 2] not in ("", "]"):
            members.append("-")
        else:
            members.append(re.escape(pattern[end]))
        end += 1
    if end >= len(pattern):
        raise BadPattern("a '[' without its ']'")
    klass = f"[{'^/' if negated else ''}{''.join(members)}]"
    try:
        re.compile(klass)
    except re.error:
        raise BadPattern(f"{pattern[at : end + 1]!r} is no range") from None
    return end, klass
