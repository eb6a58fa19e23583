"""What `wardian agent freeze` and `edit` do: a sandbox of an agent's environment becomes its next one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from wardian.cli import processes, remote, terminal
from wardian.cli.envd import Envd
from wardian.cli.remote import Address

EDIT_S = 8 * 3600
"""How long somebody may edit."""


async def freeze(server: Address, name: str, said: Mapping[str, Any], sandbox: str | None) -> Any:
    """Make an agent's next version, of a running sandbox if one is named; what the API tells of it."""
    path = f"/wardian/agents/{quote(name, safe='')}"
    async with remote.connect(server) as there:
        body = dict(said)
        if sandbox is not None:
            found = (await there.sandbox(sandbox))["sandboxID"]
            kept = (await there.call("POST", f"/sandboxes/{found}/snapshots", body={})).json()
            body["environment"] = kept["snapshotID"]
        return (await there.call("PUT", path, body=body)).json()


async def begin(server: Address, name: str) -> str:
    """A sandbox that is an agent's present environment; its id."""
    async with remote.connect(server) as there:
        told = (await there.call("GET", f"/wardian/agents/{quote(name, safe='')}")).json()
        present = next(each for each in told["versions"] if each["version"] == told["version"])
        body = {
            "templateID": present["environment"],
            "timeout": EDIT_S,
            "metadata": {"wardian.edits": told["name"]},
        }
        return str((await there.call("POST", "/sandboxes", body=body)).json()["sandboxID"])


async def work(server: Address, sandbox: str, command: str | None) -> int:
    """Let somebody, or a command, work in a sandbox; how that ended."""
    async with remote.connect(server) as there:
        envd = Envd(there, await there.sandbox(sandbox), None)
        if command is not None:
            return await processes.execute(envd, processes.Command(["/bin/bash", "-l", "-c", command]))
        variables = {"TERM": os.environ.get("TERM", "xterm-256color"), "LANG": "C.UTF-8"}
        size = terminal.size() if os.isatty(0) else (80, 24)
        shell = processes.Command(["/bin/bash", "-i", "-l"], env=variables, size=size)
        return await terminal.attach(envd, shell)


__all__ = ["begin", "freeze", "work"]
