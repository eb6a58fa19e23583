"""What a sandbox gets so that programs in it find the bridge and trust it. Nothing of it is a secret that
would be worth anything elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from wardian.guest.guest import Exit, Guest, ProcessConfig
from wardian.model.errors import Unavailable
from wardian.model.grant import BRIDGE_HOST, PRESETS, Grant

TOKEN_FILE = "/run/wardian/token"
CA_FILE = "/usr/local/share/ca-certificates/wardian-bridge.crt"
BUNDLE = "/etc/ssl/certs/ca-certificates.crt"
_TRUST_VARIABLES: Mapping[str, str] = {
    "SSL_CERT_FILE": BUNDLE,
    "REQUESTS_CA_BUNDLE": BUNDLE,
    "CURL_CA_BUNDLE": BUNDLE,
    "GIT_SSL_CAINFO": BUNDLE,
    "NODE_EXTRA_CA_CERTS": CA_FILE,
}
_INSTALL = f"""
set -eu
mkdir -p /usr/local/share/ca-certificates /etc/ssl/certs
printf '%s' "$WARDIAN_CA" > {CA_FILE}
touch {BUNDLE}
if ! grep -qF "$(sed -n 2p {CA_FILE})" {BUNDLE}; then
    cat {CA_FILE} >> {BUNDLE}
fi
if command -v keytool >/dev/null 2>&1; then
    keytool -importcert -noprompt -trustcacerts -cacerts -storepass changeit \\
        -alias wardian-bridge -file {CA_FILE} >/dev/null 2>&1 || true
fi
"""


def environment_of(grants: Iterable[Grant], token: str) -> dict[str, str]:
    """The variables that every process of a sandbox with these grants starts with."""
    variables: dict[str, str] = {}
    for grant in grants:
        variables |= {"WARDIAN_TOKEN": token, "WARDIAN_BRIDGE_URL": f"http://{BRIDGE_HOST}"}
        if grant.intercept and grant.tls:
            variables |= _TRUST_VARIABLES
        base = f"http://{BRIDGE_HOST}/{grant.name}"
        for name, text in PRESETS.get(grant.preset or "", {}).items():
            variables.setdefault(name, text.format(base=base, token=token))
    return variables


async def trust(guest: Guest, ca: str) -> None:
    """Put our authority among those that programs inside trust. Does nothing the second time.

    Raises :class:`Unavailable` when the sandbox's files do not let us.
    """
    config = ProcessConfig(
        cmd="/bin/sh", args=("-c", _INSTALL), envs={"WARDIAN_CA": ca, "PATH": _PATH}, cwd="/"
    )
    process = await guest.exec(config, user="root")
    async for event in process.subscribe():
        if isinstance(event, Exit) and event.exit_code != 0:
            raise Unavailable(
                "the bridge's certificate cannot be put into this sandbox", code="ca_not_installed"
            )


_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
