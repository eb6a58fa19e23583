"""The repository keeps its word: promises have proof, decisions are numbered, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROMISE = re.compile(r"^\| (?P<number>\d+) \| (?P<text>.+?) \| (?P<status>\w+) \| (?P<proof>.*?) \|$", re.M)
PROOF = re.compile(r"`(?P<path>[\w./-]+)(?:::(?P<name>\w+))?`")


def promises() -> list[re.Match[str]]:
    """Every row of the table of promises."""
    return list(PROMISE.finditer((ROOT / "docs/promises.md").read_text()))


def test_promises_are_numbered_without_gaps() -> None:
    """A promise keeps its number for ever, so numbers may be cited."""
    assert [int(row["number"]) for row in promises()] == list(range(1, len(promises()) + 1))


@pytest.mark.parametrize("row", promises(), ids=lambda row: f"promise-{row['number']}")
def test_a_promise_says_how_it_is_kept(row: re.Match[str]) -> None:
    """Asserted and measured promises name a proof that exists; pending ones say what is missing."""
    assert row["status"] in {"asserted", "measured", "pending"}
    if row["status"] == "pending":
        assert row["proof"].strip()
        return
    proofs = list(PROOF.finditer(row["proof"]))
    assert proofs, "no proof named"
    for proof in proofs:
        path = ROOT / proof["path"]
        assert path.exists(), f"{proof['path']} does not exist"
        if proof["name"]:
            assert re.search(rf"\bdef {proof['name']}\b", path.read_text()), f"{proof[0]} does not exist"


def test_decisions_are_numbered_without_gaps() -> None:
    """Decision records are never renumbered."""
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs/decisions").glob("*.md"))
    assert numbers == list(range(1, len(numbers) + 1))


PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_relative_links_lead_somewhere(page: Path) -> None:
    """A link in the documentation that leads nowhere is a defect."""
    for target in re.findall(r"\]\((?!https?://|#|mailto:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"
