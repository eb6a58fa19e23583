"""Where this host gets Debian from: its own apt configuration, read and never guessed.

Both of apt's source formats are understood: one line (``*.list``) and deb822 (``*.sources``). The set-up
script imports this file before anything is installed, so it uses the standard library and nothing else.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

APT_DIR = Path("/etc/apt")

ONE_LINE = re.compile(
    r"^\s*deb\s+(?:\[(?P<options>[^\]]*)\]\s+)?(?P<uri>\S+)\s+(?P<suite>\S+)\s+(?P<components>.+)$"
)

NETWORK_OPTIONS = re.compile(
    r"^Acquire::(?:https?::(?:Proxy|CaInfo|CaPath|SslCert|SslKey|Verify-Peer|Timeout)\b|https?::Proxy::|"
    r"Proxy-Auto-Detect|Check-Valid-Until|Check-Date|Retries|ForceIPv[46])",
    re.IGNORECASE,
)
"""What of the host's apt configuration is about reaching the mirror: proxies, certificates, clocks."""


@dataclass(frozen=True, slots=True)
class Source:
    """One archive and suite. ``signed_by`` is a keyring's path, an armoured key, or empty: apt's own keys."""

    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str = ""

    @property
    def line(self) -> str:
        """One-line form. An armoured key has none: those are left to apt's trusted keys."""
        option = f"[signed-by={self.signed_by}] " if self.signed_by.startswith("/") else ""
        return f"deb {option}{self.uri} {self.suite} {' '.join(self.components)}"

    @property
    def stanza(self) -> str:
        """deb822 form, which can hold every kind of key."""
        signed_by = f"Signed-By: {self.signed_by}\n" if self.signed_by else ""
        components = " ".join(self.components)
        return f"Types: deb\nURIs: {self.uri}\nSuites: {self.suite}\nComponents: {components}\n{signed_by}"


def host_sources(apt_dir: Path = APT_DIR) -> tuple[Source, ...]:
    """Every binary source this host uses, in apt's order. Empty when it has none."""
    parts = apt_dir / "sources.list.d"
    found: list[Source] = []
    for path in [apt_dir / "sources.list", *sorted(parts.glob("*.list")), *sorted(parts.glob("*.sources"))]:
        if path.is_file():
            text = path.read_text(errors="replace")
            found += _deb822(text) if path.suffix == ".sources" else _one_line(text)
    return tuple(dict.fromkeys(found))


def archive(sources: Iterable[Source], codename: str, host_codename: str = "") -> tuple[Source, ...]:
    """The sources of Debian release ``codename``: the release itself, its updates and its security fixes.

    On a host of another release (``host_codename``) the same archive is asked for ``codename``. Empty when no
    source is a Debian release.
    """
    for have in (codename, host_codename):
        wanted = {have, f"{have}-updates", f"{have}-security"}
        found = [source for source in sources if have and source.suite in wanted]
        if any(source.suite == have for source in found):
            return tuple(
                replace(s, suite=s.suite.replace(have, codename, 1), components=("main",)) for s in found
            )
    return ()


def network_options(dump: str | None = None) -> tuple[str, ...]:
    """The host's apt options for reaching its mirror, as ``Name "value";`` (lines of ``apt-config dump``)."""
    if dump is None:
        dump = subprocess.run(["apt-config", "dump"], capture_output=True, text=True, check=True).stdout
    return tuple(
        line for line in dump.splitlines() if NETWORK_OPTIONS.match(line) and not line.endswith('"";')
    )


def _one_line(text: str) -> Iterator[Source]:
    for line in text.splitlines():
        if match := ONE_LINE.match(line.split("#", 1)[0]):
            options = dict(pair.split("=", 1) for pair in (match["options"] or "").split() if "=" in pair)
            components = tuple(match["components"].split())
            yield Source(
                match["uri"].rstrip("/"),
                match["suite"],
                components,
                options.get("signed-by", ""),
            )


def _deb822(text: str) -> Iterator[Source]:
    text = re.sub(r"^#.*\n?", "", text, flags=re.M)
    for paragraph in re.split(r"\n\s*\n", text):
        fields = {name.lower(): value for name, value in _fields(paragraph.splitlines())}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").strip() == "no":
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri.rstrip("/"), suite, components, fields.get("signed-by", "").strip())


def _fields(lines: Sequence[str]) -> Iterator[tuple[str, str]]:
    """``Name: value`` pairs; continuation lines keep their newlines and indentation (keys need them)."""
    name, value = "", ""
    for line in lines:
        if line[:1].isspace():
            value += "\n" + line
            continue
        if name:
            yield name, value
        name, _, value = line.partition(":")
        value = value.strip()
    if name:
        yield name, value
