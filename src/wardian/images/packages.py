"""Debian packages as a recipe names them: ``name``, or ``name=version`` when it must be that very one.

Debian's own archive keeps few old versions, and no other can be relied on. So a pin that cannot be kept is an
error that says what there is instead, never a silent upgrade.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from wardian.images import debian
from wardian.model.errors import Invalid, NotFound

NAME = re.compile(r"[a-z0-9][a-z0-9+.-]{1,127}")
VERSION = re.compile(r"[0-9][A-Za-z0-9.+~:-]{0,127}")
SUITE = re.compile(r"[a-z][a-z0-9-]{0,63}")

LIST_ARCHIVES = r"""
cat "$1"/var/lib/apt/lists/*_Packages | awk '
    BEGIN { RS = ""; FS = "\n" }
    {
        package = version = digest = ""
        for (i = 1; i <= NF; i++) {
            if ($i ~ /^Package: /) package = substr($i, 10)
            else if ($i ~ /^Version: /) version = substr($i, 10)
            else if ($i ~ /^SHA256: /) digest = substr($i, 9)
        }
        print package, version, digest
    }' > "$1/tmp/archives"
"""
"""A shell script: what apt knows of every package in the root ``$1``, one ``name version sha256`` a line."""

_UNKNOWN = re.compile(r"E: Unable to locate package (\S+)|E: Package '(\S+)' has no installation candidate")
_WRONG_VERSION = re.compile(r"E: Version '(\S+)' for '(\S+)' was not found")


def check_names(suite: str, packages: Iterable[str]) -> None:
    """Raise :class:`Invalid` unless every one can be the name of a suite, of a package, or of a version."""
    if not SUITE.fullmatch(suite):
        raise Invalid(f"{suite!r} is no Debian suite", hint="such as bookworm", code="invalid_suite")
    for package in packages:
        name, pinned, version = package.partition("=")
        if not NAME.fullmatch(name) or (pinned and not VERSION.fullmatch(version)):
            raise Invalid(
                f"{package!r} is no Debian package",
                hint="write its name, or name=version",
                code="invalid_package",
            )


def merged(*groups: Iterable[str]) -> tuple[str, ...]:
    """One sorted tuple of packages, each once; a pin stands for its bare name.

    Raises :class:`Invalid` when one is pinned to two versions.
    """
    versions: dict[str, str] = {}
    for package in (package for group in groups for package in group):
        name, _, version = package.partition("=")
        if version and versions.get(name, version) not in ("", version):
            raise Invalid(
                f"{name} is asked for as {versions[name]} and as {version}", code="conflicting_pins"
            )
        versions[name] = version or versions.get(name, "")
    return tuple(f"{name}={version}" if version else name for name, version in sorted(versions.items()))


def pins(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those packages that are pinned."""
    return dict(package.split("=", 1) for package in packages if "=" in package)


def preferences(pinned: Mapping[str, str]) -> str:
    """apt's preferences that keep to these versions, also for packages that nobody names."""
    return "".join(
        f"Package: {name}\nPin: version {version}\nPin-Priority: 1001\n\n"
        for name, version in sorted(pinned.items())
    )


def read_archives(text: str, installed: Mapping[str, str]) -> dict[str, str]:
    """Digests (``sha256:<hex>``) of the archives of the ``installed`` packages, from LIST_ARCHIVES's lines.

    What the archive no longer holds in that version is left out.
    """
    found: dict[str, str] = {}
    for line in text.splitlines():
        name, version, digest = line.split(" ")
        if installed.get(name) == version and re.fullmatch(r"[0-9a-f]{64}", digest):
            found[name] = f"sha256:{digest}"
    return dict(sorted(found.items()))


def explain(words: Sequence[str], suite: str, sources: Sequence[debian.Source]) -> NotFound | None:
    """What apt meant, if it could not find a package or a version; it is asked again for what there is."""
    for line in words:
        if match := _UNKNOWN.search(line):
            name = match[1] or match[2]
            return NotFound(
                f"Debian {suite} has no package {name!r}",
                code="package_unknown",
                hint="look for its name on packages.debian.org",
            )
        if match := _WRONG_VERSION.search(line):
            return unavailable(match[2], match[1], available(match[2], sources), suite)
    return None


def check_kept(pinned: Mapping[str, str], installed: Mapping[str, str], suite: str) -> None:
    """Raise :class:`NotFound` when a pinned package came in another version."""
    for name, version in pinned.items():
        if name in installed and installed[name] != version:
            raise unavailable(name, version, (installed[name],), suite)


def unavailable(name: str, wanted: str, there_is: Sequence[str], suite: str) -> NotFound:
    """The error of a pin that cannot be kept."""
    have = f"it has {' and '.join(there_is)}" if there_is else "it has no such package any more"
    return NotFound(
        f"the archive of Debian {suite} no longer has {name} {wanted}: {have}",
        code="package_version_gone",
        hint=f"pin what there is, or build afresh without the pin of {name}",
    )


def available(name: str, sources: Sequence[debian.Source]) -> tuple[str, ...]:
    """The versions of a package that ``sources`` offer, newest first. Fetches their lists: some seconds."""
    with tempfile.TemporaryDirectory(prefix="wardian-lists-") as directory:
        scratch = Path(directory)
        scratch.chmod(0o755)  # apt fetches as a user of its own
        (scratch / "sources.list").write_text("".join(source.line + "\n" for source in sources))
        for place in ("lists/partial", "archives/partial"):
            (scratch / place).mkdir(parents=True)
        (scratch / "status").touch()
        network = "".join(option + "\n" for option in debian.network_options())
        (scratch / "apt.conf").write_text(network)
        options = {
            "Dir::Etc::SourceList": scratch / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::State::Lists": scratch / "lists",
            "Dir::State::Status": scratch / "status",
            "Dir::Cache": scratch,
            "APT::Update::Post-Invoke-Success": "",
        }
        settings = [
            f"--config-file={scratch / 'apt.conf'}",
            *(f"-o{key}={value}" for key, value in options.items()),
        ]
        subprocess.run(["apt-get", *settings, "update"], capture_output=True, check=False)
        answer = subprocess.run(
            ["apt-cache", *settings, "madison", name], capture_output=True, text=True, check=False
        )
    found = [line.split("|")[1].strip() for line in answer.stdout.splitlines() if line.count("|") == 2]
    return tuple(dict.fromkeys(found))
