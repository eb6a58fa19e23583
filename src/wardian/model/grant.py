"""A grant: who may have which secret put into which requests, and how. Values and their validation."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import Any
from urllib.parse import unquote

from wardian.model.egress import host_matches, pattern_of
from wardian.model.errors import Invalid

BRIDGE_HOST = "bridge.wardian.internal"
"""Where the bridge is, as programs in a sandbox see it."""

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
_METHOD = re.compile(r"[A-Z]{1,16}")
_QUERY_NAME = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_SCOPE = re.compile(r"[a-z0-9-]{1,32}")
PATTERNS_MAX = 64
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_FRAMING = frozenset(
    {"host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer", "expect"}
)


class Injection(StrEnum):
    """How a secret gets into a request."""

    BEARER = "bearer"
    HEADER = "header"  # `header`, with `template` around the value
    BASIC = "basic"  # `user` and the value, or a value that is user:password
    QUERY = "query"  # `query`: the name of the parameter
    OAUTH2 = "oauth2"  # the value is JSON: what gets an access token, which goes in as a bearer
    SIGV4 = "sigv4"  # the value is JSON: access_key_id, secret_access_key, perhaps session_token


class InDoubt(StrEnum):
    """What becomes of a request of which nobody knows whether it took effect."""

    OFF = "off"  # not kept in the ledger at all
    SAFE = "safe"  # sent again
    KEYED = "keyed"  # sent again, with the same Idempotency-Key
    HOLD = "hold"  # a human decides


class Admission(StrEnum):
    """What a program must show beside coming from the right sandbox."""

    TOKEN = "token"  # the run token
    LINK = "link"  # nothing more


@dataclass(frozen=True, slots=True)
class Injector:
    """``header``, ``template``: for ``header``; ``user``: for ``basic``; ``query``: for ``query``;
    ``region``, ``service``: for ``sigv4`` where the request does not say."""

    kind: Injection
    header: str = "Authorization"
    template: str = "{}"
    user: str | None = None
    query: str = ""
    region: str = ""
    service: str = ""

    def check(self) -> None:
        if self.kind is Injection.HEADER and (
            not HEADER.fullmatch(self.header) or self.header.lower() in _FRAMING
        ):
            raise Invalid(f"no header to inject: {self.header[:64]!r}", code="bad_grant")
        if self.template.count("{}") != 1 or not self.template.isprintable() or len(self.template) > 256:
            raise Invalid("a header's template has '{}' once, where the secret goes", code="bad_grant")
        if self.kind is Injection.QUERY and not _QUERY_NAME.fullmatch(self.query):
            raise Invalid("the query injector needs the name of a parameter", code="bad_grant")
        if self.user is not None and (":" in self.user or not self.user.isprintable()):
            raise Invalid("a user name has no ':' and no control characters", code="bad_grant")
        for text in (self.region, self.service):
            if text and not _SCOPE.fullmatch(text):
                raise Invalid(f"no AWS region or service: {text[:32]!r}", code="bad_grant")


@dataclass(frozen=True, slots=True)
class Grant:
    """One grant of a tenant's. ``template``, ``sandbox``, ``run``, ``agent``: None means any of the tenant's.

    ``host`` is a name, or ``*.`` and a name of two labels or more: every name below that, by interception
    only. ``methods`` empty means all; ``paths`` are patterns with ``*``. ``preset`` (openai,
    anthropic) has the variables set with which that vendor's SDK finds the bridge. ``intercept`` puts the
    bridge in the way of ``host`` itself.
    """

    id: str
    tenant: str
    name: str
    secret_id: str
    injector: Injector
    host: str
    created_at: int
    port: int = 443
    tls: bool = True
    methods: tuple[str, ...] = ()
    paths: tuple[str, ...] = ("/*",)
    template: str | None = None
    sandbox: str | None = None
    run: str | None = None
    agent: str | None = None
    admission: Admission = Admission.TOKEN
    in_doubt: InDoubt = InDoubt.HOLD
    preset: str | None = None
    intercept: bool = True

    def check(self) -> None:
        """Raise :class:`Invalid` for what cannot be meant."""
        if not NAME.fullmatch(self.name):
            raise Invalid("a grant's name is up to 63 of a-z, 0-9 and '-'", code="bad_grant")
        if pattern_of(self.host) != self.host:
            raise Invalid(f"a grant is for a host name, not {self.host[:64]!r}", code="bad_grant")
        if self.is_wildcard and self.host.count(".") < 2:
            raise Invalid(f"{self.host!r} has too many owners for one key", code="bad_grant")
        if self.is_wildcard and (self.preset is not None or not self.intercept):
            raise Invalid("a base URL leads to one host: a wildcard is for interception", code="bad_grant")
        if not 0 < self.port <= 0xFFFF:
            raise Invalid(f"{self.port} is no port", code="bad_grant")
        if len(self.methods) > PATTERNS_MAX or not 1 <= len(self.paths) <= PATTERNS_MAX:
            raise Invalid(f"1 to {PATTERNS_MAX} paths, up to {PATTERNS_MAX} methods", code="bad_grant")
        if not all(_METHOD.fullmatch(method) for method in self.methods):
            raise Invalid("methods are written in capital letters", code="bad_grant")
        if not all(path.startswith("/") and path.isascii() and path.isprintable() for path in self.paths):
            raise Invalid("a path begins with '/'", code="bad_grant")
        if self.preset not in (None, *PRESETS):
            raise Invalid(f"presets are {', '.join(PRESETS)}", code="bad_grant")
        self.injector.check()

    @property
    def is_wildcard(self) -> bool:
        return self.host.startswith("*.")

    def covers(self, host: str) -> bool:
        """Whether it was written for that name."""
        return host_matches(self.host, host)

    def allows(self, method: str, path: str) -> bool:
        """Whether a request with this method and path (without its query) falls under the grant."""
        if self.methods and method not in self.methods:
            return False
        return is_plain(path) and any(fnmatchcase(path, _literal(pattern)) for pattern in self.paths)

    def is_for(self, tenant: str, sandbox: str, template: str | None, run: str, agent: str | None) -> bool:
        return (
            self.tenant == tenant
            and self.sandbox in (None, sandbox)
            and self.template in (None, template)
            and self.run in (None, run)
            and self.agent in (None, agent)
        )


PRESETS: Mapping[str, Mapping[str, str]] = {
    "openai": {"OPENAI_BASE_URL": "{base}/v1", "OPENAI_API_KEY": "{token}"},
    "anthropic": {"ANTHROPIC_BASE_URL": "{base}", "ANTHROPIC_API_KEY": "{token}"},
}
"""The variables with which an unmodified SDK finds its vendor through the bridge."""


def is_plain(path: str) -> bool:
    """Whether a path means to every server what it says: no dot segments, no encoded separators."""
    if not path.startswith("/") or "\\" in path or "//" in path or ";" in path:
        return False
    segments = path.split("/")
    return not any(
        unquote(segment) in (".", "..") or any(c in "/\\\0" for c in unquote(segment)) for segment in segments
    )


def _literal(pattern: str) -> str:
    """Only ``*`` is special."""
    return pattern.replace("[", "[[]").replace("?", "[?]")


def injector_of(values: Mapping[str, Any]) -> Injector:
    """From JSON. Raises :class:`Invalid`."""
    known = {name: value for name, value in values.items() if name in Injector.__dataclass_fields__}
    if set(known) != set(values) or not all(isinstance(value, str | None) for value in known.values()):
        raise Invalid("unknown parts of an injector", code="bad_grant")
    try:
        return Injector(**known | {"kind": Injection(str(known.get("kind")))})
    except ValueError:
        raise Invalid(f"injectors are {', '.join(Injection)}", code="bad_grant") from None


def texts(value: object, what: str) -> Sequence[str]:
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise Invalid(f"{what} is a list of texts", code="bad_grant")
    return value
