"""Puts a secret into a request, and takes out whatever stood where it goes."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote, unquote

from wardian.bridge.process import sigv4
from wardian.model.errors import WardianError
from wardian.model.grant import Injection, Injector

Headers = Sequence[tuple[str, str]]

CREDENTIALS = frozenset(
    {"authorization", "x-api-key", "api-key", "x-amz-security-token", "proxy-authorization", "wardian-token"}
)
"""Headers in which programs show credentials: none of theirs leaves the bridge."""


class BadSecret(WardianError):
    """The secret is not of the form that its grant's injector needs."""

    code = "secret_unfit"


@dataclass(frozen=True, slots=True)
class Injected:
    """What is sent. ``hidden``: every form of the secret that an upstream might send back."""

    headers: Headers
    target: str
    hidden: Sequence[bytes] = field(repr=False)
    chunks: sigv4.Chunks | None = None


def token_in(headers: Headers, target: str, injector_query: str | None = None) -> str:
    """The run token, wherever this program's kind of client shows a credential."""
    for name, value in headers:
        name = name.lower()
        if name == "authorization":
            scheme, _, text = value.partition(" ")
            if scheme.lower() in ("bearer", "token"):
                return text.strip()
            if scheme.lower() == "basic":
                return _password(text)
        elif name in CREDENTIALS:
            return value.strip()
    for part in target.partition("?")[2].split("&"):
        name, _, value = part.partition("=")
        if name in ("key", "api_key", "token", injector_query):
            return unquote(value)
    return ""


def scheme_of(headers: Headers, name: str) -> str:
    return next((value for each, value in headers if each.lower() == name), "")


def inject(
    injector: Injector,
    secret: bytes,
    method: str,
    target: str,
    headers: Headers,
    *,
    body_digest: str | None = None,
    token: str = "",
) -> Injected:
    """``secret`` is the value, or of OAuth2 the access token; ``token`` the run token, which stays behind.

    Raises :class:`BadSecret`.
    """
    own = {injector.header.lower()} if injector.kind is Injection.HEADER else set()
    kept = [(name, value) for name, value in headers if name.lower() not in CREDENTIALS | own]
    target = _without(target, injector.query, token)
    match injector.kind:
        case Injection.BEARER | Injection.OAUTH2:
            text = _line(secret)
            return Injected([*kept, ("authorization", f"Bearer {text}")], target, [secret])
        case Injection.HEADER:
            value = injector.template.replace("{}", _line(secret))
            return Injected([*kept, (injector.header, value)], target, [secret])
        case Injection.BASIC:
            pair = secret if injector.user is None else injector.user.encode() + b":" + secret
            coded = base64.b64encode(pair)
            basic = ("authorization", f"Basic {coded.decode()}")
            password = pair.partition(b":")[2]
            return Injected([*kept, basic], target, [password, coded])
        case Injection.QUERY:
            coded_text = quote(_line(secret), safe="")
            joint = "&" if "?" in target else "?"
            return Injected(
                kept, f"{target}{joint}{injector.query}={coded_text}", [secret, coded_text.encode()]
            )
        case Injection.SIGV4:
            return _sigv4(injector, secret, method, target, headers, kept, body_digest)


def _sigv4(
    injector: Injector,
    secret: bytes,
    method: str,
    target: str,
    headers: Headers,
    kept: Headers,
    body_digest: str | None,
) -> Injected:
    told = parsed(secret, "access_key_id", "secret_access_key")
    keys = sigv4.Keys(told["access_key_id"], told["secret_access_key"], told.get("session_token"))
    inside = sigv4.scope_in(scheme_of(headers, "authorization"))
    scope = inside or (injector.region, injector.service)
    if not all(scope):
        raise BadSecret("the request names no AWS region and service, nor does its grant")
    signed = sigv4.sign(keys, scope, method, target, kept, body_digest)
    hidden = [keys.secret_access_key.encode(), (keys.session_token or "").encode()]
    return Injected(signed.headers, target, hidden, signed.chunks)


def parsed(secret: bytes, *wanted: str) -> dict[str, str]:
    """A secret that is a JSON object of texts. Raises :class:`BadSecret`, without a word of it."""
    try:
        told = json.loads(secret)
        if not isinstance(told, dict) or not all(isinstance(told[name], str) for name in wanted):
            raise ValueError
    except (ValueError, KeyError, RecursionError):
        raise BadSecret(f"the secret must be a JSON object with {', '.join(wanted)}") from None
    return {str(name): value for name, value in told.items() if isinstance(value, str)}


def _line(secret: bytes) -> str:
    """Fit for a header: no control characters."""
    try:
        text = secret.decode("ascii")
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable() or text != text.strip():
        raise BadSecret("the secret cannot stand in a header: it has spaces around it or special characters")
    return text


def _password(coded: str) -> str:
    try:
        return base64.b64decode(coded, validate=True).decode().partition(":")[2]
    except ValueError:
        return ""


def _without(target: str, name: str, token: str) -> str:
    """Without the parameter of that name, and without the run token wherever it stands."""
    path, _, query = target.partition("?")
    pairs = [(part, *part.partition("=")[::2]) for part in query.split("&") if part]
    kept = [
        part for part, key, value in pairs if key != (name or None) and (not token or unquote(value) != token)
    ]
    return f"{path}?{'&'.join(kept)}" if kept else path
