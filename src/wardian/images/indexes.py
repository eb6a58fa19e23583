"""The package indexes this host is set up for, as a build may use them: pip, uv, npm and apt.

Read from where each tool reads it: the environment, pip's and npm's files, apt's configuration. What a build
is given are *secrets*: files that lie under /run while it lasts, variables that its commands find, and hosts
that it may reach although sandboxes otherwise may not. Nothing of it is ever part of an image.
"""

from __future__ import annotations

import configparser
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from wardian.images import debian
from wardian.model.egress import GrantedHost

PLACE = "/run/wardian-build"
"""Where the files are, inside."""

LOOPBACK = "host.wardian-build.internal"
"""What a service on the host's own loopback is called inside."""

DEFAULTS = ("https://pypi.org", "https://files.pythonhosted.org", "https://registry.npmjs.org")
BUNDLES = (Path("/etc/ssl/certs/ca-certificates.crt"), Path("/etc/pki/tls/certs/ca-bundle.crt"))
_BUNDLE_VARIABLES = ("PIP_CERT", "REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
_CA_VARIABLES = (*_BUNDLE_VARIABLES, "GIT_SSL_CAINFO", "NODE_EXTRA_CA_CERTS")
_PROXY_VARIABLES = ("http_proxy", "https_proxy", "all_proxy")
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "timeout")
_PORTS = {"http": 80, "https": 443}
_APT_PROXY = re.compile(r'^(Acquire::https?::Proxy\S*) "(.+)";$', re.IGNORECASE)
_APT_FILE = re.compile(r"^Acquire::https?::(?:CaInfo|CaPath|SslCert|SslKey)\b", re.IGNORECASE)
_NPM_SETTING = re.compile(
    r"^\s*(registry|@[\w.-]+:registry|//\S+?:(?:_authToken|_auth|_password|username))\s*=\s*(\S+)\s*$",
    re.MULTILINE,
)
_NPM_VARIABLE = re.compile(r"\$\{(\w+)\}")


@dataclass(frozen=True, slots=True)
class Indexes:
    """``files`` by name below :data:`PLACE`, ``env`` for every command, ``hosts`` that may be reached.

    ``secrets`` are the passwords and tokens in all of that, by what they are for.
    """

    files: Mapping[str, bytes] = field(default_factory=dict, repr=False)
    env: Mapping[str, str] = field(default_factory=dict, repr=False)
    hosts: tuple[GrantedHost, ...] = ()
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)


def host_indexes(environment: Mapping[str, str] | None = None, *, home: Path | None = None) -> Indexes:
    """What this host uses. Blocks for a moment: apt is asked for its configuration."""
    env = os.environ if environment is None else environment
    return _Reader(env, home or Path.home(), debian.network_options(), debian.host_sources()).read()


class _Reader:
    def __init__(
        self,
        environment: Mapping[str, str],
        home: Path,
        apt_options: Sequence[str],
        apt_sources: Iterable[debian.Source],
    ) -> None:
        self._environment, self._home = environment, home
        self._apt_options, self._apt_sources = apt_options, apt_sources
        self._hosts: dict[tuple[str, int], GrantedHost] = {}
        self._env: dict[str, str] = {}
        self._files: dict[str, bytes] = {}
        self._secrets: dict[str, str] = {}

    def read(self) -> Indexes:
        for url in DEFAULTS:
            self._inner(url)
        self._bundle()
        self._proxies()
        self._pip()
        self._npm()
        self._apt()
        return Indexes(self._files, self._env, tuple(self._hosts.values()), self._secrets)

    def _inner(self, url: str) -> str:
        """Grant the host of a URL; the URL as it is to be used inside."""
        try:
            parts = urlsplit(url)
            port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError:
            return url
        host = parts.hostname
        if not host or not port:
            return url
        if secret := parts.password or parts.username:  # a token may stand alone
            self._secrets[f"the password for {host}:{port}"] = unquote(secret)
        if not _is_loopback(host):
            self._hosts[host, port] = GrantedHost(host, port)
            return url
        self._hosts[LOOPBACK, port] = GrantedHost(LOOPBACK, port, target=host)
        return urlunsplit(parts._replace(netloc=_netloc(parts, LOOPBACK, port)))

    def _bundle(self) -> None:
        """The certificates this host trusts: an index of one's own often has one of one's own."""
        named = [Path(self._environment[name]) for name in _BUNDLE_VARIABLES if self._environment.get(name)]
        for path in (*named, *BUNDLES):
            if path.is_file():
                self._files["ca.pem"] = path.read_bytes()
                self._env |= dict.fromkeys(_CA_VARIABLES, f"{PLACE}/ca.pem")
                return

    def _proxies(self) -> None:
        for name in _PROXY_VARIABLES:
            value = self._environment.get(name) or self._environment.get(name.upper())
            if value:
                inner = self._inner(value if "://" in value else f"http://{value}")
                self._env |= {name: inner, name.upper(): inner}
        without = self._environment.get("no_proxy") or self._environment.get("NO_PROXY")
        direct = f"{without},{LOOPBACK}" if without else LOOPBACK
        self._env |= {"no_proxy": direct, "NO_PROXY": direct}

    def _pip(self) -> None:
        for option, value in self._pip_options().items():
            inner = self._trusted if option == "trusted-host" else self._inner
            words = [inner(word) for word in value.split() if not word.startswith("file:")]
            if words:
                self._env[_variable(option)] = " ".join(words)
        index = self._environment.get("UV_DEFAULT_INDEX") or self._environment.get("UV_INDEX_URL")
        index = self._inner(index) if index else self._env.get("PIP_INDEX_URL")
        if index:
            self._env["UV_DEFAULT_INDEX"] = index
        if "PIP_EXTRA_INDEX_URL" in self._env:
            self._env["UV_INDEX"] = self._env["PIP_EXTRA_INDEX_URL"]

    def _trusted(self, word: str) -> str:
        """A host that pip asks no certificate of, as it is called inside."""
        host, colon, port = word.partition(":")
        return f"{LOOPBACK}{colon}{port}" if _is_loopback(host) else word

    def _pip_options(self) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for path in self._pip_files():
            parser = configparser.RawConfigParser()
            try:
                parser.read(path)
            except (configparser.Error, UnicodeDecodeError, OSError):
                continue
            for section in ("global", "install"):
                if parser.has_section(section):
                    found |= {
                        name: parser.get(section, name)
                        for name in _PIP_OPTIONS
                        if parser.has_option(section, name)
                    }
        given = {name: self._environment.get(_variable(name), "") for name in _PIP_OPTIONS}
        return {**found, **{name: value for name, value in given.items() if value}}

    def _pip_files(self) -> Iterator[Path]:
        config = self._environment.get("XDG_CONFIG_HOME")
        yield Path("/etc/xdg/pip/pip.conf")
        yield Path("/etc/pip.conf")
        yield self._home / ".pip" / "pip.conf"
        yield (Path(config) if config else self._home / ".config") / "pip" / "pip.conf"
        if named := self._environment.get("PIP_CONFIG_FILE"):
            yield Path(named)

    def _npm(self) -> None:
        registry = self._environment.get("NPM_CONFIG_REGISTRY") or self._environment.get(
            "npm_config_registry"
        )
        path = self._home / ".npmrc"
        settings = dict(_NPM_SETTING.findall(path.read_text(errors="replace"))) if path.is_file() else {}
        registry = registry or settings.pop("registry", None)
        if registry:
            self._env["NPM_CONFIG_REGISTRY"] = self._inner(registry)
        if registry or settings:  # what a project's lock says of them is of no use to anybody else
            self._env["NPM_CONFIG_OMIT_LOCKFILE_REGISTRY_RESOLVED"] = "true"
        lent = dict(self._npm_setting(*each, registry or "") for each in settings.items())
        if lent:  # as the settings of all users, so that an image's own come before them
            self._files["npmrc"] = "".join(f"{name}={value}\n" for name, value in lent.items()).encode()
            self._env["NPM_CONFIG_GLOBALCONFIG"] = f"{PLACE}/npmrc"

    def _npm_setting(self, name: str, value: str, registry: str) -> tuple[str, str]:
        """The registry of a scope, or what one is asked with (``//host/:_authToken``), for use inside."""
        value = _NPM_VARIABLE.sub(lambda match: self._environment.get(match[1], ""), value)
        if name.endswith(":registry"):
            return name, self._inner(value)
        place, _, what = name.rpartition(":")
        if what != "username":
            self._secrets[f"npm's {what} for {place.strip('/')}"] = value
        scheme = urlsplit(registry).scheme or "https"
        return f"{self._inner(f'{scheme}:{place}').removeprefix(f'{scheme}:')}:{what}", value

    def _apt(self) -> None:
        for source in self._apt_sources:
            self._inner(source.uri)
        lines = []
        for option in self._apt_options:
            proxy = _APT_PROXY.match(option)
            if proxy is not None and proxy[2] != "DIRECT":
                lines.append(f'{proxy[1]} "{self._inner(proxy[2])}";')
            elif not _APT_FILE.match(option):
                lines.append(option)
        if "ca.pem" in self._files:
            lines.append(f'Acquire::https::CaInfo "{PLACE}/ca.pem";')
        self._files["apt.conf"] = "".join(line + "\n" for line in lines).encode()
        self._env["APT_CONFIG"] = f"{PLACE}/apt.conf"


def _variable(option: str) -> str:
    return "PIP_" + option.upper().replace("-", "_")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _netloc(parts: SplitResult, host: str, port: int) -> str:
    user, at, _ = parts.netloc.rpartition("@")
    return f"{user}{at}{host}:{port}"
