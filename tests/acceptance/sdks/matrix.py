"""The matrix that ``docs/sdks.md`` shows: which release of which client can do what here."""

from __future__ import annotations

from collections.abc import Mapping

from tests.acceptance.sdks.releases import Release

HEAD = """\
# The official clients, release by release

Written by `make test-sdks`, which drives every release against a live server.
✓ works; · this release has no such call.

"""


def table(outcomes: Mapping[Release, Mapping[str, str]]) -> str:
    """The matrix as Markdown, in the order of the table of releases."""
    steps = list(dict.fromkeys(step for outcome in outcomes.values() for step in outcome))
    lines = ["| | " + " | ".join(_title(release) for release in outcomes) + " |"]
    lines.append("|---|" + "---|" * len(outcomes))
    for step in steps:
        marks = ("✓" if outcome.get(step) == "ok" else "·" for outcome in outcomes.values())
        lines.append(f"| {step} | " + " | ".join(marks) + " |")
    return HEAD + "\n".join(lines) + "\n"


def _title(release: Release) -> str:
    return f"`{release.package}` {release.version} ({release.language})"
