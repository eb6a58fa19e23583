"""The server that is shown, as a process of its own, and how it is talked to."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import httpx
from examples.demo.checks import DemoFailed

ROOT = Path(__file__).resolve().parents[2]
WARDIAN = str(ROOT / ".venv/bin/wardian")
STOP_S = 30
ENVIRONMENT = {"WARDIAN_ALLOWED_NETWORKS": "127.0.0.1/32"}
"""The model that is shown runs on this host, which sandboxes could not reach else."""


class Server:
    """`wardian serve` in a process of its own."""

    def __init__(self, data: Path) -> None:
        self._data = data
        self._log = (data / "server.log").open("ab")
        self._process = subprocess.Popen(
            [WARDIAN, "serve", "--port=0", f"--data={data}", "--json"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,  # Ctrl-C is for the demo, which then stops it in order
        )
        assert self._process.stdout is not None
        try:
            greeting = self._process.stdout.readline()
        except KeyboardInterrupt:
            self.stop(signal.SIGKILL)
            raise
        if not greeting:
            raise DemoFailed(f"the server did not start:\n{(data / 'server.log').read_text()}")
        said = json.loads(greeting)
        self.url, self.key, self.pid = said["url"], said["key"], self._process.pid

    @property
    def options(self) -> dict[str, Any]:
        """What points the SDK here, instead of environment variables."""
        return {"api_url": self.url, "sandbox_url": self.url, "api_key": self.key}

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """Its own API; the JSON that it answers."""
        headers = {"X-API-KEY": self.key}
        with httpx.Client(base_url=self.url, headers=headers, trust_env=False, timeout=60) as client:
            answer = client.request(method, path, json=body)
        if answer.is_error:
            raise DemoFailed(f"{method} {path}: {answer.text}")
        return answer.json() if answer.content else None

    def wardian(self, *words: str) -> Any:
        """A command of the command line, `agent freeze` for example; the JSON that it prints."""
        command = [WARDIAN, words[0], f"--data={self._data}", *words[1:], "--json"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise DemoFailed(f"wardian {' '.join(words)}: {done.stderr}")
        return json.loads(done.stdout)

    def stop(self, signo: signal.Signals) -> None:
        """Send it a signal and wait for its end."""
        self._process.send_signal(signo)
        self._process.wait(timeout=STOP_S)
        self._log.close()
