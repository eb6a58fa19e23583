"""The settings of one server: read once, from what was given on the command line and then from ``WARDIAN_*``.

Nothing below this layer reads the environment; the composition root passes on what each part needs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from wardian.model.domain import Domain
from wardian.model.errors import Invalid

REPOSITORY = Path(__file__).resolve().parents[2]
PORT = 9273
"""The default: W-A-R-D on a telephone's keys."""
TLS_PORT = 8443
COMPRESS_AFTER_MIN_S = 60
DATABASE = "wardian.db"
"""The name of the database in a data directory."""

_REGISTRY = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,252}[a-z0-9])?(?::\d{1,5})?")

Network = IPv4Network | IPv6Network


class BadSetting(Invalid):
    code = "bad_setting"


@dataclass(frozen=True, slots=True)
class Settings:
    """Every choice that a server's operator has."""

    data_dir: Path
    """Database, snapshots, machines, logs and the local key. One server at a time uses it."""

    host: str = "127.0.0.1"
    port: int = PORT
    """0 lets the system choose."""

    domain: str | None = None
    """What names of sandbox ports end in: ``{port}-{id}.{domain}``, with the port that clients must add, if
    it is not that of the HTTPS listener. None: ``localhost`` with our own port, and no HTTPS."""

    tls: bool = True
    """Whether a domain is served over HTTPS by us. False: somebody in front of us does that."""

    tls_port: int = TLS_PORT
    """Where HTTPS is served, beside ``port``; 0 lets the system choose."""

    tls_cert: Path | None = None
    """A certificate chain (PEM) for the domain and all names below it. None: one of our own authority."""

    tls_key: Path | None = None
    """The key of ``tls_cert`` (PEM, unencrypted)."""

    proxy_port: int | None = None
    """Where an HTTP proxy leads to the domain, for clients that cannot resolve it. None: there is none."""

    cache_dir: Path | None = None
    """Where images are kept; None leaves it to ``wardian.images``."""

    programs: Path = REPOSITORY
    """The directory whose ``launcher/build`` and ``guest/build`` hold the native programs."""

    runsc: Path = Path("/usr/bin/runsc")

    qemu: Path = Path("/usr/bin/qemu-system-x86_64")

    kernel: Path | None = None
    """A kernel (``vmlinux`` or ``bzImage``) that microVMs boot instead of Debian's: see docs/isolation.md."""

    kernel_arguments: str = ""
    """Words for the command line of the kernel that microVMs boot."""

    drivers: tuple[str, ...] = ("gvisor", "qemu")
    """Which isolation drivers serve, of those that ``wardian doctor`` shows; the first of equals."""

    pool_hot: int = 2
    """Frozen machines with a template inside that always wait; up to eight times as many under demand."""

    pool_hot_of: Mapping[str, int] = field(default_factory=dict)
    """Another number than ``pool_hot`` for a template of the house, by its name."""

    pool_created: int = 1
    """Empty machines that always wait; up to four times as many under demand."""

    pool_memory_mib: int = 16384
    """What the bounds of all frozen machines that wait may add up to; they use a small part of it."""

    sandboxes_max: int = 1000
    """Per tenant, running and paused."""

    runs_at_once: int = 50
    """How many runs may work at a time; those that wait for something do not count."""

    worker_lease_s: int = 30
    """How long a worker of workflows is believed to be there after it said so."""

    runs_keep_days: int = 0
    """How long runs are kept after the last of their tree has ended. 0: for good."""

    run_logs_days: int = 30
    """How long the log of a run is kept after the run was removed. 0: for good."""

    runner_releases_keep: int = 0
    """How many releases of a runner are kept, the newest, beside those that something needs. 0: all."""

    engine_url: str | None = field(default=None, repr=False)
    """A Postgres database for the journal of runs: ``postgresql://USER:PASSWORD@HOST:PORT/DATABASE``. None: a
    SQLite file in the data directory."""

    timeout_max_hours: int = 24
    """The longest time a sandbox may ask for at once."""

    vault_key: str | None = field(default=None, repr=False)
    """The vault's master key, 32 bytes in hexadecimal or base64. None: a file in the data directory."""

    vault_key_command: str | None = field(default=None, repr=False)
    """What prints the vault's master key, instead."""

    vault_key_previous: str | None = field(default=None, repr=False)
    """The master key until now: what it sealed is sealed anew at the start."""

    effects_days: int = 30
    """How long effects that nothing will ask for again stay in the ledger."""

    effects_max: int = 100_000
    """How many effects of a tenant the ledger keeps, but for those that may be replayed or decided yet."""

    bridge_ca: Path | None = None
    """Certificates (PEM) that the bridge trusts in upstreams, beside the public authorities."""
    scan_canaries: Path | None = None
    """A file whose lines must be in no published snapshot or image, beside every tenant's own secrets."""

    snapshots_compress_after_s: int = 0
    """A snapshot that nobody used for so long is compressed: see docs/snapshots.md. 0: none ever is."""

    volume_size_gib: int = 10
    """How much one volume holds."""

    allowed_networks: tuple[Network, ...] = field(default=())
    """Private networks that sandboxes may reach all the same, although private ones are closed by default."""

    private_registries: tuple[str, ...] = field(default=())
    """Registries of container images (``host:port``) that builds may fetch from although they are not on the
    public internet; of those on this host's loopback, no TLS is asked."""

    @property
    def timeout_max_s(self) -> int:
        return self.timeout_max_hours * 3600

    @classmethod
    def load(cls, environment: Mapping[str, str] | None = None, **given: Any) -> Self:
        """What is ``given`` and not None, else ``WARDIAN_<NAME>``, else the default."""
        env = os.environ if environment is None else environment
        chosen = {name: value for name, value in given.items() if value is not None}
        for name, read in _READERS.items():
            text = env.get(f"WARDIAN_{name.upper()}", "")
            if name in chosen or not text:
                continue
            try:
                chosen[name] = read(text)
            except ValueError as error:
                raise BadSetting(f"WARDIAN_{name.upper()}: {error}") from None
        settings = cls(**chosen)
        settings._check()
        return settings

    def _check(self) -> None:
        for name, low, high in (
            ("port", 0, 65535),
            ("tls_port", 0, 65535),
            ("proxy_port", 0, 65535),
            ("pool_hot", 0, 1000),
            ("pool_created", 0, 1000),
            ("pool_memory_mib", 0, 1 << 30),
            ("sandboxes_max", 1, 100_000),
            ("runs_at_once", 1, 100_000),
            ("worker_lease_s", 1, 3600),
            ("runs_keep_days", 0, 36_500),
            ("run_logs_days", 0, 36_500),
            ("runner_releases_keep", 0, 1_000_000),
            ("timeout_max_hours", 1, 24 * 365),
            ("volume_size_gib", 1, 100_000),
            ("snapshots_compress_after_s", 0, 10 * 365 * 86_400),
            ("effects_days", 0, 36_500),
            ("effects_max", 0, 100_000_000),
        ):
            if getattr(self, name) is not None and not low <= getattr(self, name) <= high:
                raise BadSetting(f"{name} must be between {low} and {high}, not {getattr(self, name)}")
        if 0 < self.snapshots_compress_after_s < COMPRESS_AFTER_MIN_S:
            raise BadSetting(
                f"snapshots_compress_after_s must be at least {COMPRESS_AFTER_MIN_S}, or 0 for never",
                hint="whoever begins to restore one has as long to open its files",
            )
        for name, number in self.pool_hot_of.items():
            if not 0 <= number <= 1000:
                raise BadSetting(f"pool_hot_of must be between 0 and 1000, not {number} for {name!r}")
        if not self.drivers:
            raise BadSetting("drivers: one at least must serve")
        self._check_domain()

    def _check_domain(self) -> None:
        given = [name for name in ("tls_cert", "tls_key", "proxy_port") if getattr(self, name) is not None]
        if self.domain is not None:
            Domain.parse(self.domain)
        if given and (self.domain is None or not self.tls):
            raise BadSetting(f"{given[0]} is for a domain over TLS", hint="give --domain, without --no-tls")
        if (self.tls_cert is None) != (self.tls_key is None):
            raise BadSetting("tls_cert and tls_key belong together", hint="give both, or neither")


def _whole(text: str) -> int:
    if not text.strip().lstrip("-").isdecimal():
        raise ValueError(f"not a whole number: {text!r}")
    return int(text)


def _yes_or_no(text: str) -> bool:
    answers = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
    if text.strip().lower() not in answers:
        raise ValueError(f"neither yes nor no: {text!r}")
    return answers[text.strip().lower()]


def _numbers(text: str) -> Mapping[str, int]:
    """``name=3,other=0``."""
    pairs = (part.partition("=") for part in text.split(",") if part.strip())
    return {name.strip(): _whole(number) for name, _, number in pairs}


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))


def _networks(text: str) -> tuple[Network, ...]:
    return tuple(ip_network(part.strip()) for part in text.split(",") if part.strip())


def _postgres(text: str) -> str:
    """The address of a Postgres database. What is wrong with it is not shown: it may have a password."""
    try:
        url = urlsplit(text)
        whole = url.scheme in ("postgresql", "postgres") and len(url.path) > 1 and (url.port or 1) > 0
    except ValueError:
        whole = False
    if not whole:
        raise ValueError(
            "must be postgresql://USER:PASSWORD@HOST:PORT/DATABASE, special characters in it as %XX; without "
            "it the engine keeps a SQLite file"
        )
    return text


def _registries(text: str) -> tuple[str, ...]:
    found = [part.strip().lower() for part in text.split(",") if part.strip()]
    for each in found:
        if not _REGISTRY.fullmatch(each):
            raise ValueError(f"not host:port: {each!r}")
    return tuple(each if ":" in each else f"{each}:443" for each in found)


_READERS: Mapping[str, Any] = {
    "host": str,
    "port": _whole,
    "domain": str,
    "tls": _yes_or_no,
    "tls_port": _whole,
    "tls_cert": Path,
    "tls_key": Path,
    "proxy_port": _whole,
    "programs": Path,
    "runsc": Path,
    "qemu": Path,
    "kernel": Path,
    "kernel_arguments": str,
    "drivers": _names,
    "pool_hot": _whole,
    "pool_hot_of": _numbers,
    "pool_created": _whole,
    "pool_memory_mib": _whole,
    "sandboxes_max": _whole,
    "runs_at_once": _whole,
    "worker_lease_s": _whole,
    "runs_keep_days": _whole,
    "run_logs_days": _whole,
    "runner_releases_keep": _whole,
    "engine_url": _postgres,
    "timeout_max_hours": _whole,
    "allowed_networks": _networks,
    "private_registries": _registries,
    "vault_key": str,
    "vault_key_command": str,
    "vault_key_previous": str,
    "scan_canaries": Path,
    "snapshots_compress_after_s": _whole,
    "volume_size_gib": _whole,
    "bridge_ca": Path,
    "effects_days": _whole,
    "effects_max": _whole,
}
"""How each setting that the environment may give is read. ``WARDIAN_DATA`` and ``WARDIAN_CACHE`` concern
more than a server, and are read where they are used."""
