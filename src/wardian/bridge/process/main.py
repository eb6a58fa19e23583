"""The bridge's process. Started by the server, with one socket to it; all else it has is its directory.

It starts with the server's rights, reads its key, and gives the rights up before it hears a word: another
user, no capabilities, no network of its own. What it sends goes over connections that the server hands it.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import logging
import os
import resource
import signal
import socket
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvloop

from wardian.bridge.channel import Answer, Channel, Facts, told
from wardian.bridge.passes import Holder, Inspector
from wardian.bridge.process import exchange, search
from wardian.bridge.process.authority import Authority
from wardian.bridge.process.blobs import Blobs
from wardian.bridge.process.oauth import Tokens
from wardian.bridge.process.works import Link, Works
from wardian.bridge.values import sealed_of, sealed_values
from wardian.model.errors import Invalid, WardianError
from wardian.model.secret import Place
from wardian.vault import keys as vault_keys
from wardian.vault.keys import MasterKey
from wardian.vault.opening import reseal

KEY_FILE = Path("vault.key")
_CLONE_NEWNET = 0x40000000
_PR_SET_PDEATHSIG, _PR_SET_NAME, _PR_SET_NO_NEW_PRIVS = 1, 15, 38

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Orders:
    """What the server starts the bridge with. ``user``: a number, or None to stay who we are."""

    user: int | None
    may_make_key: bool
    key: str | None = field(default=None, repr=False)
    key_command: str | None = field(default=None, repr=False)
    previous: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, environment: Mapping[str, str], keys: int) -> Orders:
        """``keys`` is read to its end, and closed."""
        user = environment.get("WARDIAN_BRIDGE_UID")
        with open(keys, "rb") as file:
            key, command, previous = json.load(file)
        return cls(
            int(user) if user else None,
            environment.get("WARDIAN_VAULT_KEY_NEW") == "1",
            key,
            command,
            previous,
        )


def run(descriptor: int, keys: int, checkpoint: Callable[[str], None] = lambda name: None) -> None:
    """Serve until the server goes away. The working directory is the bridge's own."""
    logging.basicConfig(level=os.environ.get("WARDIAN_LOG", "warning").upper(), format="bridge: %(message)s")
    orders = Orders.read(os.environ, keys)
    try:
        key = _master_key(orders)
        previous = None if orders.previous is None else vault_keys.parse(orders.previous)
    except WardianError as error:
        socket.socket(fileno=descriptor).send(json.dumps({"n": 0, "ask": "failed", **told(error)}).encode())
        return
    trust = ssl.create_default_context()
    _warm_up()
    _give_up_rights(orders.user)
    uvloop.run(_Bridge(key, previous, trust, checkpoint).serve(socket.socket(fileno=descriptor)))


def _master_key(orders: Orders) -> MasterKey:
    if orders.key is not None:
        return vault_keys.parse(orders.key)
    if orders.key_command is not None:
        return vault_keys.from_command(orders.key_command)
    key = vault_keys.from_file(KEY_FILE, may_make=orders.may_make_key)
    if orders.user is not None:
        os.chown(KEY_FILE, orders.user, orders.user)
    return key


def _warm_up() -> None:
    """Load what would be loaded late: its files may be out of reach then."""
    import encodings.idna  # noqa: F401

    import cryptography.x509.extensions  # noqa: F401
    from joserfc import jwt  # noqa: F401

    "wardian.internal".encode("idna")
    "a form of secrets".encode("utf-16-le")


def _give_up_rights(user: int | None) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0 and libc.unshare(_CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "the bridge cannot leave the network")
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.prctl(_PR_SET_NAME, b"wardian-bridge", 0, 0, 0)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    os.umask(0o077)


class _Bridge:
    def __init__(
        self,
        key: MasterKey,
        previous: MasterKey | None,
        trust: ssl.SSLContext,
        checkpoint: Callable[[str], None],
    ) -> None:
        self._key, self._previous, self._trust, self._checkpoint = key, previous, trust, checkpoint
        self._authority, self._blobs = Authority(Path()), Blobs()
        self._works: Works | None = None
        self._tokens: Tokens | None = None
        self._streams: set[asyncio.Task[None]] = set()

    async def serve(self, sock: socket.socket) -> None:
        self._channel = Channel(sock, self._handle)
        self._channel.tell("hello", key=self._key.sealing.raw.hex(), ca=self._authority.pem, pid=os.getpid())
        await self._channel.closed.wait()

    async def _handle(self, what: str, facts: Facts, sock: socket.socket | None) -> Answer:
        match what:
            case "configure":
                self._configure(facts)
            case "stream":
                assert sock is not None
                self._begin(facts, sock)
            case "forget":
                self._blobs.forget(facts["effects"])
            case "search":
                assert sock is not None
                assert self._works is not None
                await search.search(self._works, sock)
            case "reseal":
                place = Place(facts["tenant"], facts["secret"], facts["version"])
                old = self._previous
                if old is None or facts["sealed"]["key_id"] not in (old.id, old.former_id):
                    raise Invalid("the previous vault key is not the one that sealed", code="vault_key_wrong")
                return sealed_values(reseal(old, self._key.sealing, place, sealed_of(facts["sealed"]))), None
            case "previous":
                old = self._previous
                return {"key_ids": [] if old is None else [old.id, old.former_id]}, None
            case _:
                raise Invalid(f"unknown: {what}")
        return {}, None

    def _configure(self, facts: Facts) -> None:
        if facts["trust"]:
            self._trust.load_verify_locations(cadata=facts["trust"])
        self._trust.set_alpn_protocols(["http/1.1"])
        self._works = Works(
            self._channel,
            self._key,
            self._authority,
            self._trust,
            Inspector(facts["token_key"]),
            self._blobs,
            self._checkpoint,
        )
        self._tokens = Tokens(self._works)

    def _begin(self, facts: Facts, sock: socket.socket) -> None:
        assert self._works is not None
        assert self._tokens is not None
        link = Link(Holder(**facts["holder"]), facts["host"], facts["port"], facts["base"], facts["tls"])
        task = asyncio.create_task(exchange.serve(self._works, self._tokens, link, sock))
        self._streams.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._streams.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Its text might be anything; its type and place are not.
            _log.error("a stream failed: %s", type(error).__name__, exc_info=_log.isEnabledFor(logging.DEBUG))
