"""The network settings of a sandbox: how clients say them, and how they are told."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from fastapi import APIRouter
from pydantic import Field

from wardian.api.e2b.body import Body
from wardian.api.e2b.context import Bound, Plane, SandboxId, Tenant
from wardian.model.egress import ALL_TRAFFIC, Egress, EgressMode, EgressProxy, denies_all, name_of, network_of
from wardian.model.errors import Invalid, Unsupported
from wardian.model.sandbox import SandboxSpec

router = APIRouter()

HTTPS_PORTS_MAX = 128
ENVD_PORT = 49983
CREDENTIAL_BYTES_MAX = 255
CA_CERT_BYTES_MAX = 8192
_HOST_MASK = re.compile(r"(?=.{1,253}\Z)([A-Za-z0-9.\-]|\$\{PORT\})+(:(\d{1,5}|\$\{PORT\}))?")
_ADDRESS = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\[\]:]+):(\d{1,5})")

SealText = Callable[[str, str], str]


class ProxyTls(Body):
    enabled: bool
    serverName: Annotated[str, Field(min_length=1, max_length=253)] | None = None
    caCert: str | None = None


class Proxy(Body):
    address: str
    username: str | None = None
    password: Annotated[str | None, Field(repr=False)] = None
    tls: ProxyTls | None = None

    def checked(self, seal: SealText) -> EgressProxy:
        """The proxy, its password sealed. Raises :class:`Invalid`."""
        match = _ADDRESS.fullmatch(self.address)
        host = match[1].strip("[]") if match else ""
        if match is None or not 0 < int(match[2]) <= 0xFFFF or not _is_host(host):
            raise Invalid(
                f"invalid egress proxy address {self.address[:64]!r}",
                code="bad_egress_proxy",
                hint="host:port",
            )
        for what, text in (("username", self.username), ("password", self.password)):
            if text is not None and not 0 < len(text.encode()) <= CREDENTIAL_BYTES_MAX:
                raise Invalid(
                    f"egressProxy.{what}: 1 to {CREDENTIAL_BYTES_MAX} bytes", code="bad_egress_proxy"
                )
        if self.password is not None and self.username is None:
            raise Invalid("egressProxy.password needs a username", code="bad_egress_proxy")
        tls = self.tls or ProxyTls(enabled=False)
        if not tls.enabled and (tls.serverName or tls.caCert):
            raise Invalid("egressProxy.tls: not enabled, and yet with options", code="bad_egress_proxy")
        if tls.caCert is not None and not 0 < len(tls.caCert.encode()) <= CA_CERT_BYTES_MAX:
            raise Invalid(f"egressProxy.tls.caCert: 1 to {CA_CERT_BYTES_MAX} bytes", code="bad_ca_cert")
        return EgressProxy(
            address=self.address,
            username=self.username,
            sealed_password=None if self.password is None else seal(self.password, self.address),
            tls=tls.enabled,
            server_name=tls.serverName,
            ca_cert=tls.caCert,
        )


class EgressBody(Body):
    """What may leave a sandbox: common to its creation and to a later change."""

    allowOut: list[str] | None = None
    denyOut: list[str] | None = None
    rules: dict[str, Any] | None = None
    egressProxy: Proxy | None = None
    dnsServers: list[str] | None = None
    egressRules: list[str] | None = None
    """Wardian's own: finer rules, as docs/egress.md says."""
    egress: Literal["none", "granted", "internet"] | None = None
    """Wardian's own: how wide. ``allow_internet_access`` cannot say it: every SDK sends that as true."""

    def rules_of(self, *, internet: bool, seal: SealText) -> Egress:
        """The rules, checked by themselves. Raises :class:`Invalid` or :class:`Unsupported`."""
        if any(rules for rules in (self.rules or {}).values()):
            raise Unsupported(
                "network.rules is not supported: here, headers come from the grant of a secret",
                code="network_rules_unsupported",
                hint="wardian secret set NAME; wardian grant add NAME --secret NAME --host HOST "
                "--inject header:HEADER --admission link; see docs/bridge.md",
            )
        egress = Egress(
            allow=tuple(self.allowOut or ()),
            deny=tuple(self.denyOut or ()),
            dns_servers=None if self.dnsServers is None else tuple(self.dnsServers),
            proxy=None if self.egressProxy is None else self.egressProxy.checked(seal),
            rules=tuple(self.egressRules or ()),
        )
        egress.check(internet=internet)
        return egress

    def mode(self, *, internet: bool | None) -> EgressMode | None:
        """How wide was asked for; None leaves it to the template and the key. Raises :class:`Invalid`."""
        asked = None if self.egress is None else EgressMode(self.egress)
        if internet is False:
            if asked is EgressMode.INTERNET:
                raise Invalid("allow_internet_access: false, and egress: internet", code="bad_egress")
            return asked or EgressMode.NONE
        return asked


class Network(EgressBody):
    allowPublicTraffic: bool | None = None
    maskRequestHost: str | None = None
    httpsPorts: list[int] | None = None

    def checked_mask(self) -> str | None:
        """The host to show to services inside. Raises :class:`Invalid`."""
        if self.maskRequestHost is not None and not _HOST_MASK.fullmatch(self.maskRequestHost):
            raise Invalid(f"invalid maskRequestHost {self.maskRequestHost[:64]!r}", code="bad_host_mask")
        return self.maskRequestHost

    def checked_https_ports(self) -> tuple[int, ...]:
        """The ports that speak TLS inside. Raises :class:`Invalid`."""
        ports = self.httpsPorts or []
        if len(ports) > HTTPS_PORTS_MAX:
            raise Invalid(f"httpsPorts: more than {HTTPS_PORTS_MAX} entries", code="too_many_entries")
        for port in ports:
            if not 0 < port <= 0xFFFF or port == ENVD_PORT:
                raise Invalid(f"httpsPorts: {port} is no port of yours", code="bad_https_port")
        return tuple(ports)


class NetworkUpdate(EgressBody):
    allow_internet_access: bool | None = None


def _is_host(text: str) -> bool:
    network = network_of(text)
    return name_of(text) is not None or (network is not None and "/" not in text)


@router.put("/sandboxes/{sandbox_id}/network", status_code=204)
async def update_network(
    plane: Plane, tenant: Tenant, bound: Bound, sandbox_id: SandboxId, body: NetworkUpdate | None = None
) -> None:
    """Replace everything that says what may leave a sandbox, running or paused.

    What is left out is cleared.
    """
    await plane.sandboxes.get(tenant, sandbox_id)  # an unknown one is said before a wrong body
    asked = body or NetworkUpdate()
    internet = asked.allow_internet_access is not False
    egress = asked.rules_of(internet=internet, seal=plane.seal)
    await plane.check_egress(egress)
    mode = asked.mode(internet=asked.allow_internet_access)
    await plane.sandboxes.set_network(tenant, sandbox_id, egress=egress, mode=mode, bound=bound)


def told_network(spec: SandboxSpec) -> dict[str, Any]:
    """``SandboxNetworkConfig``: the settings as they were set, without what is secret."""
    egress = spec.egress
    told: dict[str, Any] = {"allowPublicTraffic": spec.allow_public_traffic}
    if egress.allow:
        told["allowOut"] = list(egress.allow)
    if spec.egress_mode is EgressMode.GRANTED:
        told["egress"] = spec.egress_mode.value
    deny = list(egress.deny)
    if not spec.allow_internet and not any(denies_all(entry) for entry in deny):
        deny.append(ALL_TRAFFIC)
    if deny:
        told["denyOut"] = deny
    if egress.dns_servers is not None:
        told["dnsServers"] = list(egress.dns_servers)
    if egress.proxy is not None:
        told["egressProxy"] = _told_proxy(egress.proxy)
    if egress.rules:
        told["egressRules"] = list(egress.rules)
    if spec.mask_request_host:
        told["maskRequestHost"] = spec.mask_request_host
    if spec.https_ports:
        told["httpsPorts"] = list(spec.https_ports)
    return told


def _told_proxy(proxy: EgressProxy) -> dict[str, Any]:
    told: dict[str, Any] = {"address": proxy.address}
    if proxy.username is not None:
        told["username"] = proxy.username
    if proxy.tls:
        told["tls"] = {"enabled": True} | ({"serverName": proxy.server_name} if proxy.server_name else {})
    return told
