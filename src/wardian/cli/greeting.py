"""What ``wardian serve`` says when it is ready: how to reach it, for a person or for a program."""

from __future__ import annotations

import json
import os
import sys

from rich.console import Console
from rich.text import Text

from wardian.app import App
from wardian.cli.listeners import Secure, port_of


def greet_program(url: str, app: App, secure: Secure | None) -> None:
    """One line of JSON, and all there is on standard output."""
    facts = {
        "url": url,
        "key": app.key,
        "domain": app.domain,
        "pid": os.getpid(),
        "isolation": app.drivers.usable[0].level,
    }
    if secure is not None:
        facts["https"] = f"https://api.{secure.domain}"
        facts["tls_port"] = port_of(secure.listener)
        facts["ca"] = str(secure.authority.certificate_path) if secure.authority else None
        facts["proxy"] = _proxy_url(url, secure)
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


def greet_person(url: str, app: App, secure: Secure | None) -> None:
    """The variables to set, there to be copied: unframed and unwrapped."""
    words = Text()
    words.append("Sandboxes at ", style="bold")
    words.append(url, style="bold cyan")
    if secure is not None:
        words.append(" and ", style="bold")
        words.append(f"https://api.{secure.domain}", style="bold cyan")
    words.append(f"\n{_summary(app)}\n\n", style="dim")
    words.append("For the E2B SDK, in any language:\n\n")
    _exports(words, E2B_API_URL=url, E2B_SANDBOX_URL=url, E2B_VOLUME_API_URL=url, E2B_API_KEY=app.key)
    if secure is not None:
        words.append("\nOr by name, with the ports of sandboxes at https://{port}-{id}.")
        words.append(f"{secure.domain}:\n\n")
        _exports(words, **_by_name(url, app, secure))
        words.append("\nNode reads NODE_EXTRA_CA_CERTS instead; docs/domains.md has every client.\n", "dim")
    words.append(
        "\nCtrl-C stops the server. Sandboxes live on; the next server takes them over.", style="dim"
    )
    Console(highlight=False).print(words, soft_wrap=True)


def _by_name(url: str, app: App, secure: Secure) -> dict[str, str]:
    said = {"E2B_DOMAIN": str(secure.domain), "E2B_API_KEY": app.key}
    if secure.authority is not None:
        said["SSL_CERT_FILE"] = str(secure.authority.certificate_path)
    if (proxy := _proxy_url(url, secure)) is not None:
        said["HTTPS_PROXY"] = proxy
    return said


def _exports(words: Text, **variables: str) -> None:
    for name, value in variables.items():
        words.append(f"  export {name}={value}\n", style="green")


def _proxy_url(url: str, secure: Secure) -> str | None:
    return None if secure.proxy is None else f"{url.rpartition(':')[0]}:{port_of(secure.proxy)}"


def _summary(app: App) -> str:
    kept, lost = len(app.taken_over.attached), len(app.taken_over.lost)
    walls = (f"{host.level} ({host.driver} {host.version})" for host in app.drivers.usable)
    parts = [f"isolation: {', '.join(walls)}"]
    if kept:
        parts.append(f"{kept} running {'sandbox' if kept == 1 else 'sandboxes'} taken over")
    if lost:
        parts.append(f"{lost} had died")
    return ", ".join(parts)
