"""``.dockerignore``: which files of a directory are not there, as far as a build is concerned."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass

from wardian.builds.errors import BadManifest
from wardian.builds.patterns import BadPattern, translate

NAME = ".dockerignore"
SIZE_MAX = 1 << 20


@dataclass(frozen=True, slots=True)
class Ignore:
    """Patterns in order; the last one that matches a path, or a directory above it, decides."""

    rules: Sequence[tuple[re.Pattern[str], bool]] = ()

    def excludes(self, path: str) -> bool:
        """Whether ``path`` (relative, with slashes) is excluded."""
        excluded = False
        for pattern, exclude in self.rules:
            if exclude != excluded and pattern.fullmatch(path):
                excluded = exclude
        return excluded

    @property
    def has_exceptions(self) -> bool:
        """Whether something below an excluded directory may be there all the same."""
        return any(not exclude for _, exclude in self.rules)


def parse_ignore(text: str, file: str = NAME) -> Ignore:
    """The rules of a ``.dockerignore``. Raises :class:`BadManifest`."""
    if len(text) > SIZE_MAX:
        raise BadManifest(f"larger than {SIZE_MAX >> 20} MiB", file=file)
    rules: list[tuple[re.Pattern[str], bool]] = []
    for number, line in enumerate(text.removeprefix("\ufeff").splitlines(), 1):
        if line.startswith("#"):
            continue
        said = line.strip()
        exclude = not said.startswith("!")
        pattern = said.removeprefix("!").strip()
        if not pattern:
            if not exclude:
                raise BadManifest("'!' without a pattern", file=file, line=number, text=line)
            continue
        cleaned = posixpath.normpath(pattern).lstrip("/")
        if cleaned == ".":
            continue
        if cleaned.startswith("../") or cleaned == "..":
            raise BadManifest("this leads out of the directory", file=file, line=number, text=line)
        try:
            rules.append((re.compile(f"{translate(cleaned)}(?:/.*)?", re.DOTALL), exclude))
        except (BadPattern, re.error) as error:
            raise BadManifest(str(error), file=file, line=number, text=line) from None
    return Ignore(rules)
