"""What clients send, checked: the request bodies of the protocol.

What is not supported is refused, never ignored. That includes keys that this version has never heard of: new
SDKs send what their users asked for, and who asks for something must get it or be told. An unknown key is let
pass only when its value says nothing (null, false, or empty).
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any

from pydantic import Field

from wardian.api.e2b.body import Body, OfOneSize, template_reference
from wardian.api.e2b.network import Network, SealText
from wardian.model.errors import Invalid, Unsupported
from wardian.model.isolation import Wanted, isolation_of
from wardian.model.sandbox import OnTimeout, SandboxSpec
from wardian.model.volume import VolumeMount, checked_mounts

PAIRS_MAX = 512
PAIRS_BYTES_MAX = 256 * 1024
FORKS_MAX = 100
MCP_BYTES_MAX = 256 * 1024
REFRESH_S_MAX = 3600

V1_TIMEOUT_S = 15
"""The first version's default, as its clients (which always say what they want) were promised."""
TIMEOUT_S = 300

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._/-]{0,126}[a-z0-9])?(?::[a-z0-9][a-z0-9._-]{0,62})?")


class AutoResume(Body):
    enabled: bool = False


class Mount(Body):
    name: str
    path: str


class NewSandbox(OfOneSize):
    """A request for a sandbox, of either version; only the first has ``secure``."""

    templateID: Annotated[str, Field(min_length=1, max_length=256)]
    timeout: int | None = None
    autoPause: bool | None = None
    autoPauseMemory: bool | None = None
    autoResume: AutoResume | None = None
    secure: bool | None = None
    allow_internet_access: bool | None = None
    network: Network | None = None
    metadata: dict[str, str] | None = None
    envVars: dict[str, str] | None = None
    mcp: dict[str, Any] | None = None
    """What the client will tell the gateway, which it starts itself by a command. Perhaps with credentials in
    it, so it is not kept."""
    iam: dict[str, Any] | None = None
    volumeMounts: list[Mount] | None = None
    isolation: str | None = None  # ours; clients that do not know it have the header

    def spec(self, *, timeout_s: int, idempotency_key: str | None, seal: SealText) -> SandboxSpec:
        """What is asked for, in our words. Raises :class:`Invalid` or :class:`Unsupported`."""
        self._refuse_unsupported()
        network = self.network or Network()
        metadata, env = self.metadata or {}, self.envVars or {}
        _check_pairs("metadata", metadata)
        _check_pairs("envVars", env)
        if any(not name or "=" in name or "\0" in name + value for name, value in env.items()):
            raise Invalid(
                "envVars: a name is not empty and has no '=', and nothing has a NUL", code="bad_env"
            )
        internet = self.allow_internet_access is not False
        return SandboxSpec(
            template=template_reference(self.templateID),
            timeout_s=timeout_s,
            metadata=metadata,
            env=env,
            on_timeout=OnTimeout.PAUSE if self.autoPause else OnTimeout.KILL,
            pause_memory=self.autoPauseMemory is not False,
            auto_resume=self.autoResume is not None and self.autoResume.enabled,
            allow_internet=internet,
            secure=self.secure is not False,
            allow_public_traffic=network.allowPublicTraffic is not False,
            mask_request_host=network.checked_mask(),
            https_ports=network.checked_https_ports(),
            egress=network.rules_of(internet=internet, seal=seal),
            volume_mounts=checked_mounts(
                tuple(VolumeMount(each.name, each.path) for each in self.volumeMounts or ())
            ),
            isolation=Wanted(None if self.isolation is None else isolation_of(self.isolation)),
            idempotency_key=idempotency_key,
        )

    def _refuse_unsupported(self) -> None:
        if self.autoPauseMemory is False:
            if not self.autoPause:
                raise Invalid("autoPauseMemory: false needs autoPause", code="bad_lifecycle")
            if self.autoResume is not None and self.autoResume.enabled:
                raise Invalid(
                    "autoPauseMemory: false excludes autoResume: traffic never boots a sandbox",
                    code="bad_lifecycle",
                )
        if self.mcp and len(json.dumps(self.mcp)) > MCP_BYTES_MAX:
            raise Invalid(f"mcp: more than {MCP_BYTES_MAX} characters", code="too_large")
        if self.iam and self.iam.get("tokens"):
            raise Unsupported("workload identity tokens (iam) are not supported", code="iam_unsupported")


class ConnectSandbox(OfOneSize):
    timeout: int | None = None
    memory: bool | None = None  # false: boot anew from the files


class ResumedSandbox(ConnectSandbox):
    autoPause: bool | None = None


class PauseSandbox(Body):
    memory: bool | None = None  # false: keep the files alone
    requireHealthyGuest: bool | None = None


class NewTimeout(Body):
    timeout: int


class Refresh(Body):
    duration: Annotated[int, Field(ge=0, le=REFRESH_S_MAX)] | None = None


class Fork(OfOneSize):
    timeout: int | None = None
    count: Annotated[int, Field(ge=1, le=FORKS_MAX)] = 1
    speculative: bool = False
    """Wardian's own: hold what the clones would do outside until they are promoted."""


class NewSnapshot(Body):
    name: str | None = None
    memory: bool | None = None

    def checked_name(self) -> str | None:
        """The snapshot's name, or None. Raises :class:`Invalid`."""
        if not self.name:
            return None
        name = template_reference(self.name)
        if not _NAME.fullmatch(name):
            raise Invalid(
                f"invalid snapshot name {self.name[:64]!r}",
                code="bad_name",
                hint="lower-case letters, digits, '.', '_', '-' and '/', and perhaps a ':tag'",
            )
        return name


def _check_pairs(what: str, pairs: dict[str, str]) -> None:
    if len(pairs) > PAIRS_MAX:
        raise Invalid(f"{what}: more than {PAIRS_MAX} entries", code="too_many_entries")
    if sum(len(key) + len(value) for key, value in pairs.items()) > PAIRS_BYTES_MAX:
        raise Invalid(f"{what}: more than {PAIRS_BYTES_MAX} characters", code="too_large")
