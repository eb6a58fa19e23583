"""OAuth2: gets access tokens for a secret, and renews them, so that neither is ever inside a sandbox.

The secret is JSON: ``token_url``, ``client_id``, ``client_secret``, and perhaps ``refresh_token``, ``scope``,
``audience``. Whoever asks while a token is on its way waits for that one.
"""

from __future__ import annotations

import asyncio
import json
import time
from base64 import b64encode
from dataclasses import dataclass, field
from urllib.parse import quote, urlencode, urlsplit

import h11

from wardian.bridge.passes import Holder
from wardian.bridge.process.inject import BadSecret, parsed
from wardian.bridge.process.works import Wire, Works
from wardian.bridge.values import place_values, sealed_values
from wardian.model.errors import Unavailable
from wardian.model.secret import Place
from wardian.vault.seal import seal

ANSWER_MAX = 64 * 1024
ANSWER_S = 30.0
EARLY_S = 60.0
DEFAULT_LIFETIME_S = 300.0
TOKENS_MAX = 256


@dataclass(frozen=True, slots=True)
class _Token:
    value: bytes = field(repr=False)
    until: float  # of the monotonic clock


class Tokens:
    """Access tokens by secret."""

    def __init__(self, works: Works) -> None:
        self._works = works
        self._known: dict[str, tuple[int, _Token]] = {}
        self._under_way: dict[str, asyncio.Task[bytes]] = {}

    async def access(self, holder: Holder, place: Place) -> bytes:
        """A token that is good for a while. Raises :class:`BadSecret`, :class:`Unavailable`."""
        version, token = self._known.get(place.secret_id, (0, _Token(b"", 0)))
        if version >= place.version and time.monotonic() < token.until:
            return token.value
        task = self._under_way.get(place.secret_id)
        if task is None:
            task = asyncio.create_task(self._renew(holder, place))
            self._under_way[place.secret_id] = task
            task.add_done_callback(lambda _: self._under_way.pop(place.secret_id, None))
        return await asyncio.shield(task)

    def forget(self, place: Place) -> None:
        """The upstream did not take it."""
        self._known.pop(place.secret_id, None)

    async def _renew(self, holder: Holder, place: Place) -> bytes:
        told = parsed(await self._works.value(place), "token_url", "client_id", "client_secret")
        answer = await self._post(holder, told)
        token = answer.get("access_token")
        if not isinstance(token, str) or not token:
            raise Unavailable("the token endpoint gave no access token", code="oauth_failed")
        lifetime = answer.get("expires_in")
        seconds = float(lifetime) if isinstance(lifetime, int | float) else DEFAULT_LIFETIME_S
        version = place.version
        renewed = answer.get("refresh_token")
        if isinstance(renewed, str) and renewed not in ("", told.get("refresh_token")):
            version = await self._keep(place, json.dumps({**told, "refresh_token": renewed}).encode())
        if len(self._known) >= TOKENS_MAX:
            self._known.clear()
        until = time.monotonic() + max(seconds - EARLY_S, seconds / 2)
        self._known[place.secret_id] = (version, _Token(token.encode(), until))
        return token.encode()

    async def _keep(self, place: Place, value: bytes) -> int:
        """A refresh token that replaces the last one: lost, it would lock its owner out."""
        following = Place(place.tenant, place.secret_id, place.version + 1)
        sealed = seal(self._works.key.sealing, following, value)
        told, _ = await self._works.channel.ask(
            "renewed", **place_values(place), sealed=sealed_values(sealed)
        )
        version: int = told["version"]
        return version

    async def _post(self, holder: Holder, told: dict[str, str]) -> dict[str, object]:
        url = urlsplit(told["token_url"])
        if url.scheme not in ("https", "http") or not url.hostname or url.username:
            raise BadSecret("token_url is no https URL")
        tls = url.scheme == "https"
        form = {"grant_type": "client_credentials"}
        if told.get("refresh_token"):
            form = {"grant_type": "refresh_token", "refresh_token": told["refresh_token"]}
        form |= {name: told[name] for name in ("scope", "audience") if told.get(name)}
        pair = f"{quote(told['client_id'], safe='')}:{quote(told['client_secret'], safe='')}"
        body = urlencode(form).encode()
        request = h11.Request(
            method="POST",
            target=(url.path or "/") + (f"?{url.query}" if url.query else ""),
            headers=[
                ("host", url.netloc),
                ("authorization", f"Basic {b64encode(pair.encode()).decode()}"),
                ("content-type", "application/x-www-form-urlencoded"),
                ("accept", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ],
        )
        wire = await self._works.dial(holder, url.hostname, url.port or (443 if tls else 80), tls=tls)
        try:
            async with asyncio.timeout(ANSWER_S):
                return await _ask(wire, request, body)
        except (OSError, TimeoutError, h11.RemoteProtocolError):
            raise Unavailable("the token endpoint did not answer", code="oauth_failed") from None
        finally:
            wire.close()


async def _ask(wire: Wire, request: h11.Request, body: bytes) -> dict[str, object]:
    conn = h11.Connection(h11.CLIENT)
    await wire.write(conn.send(request))
    await wire.write(conn.send(h11.Data(body)))
    conn.send(h11.EndOfMessage())
    status, content = 0, b""
    while True:
        event = conn.next_event()
        if event is h11.NEED_DATA:
            conn.receive_data(await wire.read())
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            content += event.data
            if len(content) > ANSWER_MAX:
                raise Unavailable("the token endpoint says too much", code="oauth_failed")
        elif isinstance(event, h11.EndOfMessage | h11.ConnectionClosed):
            break
    if status != 200:
        raise Unavailable(
            f"the token endpoint answered {status}", code="oauth_failed", hint="look at the secret's parts"
        )
    try:
        told = json.loads(content)
    except (ValueError, RecursionError):
        told = None
    if not isinstance(told, dict):
        raise Unavailable("the token endpoint's answer is not JSON", code="oauth_failed")
    return told
