"""Taking an instruction's rest apart: flags, quoted words, the JSON form, name=value pairs."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

_FLAG = re.compile(r"--([a-z][a-z-]*)(?:=(\S*))?(?:\s+|$)")


class BadWords(ValueError):
    """Words that cannot be taken apart."""


def split_flags(rest: str) -> tuple[Sequence[tuple[str, str | None]], str]:
    """The ``--flag[=value]`` words at the beginning, and what follows."""
    flags: list[tuple[str, str | None]] = []
    while (match := _FLAG.match(rest)) is not None:
        flags.append((match[1], match[2]))
        rest = rest[match.end() :]
    return flags, rest


def json_form(rest: str) -> Sequence[str] | None:
    """The words of the JSON form, or None when it is the other form."""
    if not rest.startswith("["):
        return None
    try:
        words = json.loads(rest)
    except (ValueError, RecursionError):
        return None
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        return None
    if any("\0" in word for word in words):
        raise BadWords("a NUL byte")
    return words


def split_words(text: str, escape: str) -> list[str]:
    """Words at spaces, with quotes and escapes left as they are: expansion comes first."""
    words: list[str] = []
    word: list[str] = []
    quote = ""
    at = 0
    while at < len(text):
        character = text[at]
        if character == escape and quote != "'" and at + 1 < len(text):
            word.append(text[at : at + 2])
            at += 2
            continue
        if quote:
            quote = "" if character == quote else quote
        elif character in "\"'":
            quote = character
        elif character.isspace():
            if word:
                words.append("".join(word))
            word = []
            at += 1
            continue
        word.append(character)
        at += 1
    if quote:
        raise BadWords(f"a {quote} without its end")
    if word:
        words.append("".join(word))
    return words


def pieces(word: str, escape: str) -> Sequence[tuple[str, bool]]:
    """A word without its quotes, in pieces; the flag says that a piece may be expanded.

    What is in single quotes is meant literally. Escapes other than of ``$`` and of the escape character
    itself are resolved.
    """
    found: list[tuple[str, bool]] = []
    piece: list[str] = []
    quote = ""
    at = 0

    def end() -> None:
        if piece:
            found.append(("".join(piece), quote != "'"))
            piece.clear()

    while at < len(word):
        character = word[at]
        if character == escape and quote != "'" and at + 1 < len(word):
            following = word[at + 1]
            kept = following in ("$", escape) or (quote == '"' and following != '"')
            piece.append(word[at : at + 2] if kept else following)
            at += 2
            continue
        if character == quote:
            end()
            quote = ""
        elif not quote and character in "\"'":
            end()
            quote = character
        else:
            piece.append(character)
        at += 1
    end()
    return found


def split_pair(word: str) -> tuple[str, str] | None:
    """``name=value`` with its quotes still on, or None."""
    name, equals, value = word.partition("=")
    if not equals or not re.fullmatch(r"[^\s\"'=]+", name):
        return None
    return name, value
