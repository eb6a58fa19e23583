"""A Dockerfile's text as instructions: continuations joined, comments dropped, heredocs taken along."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from wardian.builds.errors import BadManifest

SIZE_MAX = 1 << 20
INSTRUCTIONS_MAX = 2000
HEREDOCS_MAX = 16
_DIRECTIVE = re.compile(r"#\s*([A-Za-z][A-Za-z0-9]*)\s*=\s*(.*?)\s*")
_HEREDOC = re.compile(r"<<(-?)(?:'([A-Za-z_]\w*)'|\"([A-Za-z_]\w*)\"|([A-Za-z_]\w*))")
_KEYWORD = re.compile(r"([A-Za-z]+)(?:\s+(.*))?", re.DOTALL)
_WITH_HEREDOCS = frozenset({"RUN", "COPY", "ADD"})


@dataclass(frozen=True, slots=True)
class Heredoc:
    """A document that stands below its instruction. ``raw``: nothing in it is expanded."""

    name: str
    raw: bool
    text: str


@dataclass(frozen=True, slots=True)
class Instruction:
    """One instruction: its keyword in capitals, the rest of it, and where it begins (1-based)."""

    keyword: str
    rest: str
    line: int
    heredocs: tuple[Heredoc, ...] = ()

    @property
    def text(self) -> str:
        """What the manifest says, on one line."""
        return f"{self.keyword} {self.rest}".strip()


@dataclass(frozen=True, slots=True)
class Source:
    """A whole Dockerfile. ``escape`` is its escape character."""

    instructions: Sequence[Instruction]
    escape: str


def read_lines(text: str, file: str) -> Source:
    """The instructions of a Dockerfile. Raises :class:`BadManifest`."""
    if len(text) > SIZE_MAX:
        raise BadManifest(f"larger than {SIZE_MAX >> 20} MiB", file=file)
    lines = text.removeprefix("\ufeff").splitlines()
    escape = _escape_of(lines, file)
    instructions = list(_instructions(lines, escape, file))
    if len(instructions) > INSTRUCTIONS_MAX:
        raise BadManifest(f"more than {INSTRUCTIONS_MAX} instructions", file=file)
    return Source(instructions, escape)


def _escape_of(lines: Sequence[str], file: str) -> str:
    """What the parser directives at the top say. ``syntax`` and ``check`` mean nothing to us."""
    escape = "\\"
    seen: set[str] = set()
    for number, line in enumerate(lines, 1):
        match = _DIRECTIVE.fullmatch(line.strip())
        if match is None or (name := match[1].lower()) not in ("syntax", "escape", "check"):
            break
        if name in seen:
            raise BadManifest(f"the directive {name!r} stands twice", file=file, line=number, text=line)
        seen.add(name)
        if name == "escape":
            escape = match[2]
            if escape not in ("\\", "`"):
                raise BadManifest("the escape character is \\ or `", file=file, line=number, text=line)
    return escape


def _instructions(lines: Sequence[str], escape: str, file: str) -> Iterator[Instruction]:
    at = 0
    while at < len(lines):
        if _is_skipped(lines[at]):
            at += 1
            continue
        begin = at
        said, at = _joined(lines, at, escape)
        match = _KEYWORD.fullmatch(said.strip())
        if match is None:
            raise BadManifest("this is no instruction", file=file, line=begin + 1, text=said)
        keyword, rest = match[1].upper(), (match[2] or "").strip()
        heredocs: tuple[Heredoc, ...] = ()
        if keyword in _WITH_HEREDOCS and "<<" in rest:
            heredocs, at = _heredocs(lines, at, rest, begin + 1, file)
        yield Instruction(keyword, rest, begin + 1, heredocs)


def _is_skipped(line: str) -> bool:
    stripped = line.strip()
    return not stripped or stripped.startswith("#")


def _joined(lines: Sequence[str], at: int, escape: str) -> tuple[str, int]:
    """The lines that an instruction goes on over, as one; comments and empty lines in between are dropped."""
    parts: list[str] = []
    while at < len(lines):
        line = lines[at]
        at += 1
        if parts and _is_skipped(line):
            continue
        stripped = line.rstrip()
        if not stripped.endswith(escape):
            parts.append(line)
            break
        parts.append(stripped[: -len(escape)])
    return "".join(parts), at


def _heredocs(
    lines: Sequence[str], at: int, rest: str, line: int, file: str
) -> tuple[tuple[Heredoc, ...], int]:
    found: list[Heredoc] = []
    for match in _HEREDOC.finditer(rest):
        if len(found) == HEREDOCS_MAX:
            raise BadManifest(f"more than {HEREDOCS_MAX} heredocs", file=file, line=line, text=rest)
        name = match[2] or match[3] or match[4]
        body: list[str] = []
        while True:
            if at == len(lines):
                raise BadManifest(f"the heredoc {name} does not end", file=file, line=line, text=rest)
            text = lines[at].lstrip("\t") if match[1] else lines[at]
            at += 1
            if text == name:
                break
            body.append(text + "\n")
        found.append(Heredoc(name, raw=match[4] is None, text="".join(body)))
    return tuple(found), at
