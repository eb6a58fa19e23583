"""What machines stand on here: which runsc, driven how, on what CPU."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

from wardian.isolation.gvisor.profile import OLDEST, Profile, choose_profile, release_date
from wardian.isolation.host.substrate import Substrate, digest_of, file_identity, this_cpu
from wardian.model.errors import Kind, WardianError


class SubstrateUnusable(WardianError):
    """There is no runsc we can use."""

    kind, code = Kind.UNAVAILABLE, "runsc_unusable"


@dataclass(frozen=True, slots=True)
class Runsc:
    """The runsc that new machines get: what they will stand on, and how it is driven."""

    substrate: Substrate
    profile: Profile


_KNOWN: dict[tuple[int, ...], tuple[str, str]] = {}
"""Version and digest by file identity: both take a process or 50 MB of reading."""


class SubstrateReader:
    """Reads the substrate, again only when the binary has changed."""

    def __init__(self, runsc: Path, forced: Profile | None) -> None:
        self._runsc = runsc
        self._forced = forced

    async def read(self) -> Runsc:
        """What we would boot now. Raises :class:`SubstrateUnusable`."""
        identity = file_identity(self._runsc)
        if identity is None:
            raise SubstrateUnusable(f"no runsc at {self._runsc}", hint=INSTALL_HINT)
        if identity not in _KNOWN:
            _KNOWN[identity] = await self._read()
        version, digest = _KNOWN[identity]
        date = release_date(version)
        if date is not None and date < OLDEST:
            raise SubstrateUnusable(f"{version} is too old", hint=INSTALL_HINT)
        profile = self._forced or choose_profile(date)
        build = f"sha256:{digest}+{profile.layout}"
        return Runsc(Substrate(version=version, build=build, cpu_features=this_cpu()), profile)

    async def _read(self) -> tuple[str, str]:
        try:
            process = await asyncio.create_subprocess_exec(
                str(self._runsc),
                "--version",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
        except OSError as error:
            raise SubstrateUnusable(f"{self._runsc} cannot be run: {error}", hint=INSTALL_HINT) from error
        said, _ = await process.communicate()
        text = said.decode(errors="replace")
        version = text.splitlines()[0].strip() if text else ""
        if process.returncode or not version:
            raise SubstrateUnusable(f"{self._runsc} --version failed", hint=INSTALL_HINT)
        return version, await asyncio.to_thread(digest_of, self._runsc)


INSTALL_HINT = "apt-get install -t bookworm-backports runsc"


__all__ = ["INSTALL_HINT", "Runsc", "SubstrateReader", "SubstrateUnusable"]
